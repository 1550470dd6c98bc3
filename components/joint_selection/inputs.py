"""Brings the stage's inputs together: one row per record, whatever the number and order of the parts."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from components.joint_selection.overlap import resample, top_bits, top_k
from free2ds_common import outcomes
from free2ds_common.datasets import Dataset, open_dataset
from free2ds_common.errors import StageError
from free2ds_common.schemas import RECORDS, TEXT_SCORES, attention_schema

_LOG = logging.getLogger(__name__)

_NAMED_IDS = 5
_BATCH_ROWS = 8192
# What must be alike in all parts of one side.
SAME_IN_ALL_PARTS = ("model_fingerprint", "dtype", "prompt", "max_new_tokens", "grid", "capture_version")


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
        manifest: Of the first part.
        missing: Records that no part has a row for; their outcome is `outcomes.NOT_SCORED`.
    """

    outcome: np.ndarray
    bits: np.ndarray
    manifest: Mapping[str, Any]
    missing: int


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


def grid_of(folders: Sequence[str], side: str) -> int:
    """Vision tokens per side of a model's maps.

    Raises:
        StageError: No folder, or parts of different models or settings.
    """
    if not folders:
        raise StageError(f"{side}: no attention folder given, wanted one per shard.")
    manifests = [open_manifest(folder) for folder in folders]
    for folder, manifest in zip(folders, manifests, strict=True):
        for name in SAME_IN_ALL_PARTS:
            if manifest.get(name) != manifests[0].get(name):
                raise StageError(
                    f"{side}: parts of different runs, {name} {manifests[0].get(name)!r} in {folders[0]} but "
                    f"{manifest.get(name)!r} in {folder}. Score all shards with the same model and settings."
                )
    return int(manifests[0]["grid"])


def open_manifest(folder: str) -> Mapping[str, Any]:
    """The manifest of an attention/1 folder, its checks done."""
    return open_dataset(folder, attention_schema()).manifest


def read_side(folders: Sequence[str], side: str, records: Records, grid: int, top_percent: float) -> Side:
    """Read one model's parts, a batch of maps in memory at a time.

    Args:
        folders: attention/1 folders in any order.
        side: Name for messages.
        records: What they belong to.
        grid: Compare on a grid of this size; larger maps are resampled to it.
        top_percent: Share of the positions that count as looked at.

    Raises:
        StageError: Rows that belong to no record, twice, or to another record of the same id.
    """
    count, positions = len(records.unique_id), grid * grid
    k = top_k(positions, top_percent)
    outcome = np.full(count, outcomes.ALL.index(outcomes.NOT_SCORED), np.uint8)
    bits = np.zeros((count, -(-positions // 64)), np.uint64)
    seen = np.zeros(count, bool)
    for folder in folders:
        dataset = open_dataset(folder, attention_schema())
        own = int(dataset.manifest["grid"])
        for batch in dataset.batches(["unique_id", "record_key", "outcome", "map"], _BATCH_ROWS):
            rows = locate(records, batch.column(0), batch.column(1), f"{side}: {folder}")
            again = rows[seen[rows]]
            if len(again) or len(np.unique(rows)) < len(rows):
                some = again if len(again) else rows
                raise StageError(f"{side}: {folder}: {_ids(records, some)} there twice. Give every shard once.")
            seen[rows] = True
            coded = batch.column(2).dictionary_encode()
            known = np.array([outcomes.ALL.index(word) for word in coded.dictionary.to_pylist()], np.uint8)
            outcome[rows] = known[coded.indices.to_numpy()]
            column = batch.column(3)
            valid = column.is_valid().to_numpy(zero_copy_only=False)
            if valid.any():
                maps = column.flatten().to_numpy().reshape(-1, own * own)
                if not np.isfinite(maps).all():
                    raise StageError(f"{side}: {folder}: a map is not finite. Score that shard again.")
                bits[rows[valid]] = top_bits(resample(maps, own, grid), k)
    missing = int(count - seen.sum())
    if missing:
        _LOG.warning("%s: no row for %s", side, _ids(records, np.flatnonzero(~seen)))
    return Side(outcome, bits, open_manifest(folders[0]), missing)


def read_text(folder: str, records: Records) -> np.ndarray:
    """Text similarity per record, float64, (N,).

    Raises:
        StageError: Scores are missing, there twice, of other records, or not in [0, 1].
    """
    similarity = np.full(len(records.unique_id), np.nan)
    for batch in open_dataset(folder, TEXT_SCORES).batches(["unique_id", "record_key", "text_similarity"], 65_536):
        rows = locate(records, batch.column(0), batch.column(1), f"text_scores: {folder}")
        if (again := rows[~np.isnan(similarity[rows])]).size:
            raise StageError(f"text_scores: {folder}: {_ids(records, again)} there twice. Rerun cluster_scoring.")
        values = batch.column(2).to_numpy()
        wrong = ~((values >= 0) & (values <= 1))
        if wrong.any():
            raise StageError(
                f"text_scores: {folder}: {_ids(records, rows[wrong])} outside [0, 1]. Rerun cluster_scoring."
            )
        similarity[rows] = values
    absent = np.flatnonzero(np.isnan(similarity))
    if len(absent):
        raise StageError(
            f"text_scores: {folder}: {len(records.unique_id) - len(absent)} ids here but {len(records.unique_id)} in "
            f"records ({_ids(records, absent)} missing). Rerun bert_features and cluster_scoring on these records."
        )
    return similarity


def locate(records: Records, unique_ids: pa.Array, keys: pa.Array, where: str) -> np.ndarray:
    """Row numbers of ids, int64.

    Raises:
        StageError: An id is unknown, or its record_key is another record's.
    """
    wanted = unique_ids.to_numpy()
    rows = np.searchsorted(records.unique_id, wanted)
    unknown = (rows == len(records.unique_id)) | (
        records.unique_id[np.minimum(rows, len(records.unique_id) - 1)] != wanted
    )
    if unknown.any():
        first = ", ".join(str(number) for number in wanted[unknown][:_NAMED_IDS])
        raise StageError(
            f"{where}: {unknown.sum()} ids that are not in records (first: {first}). Use one run's folders."
        )
    expected = records.record_key.take(pa.array(rows))
    differs = pa.compute.not_equal(expected, keys).to_numpy(zero_copy_only=False)
    if differs.any():
        raise StageError(f"{where}: {_ids(records, rows[differs])} scored for other records. Use one run's folders.")
    return rows


def _ids(records: Records, rows: np.ndarray) -> str:
    first = ", ".join(str(number) for number in records.unique_id[rows[:_NAMED_IDS]])
    return f"{len(rows)} records (first ids: {first})"
