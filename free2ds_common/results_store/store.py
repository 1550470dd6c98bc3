"""The results store: what models have computed, kept under keys of all that decides it, for every later run.

`<cache_uri>/<kind>/<settings key>/` holds parts, and parts alone: nothing there is ever changed. A part is found by
listing its folder. Whoever computes something writes parts of its own, so that writers need not know of each other.
"""

import logging
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from free2ds_common.errors import StageError
from free2ds_common.redact import redacted, redacted_values
from free2ds_common.results_store.found import Found, Spill
from free2ds_common.results_store.key import result_key, settings_key
from free2ds_common.results_store.parts import (
    BrokenPart,
    Part,
    encoded,
    part_schema,
    publish,
    read_keys,
    read_part,
)
from free2ds_common.retry import retried
from free2ds_common.storage import filesystem

logger = logging.getLogger(__name__)

# Parts read side by side. Each may be as large as compaction makes one.
READERS = 8


@dataclass(frozen=True)
class Kind:
    """A kind of results.

    Attributes:
        name: Of its folder.
        columns: What a result consists of.
    """

    name: str
    columns: pa.Schema


class ResultsStore:
    """The results of one kind, model and settings.

    Attributes:
        uri: Of their folder, without credentials.
    """

    def __init__(self, cache_uri: str, kind: Kind, settings: Mapping[str, Any], told: Mapping[str, Any]) -> None:
        """Name the folder; it is not looked at.

        Args:
            cache_uri: The store.
            kind: Of the results.
            settings: All that decides them besides what the model is asked; JSON values.
            told: For people who look at the store: the model's name and the like; decides nothing.

        Raises:
            StageError: No location of any store.
        """
        self._fs, root = filesystem(cache_uri)
        self._settings_key = settings_key({"kind": kind.name, **settings})
        self._folder = f"{root.rstrip('/')}/{kind.name}/{self._settings_key}"
        self.uri = redacted(f"{cache_uri.rstrip('/')}/{kind.name}/{self._settings_key}")
        self._kind, self._told = kind, redacted_values({**settings, **told})

    def key(self, asked: Mapping[str, Any]) -> bytes:
        """The key of what the model is asked; JSON values."""
        return result_key(self._settings_key, asked)

    def take(self, wanted: Collection[bytes], buckets: Iterable[int], scratch: Path) -> Found:
        """Take the results that are there.

        Only parts that hold one of them are read to the end. Of two results of one key, which two workers computed at
        the same time, the one in the part whose name comes first is taken.

        Args:
            wanted: Their keys.
            buckets: Those that they are in.
            scratch: A folder of this machine for a copy of them, which stays within a bounded memory.

        Raises:
            StageError: The store refuses to list or give them.
            StoreError: The store does not answer.
        """
        wanted, inside = set(wanted), sorted(set(buckets))
        spill = Spill(scratch, part_schema(self._kind.columns))
        seen: set[str] = set()
        while True:
            parts = [part for part in self._parts(inside) if part.name not in seen] if wanted else []
            seen.update(part.name for part in parts)
            gone = False
            for part, table in self._read(parts, wanted):
                if isinstance(table, BrokenPart):
                    spill.broken.append(part.name)
                    logger.warning("%s: is not as it was written (%s); its results are computed again", part.uri, table)
                elif table is None:
                    gone = True
                else:
                    spill.add(table, wanted)
            # One that was listed and is gone was put together with others meanwhile: into a part not seen yet.
            if not gone:
                return spill.found()

    def _parts(self, inside: list[int]) -> list[Part]:
        """The parts with one of these buckets, ascending by name."""
        found = list_parts(self._fs, self._folder, self.uri)
        return [part for part in found if any(part.first <= bucket <= part.last for bucket in inside)]

    def _read(
        self, parts: list[Part], wanted: Collection[bytes]
    ) -> Iterator[tuple[Part, pa.Table | BrokenPart | None]]:
        """Parts in order with their rows, without any where none is wanted; why not, or None where a part is gone."""
        none = part_schema(self._kind.columns).empty_table()

        def read(part: Part) -> pa.Table | BrokenPart | None:
            try:
                if not any(key in wanted for key in read_keys(self._fs, part)):
                    return none
                return read_part(self._fs, part, self._kind.columns)
            except BrokenPart as broken:
                return broken
            except FileNotFoundError:
                return None

        waiting: deque[tuple[Part, Future[pa.Table | BrokenPart | None]]] = deque()
        with ThreadPoolExecutor(READERS, thread_name_prefix="results") as pool:
            for part in parts:
                waiting.append((part, pool.submit(read, part)))
                if len(waiting) > READERS:
                    first, future = waiting.popleft()
                    yield first, future.result()
            for first, future in waiting:
                yield first, future.result()

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Publish a part.

        Args:
            rows: At least one; key, bucket and the kind's columns.

        Raises:
            StageError: The disk is full, or the store refuses it.
            StoreError: The store does not answer.
        """
        table = pa.Table.from_pylist(list(rows), schema=part_schema(self._kind.columns))
        name, data = encoded(table, self._told)
        publish(self._fs, self._folder, self.uri, name, data)


def list_parts(fs: AbstractFileSystem, folder: str, uri: str) -> list[Part]:
    """The parts in a folder, ascending by name; none where there is no folder.

    Raises:
        StageError: The store refuses to list it, or it is a file.
        StoreError: The store does not answer.
    """
    if not isinstance(fs, LocalFileSystem):
        # What was listed before may have changed.
        fs.invalidate_cache(folder)
    try:
        entries = retried(uri, lambda: fs.ls(folder, detail=True))
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        raise StageError(f"{uri}: lies below a file, wanted a folder for results. Give another cache_uri.") from None
    parts = (Part.of(entry["name"], f"{uri}/{entry['name'].rpartition('/')[2]}", entry["size"]) for entry in entries)
    return sorted((part for part in parts if part is not None), key=lambda part: part.name)
