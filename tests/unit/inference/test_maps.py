import pytest
import torch

from free2ds_common.inference.maps import aggregate_steps


def test_by_hand():
    # Against the last step (1, 2, 4): step 0 -> (1, 1, 1)/3, step 1 -> (4, 1, 0)/5; their sum / 2.
    steps = torch.tensor([[1.0, 2.0, 4.0], [4.0, 2.0, 0.0], [1.0, 2.0, 4.0]])
    wanted = torch.tensor([1 / 3 + 4 / 5, 1 / 3 + 1 / 5, 1 / 3]) / 2
    torch.testing.assert_close(aggregate_steps(steps), wanted)


def test_scale_of_a_step_does_not_matter():
    steps = torch.rand(4, 9, generator=torch.manual_seed(0)) + 0.1
    scaled = steps.clone()
    scaled[1] *= 7
    torch.testing.assert_close(aggregate_steps(steps), aggregate_steps(scaled))


@pytest.mark.parametrize("generated", [1])
def test_one_step_has_no_map(generated):
    assert aggregate_steps(torch.ones(generated, 4)) is None


def test_sums_to_one():
    found = aggregate_steps(torch.rand(5, 576, generator=torch.manual_seed(1)))
    assert found.sum().item() == pytest.approx(1, abs=1e-6)
