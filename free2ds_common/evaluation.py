"""From judged answers (evaluation/1) to the numbers of a benchmark, their intervals, and Rel. % against a baseline.

A benchmark has one column or, as MME, two. Intervals are percentiles of a bootstrap over units: questions that share a
picture or count together stay together. Two evaluations are compared on the same resamples.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from free2ds_common.datasets import Dataset
from free2ds_common.errors import StageError

COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
PERCENTILES = (2.5, 97.5)
# Sets of columns that Rel. % is the mean of.
ALL, WITHOUT_COGNITION = "all", "without_mme_cognition"
_COGNITION_COLUMN = "_cognition"
# Metrics whose groups count as a whole: without one of its answers a group is left out.
_GROUPED = ("mme", "mmbench")
# Beyond so many categories a benchmark has no accuracy for each.
_MAX_CATEGORIES = 40
_READ = ("benchmark", "metric", "question_id", "image", "category", "group", "answers", "judged", "score")
_RESAMPLES_AT_ONCE = 32

Item = TypeVar("Item")


@dataclass(frozen=True)
class Answers:
    """The judged answers of one benchmark; the sequences have one entry per question.

    Attributes:
        benchmark: Its name.
        metric: How they were judged.
        ids: Of the questions.
        units: What is resampled: the question's group, picture or itself.
        categories: What the metric counts apart.
        labels: The first accepted answer, in lower case.
        judged: What was read out of the answer; None without one.
        scores: float64, in [0, 1]; NaN without an answer.
    """

    benchmark: str
    metric: str
    ids: tuple[str, ...]
    units: tuple[str, ...]
    categories: tuple[str, ...]
    labels: tuple[str, ...]
    judged: tuple[str | None, ...]
    scores: np.ndarray

    def answered(self) -> "Answers":
        """Without questions that have no answer, and without groups that miss one."""
        keys = [self._whole(place) for place in range(len(self.ids))]
        broken = {key for key, score in zip(keys, self.scores, strict=True) if np.isnan(score)}
        return self.only([place for place, key in enumerate(keys) if key not in broken])

    def _whole(self, place: int) -> tuple[str, str]:
        """What is left out together."""
        grouped = self.metric in _GROUPED
        return self.categories[place], self.units[place] if grouped else self.ids[place]

    def only(self, places: Sequence[int]) -> "Answers":
        """Some of the questions."""

        def some(values: tuple[Item, ...]) -> tuple[Item, ...]:
            return tuple(values[place] for place in places)

        return replace(
            self,
            ids=some(self.ids),
            units=some(self.units),
            categories=some(self.categories),
            labels=some(self.labels),
            judged=some(self.judged),
            scores=self.scores[np.array(places, dtype=np.int64)],
        )


def read_answers(evaluation: Dataset) -> dict[str, Answers]:
    """The answers of every benchmark of an evaluation, by its name, in order."""
    rows: dict[str, list[dict[str, object]]] = {}
    for row in evaluation.rows(list(_READ)):
        rows.setdefault(row["benchmark"], []).append(row)
    return {name: _answers(name, some) for name, some in rows.items()}


def _answers(name: str, rows: Sequence[Mapping[str, object]]) -> Answers:
    def texts(column: str) -> tuple[str, ...]:
        return tuple(str(row[column]) for row in rows)

    ids = texts("question_id")
    scores = [row["score"] for row in rows]
    labels = [row["answers"] for row in rows]
    return Answers(
        benchmark=name,
        metric=str(rows[0]["metric"]),
        ids=ids,
        units=tuple(str(row["group"] or row["image"] or identity) for row, identity in zip(rows, ids, strict=True)),
        categories=texts("category"),
        labels=tuple(str(label[0]).lower() if isinstance(label, list) else "" for label in labels),
        judged=tuple(None if row["judged"] is None else str(row["judged"]) for row in rows),
        scores=np.array([np.nan if score is None else score for score in scores], dtype=np.float64),
    )


@dataclass(frozen=True)
class Tally:
    """A benchmark's answers summed up per unit, so that any resample is a product with how often each unit is in it.

    Attributes:
        benchmark: Its name.
        metric: How its answers were judged.
        categories: Those that are counted apart, in order.
        sums: float64, (units, categories, what the metric counts).
    """

    benchmark: str
    metric: str
    categories: tuple[str, ...]
    sums: np.ndarray

    def columns(self, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The benchmark's numbers: percent, and for MME points.

        Args:
            weights: float64, (resamples, units), how often each unit is in each resample; None for each once.

        Returns:
            float64, (resamples,), or a scalar, by column; NaN where a resample has nothing to count.
        """
        totals = self.sums.sum(axis=0) if weights is None else np.tensordot(weights, self.sums, axes=1)
        if self.metric == "mme":
            return self._mme_columns(totals)
        if self.metric == "pope":
            return {self.benchmark: _mean(100 * _f1(totals))}
        whole = totals.sum(axis=-2)
        return {self.benchmark: 100 * ratio(whole[..., 0], whole[..., 1])}

    def _mme_columns(self, totals: np.ndarray) -> dict[str, np.ndarray]:
        """Sums over the categories of accuracy and accuracy+ in percent: at most 2000 and 800 points."""
        points = 100 * (ratio(totals[..., 0], totals[..., 2]) + ratio(totals[..., 1], totals[..., 2]))
        cognition = np.array([category in COGNITION for category in self.categories])
        sides = {"perception": ~cognition, "cognition": cognition}
        return {
            f"{self.benchmark}_{side}": points[..., some].sum(axis=-1) for side, some in sides.items() if some.any()
        }

    def details(self) -> dict[str, float]:
        """What else the metric's evaluator reports, by name: percent."""
        totals, found = self.sums.sum(axis=0), {}
        whole, name = totals.sum(axis=0), self.benchmark
        if self.metric == "pope":
            hits, false_alarms, misses, rejections = whole
            found[f"{name}_accuracy"] = 100 * (hits + rejections) / whole.sum()
            # 0 where nothing is "yes", as F1 then is.
            found[f"{name}_precision"] = 100 * hits / max(1, hits + false_alarms)
            found[f"{name}_recall"] = 100 * hits / max(1, hits + misses)
            found[f"{name}_yes_ratio"] = 100 * (hits + false_alarms) / whole.sum()
            found |= {f"{name}_f1_{one}": 100 * f1 for one, f1 in zip(self.categories, _f1(totals), strict=True)}
        elif self.metric == "mme":
            found[f"{name}_accuracy"] = 100 * whole[0] / whole[2]
            found[f"{name}_accuracy_plus"] = 100 * whole[1] / whole[2]
            for category, (right, both, pairs) in zip(self.categories, totals, strict=True):
                found[f"{name}_accuracy_{category}"] = 100 * right / pairs
                found[f"{name}_accuracy_plus_{category}"] = 100 * both / pairs
        elif 1 < len(self.categories) <= _MAX_CATEGORIES:
            found |= {
                f"{name}_{category or 'other'}": 100 * right / count
                for category, (right, count) in zip(self.categories, totals, strict=True)
            }
        return {key: float(value) for key, value in found.items()}


def tally(answers: Answers) -> Tally:
    """Sum up answers; those that are missing are left out.

    Raises:
        StageError: There are none.

    Source:
        POPE: LLaVA's `eval_pope.py`, F1 as the mean of its categories'. MME: lmms-eval's utilities. MMBench: a question
        counts if all its rotations are right. The others: the mean score.
    """
    answers = answers.answered()
    if not answers.ids:
        raise StageError(f"{answers.benchmark}: none of its questions has an answer.")
    categories = tuple(sorted(set(answers.categories)))
    category = np.array([categories.index(name) for name in answers.categories])
    unit_of = {unit: number for number, unit in enumerate(dict.fromkeys(answers.units))}
    unit = np.array([unit_of[name] for name in answers.units])
    counted = 4 if answers.metric == "pope" else 3 if answers.metric == "mme" else 2
    sums = np.zeros((len(unit_of), len(categories), counted))
    if answers.metric == "pope":
        yes = np.array([label == "yes" for label in answers.labels])
        said = np.array([judged == "yes" for judged in answers.judged])
        # True and false "yes", then false and true "no".
        np.add.at(sums, (unit, category, np.where(said, np.where(yes, 0, 1), np.where(yes, 2, 3))), 1)
    else:
        np.add.at(sums[..., 0], (unit, category), answers.scores)
        np.add.at(sums[..., -1], (unit, category), 1)
    if answers.metric in _GROUPED:
        sums = _by_group(answers.metric, sums)
    return Tally(answers.benchmark, answers.metric, categories, sums)


def _by_group(metric: str, sums: np.ndarray) -> np.ndarray:
    """Counts of groups: the share of a group that is right (MME alone), whether all of it is, and that it is one."""
    right, count = sums[..., 0], sums[..., -1]
    group = (count > 0).astype(np.float64)
    whole = group * (right == count)
    return np.stack([whole, group] if metric == "mmbench" else [_share(right, count), whole, group], axis=-1)


def _share(right: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.asarray(right / np.maximum(count, 1))


def ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    """One over the other; NaN or infinite where that is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(over / under)


def _f1(counts: np.ndarray) -> np.ndarray:
    """F1 of "yes" from (..., 4) counts; 0 without one true "yes", NaN without any answer."""
    hits, false_alarms, misses = counts[..., 0], counts[..., 1], counts[..., 2]
    found = np.where(hits > 0, ratio(2 * hits, 2 * hits + false_alarms + misses), 0.0)
    return np.where(counts.sum(axis=-1) > 0, found, np.nan)


def _mean(values: np.ndarray) -> np.ndarray:
    return np.asarray(values.mean(axis=-1))


def draw_columns(tallies: Sequence[Tally], resamples: int, seed: int) -> list[dict[str, np.ndarray]]:
    """The columns of several tallies of one benchmark over the same resamples of their units.

    Args:
        tallies: Of the same units in the same order.
        resamples: How many; without any, there are no columns.
        seed: The resamples of a benchmark depend on this and its name alone.

    Returns:
        For each tally, by column, float64, (resamples,); NaN or infinite where a resample has nothing to count.
    """
    units = len(tallies[0].sums)
    random = np.random.default_rng([seed, zlib.crc32(tallies[0].benchmark.encode())])
    # Some at a time: their weights together would not fit into memory.
    parts = []
    for start in range(0, resamples, _RESAMPLES_AT_ONCE):
        some = min(_RESAMPLES_AT_ONCE, resamples - start)
        drawn = [np.bincount(random.integers(0, units, units), minlength=units) for _ in range(some)]
        weights = np.stack(drawn).astype(np.float64)
        parts.append([one.columns(weights) for one in tallies])
    columns = list(parts[0][0]) if parts else []
    return [
        {column: np.concatenate([part[number][column] for part in parts]) for column in columns}
        for number in range(len(tallies))
    ]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; `low` and `high` are None without one."""

    value: float
    low: float | None = None
    high: float | None = None


def estimate(value: float, draws: Sequence[float] | np.ndarray) -> Estimate:
    """A number with the interval of its resamples."""
    found = np.asarray(draws, dtype=np.float64)
    found = found[np.isfinite(found)]
    if not len(found):
        return Estimate(float(value))
    low, high = np.percentile(found, PERCENTILES)
    return Estimate(float(value), float(low), float(high))


def measure(answers: Mapping[str, Answers], resamples: int, seed: int) -> dict[str, Estimate]:
    """Every column of every benchmark, with its interval."""
    found: dict[str, Estimate] = {}
    for some in answers.values():
        counted = tally(some)
        drawn = draw_columns([counted], resamples, seed)[0]
        found |= {name: estimate(float(value), drawn.get(name, ())) for name, value in counted.columns().items()}
    return found


def column_sets(columns: Sequence[str]) -> dict[str, list[str]]:
    """The sets of columns that Rel. % is the mean of; an empty one is left out."""
    without = [column for column in columns if not column.endswith(_COGNITION_COLUMN)]
    return {label: some for label, some in ((ALL, list(columns)), (WITHOUT_COGNITION, without)) if some}
