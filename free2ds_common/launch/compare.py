"""What differs between two runs: inputs and settings, and which records came in or dropped out, and why."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from free2ds_common.datasets import open_dataset
from free2ds_common.launch.results import Results
from free2ds_common.schemas import SCORES

_COLUMNS = ["record_key", "id", "selected", "combined", "llava_outcome", "mgm_outcome"]
# Of run facts, which differ between any two runs.
_TELLING = ("parameters", "ingest", "models", "grids", "code_version")
_ABSENT = "(nothing)"


@dataclass(frozen=True)
class Change:
    """A record that is selected in one of the runs only.

    Attributes:
        record_key: Its content's key.
        id: Its own id; empty without one.
        reason: Why the other run does not have it, or has it.
    """

    record_key: str
    id: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """Two runs beside each other; "in" is what the second has and the first has not.

    Attributes:
        differences: Name of an input or setting to its values in both runs.
        selected: Records selected in each.
        in_both: Records selected in both.
        common: Records that both runs had, selected or not.
        came_in: Selected in the second only.
        dropped_out: Selected in the first only.
    """

    differences: Mapping[str, tuple[Any, Any]]
    selected: tuple[int, int]
    in_both: int
    common: int
    came_in: list[Change]
    dropped_out: list[Change]

    def as_json(self) -> dict[str, Any]:
        """All of it; of the records those counted by reason."""
        return {
            "differences": {name: list(values) for name, values in self.differences.items()},
            "selected": list(self.selected),
            "selected_in_both": self.in_both,
            "records_in_both": self.common,
            "came_in": reasons(self.came_in),
            "dropped_out": reasons(self.dropped_out),
        }


def compare(first: Results, second: Results) -> Comparison:
    """Compare two runs.

    Args:
        first: One.
        second: The other.

    Raises:
        StageError: Results are not there or not whole, or a store refuses.
        StoreError: A store does not answer.
    """
    differences = dict(differing(_inputs(first.summary()), _inputs(second.summary())))
    with first.scores() as one, second.scores() as other:
        return _compared(
            differences, open_dataset(one, SCORES).table(_COLUMNS), open_dataset(other, SCORES).table(_COLUMNS)
        )


def _inputs(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {name: summary[name] for name in _TELLING if name in summary}


def differing(
    one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Every value that two mappings do not share, by its path: `models.llava.revision`.

    Args:
        one: A mapping, values of which may be mappings.
        other: Another.
        prefix: Of the paths.
    """
    for name in dict.fromkeys([*one, *other]):
        here, there = one.get(name, _ABSENT), other.get(name, _ABSENT)
        if isinstance(here, dict) and isinstance(there, dict):
            yield from differing(here, there, f"{prefix}{name}.")
        elif here != there:
            yield f"{prefix}{name}", (here, there)


def _compared(differences: Mapping[str, tuple[Any, Any]], first: pa.Table, second: pa.Table) -> Comparison:
    one, other = _numbered(first["record_key"], second["record_key"])
    _, rows, others = np.intersect1d(one, other, assume_unique=True, return_indices=True)
    # Row of the same record in the other run; -1 where it has none.
    to_second, to_first = np.full(len(one), -1), np.full(len(other), -1)
    to_second[rows], to_first[others] = others, rows
    in_first, in_second = (table["selected"].to_numpy(zero_copy_only=False) for table in (first, second))
    both = in_first[rows] & in_second[others]
    return Comparison(
        differences=differences,
        selected=(int(in_first.sum()), int(in_second.sum())),
        in_both=int(both.sum()),
        common=len(rows),
        came_in=_changes(second, first, in_second, in_first, to_first, "the first run"),
        dropped_out=_changes(first, second, in_first, in_second, to_second, "the second run"),
    )


def _numbered(one: pa.ChunkedArray, other: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The records of both runs as numbers, equal where the records are.

    The same record twice is two records: the number counts the earlier ones.

    Args:
        one: Keys of the first run's records.
        other: Keys of the second's.

    Returns:
        int64, one per record of each.
    """
    keys = pa.chunked_array([*one.chunks, *other.chunks], pa.string())
    codes = pc.dictionary_encode(keys).combine_chunks().indices.to_numpy().astype(np.int64)
    numbers = []
    for some in (codes[: len(one)], codes[len(one) :]):
        order = np.argsort(some, kind="stable")
        starts = np.r_[True, some[order][1:] != some[order][:-1]]
        earlier = np.empty(len(some), np.int64)
        places = np.arange(len(some))
        earlier[order] = places - np.maximum.accumulate(np.where(starts, places, 0))
        numbers.append(some + earlier * (len(keys) + 1))
    return numbers[0], numbers[1]


def _changes(
    having: pa.Table, lacking: pa.Table, has: np.ndarray, lacks: np.ndarray, partner: np.ndarray, where: str
) -> list[Change]:
    """The records that one run selected and the other did not, with the other's reason, in input order.

    Args:
        having: Scores of the run that selected them.
        lacking: Scores of the other.
        has: bool, whether each record of `having` is selected.
        lacks: bool, the same of `lacking`.
        partner: int, each record's row in `lacking`, -1 for none.
        where: The other run's name.
    """
    selected_there = np.where(partner >= 0, lacks[partner], False)
    wanted = np.flatnonzero(has & ~selected_there)
    ours, theirs = (table["combined"].to_numpy(zero_copy_only=False) for table in (having, lacking))
    rows = having.take(wanted)
    found = partner[wanted]
    of_outcomes = lacking.select(["llava_outcome", "mgm_outcome"]).take(np.maximum(found, 0)).to_pylist()
    score, score_there = ours[wanted], theirs[np.maximum(found, 0)]
    changes = []
    for key, identity, row, now, then, outcomes in zip(
        rows["record_key"].to_pylist(), rows["id"].to_pylist(), found, score, score_there, of_outcomes, strict=True
    ):
        if row < 0:
            reason = f"not among the records of {where}"
        elif np.isnan(then):
            reason = f"could not be used in {where}: {', '.join(dict.fromkeys(outcomes.values()))}"
        else:
            compared = "lower" if then < now else "higher" if then > now else "the same"
            reason = f"not drawn in {where}, where its score was {compared}"
        changes.append(Change(key, identity or "", reason))
    return changes


def reasons(changes: list[Change]) -> dict[str, int]:
    """Records by reason, the most frequent first."""
    counts: dict[str, int] = {}
    for change in changes:
        counts[change.reason] = counts.get(change.reason, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def lines(comparison: Comparison, first: str, second: str) -> list[str]:
    """What is printed.

    Args:
        comparison: Of two runs.
        first: The first run's name.
        second: The second's.
    """
    shown = [f"first: {first}", f"second: {second}", ""]
    shown += [f"{name}: {one} -> {other}" for name, (one, other) in comparison.differences.items()] or [
        "inputs and parameters: the same"
    ]
    one, other = comparison.selected
    union = one + other - comparison.in_both
    share = f" ({comparison.in_both / union:.1%} of all that either selected)" if union else ""
    shown += ["", f"selected: {one:,} -> {other:,}, {comparison.in_both:,} in both{share}"]
    shown += [f"records that both had: {comparison.common:,}"]
    for title, changes in (("came in", comparison.came_in), ("dropped out", comparison.dropped_out)):
        shown.append(f"{title}: {len(changes):,}")
        shown += [f"  {count:,} {reason}" for reason, count in reasons(changes).items()]
    return shown
