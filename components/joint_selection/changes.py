"""What came in and what dropped out since an earlier selection, and why."""

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from components.joint_selection.config import DrawSettings, JointSelectionSettings
from components.joint_selection.inputs import Inputs
from components.joint_selection.selection import Selection
from free2ds_common.datasets import MANIFEST, Dataset, open_dataset
from free2ds_common.errors import StageError
from free2ds_common.schemas import SCORES
from free2ds_common.storage import atomic_writer, filesystem, read_bytes

logger = logging.getLogger(__name__)

# Beside the parts of scores/2.
CHANGES_FILE = "changes.jsonl"
NEW, REMOVED = "new_record", "removed"
USABLE, UNUSABLE = "now_usable", "no_longer_usable"
MORE, FEWER = "more_are_drawn", "fewer_are_drawn"
RANK, DRAW = "score_rank", "another_draw"
# With another of these a draw differs even where no score does.
_OF_THE_DRAW = ("seed", "sampler", "temperature", "stratify")
_MAX_BYTES = 4 << 30


@dataclass(frozen=True)
class Changes:
    """The difference between two selections; records are told apart by their content.

    Attributes:
        stayed: Records in both.
        came_in: Records in this one alone, by reason.
        dropped_out: Records in the earlier one alone, by reason.
        settings: The settings of the draw that differ.
    """

    stayed: int
    came_in: Mapping[str, int]
    dropped_out: Mapping[str, int]
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """What is compared of a run, one entry per record.

    Attributes:
        record_key: Arrow strings, (N,).
        unique_id: int64, (N,).
        combined: float64, (N,); NaN outside the pool.
        selected: bool, (N,).
        parameters: The settings.
    """

    record_key: pa.Array
    unique_id: np.ndarray
    combined: np.ndarray
    selected: np.ndarray
    parameters: Mapping[str, Any]

    @classmethod
    def of(cls, dataset: Dataset) -> "Run":
        """An earlier run, from its scores/2."""
        table = dataset.table(["record_key", "unique_id", "combined", "selected"]).combine_chunks()
        return cls(
            table.column("record_key").combine_chunks(),
            table.column("unique_id").to_numpy(),
            table.column("combined").to_numpy(),
            table.column("selected").to_numpy(),
            dataset.manifest["parameters"],
        )


def write_changes(
    folder: str, settings: JointSelectionSettings, inputs: Inputs, selection: Selection
) -> Changes | None:
    """Compare with the earlier selection that the settings name, and write one line per record that changed sides.

    Args:
        folder: Of this run's scores, which gets `CHANGES_FILE`: change ("in" or "out"), reason, record_key, unique_id
            and previous_unique_id; null where a run has no such record.
        settings: Of this run.
        inputs: Its records.
        selection: What it drew.

    Returns:
        How many; None where no earlier selection is named.

    Raises:
        StageError: It is not there, or there are no scores beside it.
        StoreError: Its store does not answer.
    """
    path = Path(folder) / CHANGES_FILE
    path.unlink(missing_ok=True)
    if not settings.previous_selected_uri:
        return None
    with _scores_beside(settings.previous_selected_uri) as dataset:
        before = Run.of(dataset)
    now = Run(
        inputs.records.record_key,
        inputs.records.unique_id,
        selection.combined,
        selection.selected,
        {field.name: getattr(settings, field.name) for field in fields(DrawSettings)},
    )
    compared = Comparison(before, now)
    with atomic_writer(path, "w") as handle:
        for line in compared.lines():
            handle.write(json.dumps(line) + "\n")
    changes = compared.changes
    logger.info(
        "since the earlier selection: %d stayed, %d came in, %d dropped out",
        changes.stayed,
        sum(changes.came_in.values()),
        sum(changes.dropped_out.values()),
    )
    return changes


@contextmanager
def _scores_beside(selected_uri: str) -> Iterator[Dataset]:
    """The scores/2 of the run that wrote a selection: both lie in one folder, on this machine and on a cluster.

    Raises:
        StageError: They are not there.
        StoreError: The store does not answer.
    """
    folder = f"{selected_uri.rstrip('/').rpartition('/')[0]}/scores"
    try:
        fs, root = filesystem(folder)
        if isinstance(fs, LocalFileSystem):
            yield open_dataset(root, SCORES)
            return
        with tempfile.TemporaryDirectory(prefix="free2ds-scores-") as place:
            manifest = read_bytes(fs, f"{root}/{MANIFEST}", _MAX_BYTES, f"{folder}/{MANIFEST}")
            (Path(place) / MANIFEST).write_bytes(manifest)
            for name in (Path(part["file"]).name for part in json.loads(manifest)["parts"]):
                (Path(place) / name).write_bytes(read_bytes(fs, f"{root}/{name}", _MAX_BYTES, f"{folder}/{name}"))
            yield open_dataset(place, SCORES)
    except (FileNotFoundError, StageError) as error:
        raise StageError(
            f"previous_selected_uri: {selected_uri} has no usable scores beside it ({error}). Give the selected.json "
            "of an earlier run, in the folder that also holds its scores."
        ) from error


class Comparison:
    """Two runs, record by record.

    Attributes:
        changes: In numbers.
    """

    def __init__(self, before: Run, now: Run) -> None:
        """Compare them."""
        self._before, self._now = before, now
        old, new = _matched(before.record_key, now.record_key)
        # By row of now, its row before, and the other way round; -1 for none.
        self._was = np.full(len(now.unique_id), -1)
        self._was[new] = old
        self._is = np.full(len(before.unique_id), -1)
        self._is[old] = new
        self._better, self._worse = self._moved(old, new)
        self._settings = tuple(name for name in now.parameters if before.parameters.get(name) != now.parameters[name])
        stayed = int((before.selected[old] & now.selected[new]).sum())
        came_in = self._reasons(now.selected, self._was, before, self._why_in)
        dropped_out = self._reasons(before.selected, self._is, now, self._why_out)
        self._came_in, self._dropped_out = came_in, dropped_out
        self.changes = Changes(stayed, _counted(came_in), _counted(dropped_out), self._settings)

    def _moved(self, old: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which rows of now have fewer records above them than before, and which rows of before have more now.

        Among the records that could be drawn in both runs.
        """
        before, now = self._before.combined[old], self._now.combined[new]
        both = np.isfinite(before) & np.isfinite(now)
        above_before, above_now = (_above(scores[both]) for scores in (before, now))
        better, worse = np.zeros(len(self._was), bool), np.zeros(len(self._is), bool)
        better[new[both]] = above_now < above_before
        worse[old[both]] = above_now > above_before
        return better, worse

    @staticmethod
    def _reasons(selected: np.ndarray, other: np.ndarray, run: Run, why: Callable[[int], str]) -> dict[int, str]:
        """The reason of each row that is selected here and not in the other run."""
        return {
            row: why(row) for row in np.flatnonzero(selected).tolist() if other[row] < 0 or not run.selected[other[row]]
        }

    def _why_in(self, row: int) -> str:
        if self._was[row] < 0:
            return NEW
        if not np.isfinite(self._before.combined[self._was[row]]):
            return USABLE
        return self._why(moved=bool(self._better[row]), size=MORE, grew=self._growth > 0)

    def _why_out(self, row: int) -> str:
        if self._is[row] < 0:
            return REMOVED
        if not np.isfinite(self._now.combined[self._is[row]]):
            return UNUSABLE
        return self._why(moved=bool(self._worse[row]), size=FEWER, grew=self._growth < 0)

    @property
    def _growth(self) -> int:
        return int(self._now.selected.sum()) - int(self._before.selected.sum())

    def _why(self, *, moved: bool, size: str, grew: bool) -> str:
        if set(self._settings) & set(_OF_THE_DRAW):
            return DRAW
        if moved:
            return RANK
        return size if grew else DRAW

    def lines(self) -> Iterator[dict[str, object]]:
        """One per record that changed sides: first what came in, then what dropped out, each in input order."""
        for change, own, other, run, rest in (
            ("in", self._came_in, self._was, self._now, self._before),
            ("out", self._dropped_out, self._is, self._before, self._now),
        ):
            for row, reason in own.items():
                mine = int(run.unique_id[row])
                theirs = int(rest.unique_id[other[row]]) if other[row] >= 0 else None
                yield {
                    "change": change,
                    "reason": reason,
                    "record_key": run.record_key[row].as_py(),
                    "unique_id": mine if change == "in" else theirs,
                    "previous_unique_id": theirs if change == "in" else mine,
                }


def _matched(one: pa.Array, other: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the same record, int64, (n,) each; of records that are there several times the first go together."""
    codes = pa.chunked_array([one, other]).combine_chunks().dictionary_encode().indices.to_numpy()
    first, second = (_with_occurrence(part, len(codes)) for part in (codes[: len(one)], codes[len(one) :]))
    _, old, new = np.intersect1d(first, second, assume_unique=True, return_indices=True)
    return old, new


def _with_occurrence(codes: np.ndarray, most: int) -> np.ndarray:
    """Each code together with how many of the same stand before it, as one number."""
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    starts = np.searchsorted(ordered, ordered)
    numbers = np.empty(len(codes), np.int64)
    numbers[order] = ordered.astype(np.int64) * (most + 1) + np.arange(len(codes)) - starts
    return numbers


def _above(scores: np.ndarray) -> np.ndarray:
    """How many scores are higher than each."""
    above: np.ndarray = len(scores) - np.searchsorted(np.sort(scores), scores, side="right")
    return above


def _counted(reasons: Mapping[int, str]) -> dict[str, int]:
    words = (NEW, REMOVED, USABLE, UNUSABLE, RANK, MORE, FEWER, DRAW)
    found = list(reasons.values())
    return {word: found.count(word) for word in words if word in found}
