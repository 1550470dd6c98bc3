"""Expectations of a draw: by hand for a few records, and against draws of the samplers themselves."""

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pytest

from components.joint_selection.chance import CurvePoint, chance, expect
from components.joint_selection.config import DrawSettings
from components.joint_selection.draw import draw, record_noise
from components.joint_selection.race import Pool, Race, grid
from components.joint_selection.selection import Candidates, select
from components.joint_selection.stage import run
from tests.support.selection import read_json

WEIGHTS_1_2_4 = np.log([1.0, 2.0, 4.0])


def pool_of(scores, wanted, stratum=None):
    scores = np.asarray(scores, float)
    best = np.zeros(len(scores), bool)
    best[np.argsort(-scores, kind="stable")[:wanted]] = True
    return Pool.of(scores, np.zeros(len(scores), int) if stratum is None else stratum, best, wanted)


class TestByHand:
    def test_one_of_three(self):
        """Weights 1, 2 and 4: probabilities 1/7, 2/7 and 4/7, and a best one that is drawn or not."""
        race = Race.at(pool_of(WEIGHTS_1_2_4, 1), 1.0)
        np.testing.assert_allclose(race.inclusion, [1 / 7, 2 / 7, 4 / 7])
        assert race.best()[0] == pytest.approx(4 / 7)

    def test_two_of_three(self):
        """Six orders: 4 and 2 are drawn with 4/7 2/3 + 2/7 4/5 = 64/105, 4 and 1 with 30/105, 2 and 1 with 11/105.

        The time at which two have arrived is no fixed one among three: right to a twentieth of a record.
        """
        race = Race.at(pool_of(WEIGHTS_1_2_4, 2), 1.0)
        np.testing.assert_allclose(race.inclusion, [41 / 105, 75 / 105, 94 / 105], atol=0.05)
        mean, deviation = race.best()
        # Two of the best two with 64/105, else one.
        assert mean == pytest.approx(1 + 64 / 105, abs=0.05)
        assert deviation == pytest.approx(math.sqrt(64 * 41) / 105, abs=0.05)

    def test_two_of_three_with_equal_weights_is_exact(self):
        """Both of two with 1/3, else one of them."""
        assert Race.at(pool_of([0.5, 0.5, 0.5], 2), 1.0).best() == pytest.approx((4 / 3, math.sqrt(2 / 9)), rel=1e-6)

    def test_all_of_three(self):
        assert Race.at(pool_of(WEIGHTS_1_2_4, 3), 1.0).best() == (3, 0)

    @pytest.mark.parametrize("temperature", [1e-4, 1e-12, 1e-300])
    def test_a_temperature_near_zero_is_the_top(self, temperature):
        mean, deviation = Race.at(pool_of(np.linspace(0, 1, 50), 10), temperature).best()
        assert (mean, deviation) == (pytest.approx(10, abs=1e-5), pytest.approx(0, abs=1e-2))

    def test_an_endless_temperature_is_uniform(self):
        assert Race.at(pool_of(np.linspace(0, 1, 50), 10), 1e12).best()[0] == pytest.approx(2)

    def test_strata_that_give_one_record_at_most(self):
        """One of two pairs, each with the chance 1/2; weights 1 and 3, the better pair's best is the top."""
        scores = np.log([1.0, 3.0, 2.0, 6.0])
        race = Race.at(pool_of(scores, 1, np.array([0, 0, 1, 1])), 1.0)
        np.testing.assert_allclose(race.inclusion, [1 / 8, 3 / 8, 1 / 8, 3 / 8])
        mean, deviation = race.best()
        assert (mean, deviation) == (pytest.approx(3 / 8), pytest.approx(math.sqrt(15) / 8))

    def test_effective_sample_size(self):
        """1 / (1 + 4 + 16) * 49."""
        assert pool_of(WEIGHTS_1_2_4, 1).effective_sample_size(1.0) == pytest.approx(49 / 21)

    def test_records_of_groups_with_equal_weights(self):
        """Five of ten, four of which are one group: 2 on average, hypergeometric."""
        mean, deviation = Race.at(pool_of(np.ones(10), 5), 1.0).counts(np.repeat([0, 1], [4, 6]), 2)
        np.testing.assert_allclose(mean, [2, 3], rtol=1e-6)
        np.testing.assert_allclose(deviation, math.sqrt(5 * 0.4 * 0.6 * 5 / 9), rtol=1e-6)


@pytest.mark.parametrize(("wanted", "temperature"), [(200, 0.5), (380, 0.05), (380, 0.5)])
def test_density_is_what_one_record_more_adds(wanted, temperature):
    """Half the difference that two records make; also where most are drawn, and it is not the variance."""
    less, here, more = (
        Race.at(pool_of(np.linspace(0, 1, 400), number), temperature) for number in (wanted - 1, wanted, wanted + 1)
    )
    np.testing.assert_allclose(
        here.density / here.density.sum(), (more.inclusion - less.inclusion) / 2, rtol=0.03, atol=1e-5
    )


POOL, DRAWS = 400, 300
KEYS = pa.array([f"{number:064x}" for number in range(POOL)])
SCORES = np.random.default_rng(3).beta(2, 4, POOL)
SIX = np.random.default_rng(4).integers(0, 6, POOL)
MANY = np.random.default_rng(5).integers(0, 90, POOL)
NONE = np.zeros(POOL, int)


@pytest.mark.parametrize(
    ("sampler", "temperature", "wanted", "groups"),
    [
        ("gumbel", 1.0, 80, NONE),
        ("gumbel", 0.1, 80, NONE),
        ("gumbel", 0.01, 80, NONE),
        ("gumbel", 0.1, 385, NONE),
        ("gumbel", 0.1, 5, NONE),
        ("reference", 0.1, 80, NONE),
        ("reference", 0.2, 80, SIX),
        ("gumbel", 1.0, 83, SIX),
        ("gumbel", 0.05, 83, SIX),
        ("gumbel", 0.1, 60, MANY),
    ],
)
def test_against_the_samplers(sampler, temperature, wanted, groups):
    """300 draws, in records: means within 4 standard errors and 0.25, deviations within a fifth, 90 % and more inside.

    A deviation over 300 draws is within 16 % of its own in all but one of ten thousand cases. Strata are in another
    order for each seed, as the stage has them.
    """
    noise = record_noise(KEYS, 0)
    best = np.zeros(POOL, bool)
    best[draw(SCORES, 1.0, wanted, "top", noise, groups, 0)[0]] = True
    order = np.random.default_rng(7)
    drawn = np.zeros((DRAWS, POOL), bool)
    for seed in range(DRAWS):
        strata = order.permutation(groups.max() + 1)[groups]
        drawn[seed, draw(SCORES, temperature, wanted, sampler, record_noise(KEYS, seed), strata, seed)[0]] = True
    overlap = (drawn & best).sum(axis=1)
    pool = Pool.of(SCORES, groups, best, wanted)
    race = Race.at(pool, temperature)
    mean, deviation = race.best()
    assert mean == pytest.approx(overlap.mean(), abs=4 * overlap.std() / math.sqrt(DRAWS) + 0.25)
    assert deviation == pytest.approx(overlap.std(), rel=0.2)
    assert np.mean(np.abs(overlap - mean) <= np.ceil(1.96 * deviation)) > 0.9
    often = np.zeros(POOL)
    often[pool.order] = race.inclusion
    assert np.abs(often - drawn.mean(axis=0)).max() < 4.5 * 0.5 / math.sqrt(DRAWS)
    assert race.inclusion.sum() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("groups", [NONE, SIX], ids=["one stratum", "six"])
@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.003])
def test_the_grid_says_what_all_records_say(groups, temperature):
    """20,000 records in fewer entries."""
    scores = np.random.default_rng(1).beta(2, 4, 20_000)
    full = pool_of(scores, 4_000, np.resize(groups, 20_000))
    coarse = grid(full)
    assert len(coarse.score) < 16_000
    np.testing.assert_allclose(Race.at(coarse, temperature).best(), Race.at(full, temperature).best(), rtol=1e-3)
    assert coarse.effective_sample_size(temperature) == pytest.approx(full.effective_sample_size(temperature), rel=1e-3)


def candidates(scores, sources):
    """Records without an IoU, whose combined score is this one."""
    keys = pa.array([f"{number:064x}" for number in range(len(scores))])
    return Candidates(
        iou=np.full(len(scores), np.nan),
        text_similarity=1 - np.asarray(scores, float),
        rejected=np.zeros(len(scores), bool),
        source=pa.array(sources).dictionary_encode(),
        noise=record_noise(keys, 1),
    )


def chance_of(scores, sources, **settings):
    made = DrawSettings(**{"num_samples": 80, "missing_iou": "text", **settings})
    pool = candidates(scores, sources)
    return chance(made, pool.source, select(made, pool))


SOURCES = ["ab"[number % 4 == 0] for number in range(POOL)]
SPREAD_OUT = (SCORES - SCORES.min()) / (SCORES.max() - SCORES.min())


class TestChance:
    def test_top_is_certain(self):
        found = chance_of(SPREAD_OUT, SOURCES, sampler="top")
        assert dataclasses.astuple(found.overlap) == (1, 1, 1)
        assert found.overlap.spread == 0
        assert all(one.selected.spread == 0 for one in found.sources.values())

    def test_a_uniform_draw_is_hypergeometric(self):
        """80 of 400: 16 of the top 80, deviation 3.2 sqrt(320 / 399) sqrt(1.25), 95 % of draws from 10 to 22."""
        found = chance_of(SPREAD_OUT, SOURCES).overlap_random
        deviation = math.sqrt(80 * 0.2 * 0.8 * 320 / 399)
        low, high = math.floor(16 - 1.96 * deviation), math.ceil(16 + 1.96 * deviation)
        assert (low, high) == (9, 23)
        assert dataclasses.astuple(found) == pytest.approx((0.2, low / 80, high / 80))

    def test_equal_scores_are_as_a_uniform_draw(self):
        found = chance_of(np.full(POOL, 0.5), SOURCES)
        assert dataclasses.astuple(found.overlap) == pytest.approx(dataclasses.astuple(found.overlap_random))
        assert found.wanted_temperature is None

    def test_all_records_leave_nothing_to_chance(self):
        found = chance_of(SPREAD_OUT, SOURCES, num_samples=POOL)
        assert dataclasses.astuple(found.overlap) == dataclasses.astuple(found.overlap_random) == (1, 1, 1)

    def test_the_temperature_for_half_gives_half(self):
        wanted = chance_of(SPREAD_OUT, SOURCES).wanted_temperature
        assert wanted < 1
        assert chance_of(SPREAD_OUT, SOURCES, temperature=wanted).overlap.expected == pytest.approx(0.5, abs=0.005)

    def test_no_temperature_gives_half_where_a_random_draw_has_more(self):
        assert chance_of(SPREAD_OUT, SOURCES, num_samples=300).wanted_temperature is None

    def test_the_curve_falls_and_this_setting_is_on_it(self):
        found = chance_of(SPREAD_OUT, SOURCES, temperature=0.123)
        assert [point.temperature for point in found.curve] == sorted(point.temperature for point in found.curve)
        assert (found.curve[0].temperature, found.curve[-1].temperature) == (0.001, 10)
        assert all(one.overlap >= other.overlap for one, other in zip(found.curve, found.curve[1:], strict=False))
        point = next(point for point in found.curve if point.temperature == 0.123)
        weights = np.exp(SPREAD_OUT / 0.123)
        size = weights.sum() ** 2 / np.square(weights).sum()
        assert point == CurvePoint(0.123, found.overlap.expected, pytest.approx(size))

    def test_no_setting_is_on_the_curve_of_top(self):
        assert 0.123 not in [
            point.temperature for point in chance_of(SPREAD_OUT, SOURCES, sampler="top", temperature=0.123).curve
        ]

    def test_lifts_of_equal_scores(self):
        """A quarter of the records are b: 20 of 80, whatever is drawn a lift around 1."""
        found = chance_of(np.full(POOL, 0.5), SOURCES).sources
        assert list(found) == ["a", "b"]
        deviation = math.sqrt(80 * 0.25 * 0.75 * 320 / 399)
        low, high = math.floor(20 - 1.96 * deviation), math.ceil(20 + 1.96 * deviation)
        assert dataclasses.astuple(found["b"].selected) == pytest.approx((20, low, high))
        assert dataclasses.astuple(found["b"].lift) == pytest.approx((1, low / 20, high / 20))

    def test_the_lift_of_the_draw(self):
        made = DrawSettings(num_samples=80)
        pool = candidates(SPREAD_OUT, SOURCES)
        selection = select(made, pool)
        drawn = sum(selection.selected[number] for number in range(POOL) if SOURCES[number] == "b")
        found = chance(made, pool.source, selection)
        assert found.sources["b"].lift_drawn == pytest.approx(drawn / 20)
        assert found.overlap_drawn == selection.tilt.overlap_with_top

    def test_strata_give_their_share_rounded(self):
        """7 of 40 in the proportion of 3 to 1: 5.25 and 1.75."""
        sources = ["ab"[number % 4 == 0] for number in range(40)]
        found = chance_of(SPREAD_OUT[:40], sources, num_samples=7, stratify="source").sources
        assert dataclasses.astuple(found["a"].selected) == pytest.approx((5.25, 5, 6))
        assert dataclasses.astuple(found["b"].selected) == pytest.approx((1.75, 1, 2))

    def test_a_source_outside_the_pool_has_no_lift(self):
        pool = candidates(SPREAD_OUT, SOURCES)
        pool.rejected[::4] = True
        settings = DrawSettings(num_samples=80)
        assert list(chance(settings, pool.source, select(settings, pool)).sources) == ["a"]


def test_the_mean_score_of_draws():
    """Two of four with equal weights in the limit: the mean of all; and of the top it is theirs."""
    pool = candidates([0.0, 0.2, 0.6, 1.0], ["a"] * 4)
    for settings, mean in (({"temperature": 1e9}, 0.45), ({"sampler": "top"}, 0.8)):
        made = DrawSettings(num_samples=2, **settings)
        assert expect(made, pool.source, select(made, pool)).mean_combined == pytest.approx(mean)


def test_inclusion_is_in_input_order_and_zero_outside_the_pool():
    pool = candidates([1.0, 0.0, 0.6, 0.2], ["a"] * 4)
    pool.rejected[2] = True
    settings = DrawSettings(num_samples=1, sampler="top")
    assert expect(settings, pool.source, select(settings, pool)).inclusion.tolist() == [1, 0, 0, 0]


@pytest.mark.usefixtures("without_report")
def test_summary_and_metrics(inputs):
    config = inputs.config()
    result = run(config)
    found = read_json(config.summary)["chance"]
    assert list(found) == [
        "overlap_drawn",
        "overlap",
        "overlap_random",
        "mean_combined",
        "wanted_overlap",
        "wanted_temperature",
        "curve",
        "sources",
    ]
    assert found["overlap_random"]["expected"] == 0.25
    assert {name: value for name, value in result.metrics.items() if name not in read_json(config.summary)["tilt"]} == {
        "overlap_expected": found["overlap"]["expected"],
        "overlap_expected_low": found["overlap"]["low"],
        "overlap_expected_high": found["overlap"]["high"],
        "overlap_by_chance_low": found["overlap_random"]["low"],
        "overlap_by_chance_high": found["overlap_random"]["high"],
        "temperature_for_half_overlap": found["wanted_temperature"],
        "pool": 40,
        "without_iou": 4,
    }
    assert "chance" not in result.metadata
