"""Records dealt out by their place: an external sort, in which the order of the input plays no part."""

import contextlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from free2ds_common.datasets import Dataset
from free2ds_common.places import place
from free2ds_common.schemas import RECORDS

# Sorted in memory at a time: about 100 MB of LLaVA-665K.
ROWS_PER_RANGE = 50_000


def spill(records: Dataset, num_ranges: int, scratch: Path) -> list[Path]:
    """Deal the records out to one file per range of places, in a single pass; returns the files in range order.

    Args:
        records: records/2.
        num_ranges: Ranges of equal length.
        scratch: A folder for the files.
    """
    paths = [scratch / f"{number}.arrow" for number in range(num_ranges)]
    schema = RECORDS.arrow.insert(0, pa.field("place", pa.uint64()))
    with contextlib.ExitStack() as files:
        writers = [files.enter_context(pa.ipc.new_stream(path, schema)) for path in paths]
        for batch in records.batches():
            keys = zip(batch.column("image").to_pylist(), batch.column("record_key").to_pylist(), strict=True)
            places = np.array([place(image, key) for image, key in keys], dtype=np.uint64)
            # floor(place / 2**64 * num_ranges), on the upper 32 bits so that the product fits into 64.
            numbers = (places >> np.uint64(32)) * np.uint64(num_ranges) >> np.uint64(32)
            table = pa.Table.from_batches([batch]).cast(RECORDS.arrow).add_column(0, schema.field(0), pa.array(places))
            for number in np.unique(numbers):
                writers[number].write_table(table.take(np.flatnonzero(numbers == number)))
    return paths


def sorted_range(path: Path) -> pa.Table:
    """The records of a range in order; those that differ in unique_id alone, by unique_id."""
    columns = ("place", "image", "record_key", "unique_id")
    with pa.ipc.open_stream(path) as stream:
        table = stream.read_all()
    return table.sort_by([(column, "ascending") for column in columns]).drop_columns("place")
