"""From IoU and text similarity to one score and a probability, by hand."""

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.joint_selection.scoring import (
    Tilt,
    at_text_quantile,
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


@pytest.mark.parametrize(
    ("missing_iou", "wanted"),
    # The larger and the smaller text score of those without get the larger and the smaller one of 0.45 and 0.35.
    [("text", [0.45, 0.7, 0.35, 0.55]), ("calibrated", [0.45, 0.45, 0.35, 0.35])],
)
def test_combine_by_hand(missing_iou, wanted):
    image, text = np.array([0.5, math.nan, 0.0, math.nan]), np.array([0.4, 0.7, 0.7, 0.55])
    found = combine(image, text, 0.5, missing_iou)
    np.testing.assert_allclose(found, wanted)


@pytest.mark.parametrize("missing_iou", ["text", "calibrated"])
def test_without_any_image_score_the_text_decides(missing_iou):
    text = np.array([0.2, 0.9, 0.2])
    assert combine(np.full(3, math.nan), text, 0.5, missing_iou).tolist() == text.tolist()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        # As many on both sides: rank by rank.
        ([0.9, 0.1, 0.5], [0.8, 0.2, 0.6]),
        # Twice as many: the first quarter stands before the middle of the first third, the second within it.
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.2, 0.3, 0.5, 0.65, 0.75, 0.8]),
        # One stands in the middle.
        ([0.3], [0.6]),
        # Equal ones share the mean of their places: 0.5 and 1.5 of three.
        ([0.3, 0.3, 0.7], [0.4, 0.4, 0.8]),
        ([0.3, 0.3, 0.3], [0.6, 0.6, 0.6]),
    ],
)
def test_at_text_quantile_by_hand(text, wanted):
    found = at_text_quantile(np.array(text), np.array([0.6, 0.2, 0.8]))
    np.testing.assert_allclose(found, wanted)


def signals(seed):
    """Image and text scores in steps of a tenth, so that many are equal; every third image score is missing."""
    rng = np.random.default_rng(seed)
    image, text = rng.integers(0, 11, 60) / 10, rng.integers(0, 11, 60) / 10
    image[::3] = math.nan
    return image, text


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), alpha=st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_calibrated_depends_on_no_order_and_rises_with_the_text(seed, alpha):
    image, text = signals(seed)
    found = combine(image, text, alpha, "calibrated")
    order = np.random.default_rng(seed).permutation(60)
    assert combine(image[order], text[order], alpha, "calibrated").tolist() == found[order].tolist()
    missing = np.flatnonzero(np.isnan(image))
    by_text = found[missing[np.argsort(text[missing], kind="stable")]]
    assert (np.diff(by_text) >= 0).all()
    assert by_text.min() >= 0
    assert by_text.max() <= 1


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_calibrated_leaves_the_records_with_both_signals_alone(alpha):
    image, text = signals(1)
    known = ~np.isnan(image)
    found = [combine(image, text, alpha, policy)[known].tolist() for policy in ("text", "calibrated")]
    assert found[0] == found[1]


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
