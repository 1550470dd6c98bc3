"""From several evaluations of several trainings to paired differences with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from components.verdict.config import RANDOM, SELECTED, UNTUNED
from free2ds_common.errors import StageError
from free2ds_common.evaluation import (
    COGNITION,
    Answers,
    Estimate,
    Tally,
    column_sets,
    draw_columns,
    estimate,
    tally,
)

# Arm to seed to the answers by benchmark; the untuned model has one, without a seed of its own.
Evaluations = Mapping[str, Mapping[int, Mapping[str, Answers]]]
BEAT, LOST, OPEN = "beat", "lost", "open"


@dataclass(frozen=True)
class Measured:
    """A column of every training: as it is, and over resamples of its questions.

    Attributes:
        values: Arm to float64, (seeds,).
        draws: Arm to float64, (seeds, resamples): the same resamples for all.
        largest: The largest value there can be.
    """

    values: Mapping[str, np.ndarray]
    draws: Mapping[str, np.ndarray]
    largest: float


def measured(evaluations: Evaluations, resamples: int, seed: int) -> dict[str, Measured]:
    """Every column of every benchmark, over the questions that all have answered.

    Raises:
        StageError: Evaluations are not of the same benchmarks and questions, or nothing is left to compare.
    """
    places = [(arm, one) for arm, seeds in evaluations.items() for one in seeds]
    every = [evaluations[arm][one] for arm, one in places]
    if len({frozenset(answers) for answers in every}) > 1:
        raise StageError("evaluations: they are not all of the same benchmarks. Evaluate every model on the same.")
    found: dict[str, Measured] = {}
    for benchmark in every[0]:
        tallies = [tally(one) for one in common([answers[benchmark] for answers in every])]
        values = [one.columns() for one in tallies]
        drawn = draw_columns(tallies, resamples, seed)
        for column in values[0]:
            found[column] = Measured(
                {
                    arm: np.array([v[column] for v, place in zip(values, places, strict=True) if place[0] == arm])
                    for arm in evaluations
                },
                {
                    arm: np.array([d[column] for d, place in zip(drawn, places, strict=True) if place[0] == arm])
                    for arm in evaluations
                },
                _largest(tallies[0], column),
            )
    return found


def common(answers: Sequence[Answers]) -> list[Answers]:
    """The questions that all have answered, in the order of the first.

    Raises:
        StageError: They are not of the same questions, judged alike.
    """
    first = answers[0]
    if any(one.metric != first.metric or set(one.ids) != set(first.ids) for one in answers):
        raise StageError(f"evaluations: not all have the same questions of {first.benchmark}. Evaluate on the same.")
    shared = set.intersection(*(set(one.answered().ids) for one in answers))
    aligned = []
    for one in answers:
        place = {identity: number for number, identity in enumerate(one.ids)}
        aligned.append(one.only([place[identity] for identity in first.ids if identity in shared]))
    return aligned


def _largest(counted: Tally, column: str) -> float:
    """The most that a column can be: 100 %, and of MME 200 points for each category."""
    if counted.metric != "mme":
        return 100.0
    cognition = sum(category in COGNITION for category in counted.categories)
    return 200.0 * (cognition if column.endswith("_cognition") else len(counted.categories) - cognition)


@dataclass(frozen=True)
class Difference:
    """Selected minus random.

    Attributes:
        own: In the column's own unit.
        points: In hundredths of the most that the column can be, so that columns can be averaged.
        outcome: `BEAT` or `LOST` where the interval has no 0, else `OPEN`.
    """

    own: Estimate
    points: Estimate
    outcome: str


@dataclass(frozen=True)
class Findings:
    """All that follows from the evaluations.

    Attributes:
        arms: Column to arm to its mean over seeds.
        differences: By column.
        mean: Of the differences in points, over the columns; by set of columns.
        relative: Arm to Rel. % against the baseline by column and set of columns; without columns whose baseline is 0.
        baseline: The arm that Rel. % is against.
        seeds: Arm to how many trainings.
    """

    arms: Mapping[str, Mapping[str, Estimate]]
    differences: Mapping[str, Difference]
    mean: Mapping[str, Estimate]
    relative: Mapping[str, Mapping[str, Estimate]]
    baseline: str
    seeds: Mapping[str, int]

    def count(self, outcome: str) -> int:
        """Columns with an outcome."""
        return sum(one.outcome == outcome for one in self.differences.values())


def findings(evaluations: Evaluations, baseline: str, resamples: int, seed: int) -> Findings:
    """Means, differences and Rel. %, each with a 95 % interval.

    A resample draws questions, and of each arm as many seeds as it has, with replacement. Questions are the same for
    all models, and seeds are the same for selected and random if both were trained with the same ones: what is common
    to both sides of a difference then does not blur it.

    Args:
        evaluations: Those to compare.
        baseline: The arm that Rel. % is against.
        resamples: How many.
        seed: Decides them.

    Raises:
        StageError: As of `measured`.
    """
    columns = measured(evaluations, resamples, seed)
    counts = {arm: len(seeds) for arm, seeds in evaluations.items()}
    random = np.random.default_rng([seed, len(columns)])
    drawn = {arm: random.integers(0, count, (count, resamples)) for arm, count in counts.items()}
    if list(evaluations[SELECTED]) == list(evaluations[RANDOM]):
        drawn[RANDOM] = drawn[SELECTED]
    means: dict[str, dict[str, float]] = {}
    draws: dict[str, dict[str, np.ndarray]] = {}
    for column, one in columns.items():
        means[column] = {arm: float(values.mean()) for arm, values in one.values.items()}
        draws[column] = {
            arm: np.take_along_axis(some, drawn[arm], axis=0).mean(axis=0) for arm, some in one.draws.items()
        }
    gaps = {column: means[column][SELECTED] - means[column][RANDOM] for column in columns}
    gap_draws = {column: draws[column][SELECTED] - draws[column][RANDOM] for column in columns}
    scale = {column: 100 / one.largest for column, one in columns.items()}
    return Findings(
        arms={
            column: {arm: estimate(means[column][arm], draws[column][arm]) for arm in evaluations} for column in columns
        },
        differences={column: _difference(gaps[column], gap_draws[column], scale[column]) for column in columns},
        mean={
            label: estimate(
                float(np.mean([gaps[column] * scale[column] for column in some])),
                np.mean([gap_draws[column] * scale[column] for column in some], axis=0),
            )
            for label, some in column_sets(list(columns)).items()
        },
        relative=_relative(means, draws, [arm for arm in evaluations if arm != baseline], baseline),
        baseline=baseline,
        seeds={arm: count for arm, count in counts.items() if arm != UNTUNED},
    )


def _difference(gap: float, draws: np.ndarray, scale: float) -> Difference:
    own = estimate(gap, draws)
    outcome = OPEN
    if own.low is not None and own.high is not None:
        outcome = BEAT if own.low > 0 else LOST if own.high < 0 else OPEN
    return Difference(own, estimate(gap * scale, draws * scale), outcome)


def _relative(
    means: Mapping[str, Mapping[str, float]],
    draws: Mapping[str, Mapping[str, np.ndarray]],
    arms: Sequence[str],
    baseline: str,
) -> dict[str, dict[str, Estimate]]:
    columns = [column for column in means if means[column][baseline] > 0]
    found = {}
    for arm in arms:
        values = {column: 100 * means[column][arm] / means[column][baseline] for column in columns}
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = {column: 100 * draws[column][arm] / draws[column][baseline] for column in columns}
        found[arm] = {column: estimate(values[column], ratios[column]) for column in columns}
        for label, some in column_sets(columns).items():
            mean = np.mean([ratios[column] for column in some], axis=0)
            found[arm][label] = estimate(float(np.mean([values[column] for column in some])), mean)
    return found


def sentence(found: Findings) -> str:
    """What follows, in words."""
    beat, lost, total = found.count(BEAT), found.count(LOST), len(found.differences)
    mean = next(iter(found.mean.values()))
    assert mean.low is not None
    assert mean.high is not None
    half = (mean.high - mean.low) / 2
    # Adding 0 takes the sign from a -0.
    value = round(mean.value, 1) + 0.0
    named = "mean" if total > 1 else "difference"
    told = f"Selecting beat random on {beat} of {total}, lost on {lost}; {named} {value:+.1f} ± {half:.1f} points."
    if mean.low <= 0 <= mean.high:
        return f"{told} On the whole the two cannot be told apart."
    return f"{told} On the whole selecting was {'better' if mean.value > 0 else 'worse'}."
