"""Where a model runs, in which number format, and how much memory it took."""

import logging

import torch


def choose_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def torch_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type of weights and arithmetic.

    Args:
        name: One of free2ds_common.settings.DTYPES; "auto" is bfloat16 on a GPU and float32 on a CPU.
        device: Where the model runs.
    """
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def dtype_name(dtype: torch.dtype) -> str:
    """How settings and manifests call a type: "float32"."""
    return str(dtype).removeprefix("torch.")


def log_peak_memory(logger: logging.Logger, device: torch.device) -> None:
    """Log the largest amount of GPU memory in use at any time; nothing for a CPU."""
    if device.type == "cuda":
        logger.info("peak GPU memory %.2f GiB", torch.cuda.max_memory_allocated() / 2**30)
