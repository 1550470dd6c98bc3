import pytest
import torch
from torch import nn

from free2ds_common.inference.packed_linear import PackedLinear, pack_linear_layers


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (1, 7), (2, 7), (3, 1, 7), (2, 9, 7), (0, 7)])
@torch.inference_mode()
def test_gives_what_a_linear_layer_gives(shape, bias):
    torch.manual_seed(0)
    layer = nn.Linear(7, 11, bias=bias)
    values = torch.randn(shape)
    wanted = layer(values)
    pack_linear_layers(nn.Sequential(layer))
    assert type(layer) is PackedLinear
    torch.testing.assert_close(layer(values), wanted, rtol=1e-6, atol=1e-6)
    assert layer(values).shape == wanted.shape


@torch.inference_mode()
def test_reads_a_slice_of_a_larger_tensor():
    torch.manual_seed(0)
    layer, values = nn.Linear(7, 11), torch.randn(5, 3, 7)
    wanted = layer(values[:, 1])
    pack_linear_layers(layer)
    torch.testing.assert_close(layer(values[:, 1]), wanted, rtol=1e-6, atol=1e-6)


def test_a_tied_embedding_stays_readable():
    embedding, head = nn.Embedding(11, 7), nn.Linear(7, 11, bias=False)
    head.weight = embedding.weight
    wanted = embedding.weight.detach().clone()
    pack_linear_layers(embedding, head)
    assert torch.equal(embedding(torch.arange(11)), wanted)


def test_device_and_type_can_still_be_asked_for():
    layer = nn.Linear(3, 2)
    pack_linear_layers(layer)
    assert (layer.weight.device.type, layer.weight.dtype, layer.weight.shape) == ("cpu", torch.float32, (2, 3))


def test_other_layers_and_types_stay_as_they_are():
    half, other = nn.Linear(3, 3).to(torch.bfloat16), nn.Conv1d(3, 3, 1)
    pack_linear_layers(half, other)
    assert type(half) is nn.Linear
    assert type(other) is nn.Conv1d
