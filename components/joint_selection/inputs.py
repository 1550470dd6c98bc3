"""Brings the stage's inputs together: one row per record, whatever the number and order of the parts."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.joint_selection.overlap import resample, top_bits, top_k
from free2ds_common import outcomes
from free2ds_common.datasets import Dataset, first_difference, open_dataset
from free2ds_common.errors import StageError
from free2ds_common.schemas import RECORDS, TEXT_SCORES, kmeans_schema

logger = logging.getLogger(__name__)

_NAMED_IDS = 5
_BATCH_ROWS = 8192
# What must be alike in the text scores and the k-means model.
SAME_CLUSTERING = (
    "records_sha256",
    "model_fingerprint",
    "dtype",
    "max_tokens",
    "num_clusters",
    "num_iterations",
    "seed",
)


@dataclass(frozen=True)
class Records:
    """What is kept in memory of records/1, in input order.

    Attributes:
        unique_id: int64, (N,).
        record_key: Arrow strings, (N,).
        source: Arrow strings, dictionary-encoded, (N,).
    """

    unique_id: np.ndarray
    record_key: pa.Array
    source: pa.DictionaryArray


@dataclass(frozen=True)
class Side:
    """One model's maps.

    Attributes:
        outcome: uint8, (N,), index into `outcomes.ALL`.
        bits: uint64, (N, words): top positions; zeros where there is no map.
        part: int32, (N,): which of the parts has the record's row; -1 for none.
        unknown: Rows of ids that are not in records.
    """

    outcome: np.ndarray
    bits: np.ndarray
    part: np.ndarray
    unknown: int


@dataclass(frozen=True)
class Text:
    """The text side.

    Attributes:
        similarity: float64, (N,), in [0, 1]; NaN for a record without one.
        manifest: Of text_scores/1.
        unknown: Rows of ids that are not in records.
    """

    similarity: np.ndarray
    manifest: Mapping[str, Any]
    unknown: int


@dataclass(frozen=True)
class Inputs:
    """Everything that was read, one row per record.

    Attributes:
        dataset: records/1.
        records: Its columns in memory.
        parts: attention/1 of both models.
        sides: Both models' outcomes and bit sets.
        text: The text side.
        kmeans: kmeans/1 of the text side; None where it was not given.
        reasons: Records that cannot be used or were not scored, by reason.
    """

    dataset: Dataset
    records: Records
    parts: tuple[list[Dataset], list[Dataset]]
    sides: tuple[Side, Side]
    text: Text
    kmeans: Dataset | None
    reasons: Mapping[str, int]

    @property
    def grids(self) -> tuple[int, int]:
        """Vision tokens per side of each model."""
        return int(self.parts[0][0].manifest["grid"]), int(self.parts[1][0].manifest["grid"])


def read_records(folder: str) -> tuple[Dataset, Records]:
    """Open records/1 and read ids, keys and sources.

    Raises:
        StageError: There are none.
    """
    dataset = open_dataset(folder, RECORDS)
    if not dataset.num_rows:
        raise StageError(f"records: {folder} holds no records. Check what ingest rejected.")
    table = dataset.table(["unique_id", "record_key", "source"]).combine_chunks()
    source = table.column("source").combine_chunks().dictionary_encode()
    return dataset, Records(table.column("unique_id").to_numpy(), table.column("record_key").combine_chunks(), source)


def read_side(parts: Sequence[Dataset], side: str, records: Records, grid: int, top_percent: float) -> Side:
    """Read one model's parts, a batch of maps in memory at a time.

    Args:
        parts: attention/1, in any order.
        side: Name for messages.
        records: What they belong to.
        grid: Compare on a grid of this size; larger maps are resampled to it.
        top_percent: Share of the positions that count as looked at.

    Raises:
        StageError: Rows that are there twice, or of another record with the same id.
    """
    count, positions = len(records.unique_id), grid * grid
    k = top_k(positions, top_percent)
    outcome = np.full(count, outcomes.ALL.index(outcomes.NOT_SCORED), np.uint8)
    bits = np.zeros((count, -(-positions // 64)), np.uint64)
    part_of = np.full(count, -1, np.int32)
    unknown: list[np.ndarray] = []
    for number, part in enumerate(parts):
        own = int(part.manifest["grid"])
        for batch in part.batches(["unique_id", "record_key", "outcome", "map"], _BATCH_ROWS):
            rows, batch = locate(records, batch, f"{side}: {part.folder}", unknown)
            again = _twice(rows, part_of[rows] >= 0)
            if len(again):
                raise StageError(f"{side}: {part.folder}: {_ids(records, again)} there twice. Give every shard once.")
            part_of[rows] = number
            outcome[rows] = outcome_codes(batch.column(2))
            column = batch.column(3)
            valid = column.is_valid().to_numpy(zero_copy_only=False)
            if (wrong := rows[(outcome[rows] == outcomes.ALL.index(outcomes.OK)) != valid]).size:
                raise StageError(
                    f"{side}: {part.folder}: {_ids(records, wrong)} with outcome ok and no map, or a map and another "
                    "outcome. Score that shard again."
                )
            if valid.any():
                maps = column.flatten().to_numpy().reshape(-1, own * own)
                if not np.isfinite(maps).all():
                    raise StageError(f"{side}: {part.folder}: a map is not finite. Score that shard again.")
                bits[rows[valid]] = top_bits(resample(maps, own, grid), k)
    missing = np.flatnonzero(part_of < 0)
    if len(missing):
        logger.warning("%s: no row for %s", side, _ids(records, missing))
    return Side(outcome, bits, part_of, _count_unknown(unknown, side))


def read_text(folder: str, records: Records) -> Text:
    """Text similarity per record.

    Raises:
        StageError: Scores are there twice, of other records, or not in [0, 1].
    """
    similarity = np.full(len(records.unique_id), np.nan)
    unknown: list[np.ndarray] = []
    where = f"text_scores: {folder}"
    dataset = open_dataset(folder, TEXT_SCORES)
    for batch in dataset.batches(["unique_id", "record_key", "text_similarity"], 65_536):
        rows, batch = locate(records, batch, where, unknown)
        if (again := _twice(rows, ~np.isnan(similarity[rows]))).size:
            raise StageError(f"{where}: {_ids(records, again)} there twice. Rerun cluster_scoring.")
        values = batch.column(2).to_numpy()
        wrong = ~((values >= 0) & (values <= 1))
        if wrong.any():
            raise StageError(f"{where}: {_ids(records, rows[wrong])} outside [0, 1]. Rerun cluster_scoring.")
        similarity[rows] = values
    missing = np.flatnonzero(np.isnan(similarity))
    if len(missing):
        logger.warning("text_scores: no score for %s", _ids(records, missing))
    return Text(similarity, dataset.manifest, _count_unknown(unknown, "text_scores"))


def open_kmeans(folder: str, text: Text) -> Dataset:
    """Open kmeans/1.

    Raises:
        StageError: It is not the model that the text scores come from.
    """
    kmeans = open_dataset(folder, kmeans_schema(1))
    if name := first_difference(kmeans.manifest, text.manifest, SAME_CLUSTERING):
        raise StageError(
            f"kmeans: {folder} is not of the text scores' run, {name} {kmeans.manifest.get(name)!r} but theirs is "
            f"{text.manifest.get(name)!r}. Give both outputs of one run of cluster_scoring."
        )
    return kmeans


def outcome_codes(column: pa.Array) -> np.ndarray:
    """Outcomes as uint8, (n,), index into `outcomes.ALL`, from words."""
    coded = column.dictionary_encode()
    known = np.array([outcomes.ALL.index(word) for word in coded.dictionary.to_pylist()], np.uint8)
    return known[coded.indices.to_numpy()]


def locate(
    records: Records, batch: pa.RecordBatch, where: str, unknown: list[np.ndarray]
) -> tuple[np.ndarray, pa.RecordBatch]:
    """Row numbers of a batch's ids.

    Args:
        records: What the ids belong to.
        batch: unique_id and record_key are its first two columns.
        where: For messages.
        unknown: Gets the ids that are not in records.

    Returns:
        int64 row numbers, and the batch without the rows of unknown ids.

    Raises:
        StageError: A record_key is another record's.
    """
    wanted = batch.column(0).to_numpy()
    rows = np.searchsorted(records.unique_id, wanted)
    inside = records.unique_id[np.minimum(rows, len(records.unique_id) - 1)] == wanted
    if not inside.all():
        unknown.append(wanted[~inside])
        rows, batch = rows[inside], batch.filter(pa.array(inside))
    differs = pc.not_equal(records.record_key.take(pa.array(rows)), batch.column(1)).to_numpy(zero_copy_only=False)
    if differs.any():
        raise StageError(f"{where}: {_ids(records, rows[differs])} scored for other records. Use one run's folders.")
    return rows, batch


def _twice(rows: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Row numbers that were seen before or are there more than once."""
    numbers, counts = np.unique(np.concatenate([rows, rows[seen]]), return_counts=True)
    return numbers[counts > 1]


def _count_unknown(unknown: Sequence[np.ndarray], where: str) -> int:
    ids = np.concatenate([np.empty(0, np.int64), *unknown])
    if len(ids):
        first = ", ".join(map(str, ids[:_NAMED_IDS]))
        logger.warning("%s: %d ids that are not in records (first: %s)", where, len(ids), first)
    return len(ids)


def _ids(records: Records, rows: np.ndarray) -> str:
    first = ", ".join(str(number) for number in records.unique_id[rows[:_NAMED_IDS]])
    return f"{len(rows)} records (first ids: {first})"
