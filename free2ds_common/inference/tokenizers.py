"""The decoder's tokenizer, from `tokenizer.model` or `tokenizer.json`."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from free2ds_common.errors import StageError, first_line
from free2ds_common.inference.prompts import Tokenizer


class SentencePieceTokenizer:
    """Llama's `tokenizer.model`.

    LLaVA and MGM were trained with the ids that the sentencepiece library gives. transformers' converted tokenizer
    drops the dummy prefix of a text that begins with a space, as the text after the picture may.
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
        ids: list[int] = self._processor.encode(text)
        return ids


class FastTokenizer:
    """A `tokenizer.json`, for models without `tokenizer.model`."""

    def __init__(self, folder: Path) -> None:
        """Load the tokenizer of a model folder; raises as `transformers_tokenizer`."""
        self._tokenizer = transformers_tokenizer(folder)
        self.bos_token_id: int | None = self._tokenizer.bos_token_id

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        return ids


def transformers_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A model folder's tokenizer as transformers loads it.

    Raises:
        StageError: Its files are missing or broken.
    """
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises nothing narrower for a broken file
        raise _unreadable(folder, error) from error


def _unreadable(where: Path, error: Exception) -> StageError:
    return StageError(f"{where}: cannot be read as a tokenizer ({first_line(error)}). Copy the whole model folder.")


def load_tokenizer(folder: Path) -> Tokenizer:
    """A model folder's tokenizer.

    Raises:
        StageError: There is neither tokenizer.model nor tokenizer.json, or the file is broken.
    """
    if (folder / "tokenizer.model").is_file():
        return SentencePieceTokenizer(folder / "tokenizer.model")
    if (folder / "tokenizer.json").is_file():
        return FastTokenizer(folder)
    raise StageError(f"{folder}: no tokenizer.model or tokenizer.json. Copy the whole model folder.")
