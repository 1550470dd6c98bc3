"""Llama's lean layers against transformers' own."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm

from free2ds_common.inference.lean_llama import LeanAttention, LeanRMSNorm, make_lean, rotated

LEAN = {LlamaRMSNorm: LeanRMSNorm, LlamaAttention: LeanAttention}


def decoder(key_value_heads=4):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=key_value_heads,
        vocab_size=50,
        attn_implementation="sdpa",
    )
    model = LlamaModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3).add_(0.01 * torch.randn(parameter.shape))
    return model


def lean(model):
    model = copy.deepcopy(model)
    for part in model.modules():
        part.__class__ = LEAN.get(type(part), type(part))
    return model


def states(model, ids):
    with torch.inference_mode():
        return model(input_ids=ids.to(model.device)).last_hidden_state.float().cpu()


IDS = torch.arange(40).view(2, 20)


@pytest.mark.parametrize("key_value_heads", [4, 2])
def test_the_same_hidden_states(key_value_heads):
    model = decoder(key_value_heads)
    torch.testing.assert_close(states(lean(model), IDS), states(model, IDS), rtol=0, atol=2e-5)


def test_a_quarter_turn_by_hand():
    """Pairs are (1, 3) and (2, 4): the first turns by 90 degrees, the second stays."""
    cos, sin = torch.tensor([[[[0.0, 1, 0, 1]]]]), torch.tensor([[[[1.0, 0, 1, 0]]]])
    assert rotated(torch.tensor([[[[1.0, 2, 3, 4]]]]), cos, sin).flatten().tolist() == [-3, 2, 1, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_keeps_transformers_own(dtype):
    """There parity is exact."""
    model = decoder().to(dtype)
    make_lean(model)
    assert not any(isinstance(part, LeanRMSNorm | LeanAttention) for part in model.modules())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_no_further_from_fp32_on_a_gpu(dtype):
    model = decoder()
    exact = states(model, IDS)
    model.to("cuda", dtype)
    own = (states(model, IDS) - exact).norm() / exact.norm()
    make_lean(model)
    assert sum(isinstance(part, LeanRMSNorm | LeanAttention) for part in model.modules()) == 10
    assert (states(model, IDS) - exact).norm() / exact.norm() < 1.2 * own


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_fp32_on_a_gpu_keeps_transformers_own():
    model = decoder().cuda()
    make_lean(model)
    assert not any(isinstance(part, LeanRMSNorm | LeanAttention) for part in model.modules())
