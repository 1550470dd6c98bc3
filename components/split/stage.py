"""Divides the records into shards; all records of one picture stay together."""

import contextlib
import logging
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from components.split.config import SplitConfig
from free2ds_common.datasets import Dataset, DatasetWriter, open_dataset
from free2ds_common.errors import StageError
from free2ds_common.lineage import MADE_FROM, made_from
from free2ds_common.places import place
from free2ds_common.result import Counts, StageResult
from free2ds_common.schemas import RECORDS
from free2ds_common.storage import room_on_disk

logger = logging.getLogger(__name__)

# Sorted in memory at a time: about 100 MB of LLaVA-665K.
ROWS_PER_RANGE = 50_000
_SHARD_NAME = re.compile(r"shard-\d{5}-of-\d{5}")


def shard_names(num_shards: int) -> list[str]:
    """The shards' folder names in order."""
    return [f"shard-{shard:05d}-of-{num_shards:05d}" for shard in range(num_shards)]


def run(config: SplitConfig) -> StageResult:
    """Write the shards.

    A record's place is a hash of its picture's path (of `record_key` if it has none), and a shard is a range of that
    hash. So the records of a picture are neighbours, the order of the input plays no part, and another number of shards
    cuts the same sequence at other places.

    Args:
        config: Settings.

    Returns:
        The counts; the records of each shard. A shard may be empty.

    Raises:
        StageError: A wrong number of shards, no records/2, or a file in place of the output folder.
    """
    config.check()
    records = open_dataset(config.records, RECORDS)
    root = Path(config.shards)
    _remove_shards(root)
    ranges_per_shard = max(1, -(-records.num_rows // (config.num_shards * ROWS_PER_RANGE)))
    names = shard_names(config.num_shards)
    sizes = []
    with room_on_disk(root), tempfile.TemporaryDirectory(dir=root, prefix=".ranges-") as scratch:
        ranges = _spill(records, config.num_shards * ranges_per_shard, Path(scratch))
        for shard, name in enumerate(names):
            rows = 0
            with DatasetWriter(root / name, RECORDS) as writer:
                for path in ranges[shard * ranges_per_shard : (shard + 1) * ranges_per_shard]:
                    table = _sorted_range(path)
                    writer.write(table)
                    rows += table.num_rows
                writer.manifest.update({"shard": shard, "num_shards": config.num_shards})
                writer.manifest[MADE_FROM] = made_from(records=config.records)
            sizes.append(rows)
            logger.info("%s: %d records", name, rows)
    counts = Counts(read=records.num_rows, written=sum(sizes))
    return StageResult(
        counts=counts,
        metrics={"num_shards": config.num_shards, "largest_shard": max(sizes), "smallest_shard": min(sizes)},
        metadata={"shards": names, "records_per_shard": sizes},
    )


def _remove_shards(root: Path) -> None:
    """Make the folder, and remove the shards of an earlier run, whatever their number."""
    try:
        with room_on_disk(root):
            root.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise StageError(f"{root}: is or lies below a file, wanted a folder to write shards to.") from None
    for folder in root.iterdir():
        if folder.is_dir() and _SHARD_NAME.fullmatch(folder.name):
            shutil.rmtree(folder)


def _spill(records: Dataset, num_ranges: int, scratch: Path) -> list[Path]:
    """Deal the records out to one file per range of places, in a single pass; returns the files in range order."""
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


def _sorted_range(path: Path) -> pa.Table:
    """The records of a range in order; those that differ in unique_id alone, by unique_id."""
    with pa.ipc.open_stream(path) as stream:
        table = stream.read_all()
    order = [(column, "ascending") for column in ("place", "image", "record_key", "unique_id")]
    return table.sort_by(order).drop_columns("place")
