"""The samplers: distribution, invariance, ties, strata; by hand and against plain loops."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.joint_selection.draw import (
    CONTROL,
    DRAW,
    ORDER_OF_STRATA,
    START_OF_STRATA,
    TIES,
    allocate,
    allocate_by_score,
    draw,
    draw_keys,
    gumbel,
    name_noise,
    record_noise,
    take_top,
)
from components.joint_selection.scoring import softmax
from free2ds_common.errors import StageError

KEYS = pa.array([f"{number:064x}" for number in range(5)])


def one_stratum(count):
    return np.zeros(count, np.int64)


@pytest.mark.parametrize(("word", "low", "high"), [(0, -3.7, -3.5), (2**64 - 1, 36, 37)])
def test_gumbel_noise_is_finite_at_both_ends(word, low, high):
    """-log(-log(u)) for u = 2**-53 and 1 - 2**-53."""
    assert low < gumbel(np.array([word], np.uint64))[0] < high


def test_gumbel_noise_by_hand():
    """The word in the middle is u = 1/2 (and half a step), so that the noise is -log(log 2)."""
    np.testing.assert_allclose(gumbel(np.array([2**63], np.uint64)), -np.log(np.log(2)), rtol=1e-12)


def test_gumbel_draw_has_the_methods_distribution():
    """Ordered draws of 2 of 4 without replacement: exact probabilities against 5,000 seeds."""
    combined = np.array([0.0, 0.3, 0.9, 1.0])
    p = softmax(combined, 0.5)
    keys, draws = KEYS.slice(0, 4), 5_000
    counts = dict.fromkeys(itertools.permutations(range(4), 2), 0)
    for seed in range(draws):
        chosen, probability = draw(combined, 0.5, 2, "gumbel", record_noise(keys, seed), one_stratum(4), seed)
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


def test_another_seed_is_other_noise():
    assert (record_noise(KEYS, 43) != record_noise(KEYS, 42)).all()


def test_the_words_of_a_record_differ():
    noise = record_noise(KEYS, 42)
    assert len({DRAW, CONTROL, TIES}) == 3
    assert len(np.unique(noise)) == noise.size == 15


def test_duplicates_get_noise_of_their_own():
    noise = record_noise(pa.array(["a", "b", "a", "a"]), 0)
    assert len(np.unique(noise)) == noise.size
    np.testing.assert_array_equal(noise[:2], record_noise(pa.array(["a", "b"]), 0))


def test_noise_of_many_records_is_hashed_in_blocks(monkeypatch):
    whole = record_noise(KEYS, 42)
    monkeypatch.setattr("components.joint_selection.draw._HASH_ROWS", 2)
    np.testing.assert_array_equal(record_noise(KEYS, 42), whole)


@pytest.mark.parametrize(("n", "wanted"), [(0, []), (1, [2]), (2, [2, 1]), (3, [2, 1, 4]), (5, [2, 1, 4, 3, 0])])
def test_take_top_by_hand(n, wanted):
    """Largest key first; of equal ones the smaller tie word, within the top and at its edge."""
    keys, ties = np.array([0.1, 0.9, 0.9, 0.5, 0.5]), np.array([0, 7, 3, 9, 8], np.uint64)
    assert take_top(keys, ties, n).tolist() == wanted


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=30), st.data())
def test_take_top_against_a_plain_sort(pairs, data):
    """Few different keys and tie words: most cases have equal ones at the edge."""
    n = data.draw(st.integers(0, len(pairs)))
    keys, ties = (np.array(column) for column in zip(*pairs, strict=True))
    wanted = sorted(range(len(pairs)), key=lambda place: (-keys[place], ties[place], place))[:n]
    assert take_top(keys.astype(float), ties.astype(np.uint64), n).tolist() == wanted


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    scores=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=40),
    sampler=st.sampled_from(["gumbel", "top"]),
    data=st.data(),
)
def test_the_draw_of_the_whole_is_the_draw_of_the_draws_of_its_parts(scores, sampler, data):
    """The n largest keys of all are the n largest of the n largest of each part."""
    count = len(scores)
    n = data.draw(st.integers(1, count))
    part_of = np.array(data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)))
    combined = np.array(scores)
    noise = record_noise(pa.array([f"{number}" for number in range(count)]), data.draw(st.integers(0, 2**32 - 1)))
    values = draw_keys(combined, 0.5, sampler, noise)
    parts = [np.flatnonzero(part_of == part) for part in range(4)]
    kept = np.sort(
        np.concatenate([part[take_top(values[part], noise[part, TIES], min(n, len(part)))] for part in parts])
    )
    merged = kept[take_top(values[kept], noise[kept, TIES], n)]
    whole, _ = draw(combined, 0.5, n, sampler, noise, one_stratum(count), 0)
    assert merged.tolist() == whole.tolist()


def test_top_is_deterministic_and_breaks_ties_by_record():
    combined = np.array([0.5, 0.9, 0.5, 0.5, 0.1])
    noise = record_noise(KEYS, 1)
    chosen, _ = draw(combined, 1.0, 2, "top", noise, one_stratum(5), 1)
    tied = min((0, 2, 3), key=lambda place: noise[place, TIES])
    assert chosen.tolist() == [1, tied]


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_reference_is_numpys_legacy_choice(seed):
    combined = np.random.default_rng(3).random(50)
    np.random.seed(seed)
    wanted = np.random.choice(50, size=10, replace=False, p=softmax(combined, 1.0))
    chosen, _ = draw(combined, 1.0, 10, "reference", np.zeros((50, 3), np.uint64), one_stratum(50), seed)
    assert chosen.tolist() == wanted.tolist()


def test_reference_with_too_few_possible_records():
    combined = np.array([0.0, 0.0, 1.0])
    message = "only 1 of 3 records have a probability above 0 at temperature 1e-05, wanted 2. Raise temperature, or use"
    with pytest.raises(StageError, match=message):
        draw(combined, 1e-5, 2, "reference", record_noise(KEYS.slice(0, 3), 0), one_stratum(3), 0)


def test_reference_with_just_enough_possible_records():
    combined = np.array([0.0, 1.0, 1.0])
    chosen, _ = draw(combined, 1e-5, 2, "reference", record_noise(KEYS.slice(0, 3), 0), one_stratum(3), 0)
    assert sorted(chosen.tolist()) == [1, 2]


def test_gumbel_still_draws_n_when_weights_underflow():
    combined = np.array([0.0, 0.1, 0.2, 1.0, 0.3])
    chosen, _ = draw(combined, 1e-9, 3, "gumbel", record_noise(KEYS, 0), one_stratum(5), 0)
    assert chosen.tolist() == [3, 4, 2]


@pytest.mark.parametrize(
    ("sizes", "n", "start", "shares"),
    [
        # Nothing is left over.
        ([10, 10], 4, 0, [2, 2]),
        ([10, 10], 4, 19, [2, 2]),
        ([7], 7, 3, [7]),
        ([7], 0, 0, [0]),
        # Two thirds each, end to end 0 .. 6 thirds: the points are start and start + 3.
        ([1, 1, 1], 2, 0, [1, 1, 0]),
        ([1, 1, 1], 2, 1, [1, 0, 1]),
        ([1, 1, 1], 2, 2, [0, 1, 1]),
        # 2.5, 1.5 and 1: one of the halves.
        ([5, 3, 2], 5, 4, [3, 1, 1]),
        ([5, 3, 2], 5, 5, [2, 2, 1]),
    ],
)
def test_allocate_by_hand(sizes, n, start, shares):
    assert allocate(np.array(sizes), n, start).tolist() == shares


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.data())
def test_every_stratum_gets_its_exact_share_on_average(sizes, data):
    """Over all starts, which are equally likely."""
    total = sum(sizes)
    n = data.draw(st.integers(0, total))
    shares = sum(allocate(np.array(sizes), n, start) for start in range(total))
    assert shares.tolist() == [size * n for size in sizes]


def check_quota(sizes, n, shares):
    """They sum to n, and each is the exact share rounded down or up."""
    assert sum(shares) == n
    for size, share in zip(sizes, shares, strict=True):
        assert size * n // sum(sizes) <= share <= -(-size * n // sum(sizes))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=12), st.floats(0, 1), st.floats(0, 1, exclude_max=True))
def test_allocate_rounds(sizes, share, start):
    n = round(sum(sizes) * share)
    check_quota(sizes, n, allocate(np.array(sizes), n, int(sum(sizes) * start)).tolist())


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_allocate_by_score_rounds(sizes, share, seed):
    n, rng = round(sum(sizes) * share), np.random.default_rng(seed)
    groups = np.split(rng.permutation(sum(sizes)), np.cumsum(sizes)[:-1])
    keys, ties = rng.integers(0, 5, sum(sizes)) / 5, rng.integers(0, 2**63, sum(sizes)).astype(np.uint64)
    check_quota(sizes, n, allocate_by_score(groups, keys, ties, n).tolist())


@pytest.mark.parametrize(
    ("n", "shares"),
    [
        # The best record of all is in the third stratum, the next one in the first.
        (1, [0, 0, 1]),
        (2, [1, 0, 1]),
        # 1.5, 0.75 and 0.75: who gets two more is decided by 0.6, 0.7 and 0.9; the best record of the first is in.
        (3, [1, 1, 1]),
        (4, [2, 1, 1]),
    ],
)
def test_allocate_by_score_by_hand(n, shares):
    keys = np.array([0.8, 0.6, 0.1, 0.1, 0.7, 0.2, 0.9, 0.0])
    groups = [np.arange(0, 4), np.arange(4, 6), np.arange(6, 8)]
    assert allocate_by_score(groups, keys, np.zeros(8, np.uint64), n).tolist() == shares


def test_a_share_without_a_fraction_is_never_exceeded():
    """Of 2, 1 and 1 records two are drawn; the second best record of all is in the first stratum, whose share is 1."""
    groups = [np.array([0, 1]), np.array([2]), np.array([3])]
    assert allocate_by_score(groups, np.array([0.9, 0.8, 0.1, 0.2]), np.zeros(4, np.uint64), 2).tolist() == [1, 0, 1]


def test_equal_scores_are_divided_by_the_tie_words():
    groups = [np.array([0]), np.array([1]), np.array([2])]
    assert allocate_by_score(groups, np.zeros(3), np.array([5, 9, 1], np.uint64), 2).tolist() == [1, 0, 1]


@pytest.mark.parametrize("other", [("b", 1, ORDER_OF_STRATA), ("a", 2, ORDER_OF_STRATA), ("a", 1, START_OF_STRATA)])
def test_noise_of_a_name_depends_on_name_seed_and_purpose(other):
    word = name_noise("a", 1, ORDER_OF_STRATA)
    assert word == name_noise("a", 1, ORDER_OF_STRATA)
    assert word != name_noise(*other)


def test_noise_of_a_name_is_none_of_a_records():
    assert name_noise("a", 1, ORDER_OF_STRATA) not in record_noise(pa.array(["a"]), 1)


def test_strata_each_get_their_share():
    combined = np.array([0.1, 0.2, 0.3, 0.9, 0.8])
    strata = np.array([0, 0, 0, 1, 1])
    chosen, probability = draw(combined, 1.0, 2, "top", record_noise(KEYS, 0), strata, 0)
    assert chosen.tolist() == [2, 3]
    np.testing.assert_allclose([probability[:3].sum(), probability[3:].sum()], 1)
