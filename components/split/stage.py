"""Divides the records into shards; all records of one picture stay together."""

import logging
import re
import shutil
import tempfile
from pathlib import Path

from components.split.config import MAX_SHARDS, SplitConfig, SplitSettings
from free2ds_common.datasets import DatasetWriter, open_dataset
from free2ds_common.errors import StageError
from free2ds_common.left_over import LEFT_OVER, LeftOver
from free2ds_common.lineage import MADE_FROM, made_from
from free2ds_common.ranges import ROWS_PER_RANGE, sorted_range, spill
from free2ds_common.result import Counts, StageResult
from free2ds_common.schemas import RECORDS
from free2ds_common.storage import room_on_disk

logger = logging.getLogger(__name__)

_SHARD_NAME = re.compile(r"shard-\d{5}-of-\d{5}")


def shard_names(num_shards: int) -> list[str]:
    """The shards' folder names in order."""
    return [f"shard-{shard:05d}-of-{num_shards:05d}" for shard in range(num_shards)]


def number_of_shards(settings: SplitSettings, rows: int, asked: int) -> int:
    """How many shards are made.

    Args:
        settings: With a number of shards, that many for all that the run asks about, and for a part of it in
            proportion; without, as many as `records_per_shard` makes.
        rows: Records to divide.
        asked: Records that the run asks about, those with results of earlier runs too.
    """
    if settings.num_shards:
        wanted = -(-rows * settings.num_shards // max(1, asked))
    else:
        wanted = -(-rows // settings.records_per_shard)
    return min(max(1, wanted), MAX_SHARDS)


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
    num_shards = number_of_shards(config, records.num_rows, LeftOver.of(records.manifest, records.num_rows).asked)
    ranges_per_shard = max(1, -(-records.num_rows // (num_shards * ROWS_PER_RANGE)))
    names = shard_names(num_shards)
    sizes = []
    with room_on_disk(root), tempfile.TemporaryDirectory(dir=root, prefix=".ranges-") as scratch:
        ranges = spill(records, num_shards * ranges_per_shard, Path(scratch))
        for shard, name in enumerate(names):
            rows = 0
            with DatasetWriter(root / name, RECORDS) as writer:
                for path in ranges[shard * ranges_per_shard : (shard + 1) * ranges_per_shard]:
                    table = sorted_range(path)
                    writer.write(table)
                    rows += table.num_rows
                writer.manifest.update({"shard": shard, "num_shards": num_shards})
                if LEFT_OVER in records.manifest:
                    writer.manifest[LEFT_OVER] = records.manifest[LEFT_OVER]
                writer.manifest[MADE_FROM] = made_from(records=config.records)
            sizes.append(rows)
            logger.info("%s: %d records", name, rows)
    counts = Counts(read=records.num_rows, written=sum(sizes))
    return StageResult(
        counts=counts,
        metrics={"num_shards": num_shards, "largest_shard": max(sizes), "smallest_shard": min(sizes)},
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
