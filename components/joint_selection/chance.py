"""What chance makes of a setting: what a draw is expected to hold, and how far a single one strays from that.

A draw without replacement with weights w is a race: record i arrives after an exponential time of rate w_i, and the
first n are taken. With many records the n-th arrives at nearly the same time t in every race, so that a record is drawn
with probability 1 - exp(-w_i t), where t makes these sum to n (docs/method.md, section 5).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from components.joint_selection.config import DrawSettings
from components.joint_selection.race import Pool, Race, grid
from components.joint_selection.selection import Selection

# 95 % of a normal distribution lie within so many standard deviations.
_DEVIATIONS = 1.959964
WANTED_OVERLAP = 0.5
# The curve's temperatures: from a draw that is nearly the top n to one that is nearly uniform, for scores in [0, 1].
_LOWEST, _HIGHEST, _PER_DECADE = 1e-3, 1e1, 8
_HALVINGS = 16


@dataclass(frozen=True)
class Expectation:
    """What a draw has on average, and where 95 % of single draws are.

    Attributes:
        expected: The mean.
        low: Lower end of the interval.
        high: Upper end; all three are equal where nothing is left to chance.
    """

    expected: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Half the interval."""
        return (self.high - self.low) / 2

    def over(self, whole: float) -> "Expectation":
        """As a share, or a multiple, of `whole`."""
        return Expectation(self.expected / whole, self.low / whole, self.high / whole)


@dataclass(frozen=True)
class SourceChance:
    """What a setting draws from one source.

    Attributes:
        selected: Records.
        lift: Share of the selection over share of the pool: 1 is neither preferred nor avoided.
        lift_drawn: The lift of the draw that was made.
    """

    selected: Expectation
    lift: Expectation
    lift_drawn: float


@dataclass(frozen=True)
class CurvePoint:
    """What a temperature makes of the same scores.

    Attributes:
        temperature: Of the softmax.
        overlap: Expected share of the selection in the deterministic top n.
        effective_sample_size: 1 / sum of squared probabilities.
    """

    temperature: float
    overlap: float
    effective_sample_size: float


@dataclass(frozen=True)
class Chance:
    """What is a setting's doing, and what is a single draw's luck.

    Attributes:
        overlap_drawn: Share of this selection in the deterministic top n.
        overlap: The same, of any draw with this setting.
        overlap_random: The same, of a uniform draw.
        mean_combined: Expected mean combined score of a selection.
        wanted_overlap: An overlap that one may want.
        wanted_temperature: Which temperature gives it; None where none does.
        curve: From low temperatures to high ones, with this setting's among them unless the sampler is top.
        sources: By source of the pool, in the order of the pool's sizes.
    """

    overlap_drawn: float
    overlap: Expectation
    overlap_random: Expectation
    mean_combined: float
    wanted_overlap: float
    wanted_temperature: float | None
    curve: tuple[CurvePoint, ...]
    sources: Mapping[str, SourceChance]

    @property
    def metrics(self) -> dict[str, float]:
        """Flat numbers for Kubeflow."""
        numbers = {
            "overlap_expected": self.overlap.expected,
            "overlap_expected_low": self.overlap.low,
            "overlap_expected_high": self.overlap.high,
            "overlap_by_chance_low": self.overlap_random.low,
            "overlap_by_chance_high": self.overlap_random.high,
        }
        if self.wanted_temperature is not None:
            numbers["temperature_for_half_overlap"] = self.wanted_temperature
        return numbers


@dataclass(frozen=True)
class Expected:
    """A setting's expectations without the curve.

    Attributes:
        inclusion: float64, (N,): probability to be drawn, 0 outside the pool.
        overlap: Share of a draw in the deterministic top n.
        overlap_random: The same, of a uniform draw.
        mean_combined: Mean combined score of a draw.
        sources: Records drawn from each source of `source.dictionary`.
    """

    inclusion: np.ndarray
    overlap: Expectation
    overlap_random: Expectation
    mean_combined: float
    sources: list[Expectation]


def expect(settings: DrawSettings, source: pa.DictionaryArray, selection: Selection) -> Expected:
    """What draws with these settings have on average.

    Args:
        settings: Of the draw.
        source: Of each record, (N,).
        selection: Scores, strata and top n; which records were drawn does not matter.
    """
    return _expected(settings, source, selection, _pool_of(selection))


def chance(settings: DrawSettings, source: pa.DictionaryArray, selection: Selection) -> Chance:
    """Expectations, the curve over temperatures, and what this draw had.

    Args:
        settings: Of the draw.
        source: Of each record, (N,).
        selection: Scores, strata, top n and the draw.
    """
    pool = _pool_of(selection)
    expected = _expected(settings, source, selection, pool)
    coarse = grid(pool)
    codes = source.indices.to_numpy()
    sizes, drawn = (
        np.bincount(codes[mask], minlength=len(source.dictionary)) for mask in (selection.in_pool, selection.selected)
    )
    names = source.dictionary.to_pylist()
    fair = sizes * pool.wanted / sizes.sum()
    present = None
    if settings.sampler != "top":
        present = CurvePoint(
            settings.temperature, expected.overlap.expected, pool.effective_sample_size(settings.temperature)
        )
    return Chance(
        overlap_drawn=selection.tilt.overlap_with_top,
        overlap=expected.overlap,
        overlap_random=expected.overlap_random,
        mean_combined=expected.mean_combined,
        wanted_overlap=WANTED_OVERLAP,
        wanted_temperature=_temperature_for(WANTED_OVERLAP, coarse),
        curve=_curve(coarse, present),
        sources={
            names[code]: SourceChance(
                selected=expected.sources[code],
                lift=expected.sources[code].over(fair[code]),
                lift_drawn=float(drawn[code] / fair[code]),
            )
            for code in np.argsort(-sizes, kind="stable")
            if sizes[code]
        },
    )


def _pool_of(selection: Selection) -> Pool:
    rows = selection.in_pool
    return Pool.of(
        selection.combined[rows], selection.stratum[rows], selection.best[rows], int(selection.selected.sum())
    )


def _expected(settings: DrawSettings, source: pa.DictionaryArray, selection: Selection, pool: Pool) -> Expected:
    codes = source.indices.to_numpy()[selection.in_pool][pool.order]
    race = Race.certain(pool) if settings.sampler == "top" else Race.at(pool, settings.temperature)
    inclusion = np.zeros(len(selection.in_pool))
    inclusion[np.flatnonzero(selection.in_pool)[pool.order]] = race.inclusion
    means, deviations = race.counts(codes, len(source.dictionary))
    sizes = np.bincount(codes, minlength=len(source.dictionary))
    mean, deviation = race.best()
    records, wanted = len(pool.score), pool.wanted
    return Expected(
        inclusion=inclusion,
        overlap=_interval(mean, deviation, wanted).over(wanted),
        overlap_random=_interval(wanted**2 / records, _uniform_deviation(records, wanted), wanted).over(wanted),
        mean_combined=float(race.inclusion @ pool.score / wanted),
        sources=[
            _interval(one, spread, min(wanted, size))
            for one, spread, size in zip(means.tolist(), deviations.tolist(), sizes.tolist(), strict=True)
        ],
    )


def _interval(mean: float, deviation: float, most: int) -> Expectation:
    """Mean and 95 % interval of a number of records from 0 to `most`; both ends are whole records, rounded outward."""
    reach = _DEVIATIONS * deviation
    # What the solver leaves after the point must not make a record out of nothing.
    low, high = math.floor(mean - reach + 1e-6), math.ceil(mean + reach - 1e-6)
    return Expectation(min(max(mean, 0.0), float(most)), float(max(0, low)), float(min(most, high)))


def _uniform_deviation(records: int, wanted: int) -> float:
    """Standard deviation of how many of `wanted` fixed records a uniform draw of as many has (hypergeometric)."""
    share = wanted / records
    return math.sqrt(wanted * share * (1 - share) * (records - wanted) / max(1, records - 1))


def _curve(coarse: Pool, present: CurvePoint | None) -> tuple[CurvePoint, ...]:
    decades = round(math.log10(_HIGHEST / _LOWEST))
    temperatures = {float(f"{one:.3g}") for one in np.geomspace(_LOWEST, _HIGHEST, decades * _PER_DECADE + 1)}
    points = {one: CurvePoint(one, _overlap_at(coarse, one), coarse.effective_sample_size(one)) for one in temperatures}
    if present is not None:
        points[present.temperature] = present
    return tuple(points[temperature] for temperature in sorted(points))


def _overlap_at(coarse: Pool, temperature: float) -> float:
    return min(1.0, Race.at(coarse, temperature).best()[0] / coarse.wanted)


def _temperature_for(wanted: float, coarse: Pool) -> float | None:
    """The temperature whose draws have this overlap, to three digits; None where none between the curve's ends has."""
    if _overlap_at(coarse, _LOWEST) < wanted or _overlap_at(coarse, _HIGHEST) > wanted:
        return None
    low, high = math.log(_LOWEST), math.log(_HIGHEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _overlap_at(coarse, math.exp(middle)) > wanted else (low, middle)
    return float(f"{math.exp((low + high) / 2):.3g}")
