"""The decoder's tokenizer, from whichever file the model folder has."""

from pathlib import Path
from typing import Any

from free2ds_common.errors import StageError, first_line
from free2ds_common.inference.prompts import Tokenizer


class SentencePieceTokenizer:
    """Llama's own `tokenizer.model`.

    transformers' converted tokenizer drops the dummy prefix of a chunk that begins with a space, which the chunk after
    the picture may do; the sentencepiece library gives the ids that LLaVA and MGM were trained with.
    """

    def __init__(self, path: Path) -> None:
        """Load `tokenizer.model`.

        Raises:
            StageError: It cannot be read.
        """
        import sentencepiece

        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise _unreadable(path, error) from error
        self.bos_token_id: int | None = self._processor.bos_id()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""
        return self._processor.encode(text)


class FastTokenizer:
    """A `tokenizer.json`, for models without `tokenizer.model`."""

    def __init__(self, folder: Path) -> None:
        """Load the tokenizer of a model folder; raises as `transformers_tokenizer`."""
        self._tokenizer = transformers_tokenizer(folder)
        self.bos_token_id: int | None = self._tokenizer.bos_token_id

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""
        return self._tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids


def transformers_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder as transformers loads it.

    Raises:
        StageError: Its files are missing or broken.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises nothing narrower for a broken file
        raise _unreadable(folder, error) from error


def _unreadable(where: Path, error: Exception) -> StageError:
    return StageError(f"{where}: cannot be read as a tokenizer ({first_line(error)}). Copy the whole model folder.")


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder.

    Raises:
        StageError: There is neither tokenizer.model nor tokenizer.json, or the file is broken.
    """
    if (folder / "tokenizer.model").is_file():
        return SentencePieceTokenizer(folder / "tokenizer.model")
    if (folder / "tokenizer.json").is_file():
        return FastTokenizer(folder)
    raise StageError(f"{folder}: no tokenizer.model or tokenizer.json. Copy the whole model folder.")
