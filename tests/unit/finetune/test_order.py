"""In which order records are learnt from."""

import numpy as np
import pytest
import torch

from components.finetune.order import GroupedSampler, epoch_order

LENGTHS = np.random.default_rng(1).integers(5, 500, 103)
PICTURES = np.arange(103) % 10 < 7  # 73 with a picture, 30 without


def order(batch_size=8, seed=3):
    return epoch_order(LENGTHS, PICTURES, batch_size, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("batch_size", [1, 8, 64, 1000])
def test_every_record_once(batch_size):
    assert sorted(order(batch_size)) == list(range(103))


def test_whole_steps_are_of_one_kind_each():
    found = np.array(order())
    # 9 steps of pictures, 3 of text; 1 and 6 are left over.
    kinds = PICTURES[found[: 12 * 8]].reshape(12, 8)
    assert sorted(kinds.sum(1).tolist()) == [0] * 3 + [8] * 9
    assert PICTURES[found[96:]].tolist() == [True] + [False] * 6


def test_within_a_step_the_longest_come_first():
    steps = LENGTHS[np.array(order()[:96])].reshape(12, 8)
    assert (np.diff(steps, axis=1) <= 0).all()


def test_kinds_are_mixed_over_the_steps():
    kinds = PICTURES[np.array(order()[:96])].reshape(12, 8)[:, 0].tolist()
    assert kinds not in ([True] * 9 + [False] * 3, [False] * 3 + [True] * 9)


def test_seed_and_epoch_decide():
    def drawn(seed, epoch):
        sampler = GroupedSampler(LENGTHS, PICTURES, 8, seed)
        sampler.epoch = epoch
        return list(sampler)

    assert drawn(1, 0) == drawn(1, 0)
    assert drawn(1, 0) != drawn(1, 1)
    assert drawn(1, 0) != drawn(2, 0)


def test_nothing_else_that_is_random_changes_it():
    sampler = GroupedSampler(LENGTHS, PICTURES, 8, 1)
    first = list(sampler)
    torch.manual_seed(99)
    assert (list(sampler), len(sampler)) == (first, 103)
