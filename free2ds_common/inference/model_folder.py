"""What is looked at in a model folder before any of it is used: files that are no files, and models in codes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from free2ds_common.checkpoints import read_json_object
from free2ds_common.errors import StageError, first_line

_POINTER = b"version https://git-lfs"
_SETTINGS_SUFFIXES = (".json", ".model", ".txt", ".jinja")
_JSON_OBJECTS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
)
# Where AutoGPTQ, AutoAWQ and ModelOpt say what they did; transformers says it in config.json.
_QUANTISER_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
_QUANTISER_ENTRIES = ("quantization_config", "compression_config")
_DEPTHS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
# Layers that take no time to build.
_BELIEVABLE_DEPTH = 100
# What transformers, huggingface_hub and safetensors raise for folders that are not right. No plain RuntimeError: that
# is also what torch raises when memory runs out.
_WRONG_FOLDER = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    ImportError,
    RecursionError,
    UnpicklingError,
    SafetensorError,
    StrictDataclassError,
)


@contextmanager
def loading(folder: Path, what: str) -> Iterator[None]:
    """Turn a library's error about a model folder into a sentence.

    Args:
        folder: The folder.
        what: What it cannot be loaded as: "a BERT encoder".

    Raises:
        StageError: The block raised an error that a wrong folder causes.
    """
    try:
        yield
    except _WRONG_FOLDER as error:
        raise StageError(f"{folder}: cannot be loaded as {what} ({first_line(error)}).") from error


def read_settings(path: Path) -> dict[str, Any]:
    """Read a JSON file of a model folder.

    Raises:
        FileNotFoundError: It is not there.
        StageError: It is no JSON object, is nested too deeply, or may not be read.
    """
    try:
        return read_json_object(path)
    except FileNotFoundError:
        raise
    except (OSError, RecursionError) as error:
        raise StageError(f"{path.parent}: {path.name} cannot be read ({first_line(error)}).") from error


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's `config.json`.

    Raises:
        StageError: It is missing or no JSON object.
    """
    try:
        return read_settings(folder / "config.json")
    except FileNotFoundError:
        raise StageError(f"{folder}: no config.json. Give a model folder or a hub id.") from None


def refuse_pointer(path: Path) -> None:
    """Refuse a Git LFS pointer: a clone without LFS has one in place of each large file.

    Raises:
        StageError: `path` is one.
    """
    with path.open("rb") as handle:
        start = handle.read(len(_POINTER))
    if start == _POINTER:
        raise StageError(f"{path}: a Git LFS pointer, not the file. Run git lfs pull, or copy the file itself.")


def check_folder(folder: Path) -> None:
    """Refuse a folder whose settings are pointers or broken, and models that are not stored as plain numbers.

    Raises:
        StageError: A settings file is a Git LFS pointer or no JSON object; or the model is quantised, or an adapter.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix in _SETTINGS_SUFFIXES and path.is_file():
            refuse_pointer(path)
    for name in _JSON_OBJECTS:
        if (folder / name).is_file():
            read_settings(folder / name)
    if (folder / "adapter_config.json").is_file():
        raise StageError(f"{folder}: adapter_config.json: an adapter beside a model is not read. Merge it first.")
    for name in _QUANTISER_FILES:
        if (folder / name).is_file():
            raise quantised(folder, name)
    if (folder / "config.json").is_file():
        _refuse_quantised(folder, read_config(folder), "config.json: ")


def quantised(folder: Path, where: str) -> StageError:
    """The error for a model whose stored numbers are codes.

    Args:
        folder: The model's folder.
        where: What shows it.
    """
    return StageError(
        f"{folder}: {where}: the model is quantised, and its codes are no weights. "
        "Use a checkpoint in float32, bfloat16 or float16."
    )


def _refuse_quantised(folder: Path, config: Mapping[str, Any], where: str) -> None:
    for name, value in config.items():
        if name in _QUANTISER_ENTRIES and value:
            raise quantised(folder, f"{where}{name}")
        if isinstance(value, dict):
            _refuse_quantised(folder, value, f"{where}{name}.")


def require_believable_depth(folder: Path, config: Mapping[str, Any], num_tensors: int) -> None:
    """Refuse a config with more layers than the checkpoint has tensors: to build them all could take hours.

    Raises:
        StageError: It has.
    """
    for name, value in config.items():
        if isinstance(value, dict):
            require_believable_depth(folder, value, num_tensors)
        elif name in _DEPTHS and isinstance(value, int) and value > max(num_tensors, _BELIEVABLE_DEPTH):
            raise StageError(
                f"{folder}: {name} is {value}, but only {num_tensors} tensors are stored. The weights do not fit "
                "config.json."
            )


def require_token_ids(folder: Path, config: Mapping[str, Any], vocab_size: int) -> None:
    """Refuse special tokens that the embedding has no row for.

    Args:
        folder: The model's folder.
        config: The config, or its part for the language model; -1 is an old way to write "none".
        vocab_size: Rows of the embedding.

    Raises:
        StageError: There are any.
    """
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id"):
        value = config.get(name)
        for token in value if isinstance(value, list) else [value]:
            if token is not None and (type(token) is not int or not -1 <= token < vocab_size):
                raise StageError(
                    f"{folder}: {name} is {token!r}, wanted a number from 0 to vocab_size - 1, which is "
                    f"{vocab_size - 1}."
                )
