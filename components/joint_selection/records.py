"""The records that everything else belongs to, and how rows of another table find theirs."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from free2ds_common.datasets import Dataset, open_dataset
from free2ds_common.errors import StageError
from free2ds_common.schemas import RECORDS

logger = logging.getLogger(__name__)

_NAMED_IDS = 5
_IMAGE_BATCH_ROWS = 65_536


@dataclass(frozen=True)
class Records:
    """What is kept in memory of records/2, in input order.

    Attributes:
        unique_id: int64, (N,).
        record_key: Arrow strings, (N,).
        source: Arrow strings, dictionary-encoded, (N,).
        has_picture: bool, (N,): the record names a picture.
    """

    unique_id: np.ndarray
    record_key: pa.Array
    source: pa.DictionaryArray
    has_picture: np.ndarray

    def named(self, rows: np.ndarray) -> str:
        """How many records these rows are, and the first few ids, for a message."""
        first = ", ".join(str(number) for number in self.unique_id[rows[:_NAMED_IDS]])
        return f"{len(rows)} records (first ids: {first})"


def read_records(folder: str) -> tuple[Dataset, Records]:
    """Open records/2 and read ids, keys and sources.

    Raises:
        StageError: There are none.
    """
    dataset = open_dataset(folder, RECORDS)
    if not dataset.num_rows:
        raise StageError(f"records: {folder} holds no records. Check what ingest rejected.")
    table = dataset.table(["unique_id", "record_key", "source"]).combine_chunks()
    source = table.column("source").combine_chunks().dictionary_encode()
    keys = table.column("record_key").combine_chunks()
    return dataset, Records(table.column("unique_id").to_numpy(), keys, source, _has_picture(dataset))


def _has_picture(dataset: Dataset) -> np.ndarray:
    """Which records name a picture, bool, (N,); the names are read a batch at a time and not kept."""
    batches = dataset.batches(["image"], _IMAGE_BATCH_ROWS)
    named = [pc.fill_null(pc.not_equal(batch.column(0), ""), False) for batch in batches]
    return np.concatenate([part.to_numpy(zero_copy_only=False) for part in named])


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
        raise StageError(f"{where}: {records.named(rows[differs])} scored for other records. Use one run's folders.")
    return rows, batch


def there_twice(rows: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Row numbers that were seen before or are there more than once.

    Args:
        rows: int64, (n,).
        seen: bool, (n,): an earlier batch had that row.

    Returns:
        int64, ascending.
    """
    numbers, counts = np.unique(np.concatenate([rows, rows[seen]]), return_counts=True)
    return numbers[counts > 1]


def count_unknown(unknown: Sequence[np.ndarray], where: str) -> int:
    """The number of ids that `locate` collected; logs the first few.

    Args:
        unknown: What `locate` filled.
        where: Begins the log line.
    """
    ids = np.concatenate([np.empty(0, np.int64), *unknown])
    if len(ids):
        first = ", ".join(map(str, ids[:_NAMED_IDS]))
        logger.warning("%s: %d ids that are not in records (first: %s)", where, len(ids), first)
    return len(ids)
