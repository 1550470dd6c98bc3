"""The decoder's tokenizer, from `tokenizer.model` or `tokenizer.json`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Regex, decoders, normalizers
from tokenizers import Tokenizer as JsonTokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from free2ds_common.errors import StageError, first_line
from free2ds_common.inference.model_folder import read_settings
from free2ds_common.inference.prompts import INSTRUCTION, Tokenizer, prompt_text
from free2ds_common.inference.unknown_words import UnknownWords

# Any of these sets makes a tokenizer. Without one, transformers invents a vocabulary of special tokens.
_FILES = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("vocab.txt",),
    ("vocab.json", "merges.txt"),
    ("sentencepiece.bpe.model",),
    ("spiece.model",),
)
# Rows of an embedding that no token needs: it is padded to a multiple of 64 or 128, or has room for some more.
_SPARE_ROWS, _SPARE_SHARE = 128, 0.1
# sentencepiece's word marker.
_MARKER = "▁"
# Decoders whose sentencepiece models put a word marker in front of a text.
_MARKED = ("llama", "mistral", "mixtral")


class LoadedTokenizer(Tokenizer, Protocol):
    """A tokenizer with what the loaders check."""

    unk_token_id: int | None
    eos_token_id: int | None
    size: int

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of generated tokens, without control tokens."""


class SentencePieceTokenizer:
    """Llama's `tokenizer.model`.

    LLaVA and MGM were trained with the ids that the sentencepiece library gives. transformers' converted tokenizer
    drops the dummy prefix of a text that begins with a space, as the text after the picture may.

    Attributes:
        size: Rows of an embedding that it needs.
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
        self.bos_token_id: int | None = _or_none(self._processor.bos_id())
        self.eos_token_id: int | None = _or_none(self._processor.eos_id())
        self.unk_token_id: int | None = _or_none(self._processor.unk_id())
        self.size: int = self._processor.vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""
        ids: list[int] = self._processor.encode(text)
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of generated tokens; those beyond the vocabulary are rows that no token needs."""
        text: str = self._processor.decode([token for token in tokens if token < self.size])
        return text


def _or_none(token: int) -> int | None:
    return None if token < 0 else token


class ConvertedTokenizer:
    """A `tokenizer.json` that was made from a `tokenizer.model` with a dummy prefix, Llama's; gives the same ids.

    The conversions of the various transformers releases differ in the word marker in front of a text: always there,
    only where the text begins with no space, or never. The vocabulary and its merges are the same in all of them. So
    they are taken, and the text is prepared here as sentencepiece does it.

    Attributes:
        size: Rows of an embedding that it needs.
    """

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        """Take the vocabulary.

        Args:
            folder: The model folder, for the special tokens' names.
            content: Its `tokenizer.json`.
        """
        # Without added tokens: those written out in a question are plain text to sentencepiece.
        bare = {**content, "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None}
        try:
            self._tokenizer = JsonTokenizer.from_str(json.dumps(bare))
            self._tokenizer.normalizer = normalizers.Sequence(_sentencepiece_rules(content))
            self._tokenizer.decoder = decoders.Sequence(
                [decoders.Replace(_MARKER, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
            )
        except Exception as error:  # the tokenizers library raises nothing narrower
            raise _unreadable(folder, error) from error
        vocabulary = self._tokenizer.get_vocab()
        self.size = max(vocabulary.values(), default=-1) + 1
        bos = _special_token(folder, "bos_token", "<s>")
        if bos not in vocabulary:
            raise StageError(f"{folder}: tokenizer.json has no {bos}, which begins every prompt of a Llama.")
        self.bos_token_id: int | None = vocabulary[bos]
        self.eos_token_id = vocabulary.get(_special_token(folder, "eos_token", "</s>"))
        self.unk_token_id = vocabulary.get(_special_token(folder, "unk_token", "<unk>"))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of generated tokens, without control tokens."""
        control = (self.bos_token_id, self.eos_token_id)
        text: str = self._tokenizer.decode([token for token in tokens if token not in control])
        return text


def _sentencepiece_rules(content: dict[str, Any]) -> list[normalizers.Normalizer]:
    """What sentencepiece does to a text before it looks for tokens.

    Llama's model leaves the text as it is. A model with a table of characters was trained with the library's defaults,
    which also strip blanks and make one of several.
    """
    rules: list[normalizers.Normalizer] = []
    given = content.get("normalizer") or {}
    for rule in given.get("normalizers", [given]):
        if rule.get("type") == "Precompiled":
            # The library's way to make a rule of its JSON.
            table = JsonTokenizer.from_str(json.dumps({**_EMPTY, "normalizer": rule})).normalizer
            rules += [table, normalizers.Strip(), normalizers.Replace(Regex(" +"), " ")]
    return [*rules, normalizers.Prepend(_MARKER), normalizers.Replace(" ", _MARKER)]


_EMPTY = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}


def _special_token(folder: Path, name: str, default: str) -> str:
    """The text of a special token; settings files write it as text or as an object."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / file).is_file():
            found = read_settings(folder / file).get(name)
            if isinstance(found, dict):
                found = found.get("content")
            if isinstance(found, str):
                return found
    return default


class FastTokenizer:
    """A `tokenizer.json` as transformers reads it, for models that never had a `tokenizer.model`.

    Attributes:
        size: Rows of an embedding that it needs.
    """

    def __init__(self, folder: Path) -> None:
        """Load the tokenizer of a model folder; raises as `transformers_tokenizer`."""
        self._tokenizer = transformers_tokenizer(folder)
        self.bos_token_id: int | None = self._tokenizer.bos_token_id
        self.eos_token_id: int | None = self._tokenizer.eos_token_id
        self.unk_token_id: int | None = self._tokenizer.unk_token_id
        self.size = vocabulary_size(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of generated tokens, without control tokens."""
        return decoded(self._tokenizer, tokens)


def transformers_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A model folder's tokenizer as transformers loads it.

    Raises:
        StageError: Its files are missing or broken.
    """
    if not any(all((folder / name).is_file() for name in names) for names in _FILES):
        raise StageError(
            f"{folder}: no tokenizer (wanted {', '.join(' and '.join(names) for names in _FILES)}). "
            "Copy the whole model folder."
        )
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises nothing narrower for a broken file
        raise _unreadable(folder, error) from error


def decoded(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The text of generated tokens as transformers puts it together, without control tokens and as it was written."""
    text = tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows of an embedding that a tokenizer needs."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def require_fitting_vocabulary(folder: Path, size: int, vocab_size: int) -> None:
    """Refuse a vocabulary that is not the model's.

    Args:
        folder: The model's folder.
        size: Rows of an embedding that the tokenizer needs.
        vocab_size: Rows that the model has.

    Raises:
        StageError: It has more tokens than rows, or so few that it is another model's, or cut off.
    """
    spare = _SPARE_SHARE * vocab_size + min(_SPARE_ROWS, vocab_size // 4)
    if not vocab_size - spare <= size <= vocab_size:
        raise StageError(
            f"{folder}: the tokenizer has {size} tokens, but config.json's vocab_size is {vocab_size}. One of them is "
            "another model's, or a file is not whole. Copy the whole model folder."
        )


def _unreadable(where: Path, error: Exception) -> StageError:
    return StageError(f"{where}: cannot be read as a tokenizer ({first_line(error)}). Copy the whole model folder.")


def load_tokenizer(folder: Path, decoder_type: str, vocab_size: int) -> LoadedTokenizer:
    """A model folder's tokenizer.

    Args:
        folder: The model folder.
        decoder_type: transformers' name of the decoder's architecture, "llama".
        vocab_size: Rows of its embedding.

    Raises:
        StageError: There is neither tokenizer.model nor tokenizer.json, the file is broken, its vocabulary is not the
            model's, or it does not know the words of the prompt.
    """
    tokenizer = _read(folder, decoder_type)
    require_fitting_vocabulary(folder, tokenizer.size, vocab_size)
    words = UnknownWords(folder)
    ids = tokenizer.encode(prompt_text("What is in the picture?", INSTRUCTION))
    words.add(ids.count(tokenizer.unk_token_id) if tokenizer.unk_token_id is not None else 0, len(ids))
    words.check()
    return tokenizer


def _read(folder: Path, decoder_type: str) -> LoadedTokenizer:
    if (folder / "tokenizer.model").is_file():
        return SentencePieceTokenizer(folder / "tokenizer.model")
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise StageError(f"{folder}: no tokenizer.model or tokenizer.json. Copy the whole model folder.")
    content = read_settings(path)
    if decoder_type in _MARKED and _is_converted(content):
        return ConvertedTokenizer(folder, content)
    return FastTokenizer(folder)


def _is_converted(content: dict[str, Any]) -> bool:
    """Whether a tokenizer.json was made from a sentencepiece model."""
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or not model.get("byte_fallback"):
        return False
    vocabulary = model.get("vocab")
    return isinstance(vocabulary, dict) and _MARKER in vocabulary
