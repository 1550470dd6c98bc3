"""Parts of the results store: immutable Parquet files whose name says what is in them, and proves that it still is."""

import hashlib
import io
import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from free2ds_common.errors import first_line
from free2ds_common.results_store.key import canonical
from free2ds_common.retry import ShortBodyError, retried
from free2ds_common.storage import atomic_writer, read_bytes

Result = TypeVar("Result")

KEY, BUCKET = "key", "bucket"
_COLUMNS = [pa.field(KEY, pa.binary(32), nullable=False), pa.field(BUCKET, pa.int32(), nullable=False)]
_NAME = re.compile(r"(\d{4})-(\d{4})-(\d+)-([0-9a-f]{64})-[0-9a-f]{8}\.parquet")
_SETTINGS = b"free2ds"
# Of the end of a file: its footer and mostly the keys of its rows too.
_TAIL_BYTES = 64 << 10


class BrokenPart(Exception):
    """A part that is not what its name says: cut off, altered, or no Parquet at all."""


@dataclass(frozen=True)
class Part:
    """A part as a listing shows it.

    Attributes:
        path: In its file system.
        uri: For messages.
        size: In bytes, as the store says.
        first: Its lowest bucket.
        last: Its highest bucket.
        rows: How many results it holds.
        sha256: Of the file, hex.
    """

    path: str
    uri: str
    size: int
    first: int
    last: int
    rows: int
    sha256: str

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]

    @classmethod
    def of(cls, path: str, uri: str, size: int) -> "Part | None":
        """The part of that name; None if it is no name of a part."""
        found = _NAME.fullmatch(path.rpartition("/")[2])
        if not found:
            return None
        first, last, rows = (int(number) for number in found.groups()[:3])
        return cls(path, uri, size, first, last, rows, found[4])


def part_schema(columns: pa.Schema) -> pa.Schema:
    """The columns of a part: those of its results, with their key and bucket before them."""
    return pa.schema([*_COLUMNS, *columns])


def encoded(table: pa.Table, settings: Mapping[str, Any]) -> tuple[str, bytes]:
    """A part's name and bytes.

    Args:
        table: `part_schema`, at least one row.
        settings: What decided the results, for people; JSON values.
    """
    buckets = table.column(BUCKET).to_numpy()
    sink = io.BytesIO()
    table = table.replace_schema_metadata({_SETTINGS: canonical(settings)})
    # Keys are hashes: neither a dictionary nor the smallest and largest of them would help anybody. Where keys are read
    # alone, an altered one would be nobody's, and the part would pass for one of other records.
    pq.write_table(
        table, sink, compression="zstd", use_dictionary=False, write_statistics=False, write_page_checksum=True
    )
    data = sink.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    # Two writers of the same results have names of their own, too.
    name = f"{buckets.min():04d}-{buckets.max():04d}-{table.num_rows}-{digest}-{secrets.token_hex(4)}.parquet"
    return name, data


def publish(fs: AbstractFileSystem, folder: str, uri: str, name: str, data: bytes) -> None:
    """Write a file that is there whole or not at all.

    Args:
        fs: Where.
        folder: Its path there.
        uri: That of the folder, for messages.
        name: Of the file.
        data: Its bytes.

    Raises:
        StageError: The disk is full, or the store refuses it.
        StoreError: The store does not answer.
    """
    path = f"{folder}/{name}"
    if isinstance(fs, LocalFileSystem):
        with atomic_writer(path) as handle:
            handle.write(data)
        return
    # One request of object stores. A file system that shows files while they grow shows a broken part meanwhile.
    retried(f"{uri}/{name}", lambda: fs.pipe_file(path, data))


def read_keys(fs: AbstractFileSystem, part: Part) -> list[bytes]:
    """The keys of a part's rows, without the rows.

    Raises:
        BrokenPart: They cannot be read.
        FileNotFoundError: It is gone.
        StageError: The store refuses it.
        StoreError: The store does not answer.
    """

    def read() -> list[bytes]:
        with _reading(), _opened(fs, part) as file:
            column = file.read([KEY]).column(KEY)
            if column.type != _COLUMNS[0].type:
                raise BrokenPart(f"keys of type {column.type}")
            keys: list[bytes] = column.to_pylist()
            return keys

    return _twice(read)


def read_settings(fs: AbstractFileSystem, part: Part) -> dict[str, Any]:
    """What decided a part's results; errors as `read_keys`."""
    with _reading(), _opened(fs, part) as file:
        found: dict[str, Any] = json.loads(file.schema_arrow.metadata[_SETTINGS])
        return found


def read_part(fs: AbstractFileSystem, part: Part, columns: pa.Schema | None = None) -> pa.Table:
    """All of a part, proved by its checksum.

    Args:
        fs: Where it is.
        part: The part.
        columns: Those that it must have besides key and bucket; None takes any.

    Raises:
        BrokenPart: The bytes are not those that were written, or the columns are others.
        FileNotFoundError: It is gone.
        StageError: The store refuses it.
        StoreError: The store does not answer.
    """

    def read() -> pa.Table:
        with _reading():
            data = read_bytes(fs, part.path, part.size + 1, part.uri)
            if hashlib.sha256(data).hexdigest() != part.sha256:
                raise BrokenPart(f"{len(data)} bytes with another checksum")
            table = pq.read_table(pa.BufferReader(data))
            if columns is not None and not table.schema.equals(part_schema(columns)):
                raise BrokenPart("columns of another version")
            return table

    return _twice(read)


def _twice(read: Callable[[], Result]) -> Result:
    """What is read; once more where it is broken: what was altered on the way is whole the next time."""
    try:
        return read()
    except BrokenPart:
        return read()


@contextmanager
def _reading() -> Iterator[None]:
    """Make a BrokenPart of whatever a reader of Parquet says about bytes that are none.

    Raises:
        BrokenPart: See above.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    # pyarrow says ArrowInvalid, which is a ValueError, or OSError. What a store says has become another error by now.
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise BrokenPart(first_line(error)) from error


@contextmanager
def _opened(fs: AbstractFileSystem, part: Part) -> Iterator[pq.ParquetFile]:
    """A part as a Parquet file, of which only what is asked for is read."""
    if isinstance(fs, LocalFileSystem):
        with open(part.path, "rb") as handle, pq.ParquetFile(handle, page_checksum_verification=True) as file:
            yield file
        return
    source = pa.PythonFile(_Ranges(fs, part), mode="r")
    with pq.ParquetFile(source, pre_buffer=True, page_checksum_verification=True) as file:
        yield file


class _Ranges(io.RawIOBase):
    """A part of a store, read in ranges; its end is asked for once, for it holds what says where the rest is."""

    def __init__(self, fs: AbstractFileSystem, part: Part) -> None:
        super().__init__()
        self._fs, self._part, self._at = fs, part, 0
        self._tail_start = max(0, part.size - _TAIL_BYTES)
        self._tail = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def size(self) -> int:
        """How pyarrow asks for the length."""
        return self._part.size

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._part.size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        start, end = self._at, self._part.size if size < 0 else min(self._at + size, self._part.size)
        if start >= end:
            return b""
        if start >= self._tail_start:
            self._tail = self._tail or self._range(self._tail_start, self._part.size)
            found = self._tail[start - self._tail_start : end - self._tail_start]
        else:
            found = self._range(start, end)
        self._at = end
        return found

    def _range(self, start: int, end: int) -> bytes:
        def ask() -> bytes:
            found: bytes = self._fs.cat_file(self._part.path, start=start, end=end)
            if len(found) != end - start:
                raise ShortBodyError(f"only {len(found)} of {end - start} bytes came")
            return found

        return retried(self._part.uri, ask)
