"""From checkpoint files (safetensors, or `.bin` without code) to parameters, one tensor in memory at a time."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from torch import nn

from free2ds_common.checkpoints import read_json_object
from free2ds_common.errors import StageError, first_line

_SINGLE = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_MAX_NAMED = 5

Model = TypeVar("Model", bound=nn.Module)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's weights, in a fixed order.

    Raises:
        StageError: There are none, one that the index names is missing, or the index is broken.
    """
    for index in _INDEXES:
        if (folder / index).is_file():
            by_tensor = read_json_object(folder / index).get("weight_map")
            if not isinstance(by_tensor, dict):
                raise StageError(f"{folder}: {index} has no weight_map. Copy the model folder again.")
            names = sorted(set(by_tensor.values()))
            missing = [name for name in names if not (folder / name).is_file()]
            if missing:
                raise StageError(
                    f"{folder}: {index} names {missing[0]}, which is not there. Copy the whole model folder."
                )
            return [folder / name for name in names]
    for name in _SINGLE:
        if (folder / name).is_file():
            return [folder / name]
    raise StageError(f"{folder}: no weights (wanted safetensors or .bin files). Give a model folder or a hub id.")


def stored_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a checkpoint, on the CPU, memory-mapped where the format allows it.

    Raises:
        StageError: There are no weights, or a file is neither safetensors nor a `.bin` of nothing but tensors.
    """
    for path in weight_files(folder):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as handle:
                    names = handle.keys()
                    for name in names:
                        yield name, handle.get_tensor(name)
            else:
                # weights_only: a pickle that would run code is refused.
                yield from torch.load(path, map_location="cpu", weights_only=True, mmap=True).items()
        except StageError:
            raise
        except Exception as error:
            raise StageError(f"{path}: cannot be read as weights ({first_line(error)}).") from error


class ParameterFiller:
    """Copies stored tensors into a model's parameters and knows which are still missing."""

    def __init__(self, model: nn.Module) -> None:
        """Begin with no parameter of `model` filled."""
        self._targets = dict(model.named_parameters())
        self._missing = dict.fromkeys(self._targets)
        self._misshapen: list[tuple[str, torch.Size, torch.Size]] = []

    @property
    def missing(self) -> list[str]:
        """Parameters that no checkpoint has filled yet."""
        return list(self._missing)

    def fill(self, folder: Path, rename: Callable[[str], str | None], only_missing: bool = False) -> None:
        """Copy a checkpoint's tensors, cast to the parameters' type and device.

        Args:
            folder: A model folder.
            rename: Stored name to parameter name; None and unknown names are skipped.
            only_missing: Skip parameters that are filled already.
        """
        for stored, tensor in stored_tensors(folder):
            name = rename(stored)
            target = self._targets.get(name) if name else None
            if name is None or target is None or (only_missing and name not in self._missing):
                continue
            if tensor.shape != target.shape:
                self._misshapen.append((stored, tensor.shape, target.shape))
                continue
            target.data.copy_(tensor)
            self._missing.pop(name, None)

    def check(self, where: str) -> None:
        """Refuse an incomplete model.

        Args:
            where: The model, for the message.

        Raises:
            StageError: As `refuse_unfit`.
        """
        refuse_unfit(where, self._misshapen, self._missing)


def refuse_unfit(where: str, misshapen: Iterable[tuple[str, torch.Size, torch.Size]], missing: Iterable[str]) -> None:
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


def _first(names: list[str]) -> str:
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def empty_model(build: Callable[[], Model], device: torch.device, dtype: torch.dtype) -> Model:
    """A model in eval mode with uninitialised parameters on `device`; its buffers have their values.

    Rotary tables and other buffers are computed in fp32 on the CPU, whatever `dtype` is.

    Args:
        build: Makes the model; called under a "meta" default device, so that no random weights take memory.
        device: Where the parameters go.
        dtype: Type of the parameters.
    """
    with torch.device("meta"):
        model = build().to(dtype)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            empty = torch.empty_like(parameter, device=device)
            setattr(module, name, nn.Parameter(empty, requires_grad=False))
        _restore_buffers(module, device)
    return model.eval()


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
