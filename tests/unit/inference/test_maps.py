import pytest
import torch

from free2ds_common.inference.maps import aggregate_steps


def test_by_hand():
    """Over the last step (1, 2, 4): (2, 2, 4) gives (2, 1, 1) / 4, (4, 2, 0) gives (4, 1, 0) / 5; then half their sum.

    Over the first step the map would be another, without each step's own sum (6, 2, 1) / 9.
    """
    steps = torch.tensor([[2.0, 2.0, 4.0], [4.0, 2.0, 0.0], [1.0, 2.0, 4.0]])
    torch.testing.assert_close(aggregate_steps(steps), torch.tensor([0.65, 0.225, 0.125]))


def test_two_steps():
    """(3, 1) over (1, 1)."""
    torch.testing.assert_close(aggregate_steps(torch.tensor([[3.0, 1.0], [1.0, 1.0]])), torch.tensor([0.75, 0.25]))


def test_a_position_that_the_last_step_does_not_see():
    """3e-10 over 0 + 1e-10 is 3, beside 1 over 1."""
    steps = torch.tensor([[1.0, 3e-10], [1.0, 0.0]])
    torch.testing.assert_close(aggregate_steps(steps), torch.tensor([0.25, 0.75]))


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
