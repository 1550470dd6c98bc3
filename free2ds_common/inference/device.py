"""Where a model runs, in which number format, and how much memory it took."""

import logging

import torch

from free2ds_common.errors import SettingError


def choose_device(require_gpu: bool = False) -> torch.device:
    """The GPU where there is one, else the CPU.

    Args:
        require_gpu: Do not go on with the CPU.

    Raises:
        SettingError: A GPU is required, and torch finds none.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    if require_gpu:
        built = "torch sees no GPU" if torch.version.cuda else "this torch is built without CUDA"
        raise SettingError(
            "require_gpu",
            f"there is no GPU here ({built}). Check the step's GPU limit and node selector, the node's driver and that "
            "the image is the CUDA one, or set require_gpu to false (gpu_count of a run to 0).",
        )
    return torch.device("cpu")


def default_batch_size(device: torch.device) -> int:
    """Answers to generate together: a GPU takes long for a step however few they are; a CPU does not."""
    return 64 if device.type == "cuda" else 16


def device_name(device: torch.device) -> str:
    """What a device is, for logs and manifests: "GPU NVIDIA H100 80GB HBM3" or "CPU with 8 threads"."""
    if device.type == "cuda":
        return f"GPU {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    return f"CPU with {threads} thread{'s' if threads != 1 else ''}"


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
