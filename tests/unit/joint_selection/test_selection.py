"""Scoring and draw together: pool, strata, the random control, errors."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.joint_selection.config import DrawSettings
from components.joint_selection.draw import record_noise
from components.joint_selection.selection import Candidates, by_source, select
from free2ds_common.errors import StageError

COUNT = 40
KEYS = pa.array([f"{number:064x}" for number in range(COUNT)])


def candidates(seed=0, **changes):
    """Records with different scores, all usable, of one source."""
    rng = np.random.default_rng(1)
    made = Candidates(
        iou=rng.random(COUNT),
        text_similarity=rng.random(COUNT),
        rejected=np.zeros(COUNT, bool),
        source=pa.array(["one"] * COUNT).dictionary_encode(),
        noise=record_noise(KEYS, seed),
    )
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize("stratify", ["", "source"])
@pytest.mark.parametrize("sampler", ["gumbel", "reference", "top"])
def test_the_control_meets_the_selection_as_often_as_chance(sampler, stratify):
    """All scores are equal. Two independent draws of 10 of 40 have 10 * 10 / 40 records in common.

    The variance is that of the hypergeometric distribution, 10 * 1/4 * 3/4 * 30/39 = 1.44; over 300 seeds the mean's
    standard deviation is 0.07.
    """
    same = {"iou": np.full(COUNT, 0.5), "text_similarity": np.full(COUNT, 0.5)}
    common = []
    for seed in range(300):
        settings = DrawSettings(num_samples=10, sampler=sampler, stratify=stratify, seed=seed)
        found = select(settings, candidates(seed, **same))
        common.append(np.count_nonzero(found.selected & found.control))
    assert np.mean(common) == pytest.approx(2.5, abs=0.3)


def test_the_control_does_not_look_at_the_scores():
    settings = DrawSettings(num_samples=10, temperature=0.01)
    one = select(settings, candidates())
    other = select(settings, candidates(iou=np.linspace(0, 1, COUNT), text_similarity=np.linspace(1, 0, COUNT)))
    assert one.selected.tolist() != other.selected.tolist()
    assert one.control.tolist() == other.control.tolist()


def test_the_control_takes_every_record_equally_often():
    """Drawn 10 of 40, 400 times: 100 times each; the standard deviation is 8.7."""
    taken = sum(select(DrawSettings(num_samples=10), candidates(seed)).control.astype(int) for seed in range(400))
    assert taken.sum() == 4000
    assert taken.min() > 65
    assert taken.max() < 135


@pytest.mark.parametrize(
    ("settings", "selected"),
    [
        (DrawSettings(ratio=0.25), 10),
        (DrawSettings(ratio=0.249), 9),
        (DrawSettings(ratio=1.0), 40),
        (DrawSettings(ratio=0.25, num_samples=7), 7),
        (DrawSettings(num_samples=40), 40),
    ],
)
def test_how_many_are_selected(settings, selected):
    found = select(settings, candidates())
    assert found.selected.sum() == selected
    assert found.control.sum() == selected


def test_rejected_records_are_neither_selected_nor_in_the_control():
    rejected = np.arange(COUNT) < 10
    found = select(DrawSettings(ratio=1.0), candidates(rejected=rejected))
    assert found.selected.tolist() == found.control.tolist() == found.in_pool.tolist() == (~rejected).tolist()
    assert np.isnan(found.combined[:10]).all()
    assert not found.probability[:10].any()


def test_rejected_records_do_not_move_the_others_scores():
    """An extreme score of a record that cannot be used is not the minimum of the rest."""
    iou, rejected = np.linspace(0.2, 0.8, COUNT), np.zeros(COUNT, bool)
    iou[0], rejected[0] = 0.0, True
    found = select(DrawSettings(), candidates(iou=iou, rejected=rejected))
    assert found.image_score[1] == 1.0
    assert np.isnan(found.image_score[0])


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        (DrawSettings(num_samples=41), {}, "num_samples: got 41, but only 40 records can be drawn. Ask for fewer."),
        (DrawSettings(ratio=0.001), {}, "ratio: 0.001 of 40 records is no record at all. Raise ratio or num_samples."),
        (DrawSettings(), {"rejected": np.ones(COUNT, bool)}, "none of the 40 records can be drawn: all are rejected."),
        (
            DrawSettings(missing_iou="exclude"),
            {"iou": np.full(COUNT, np.nan)},
            "none of the 40 records can be drawn: no record has an IoU, and missing_iou is exclude.",
        ),
    ],
)
def test_nothing_or_not_enough_to_draw(settings, changes, message):
    with pytest.raises(StageError) as error:
        select(settings, candidates(**changes))
    assert str(error.value) == message


def test_strata_have_weights_and_a_line_of_their_own():
    """Two sources whose scores do not overlap, equal in the first one."""
    similarity = np.array([0.9, 0.1, 0.9, 0.2, 0.9, 0.3, 0.9, 0.4])
    records = Candidates(
        iou=np.full(8, np.nan),
        text_similarity=similarity,
        rejected=np.zeros(8, bool),
        source=pa.array(["low", "high"] * 4).dictionary_encode(),
        noise=record_noise(KEYS.slice(0, 8), 0),
    )
    found = select(DrawSettings(ratio=0.5, alpha=1, stratify="source", seed=0), records)
    np.testing.assert_allclose(found.edge, [0, 0.875] * 4)
    np.testing.assert_allclose(found.probability[::2], 0.25)
    high = found.probability[1::2]
    assert high.max() / high.min() == pytest.approx(np.exp(0.375))
    assert found.tilt.weight_ratio == pytest.approx(np.exp(0.375))


@pytest.mark.parametrize(("sampler", "overlap"), [("top", 1.0), ("gumbel", None)])
def test_tilt_of_strata_is_that_of_one_distribution(sampler, overlap):
    """Sources of different size, all scores equal: every record of the pool weighs the same."""
    source = pa.array(["large"] * 30 + ["small"] * 10).dictionary_encode()
    same = {"iou": np.full(COUNT, 0.5), "text_similarity": np.full(COUNT, 0.5)}
    found = select(DrawSettings(ratio=0.25, stratify="source", sampler=sampler), candidates(source=source, **same))
    assert found.tilt.effective_sample_size == pytest.approx(40)
    assert overlap is None or found.tilt.overlap_with_top == overlap


def of_sources(names, seed, scores=None):
    """A record for each name, which is its source; all scores are equal unless given."""
    scores = np.full(len(names), 0.5) if scores is None else scores
    return Candidates(
        iou=1 - scores,
        text_similarity=1 - scores,
        rejected=np.zeros(len(names), bool),
        source=pa.array(names).dictionary_encode(),
        noise=record_noise(pa.array([f"{number:064x}" for number in range(len(names))]), seed),
    )


def taken_by_seed(names, n, sampler="gumbel", seeds=400):
    """bool, (seeds, records): what each seed selects."""
    settings = (DrawSettings(num_samples=n, sampler=sampler, stratify="source", seed=seed) for seed in range(seeds))
    return np.array([select(one, of_sources(names, one.seed)).selected for one in settings])


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    sizes=st.dictionaries(st.text(max_size=6), st.integers(1, 12), min_size=1, max_size=10),
    share=st.floats(0.05, 0.95),
    sampler=st.sampled_from(["gumbel", "reference"]),
)
def test_every_source_gets_its_share_of_the_draws_whatever_its_name(sizes, share, sampler):
    """Random strata, many smaller than one draw: a count is at most 1 from its mean, so 150 seeds' mean is within 0.2.

    Its standard deviation is at most 0.5 / sqrt(150) = 0.04.
    """
    names = np.array([name for name, size in sizes.items() for _ in range(size)])
    n = max(1, round(share * len(names)))
    taken = taken_by_seed(names.tolist(), n, sampler, seeds=150).mean(axis=0)
    for name, size in sizes.items():
        assert taken[names == name].sum() == pytest.approx(n * size / len(names), abs=0.2)


@pytest.mark.parametrize("sampler", ["gumbel", "reference"])
def test_a_folder_per_picture_is_drawn_from_as_if_there_were_none(sampler):
    """40 sources of one record, 8 drawn, 400 times: 80 times each; the standard deviation is 8."""
    names = [f"{number:02d}" for number in range(40)]
    taken = taken_by_seed(names, 8, sampler).sum(axis=0)
    assert taken.sum() == 400 * 8
    assert taken.min() > 48
    assert taken.max() < 112


def test_the_first_and_the_second_half_of_the_alphabet_are_drawn_alike():
    """4 of 8 of either half; with the standard deviation of the hypergeometric distribution, 1.3 / sqrt(400)."""
    taken = taken_by_seed([f"{number:02d}" for number in range(40)], 8)
    assert taken[:, :20].sum(axis=1).mean() == pytest.approx(4, abs=0.25)


def test_neighbours_in_the_alphabet_are_drawn_together_as_often_as_others():
    """Two of 20 are both among 10 with 10/20 * 9/19 = 0.237; the standard deviation of 19 pairs' mean is below 0.01."""
    taken = taken_by_seed([f"{number:02d}" for number in range(20)], 10)
    assert (taken[:, :-1] & taken[:, 1:]).mean() == pytest.approx(0.237, abs=0.03)


def test_top_takes_the_best_records_of_sources_of_one():
    scores = np.random.default_rng(2).random(40)
    made = of_sources([f"{number:02d}" for number in range(40)], 0, scores)
    found = select(DrawSettings(num_samples=8, sampler="top", stratify="source"), made)
    assert sorted(np.flatnonzero(found.selected)) == sorted(np.argsort(-scores)[:8])


def test_top_does_not_depend_on_the_seed():
    names, scores = [f"{number // 3:02d}" for number in range(40)], np.random.default_rng(2).random(40)
    settings = (DrawSettings(num_samples=8, sampler="top", stratify="source", seed=seed) for seed in range(5))
    assert len({tuple(select(one, of_sources(names, one.seed, scores)).selected) for one in settings}) == 1


@pytest.mark.parametrize("sampler", ["gumbel", "top"])
def test_the_order_of_the_records_does_not_matter_to_small_strata(sampler):
    made = of_sources([f"{number % 23}" for number in range(40)], 3, np.random.default_rng(2).random(40))
    settings = DrawSettings(num_samples=8, sampler=sampler, stratify="source", seed=3)
    wanted = select(settings, made).selected
    order = np.random.default_rng(4).permutation(40)
    shuffled = Candidates(
        iou=made.iou[order],
        text_similarity=made.text_similarity[order],
        rejected=made.rejected,
        # Encoded again: names are numbered by their first appearance.
        source=pa.array(np.array(made.source.to_pylist())[order]).dictionary_encode(),
        noise=made.noise[order],
    )
    assert select(settings, shuffled).selected.tolist() == wanted[order].tolist()


def test_by_source_by_hand():
    source = pa.array(["a", "b", "a", "c", "b", "b"]).dictionary_encode()
    pool = np.array([1, 1, 1, 0, 1, 1], bool)
    chosen = np.array([1, 0, 0, 0, 0, 1], bool)
    found = by_source(source, pool=pool, selected=chosen)
    assert list(found.items()) == [
        ("b", {"pool": 3, "selected": 1}),
        ("a", {"pool": 2, "selected": 1}),
        ("c", {"pool": 0, "selected": 0}),
    ]


def missing_at_random(even_text):
    """20,000 records, two independent signals, 42 % without an IoU; the text similarity is uniform or skewed."""
    rng = np.random.default_rng(6)
    iou, similarity = rng.random(20_000), rng.random(20_000)
    iou[rng.random(20_000) < 0.42] = np.nan
    return of_signals(iou, similarity if even_text else 1 - similarity**60)


def of_signals(iou, similarity):
    """All usable, of one source."""
    return Candidates(
        iou=iou,
        text_similarity=similarity,
        rejected=np.zeros(len(iou), bool),
        source=pa.array(["one"] * len(iou)).dictionary_encode(),
        noise=record_noise(pa.array([f"{number:064x}" for number in range(len(iou))]), 0),
    )


def share_of_top(made, **changes):
    """The share of the top n that has no IoU."""
    return np.isnan(made.iou[select(DrawSettings(**changes), made).best]).mean()


@pytest.mark.parametrize("even_text", [True, False])
def test_records_without_an_iou_are_as_many_in_the_top_as_in_the_pool(even_text):
    """Missing at random. A share of 1,000 has a standard deviation of at most 0.016; text alone is far away."""
    made = missing_at_random(even_text)
    pool = np.isnan(made.iou).mean()
    for ratio in (0.05, 0.2):
        for alpha in (0.0, 0.3, 0.5, 0.7, 1.0):
            assert share_of_top(made, alpha=alpha, ratio=ratio) == pytest.approx(pool, abs=0.05)
        assert abs(share_of_top(made, ratio=ratio, missing_iou="text") - pool) > 0.1


@pytest.mark.parametrize("ratio", [0.05, 0.2])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_other_texts_do_not_change_the_share(ratio, alpha):
    """Those without an IoU have less typical texts: as many are in the top as in the pool all the same."""
    made = missing_at_random(even_text=True)
    unlike = dataclasses.replace(
        made, text_similarity=np.where(np.isnan(made.iou), made.text_similarity * 0.6, made.text_similarity)
    )
    pool = np.isnan(made.iou).mean()
    assert share_of_top(unlike, alpha=alpha, ratio=ratio) == pytest.approx(pool, abs=0.01)


@pytest.mark.parametrize("stratify", ["", "source"])
def test_the_top_is_what_the_top_sampler_takes(stratify):
    made = candidates(source=pa.array(["a", "b"] * 20).dictionary_encode())
    settings = DrawSettings(num_samples=9, stratify=stratify)
    assert select(settings, made).best.tolist() == (
        select(dataclasses.replace(settings, sampler="top"), made).selected.tolist()
    )
