"""From checkpoint files (safetensors, or `.bin` without code) to parameters, one tensor in memory at a time.

A checkpoint is compared with the model by names, shapes and number formats first, before the model takes any memory.
Nothing in it is passed over in silence: a tensor that belongs nowhere is an error unless it is known to be of no use.

One file of more than 300 lines, because names, shapes and values of a checkpoint are checked in one order.
"""

import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from torch import nn

from free2ds_common.errors import StageError, first_line
from free2ds_common.inference.model_folder import loading, quantised, read_settings, refuse_pointer

# In the order in which transformers takes them.
_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_MAX_NAMED = 5
# Number formats that hold weights. Anything else is a code, or a counter.
_PLAIN = ("float64", "float32", "float16", "bfloat16")
_SAFETENSORS_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Tensors of any model that need not be read.
_UNUSED = (
    r"rotary_emb\.inv_freq$",  # computed from the config
    r"(^|\.)(position_ids|token_type_ids)$",  # 0, 1, 2, ... and zeros
    r"(^|\.)masked_bias$",  # a constant of old attention layers
)

Model = TypeVar("Model", bound=nn.Module)
Misshapen = tuple[str, Sequence[int], Sequence[int]]


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's weights, in a fixed order.

    Raises:
        StageError: There are none, one that the index names is missing or a Git LFS pointer, or the index is broken.
    """
    for name in _FILES:
        path = folder / name
        if not path.is_file():
            continue
        refuse_pointer(path)
        if not name.endswith(".index.json"):
            return [path]
        by_tensor = read_settings(path).get("weight_map")
        if not isinstance(by_tensor, dict) or not all(isinstance(file, str) for file in by_tensor.values()):
            raise StageError(f"{folder}: {name} has no weight_map. Copy the model folder again.")
        files = [folder / file for file in sorted(set(by_tensor.values()))]
        for file in files:
            if not file.is_file():
                raise StageError(
                    f"{folder}: {name} names {file.name}, which is not there. Copy the whole model folder."
                )
            refuse_pointer(file)
        return files
    raise StageError(f"{folder}: no weights (wanted safetensors or .bin files). Give a model folder or a hub id.")


def require_index_metadata(folder: Path) -> None:
    """Refuse an index that transformers cannot read.

    Raises:
        StageError: It has no metadata.
    """
    for name in _FILES:
        if (folder / name).is_file():
            if name.endswith(".index.json") and not isinstance(read_settings(folder / name).get("metadata"), dict):
                raise StageError(f"{folder}: {name} has no metadata. Copy the model folder again.")
            return


@dataclass(frozen=True)
class StoredTensor:
    """What a checkpoint says about a tensor.

    Attributes:
        name: In the checkpoint.
        shape: Its shape.
        dtype: Its number format, "bfloat16".
    """

    name: str
    shape: tuple[int, ...]
    dtype: str


def stored_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a checkpoint, on the CPU, memory-mapped where the format allows it.

    Raises:
        StageError: There are no weights, or a file is neither safetensors nor a `.bin` of nothing but tensors.
    """
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            with _reading(path), safe_open(path, "pt") as handle:
                names = handle.keys()
                for name in names:
                    yield name, handle.get_tensor(name)
        else:
            yield from _pickled(path).items()


def stored_shapes(folder: Path) -> list[StoredTensor]:
    """Names, shapes and number formats of a checkpoint's tensors, from its headers.

    Raises:
        StageError: As `stored_tensors`; or a tensor's numbers are codes.
    """
    found = []
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            with _reading(path), safe_open(path, "pt") as handle:
                names = handle.keys()
                for name in names:
                    part = handle.get_slice(name)
                    dtype = part.get_dtype()
                    found.append(StoredTensor(name, tuple(part.get_shape()), _SAFETENSORS_NAMES.get(dtype, dtype)))
        else:
            for name, tensor in _pickled(path).items():
                found.append(StoredTensor(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")))
    for stored in found:
        if stored.dtype not in _PLAIN and not is_unused(stored.name):
            raise quantised(folder, f"{stored.name} is stored as {stored.dtype}")
    return found


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what a damaged file raises into a sentence."""
    try:
        yield
    except StageError:
        raise
    except Exception as error:
        raise StageError(f"{path}: cannot be read as weights ({first_line(error)}).") from error


def _pickled(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.bin`."""
    with _reading(path):
        # weights_only: a pickle that would run code is refused. Files from before torch 1.6 are no zip archives.
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        if not isinstance(found, dict):
            raise TypeError(f"it holds a {type(found).__name__}, not a table of tensors")
        for name, tensor in found.items():
            if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
                raise TypeError(f"{name} is a {type(tensor).__name__}, not a tensor")
    return found


def is_unused(stored: str, patterns: Iterable[str] = ()) -> bool:
    """Whether a stored tensor is known to be of no use.

    Args:
        stored: Its name.
        patterns: What the caller knows beside the tensors of any model.
    """
    return any(re.search(pattern, stored) for pattern in (*_UNUSED, *patterns))


@dataclass(frozen=True)
class WeightSource:
    """A checkpoint that fills some of a model's parameters.

    Attributes:
        folder: A model folder.
        rename: Stored name to parameter name; None for a tensor that is known to be of no use.
        prefix: Of the parameters that it may fill. It is opened only if one of them is still missing.
    """

    folder: Path
    rename: Callable[[str], str | None]
    prefix: str = ""


def load_model(
    where: Path,
    build: Callable[[], Model],
    sources: Sequence[WeightSource],
    device: torch.device,
    dtype: torch.dtype,
    tied: tuple[str, str] | None = None,
) -> Model:
    """A model in eval mode with a checkpoint's weights; there is never a second copy of them.

    Args:
        where: The model's folder, for messages.
        build: Makes the model.
        sources: What fills it; earlier ones go before later ones.
        device: Where the weights go.
        dtype: Of the weights.
        tied: Two parameters that are one in this model; a checkpoint may hold either or both.

    Raises:
        StageError: The config describes no model; tensors are missing, misshapen, unknown, quantised or not finite.
    """
    with loading(where, "a model: config.json does not describe one"), torch.device("meta"):
        try:
            model = build().to(dtype)
        except RuntimeError as error:  # nothing is allocated there: sizes that no tensor can have
            raise ValueError(first_line(error)) from error
    plans = _plan(where, model, sources, tied)
    _allocate(model, device)
    targets = dict(model.named_parameters(remove_duplicate=False))
    for source, names in plans:
        for stored, tensor in stored_tensors(source.folder):
            if stored in names:
                target = targets[names[stored]]
                target.data.copy_(tensor)
                require_finite(source.folder, stored, target)
    if tied is not None:
        _tie(where, model, plans, tied)
    return model


def _plan(
    where: Path, model: nn.Module, sources: Sequence[WeightSource], tied: tuple[str, str] | None
) -> list[tuple[WeightSource, dict[str, str]]]:
    """Which stored tensor of which source goes to which parameter; refuses what does not fit."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters(remove_duplicate=False)}
    missing = dict.fromkeys(shapes)
    misshapen: list[Misshapen] = []
    plans = []
    for source in sources:
        if not any(name.startswith(source.prefix) for name in missing):
            continue
        names: dict[str, str] = {}
        filled: dict[str, str] = {}
        unknown: list[str] = []
        for stored in stored_shapes(source.folder):
            name = None if is_unused(stored.name) else source.rename(stored.name)
            if name is None:
                continue
            if name not in shapes:
                unknown.append(stored.name)
            elif name in filled:
                raise StageError(f"{source.folder}: {filled[name]} and {stored.name} are weights of the same layer.")
            else:
                filled[name] = stored.name
                if name not in missing:
                    continue
                if stored.shape != tuple(shapes[name]):
                    misshapen.append((stored.name, stored.shape, shapes[name]))
                names[stored.name] = name
        refuse_unknown(source.folder, unknown)
        for name in names.values():
            del missing[name]
        plans.append((source, names))
    if tied is not None and not all(name in missing for name in tied):
        for name in tied:
            missing.pop(name, None)
    refuse_unfit(str(where), misshapen, missing)
    return plans


def _tie(
    where: Path, model: nn.Module, plans: Sequence[tuple[WeightSource, dict[str, str]]], tied: tuple[str, str]
) -> None:
    """Make two shared parameters one, with the values of whichever was stored."""
    filled = {name for _, names in plans for name in names.values()}
    source, target = tied if tied[0] in filled else tied[::-1]
    kept = model.get_parameter(source)
    if target in filled and not torch.equal(kept, model.get_parameter(target)):
        raise StageError(
            f"{where}: tie_word_embeddings is true, but {source} and {target} are stored and differ. Say in "
            "config.json whether they are one."
        )
    owner, _, name = target.rpartition(".")
    setattr(model.get_submodule(owner), name, kept)


def require_finite(folder: Path, name: str, weights: torch.Tensor) -> None:
    """Refuse weights with NaN or infinite numbers, which would make every answer so.

    Args:
        folder: For the message.
        name: Of the weights.
        weights: As the model will use them: a cast to float16 makes large ones infinite.

    Raises:
        StageError: There are any.
    """
    # The sum is finite where all are, and takes no memory.
    if not bool(torch.isfinite(weights.detach().sum(dtype=torch.float32))):
        raise StageError(
            f"{folder}: {name} has numbers that are NaN or infinite in {str(weights.dtype).removeprefix('torch.')}. "
            "Use another dtype, or copy the model folder again."
        )


def refuse_unfit(where: str, misshapen: Iterable[Misshapen], missing: Iterable[str]) -> None:
    """Refuse weights that do not fill a model.

    Args:
        where: The model, for the message.
        misshapen: Name, shape in the checkpoint and shape by the config.
        missing: Parameters without weights.

    Raises:
        StageError: There are any; it names the first few.
    """
    if unfit := [f"{name} {tuple(found)} instead of {tuple(wanted)}" for name, found, wanted in misshapen]:
        raise StageError(f"{where}: {_first(unfit)}. The weights do not fit config.json.")
    if unfilled := list(missing):
        raise StageError(f"{where}: no weights for {_first(unfilled)}. The checkpoint is incomplete.")


def refuse_unknown(folder: Path, unknown: Sequence[str]) -> None:
    """Refuse a checkpoint with tensors that the model has no place for.

    Raises:
        StageError: There are any; it names the first few.
    """
    if unknown:
        raise StageError(
            f"{folder}: {_first(list(unknown))} in the checkpoint, but not in the model that config.json describes. "
            "It is another model, or config.json is not its own."
        )


def _first(names: list[str]) -> str:
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _allocate(model: nn.Module, device: torch.device) -> None:
    """Give a model of meta tensors uninitialised parameters on `device`, its buffers their values, and eval mode.

    Rotary tables and other buffers are computed in fp32 on the CPU, whatever the parameters' type.
    """
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            empty = torch.empty_like(parameter, device=device)
            setattr(module, name, nn.Parameter(empty, requires_grad=False))
        _restore_buffers(module, device)
    model.eval()


def _restore_buffers(module: nn.Module, device: torch.device) -> None:
    """Compute a module's buffers again: on the meta device they got no values."""
    names = [name for name, _ in module.named_buffers(recurse=False)]
    if not names:
        return
    if "position_ids" in names:
        length = module.get_buffer("position_ids").shape[-1]
        module.position_ids = torch.arange(length, device=device)[None]
        names.remove("position_ids")
    if names:
        fresh = type(module)(config=module.config)
        for name in names:
            setattr(module, name, getattr(fresh, name).to(device))
