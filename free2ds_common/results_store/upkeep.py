"""Looking after a results store: what it holds, whether it is as it was written, fewer parts, and less of it."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from free2ds_common.redact import redacted
from free2ds_common.results_store.parts import (
    BUCKET,
    KEY,
    BrokenPart,
    Part,
    encoded,
    publish,
    read_part,
    read_settings,
)
from free2ds_common.retry import retried
from free2ds_common.storage import filesystem

logger = logging.getLogger(__name__)

# Rows of a part that compaction makes: about 40 MB of maps, which a reader may hold several of.
TARGET_ROWS = 20_000
# A part of at least so many stays as it is.
_LARGE_ROWS = TARGET_ROWS // 2
# Sorted in memory together: about 300 MB of maps.
_SORTED_ROWS = 6 * TARGET_ROWS
_LEFTOVER_S = 86_400
# What stores call the time at which an object was written.
_TIMES = ("mtime", "updated", "LastModified", "last_modified", "created")


@dataclass(frozen=True)
class StoredPart:
    """A part and when it was written.

    Attributes:
        part: The part.
        written: UTC; None where the store does not say.
    """

    part: Part
    written: datetime | None


@dataclass(frozen=True)
class Shelf:
    """The results of one model and its settings.

    Attributes:
        kind: What they are: "attention" or "text".
        fs: Where they are.
        folder: Their path there.
        uri: The same for messages.
        parts: In order.
        settings: What decided them, as their first part has it; empty where none can be read.
    """

    kind: str
    fs: AbstractFileSystem
    folder: str
    uri: str
    parts: Sequence[StoredPart]
    settings: Mapping[str, Any]

    @property
    def rows(self) -> int:
        """Results, those that are there twice counted twice."""
        return sum(stored.part.rows for stored in self.parts)

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(stored.part.size for stored in self.parts)

    def is_of(self, model: str) -> bool:
        """Whether it is of a model, by its name as the first run called it, or by its fingerprint."""
        return bool(model) and model in (self.settings.get("model"), self.settings.get("model_fingerprint"))


def shelves(cache_uri: str) -> list[Shelf]:
    """Everything in a store, by kind and settings.

    Raises:
        StageError: The store refuses to list it, or it is no location of any.
        StoreError: The store does not answer.
    """
    fs, root = filesystem(cache_uri)
    if not isinstance(fs, LocalFileSystem):
        fs.invalidate_cache()
    try:
        infos: Mapping[str, Mapping[str, Any]] = retried(cache_uri, lambda: fs.find(root, detail=True))
    except FileNotFoundError:
        infos = {}
    by_folder: dict[str, list[StoredPart]] = {}
    for path, info in sorted(infos.items()):
        folder = path.rpartition("/")[0]
        uri = redacted(f"{cache_uri.rstrip('/')}/{'/'.join(path.split('/')[-3:])}")
        if part := Part.of(path, uri, info["size"]):
            by_folder.setdefault(folder, []).append(StoredPart(part, _written(info)))
    return [
        Shelf(folder.split("/")[-2], fs, folder, parts[0].part.uri.rpartition("/")[0], parts, _settings(fs, parts))
        for folder, parts in sorted(by_folder.items())
    ]


def _settings(fs: AbstractFileSystem, parts: Sequence[StoredPart]) -> dict[str, Any]:
    for stored in parts:
        try:
            return read_settings(fs, stored.part)
        except (BrokenPart, FileNotFoundError):
            continue
    return {}


def _written(info: Mapping[str, Any]) -> datetime | None:
    """When an object was written, by whatever its store says."""
    for name in _TIMES:
        value = info.get(name)
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return value if value.tzinfo else value.replace(tzinfo=UTC)
    return None


def broken_parts(shelf: Shelf) -> Iterator[tuple[Part, str]]:
    """The parts of a shelf that are not as they were written, each with what is wrong; every byte is read."""
    for stored in shelf.parts:
        try:
            read_part(shelf.fs, stored.part)
        except BrokenPart as broken:
            yield stored.part, str(broken)
        except FileNotFoundError:
            continue


def remove(fs: AbstractFileSystem, parts: Iterable[Part]) -> None:
    """Remove parts; one that is gone already is fine.

    Raises:
        StageError: The store refuses to.
        StoreError: The store does not answer.
    """
    for part in parts:
        try:
            retried(part.uri, partial(fs.rm_file, part.path))
        except FileNotFoundError:
            continue


def compact(shelf: Shelf) -> tuple[int, int]:
    """Put small parts together: few large ones are listed and read faster.

    The new part is there before the old ones go, so that nothing is lost whenever it ends; who reads meanwhile finds
    the results in one of them. A part that is not as it was written stays. On this machine, what killed writers left is
    removed after a day.

    Args:
        shelf: Of the store.

    Returns:
        How many parts were put together, and into how many.

    Raises:
        StageError: The store refuses it.
        StoreError: The store does not answer.
    """
    if isinstance(shelf.fs, LocalFileSystem):
        _remove_leftovers(Path(shelf.folder))
    before = after = 0
    batch: list[tuple[Part, pa.Table]] = []
    small = sorted(
        (stored.part for stored in shelf.parts if stored.part.rows < _LARGE_ROWS),
        key=lambda part: (part.first, part.last, part.name),
    )
    for part in small:
        try:
            batch.append((part, read_part(shelf.fs, part)))
        except BrokenPart as broken:
            logger.warning("%s: is not as it was written (%s); left alone", part.uri, broken)
        except FileNotFoundError:
            continue
        if sum(table.num_rows for _, table in batch) >= _SORTED_ROWS:
            after += _together(shelf, batch)
            before += len(batch)
            batch = []
    if len(batch) > 1:
        after += _together(shelf, batch)
        before += len(batch)
    return before, after


def _remove_leftovers(folder: Path) -> None:
    """Remove what writers that were killed had begun: hidden files, older than any writer takes."""
    for path in folder.glob(".*.parquet.*"):
        if path.stat().st_mtime < time.time() - _LEFTOVER_S:
            path.unlink(missing_ok=True)


def _together(shelf: Shelf, batch: list[tuple[Part, pa.Table]]) -> int:
    """Write the rows of parts as fewer parts, and remove the old ones; returns how many are new."""
    rows = pa.concat_tables(table for _, table in sorted(batch, key=lambda entry: entry[0].name))
    # Of two results of one key the one that readers take: in the part whose name comes first.
    first = {key: row for row, key in reversed(list(enumerate(rows.column(KEY).to_pylist())))}
    rows = rows.take(pa.array(sorted(first.values()))).sort_by([(BUCKET, "ascending"), (KEY, "ascending")])
    starts = range(0, rows.num_rows, TARGET_ROWS)
    for start in starts:
        name, data = encoded(rows.slice(start, TARGET_ROWS), shelf.settings)
        publish(shelf.fs, shelf.folder, shelf.uri, name, data)
    remove(shelf.fs, [part for part, _ in batch])
    return len(starts)
