import pytest
import torch
from torch import nn

from free2ds_common.attention.few_rows import FewRowsLinear, speed_up_few_rows


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 7), (2, 7), (3, 1, 7), (4, 7), (2, 2, 7), (5, 7), (2, 9, 7), (0, 7)])
def test_gives_what_a_linear_layer_gives(shape, bias):
    torch.manual_seed(0)
    layer = nn.Linear(7, 11, bias=bias)
    values = torch.randn(shape)
    wanted = layer(values)
    speed_up_few_rows(nn.Sequential(layer))
    assert type(layer) is FewRowsLinear
    torch.testing.assert_close(layer(values), wanted, rtol=1e-6, atol=1e-6)
    assert layer(values).shape == wanted.shape


def test_other_layers_and_types_stay_as_they_are():
    half, other = nn.Linear(3, 3).to(torch.bfloat16), nn.Conv1d(3, 3, 1)
    speed_up_few_rows(half, other)
    assert type(half) is nn.Linear and type(other) is nn.Conv1d
