"""A results store with results that are easy to tell apart."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from free2ds_common.results_store.store import Kind, ResultsStore

LENGTH = 4
KIND = Kind(
    "numbers",
    pa.schema([pa.field("number", pa.int32(), nullable=False), pa.field("map", pa.list_(pa.float32(), LENGTH))]),
)


def open_store(uri: object, **settings: object) -> ResultsStore:
    """A store of such results; settings decide its folder."""
    return ResultsStore(str(uri), KIND, settings, {"model": "M"})


def key(number: int) -> bytes:
    """A key for each number."""
    return number.to_bytes(32, "big")


def row(number: int, bucket: int = 0, value: float | None = None) -> dict[str, object]:
    """A result to write; its map is missing for a multiple of 5."""
    values = None if number % 5 == 0 else np.full(LENGTH, number if value is None else value, np.float32)
    return {"key": key(number), "bucket": bucket, "number": number, "map": values}


def parts(root: Path) -> list[Path]:
    """The files of a store in a folder."""
    return sorted(Path(root).rglob("*.parquet"))
