"""Overlap, scoring and draw, by hand and against plain loops."""

import itertools
import math
import sys

import numpy as np
import pyarrow as pa
import pytest

from components.joint_selection.draw import allocate, draw, draw_keys, gumbel, record_noise, take_top
from components.joint_selection.overlap import intersection_over_union, resample, top_bits, top_k
from components.joint_selection.scoring import (
    combine,
    image_score,
    inverted_minmax,
    inverted_ranks,
    softmax,
    tilt,
)
from free2ds_common.errors import StageError

KEYS = pa.array([f"{number:064x}" for number in range(5)])


def positions(bits):
    return [np.flatnonzero(np.unpackbits(row.view(np.uint8))).tolist() for row in bits]


@pytest.mark.parametrize(("size", "percent", "k"), [(576, 30, 172), (576, 0.01, 1), (576, 100, 576), (9, 34, 3)])
def test_top_k(size, percent, k):
    assert top_k(size, percent) == k


def test_top_bits_by_hand():
    maps = np.array([[0.1, 0.4, 0.3, 0.2], [0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 1.0, 0.0]], np.float32)
    assert positions(top_bits(maps, 2)) == [[1, 2], [0, 1], [0, 2]]


def test_iou_equals_python_sets():
    rng = np.random.default_rng(0)
    one, other = rng.random((50, 576), np.float32), rng.random((50, 576), np.float32)
    found = intersection_over_union(top_bits(one, 172), top_bits(other, 172), 172)
    for number in range(50):
        a, b = (set(np.argsort(-maps[number])[:172].tolist()) for maps in (one, other))
        assert found[number] == len(a & b) / len(a | b)


def test_resample_keeps_mass_and_place():
    fine = np.zeros((1, 16), np.float32)
    fine[0, [0, 1, 4, 5]] = 0.25
    np.testing.assert_allclose(resample(fine, 4, 2), [[1, 0, 0, 0]], atol=1e-7)
    maps = np.random.default_rng(1).random((3, 24 * 24)).astype(np.float32)
    np.testing.assert_allclose(resample(maps, 24, 7).sum(axis=1), maps.sum(axis=1), rtol=1e-5)
    assert resample(maps, 24, 24) is maps


def test_inverted_minmax_by_hand():
    assert inverted_minmax(np.array([2.0, 4.0, 3.0])).tolist() == [1.0, 0.0, 0.5]
    assert inverted_minmax(np.array([5.0, 5.0])).tolist() == [0.0, 0.0]


def test_ranks_share_ties_and_ignore_outliers():
    assert inverted_ranks(np.array([1.0, 2.0, 2.0, 1e9])).tolist() == [1.0, 0.5, 0.5, 0.0]


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [("text", [0.0, math.nan, 1.0]), ("reference", [0.0, 1.0, 0.6]), ("exclude", [0.0, math.nan, 1.0])],
)
def test_missing_iou(policy, wanted):
    np.testing.assert_allclose(image_score(np.array([0.5, math.nan, 0.2]), policy), wanted)


def test_combine_uses_text_alone_where_the_image_side_is_missing():
    found = combine(np.array([0.2, math.nan]), np.array([1.0, 0.7]), 0.25)
    np.testing.assert_allclose(found, [0.75 * 0.2 + 0.25, 0.7])


def test_softmax_by_hand_and_far_apart():
    np.testing.assert_allclose(softmax(np.array([0.0, math.log(3)]), 1.0), [0.25, 0.75])
    assert softmax(np.array([0.0, 1.0]), 1e-6).tolist() == [0.0, 1.0]


def test_tilt_by_hand():
    combined = np.array([0.0, 1.0, 1.0, 0.0])
    found = tilt(combined, softmax(combined, 1.0), np.array([1, 3]), np.array([1, 2]))
    assert found["mean_combined_pool"] == 0.5 and found["mean_combined_selected"] == 0.5
    assert found["overlap_with_top"] == 0.5 and found["overlap_by_chance"] == 0.5
    assert found["weight_ratio"] == pytest.approx(math.e)
    e = math.e
    assert found["effective_sample_size"] == pytest.approx((2 + 2 * e) ** 2 / (2 + 2 * e * e))


def test_weight_ratio_comes_from_the_probabilities():
    """With strata, the scores' range says nothing of it; a weight that underflows to 0 is no division by zero."""
    combined, chosen = np.array([0.1, 0.1, 0.9, 0.9]), np.array([0, 2])
    assert tilt(combined, np.full(4, 0.25), chosen, chosen)["weight_ratio"] == 1
    assert tilt(combined, softmax(combined, 1e-6), chosen, chosen)["weight_ratio"] == sys.float_info.max


def test_gumbel_noise_is_finite_at_both_ends():
    ends = gumbel(np.array([0, 2**64 - 1], np.uint64))
    assert np.isfinite(ends).all() and ends[0] < -3 and ends[1] > 30


def test_gumbel_draw_has_the_methods_distribution():
    """Ordered draws of 2 of 4 without replacement: exact probabilities against 20,000 seeds."""
    combined = np.array([0.0, 0.3, 0.9, 1.0])
    p = softmax(combined, 0.5)
    keys = KEYS.slice(0, 4)
    strata = np.zeros(4, np.int64)
    counts = dict.fromkeys(itertools.permutations(range(4), 2), 0)
    draws = 20_000
    for seed in range(draws):
        chosen, probability = draw(combined, 0.5, 2, "gumbel", record_noise(keys, seed), strata, seed)
        counts[tuple(chosen.tolist())] += 1
    np.testing.assert_allclose(probability, p)
    chi_squared = 0.0
    for (first, second), count in counts.items():
        expected = draws * p[first] * p[second] / (1 - p[first])
        chi_squared += (count - expected) ** 2 / expected
    # 12 outcomes, 11 degrees of freedom: 31.3 is exceeded once in a thousand.
    assert chi_squared < 31.3


def test_noise_belongs_to_the_record_not_to_its_place():
    shuffled = np.array([3, 0, 4, 1, 2])
    noise = record_noise(KEYS, 42)
    np.testing.assert_array_equal(record_noise(KEYS.take(pa.array(shuffled)), 42), noise[shuffled])
    assert (record_noise(KEYS, 43) != noise).all()


def test_duplicates_get_noise_of_their_own():
    noise = record_noise(pa.array(["a", "b", "a", "a"]), 0)
    assert len(np.unique(noise[:, 0])) == 4
    np.testing.assert_array_equal(noise[:2], record_noise(pa.array(["a", "b"]), 0))


def test_merging_shards_gives_the_same_draw():
    """The n largest keys of the whole are among the n largest of each shard."""
    rng = np.random.default_rng(0)
    combined = rng.random(300)
    keys = pa.array([f"{number:064x}" for number in range(300)])
    noise = record_noise(keys, 42)
    whole, _ = draw(combined, 1.0, 20, "gumbel", noise, np.zeros(300, np.int64), 42)
    values = draw_keys(combined, 1.0, "gumbel", noise)
    candidates = np.concatenate(
        [part[take_top(values[part], noise[part, 2], 20)] for part in np.split(np.arange(300), 3)]
    )
    merged = candidates[take_top(values[candidates], noise[candidates, 2], 20)]
    assert merged.tolist() == whole.tolist()


def test_top_is_deterministic_and_breaks_ties_by_record():
    combined = np.array([0.5, 0.9, 0.5, 0.5, 0.1])
    noise = record_noise(KEYS, 1)
    chosen, _ = draw(combined, 1.0, 2, "top", noise, np.zeros(5, np.int64), 1)
    tied = min((0, 2, 3), key=lambda place: noise[place, 2])
    assert chosen.tolist() == [1, tied]


def test_reference_is_numpys_legacy_choice():
    combined = np.random.default_rng(3).random(50)
    np.random.seed(7)
    wanted = np.random.choice(50, size=10, replace=False, p=softmax(combined, 1.0))
    chosen, _ = draw(combined, 1.0, 10, "reference", np.zeros((50, 3), np.uint64), np.zeros(50, np.int64), 7)
    assert chosen.tolist() == wanted.tolist()


def test_reference_with_too_few_possible_records():
    combined = np.array([0.0, 0.0, 1.0])
    with pytest.raises(
        StageError, match="only 1 of 3 records have a probability above 0 at temperature 1e-05, wanted 2"
    ):
        draw(combined, 1e-5, 2, "reference", record_noise(KEYS.slice(0, 3), 0), np.zeros(3, np.int64), 0)


def test_gumbel_still_draws_n_when_weights_underflow():
    combined = np.array([0.0, 0.1, 0.2, 1.0, 0.3])
    chosen, _ = draw(combined, 1e-9, 3, "gumbel", record_noise(KEYS, 0), np.zeros(5, np.int64), 0)
    assert chosen.tolist() == [3, 4, 2]


@pytest.mark.parametrize(
    ("sizes", "n", "shares"),
    [([10, 10], 4, [2, 2]), ([5, 3, 2], 5, [3, 1, 1]), ([1, 1, 1], 2, [1, 1, 0]), ([7], 7, [7])],
)
def test_allocate(sizes, n, shares):
    assert allocate(np.array(sizes), n).tolist() == shares


def test_strata_each_get_their_share():
    combined = np.array([0.1, 0.2, 0.3, 0.9, 0.8])
    chosen, probability = draw(combined, 1.0, 2, "top", record_noise(KEYS, 0), np.array([0, 0, 0, 1, 1]), 0)
    assert sorted(chosen.tolist()) == [2, 3]
    assert probability[:3].sum() == pytest.approx(1) and probability[3:].sum() == pytest.approx(1)
