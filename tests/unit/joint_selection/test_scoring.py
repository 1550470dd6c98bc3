"""From IoU and text similarity to one score and a probability, by hand."""

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.joint_selection.scoring import (
    Tilt,
    combine,
    image_score,
    inverted_minmax,
    inverted_ranks,
    softmax,
    text_score,
    tilt,
)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([2.0, 4.0, 3.0], [1.0, 0.0, 0.5]),
        ([5.0, 5.0], [0.0, 0.0]),
        ([0.3], [0.0]),
        ([], []),
        # Nothing is added to a range, however small.
        ([1e-12, 2e-12], [1.0, 0.0]),
    ],
)
def test_inverted_minmax_by_hand(values, wanted):
    assert inverted_minmax(np.array(values)).tolist() == wanted


def test_ranks_share_ties_and_ignore_outliers():
    assert inverted_ranks(np.array([1.0, 2.0, 2.0, 1e9])).tolist() == [1.0, 0.5, 0.5, 0.0]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=20))
def test_ranks_against_plain_counting(values):
    average = [
        sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2 for value in values
    ]
    low, high = min(average), max(average)
    wanted = [1 - (rank - low) / (high - low) if high > low else 0.0 for rank in average]
    np.testing.assert_allclose(inverted_ranks(np.array(values, float)), wanted, atol=1e-12)


@pytest.mark.parametrize(("normalization", "middle"), [("reference", 0.75), ("rank", 0.5)])
def test_text_score(normalization, middle):
    assert text_score(np.array([0.0, 0.25, 1.0]), normalization).tolist() == [1.0, middle, 0.0]


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [("text", [0.0, math.nan, 1.0]), ("reference", [0.0, 1.0, 0.6]), ("exclude", [0.0, math.nan, 1.0])],
)
def test_missing_iou(policy, wanted):
    np.testing.assert_allclose(image_score(np.array([0.5, math.nan, 0.2]), policy), wanted)


def test_combine_uses_text_alone_where_the_image_side_is_missing():
    found = combine(np.array([0.2, math.nan]), np.array([1.0, 0.7]), 0.25)
    np.testing.assert_allclose(found, [0.75 * 0.2 + 0.25, 0.7])


@pytest.mark.parametrize(
    ("combined", "temperature", "wanted"),
    [
        ([0.0, math.log(3)], 1.0, [0.25, 0.75]),
        ([0.0, math.log(3)], 0.5, [0.1, 0.9]),
        ([0.0, 1.0], 1e-6, [0.0, 1.0]),
        ([0.5, 0.5], 1e-300, [0.5, 0.5]),
    ],
)
def test_softmax_by_hand(combined, temperature, wanted):
    np.testing.assert_allclose(softmax(np.array(combined), temperature), wanted)


def test_tilt_by_hand():
    combined = np.array([0.0, 1.0, 1.0, 0.0])
    e = math.e
    found = tilt(combined, softmax(combined, 1.0), np.array([1, 2, 3]), np.array([1, 2, 0]))
    assert found == Tilt(
        mean_combined_pool=0.5,
        mean_combined_selected=2 / 3,
        overlap_with_top=2 / 3,
        overlap_by_chance=0.75,
        weight_ratio=pytest.approx(e),
        effective_sample_size=pytest.approx((2 + 2 * e) ** 2 / (2 + 2 * e * e)),
    )


@pytest.mark.parametrize(
    ("probability", "ratio"),
    [([0.25, 0.25, 0.25, 0.25], 1), ([0.125, 0.125, 0.25, 0.5], 4), ([0, 0, 0.5, 0.5], sys.float_info.max)],
)
def test_weight_ratio_comes_from_the_probabilities(probability, ratio):
    """With strata, the scores' range says nothing of it; a weight that underflows to 0 is no division by zero."""
    combined, chosen = np.array([0.1, 0.1, 0.9, 0.9]), np.array([0, 2])
    assert tilt(combined, np.array(probability, float), chosen, chosen).weight_ratio == ratio
