"""Where the models look: top positions and their IoU, by hand and against Python's sets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.joint_selection.overlap import Comparison, intersection_over_union, resample, top_bits, top_k


def positions(bits):
    return [np.flatnonzero(np.unpackbits(row.view(np.uint8))).tolist() for row in bits]


@pytest.mark.parametrize(("size", "percent", "k"), [(576, 30, 172), (576, 0.01, 1), (576, 100, 576), (9, 34, 3)])
def test_top_k(size, percent, k):
    assert top_k(size, percent) == k


@pytest.mark.parametrize(
    ("grids", "percent", "grid", "k"), [((24, 24), 30, 24, 172), ((24, 12), 30, 12, 43), ((7, 24), 50, 7, 24)]
)
def test_maps_are_compared_on_the_smaller_grid(grids, percent, grid, k):
    assert Comparison.of(grids, percent) == Comparison(grids, grid, k)


def test_top_bits_by_hand():
    maps = np.array([[0.1, 0.4, 0.3, 0.2], [0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 1.0, 0.0]], np.float32)
    assert positions(top_bits(maps, 2)) == [[1, 2], [0, 1], [0, 2]]


def test_a_bit_set_may_end_within_a_word():
    maps = np.zeros((1, 65), np.float32)
    maps[0, [3, 64]] = 1
    bits = top_bits(maps, 2)
    assert bits.shape == (1, 2)
    assert positions(bits) == [[3, 64]]


# Few different values: ties at the edge are common.
@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.data())
def test_iou_equals_python_sets(data):
    size = data.draw(st.integers(1, 70))
    k = data.draw(st.integers(1, size))
    value = st.integers(0, 6).map(float)
    maps = [np.array([data.draw(st.lists(value, min_size=size, max_size=size))], np.float32) for _ in range(2)]
    # The k largest, the lower position first among equal ones.
    first, second = (set(sorted(range(size), key=lambda place: (-one[0, place], place))[:k]) for one in maps)
    found = intersection_over_union(*(top_bits(one, k) for one in maps), k)
    assert found.tolist() == [len(first & second) / len(first | second)]


def test_resample_by_hand_to_half():
    """Blocks of 2 x 2, row by row; no number is where a transposed result would have it."""
    fine = np.arange(16, dtype=np.float32)[None]
    np.testing.assert_allclose(
        resample(fine, 4, 2), [[0 + 1 + 4 + 5, 2 + 3 + 6 + 7, 8 + 9 + 12 + 13, 10 + 11 + 14 + 15]]
    )


def test_resample_by_hand_to_a_grid_that_cuts_cells():
    """From 3 to 2: the middle row and column are halved, the centre is quartered."""
    fine = np.array([[8, 4, 0, 0, 4, 0, 0, 2, 16]], np.float32)
    np.testing.assert_allclose(resample(fine, 3, 2), [[8 + 2 + 1, 2 + 1, 1 + 1, 1 + 1 + 16]], rtol=1e-6)


def test_resample_keeps_the_sum():
    maps = np.random.default_rng(1).random((3, 24 * 24)).astype(np.float32)
    np.testing.assert_allclose(resample(maps, 24, 7).sum(axis=1), maps.sum(axis=1), rtol=1e-5)


def test_resample_to_the_same_grid_is_nothing():
    maps = np.ones((1, 16), np.float32)
    assert resample(maps, 4, 4) is maps
