"""Rel. %: an evaluation against a baseline's, over the questions that both have an answer to."""

from collections.abc import Mapping, Sequence

import numpy as np

from components.evaluate.benchmark import Benchmark
from free2ds_common.errors import StageError
from free2ds_common.evaluation import Answers, Estimate, column_sets, draw_columns, estimate, ratio, tally


def require_baseline(baseline: Mapping[str, Answers], benchmarks: Sequence[Benchmark]) -> None:
    """Refuse a baseline that nothing can be relative to, before any question is asked.

    Raises:
        StageError: It is of other benchmarks or questions, or judged otherwise, or one of its columns is 0.
    """
    names = [benchmark.name for benchmark in benchmarks]
    if set(names) != set(baseline):
        raise StageError(
            f"baseline: has {', '.join(baseline)}, wanted {', '.join(names)}. Evaluate both on the same benchmarks."
        )
    for benchmark in benchmarks:
        other = baseline[benchmark.name]
        if other.metric != benchmark.metric or set(other.ids) != {question.id for question in benchmark.questions}:
            raise StageError(
                f"baseline: is not of the same questions of {benchmark.name}. Evaluate both on the same benchmarks."
            )
        _require_positive(tally(other).columns())


def _require_positive(columns: Mapping[str, np.ndarray]) -> None:
    """Refuse columns of a baseline of which one is 0.

    Raises:
        StageError: One is.
    """
    for column, value in columns.items():
        if not float(value) > 0:
            raise StageError(f"baseline: {column} is {float(value):g}, nothing can be relative to it.")


def relative(
    answers: Mapping[str, Answers], baseline: Mapping[str, Answers], resamples: int, seed: int
) -> dict[str, Estimate]:
    """Rel. %: each column over the baseline's, and their mean with and without MME's cognition.

    Args:
        answers: Of the model.
        baseline: Of the model that it is relative to; see `require_baseline`.
        resamples: Of the intervals; both sides are resampled together.
        seed: Of the resamples.

    Returns:
        By column, `ALL` and `WITHOUT_COGNITION`: percent.

    Raises:
        StageError: A column of the baseline is 0 over the questions that both sides have an answer to.
    """
    values: dict[str, float] = {}
    drawn: dict[str, np.ndarray] = {}
    for name, some in answers.items():
        pair = [tally(side) for side in paired(some, baseline[name])]
        over, under = (one.columns() for one in pair)
        _require_positive(under)
        sides = draw_columns(pair, resamples, seed)
        for column in over:
            values[column] = 100 * float(over[column]) / float(under[column])
            drawn[column] = 100 * ratio(*(side[column] for side in sides)) if resamples else np.empty(0)
    found = {column: estimate(value, drawn[column]) for column, value in values.items()}
    for label, columns in column_sets(list(values)).items():
        mean = np.mean([drawn[column] for column in columns], axis=0)
        found[label] = estimate(float(np.mean([values[column] for column in columns])), mean)
    return found


def paired(one: Answers, other: Answers) -> tuple[Answers, Answers]:
    """The questions that both have an answer to, in the order of the first."""
    place = {identity: number for number, identity in enumerate(other.ids)}
    other = other.only([place[identity] for identity in one.ids])
    answered = set(one.answered().ids) & set(other.answered().ids)
    both = [number for number, identity in enumerate(one.ids) if identity in answered]
    return one.only(both), other.only(both)
