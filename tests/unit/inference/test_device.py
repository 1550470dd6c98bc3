import logging

import pytest
import torch

from free2ds_common.errors import SettingError
from free2ds_common.inference.device import (
    choose_device,
    default_batch_size,
    device_name,
    dtype_name,
    log_peak_memory,
    torch_dtype,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "device", "dtype"),
    [
        ("auto", CPU, torch.float32),
        ("auto", GPU, torch.bfloat16),
        ("float32", GPU, torch.float32),
        ("bfloat16", CPU, torch.bfloat16),
        ("float16", CPU, torch.float16),
    ],
)
def test_type_by_name_and_device(name, device, dtype):
    assert torch_dtype(name, device) == dtype


def test_names_of_types():
    assert [dtype_name(dtype) for dtype in (torch.float32, torch.bfloat16)] == ["float32", "bfloat16"]


def test_a_cpu_has_no_peak_memory_to_tell(caplog):
    caplog.set_level(logging.INFO)
    log_peak_memory(logging.getLogger("test"), CPU)
    assert caplog.text == ""


def test_a_gpus_peak_memory(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**29)
    log_peak_memory(logging.getLogger("test"), GPU)
    assert caplog.messages == ["peak GPU memory 1.50 GiB"]


def test_the_gpu_goes_before_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(require_gpu=True) == GPU
    assert choose_device() == GPU


def test_without_a_gpu_the_cpu_unless_one_is_required(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device() == CPU
    with pytest.raises(
        SettingError,
        match=r"^require_gpu: there is no GPU here .* or set require_gpu to false \(gpu_count of a run to 0\)\.$",
    ):
        choose_device(require_gpu=True)


@pytest.mark.parametrize(
    ("version", "why"), [(None, "this torch is built without CUDA"), ("12.8", "torch sees no GPU")]
)
def test_why_there_is_no_gpu(monkeypatch, version, why):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", version)
    with pytest.raises(SettingError, match=why):
        choose_device(require_gpu=True)


def test_names_of_devices(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Card of {device}")
    assert (device_name(CPU), device_name(GPU)) == ("CPU with 8 threads", "GPU Card of cuda")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert device_name(CPU) == "CPU with 1 thread"


@pytest.mark.parametrize(("device", "answers"), [("cuda", 64), ("cpu", 16)])
def test_batch_size_by_device(device, answers):
    assert default_batch_size(torch.device(device)) == answers
