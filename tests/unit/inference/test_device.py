import logging

import pytest
import torch

from free2ds_common.inference.device import dtype_name, log_peak_memory, torch_dtype

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
