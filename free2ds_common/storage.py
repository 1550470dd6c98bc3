"""Locations are URIs opened through fsspec: plain paths, gs://, s3://, memory://, https://, hf://.

One file of more than 300 lines: paths, reading and writing share what counts as local and what counts as missing.
"""

import errno
import hashlib
import os
import posixpath
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import unquote

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from free2ds_common.errors import StageError, first_line
from free2ds_common.objects import object_reader
from free2ds_common.redact import redacted
from free2ds_common.retry import Meaning, ShortBodyError, is_full_disk, meaning, retried

# Of one answer of a web server or GCS. aiohttp's own limit is on a whole file: 5 minutes, too few for 14 GB of weights.
SOCKET_TIMEOUT_S = 60.0
WEB = ("http://", "https://")
_FILE = "file://"
_GCS = ("gs://", "gcs://")
_S3 = ("s3://", "s3a://")
# Of botocore's 10 the 11th reader would wait; the other stores' libraries have 100.
_CONNECTIONS = 100
_SKIPPED_BYTES = 4 << 20
_HASHED_BYTES = 1 << 20
# What stores call the things that change when a file does.
_VERSION_ENTRIES = (
    *("etag", "ETag", "generation", "VersionId", "md5Hash", "crc32c", "content_md5", "Content-MD5", "Digest"),
    *("blob_id", "mtime", "updated", "LastModified", "last_modified", "Last-Modified", "created"),
)


class OutsideRootError(ValueError):
    """A relative path that is absolute or leaves its root."""


class ByteSource(Protocol):
    """What can be read once, from its beginning to its end."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none only at the end."""


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI and the path inside it.

    Raises:
        StageError: The protocol is unknown, its package is not installed, or the store refuses every request.
        StoreError: The store does not answer.
    """
    if (path := _local_path(uri)) is not None:
        return LocalFileSystem(), LocalFileSystem._strip_protocol(path)
    return retried(uri, lambda: _remote(uri))


def _local_path(uri: str) -> str | None:
    """The path that a URI certainly means on this machine; None where fsspec is to find out.

    fsspec takes "::" for a chain of file systems and would open "/data/a" for "/data/a::b".
    """
    if uri.startswith(_FILE):
        path = uri.removeprefix(_FILE)
        decoded = unquote(path)
        return decoded if os.path.exists(decoded) and not os.path.exists(path) else path
    if uri.startswith("/") or ("::" in uri and os.path.exists(uri)):
        return uri
    return None


def _remote(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    options: dict[str, Any] = {}
    if uri.startswith(WEB):
        options["client_kwargs"] = {"timeout": _timeout()}
    if uri.startswith(_GCS):
        # Without it a request that is never answered takes 5 minutes, and gcsfs asks six times.
        options["requests_timeout"] = _timeout()
    if uri.startswith(_S3):
        set_by_user = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        options["config_kwargs"] = {"max_pool_connections": _CONNECTIONS, **set_by_user}
    try:
        found: tuple[fsspec.AbstractFileSystem, str] = url_to_fs(uri, **options)
    except (ValueError, ImportError) as error:
        raise StageError(
            f"{redacted(uri)}: cannot be opened ({redacted(str(error))}). "
            "Wanted a path or a URI such as gs://bucket/folder."
        ) from error
    return found


def _timeout() -> object:
    """How long to wait for a server that says nothing, however long the whole takes; for aiohttp."""
    from aiohttp import ClientTimeout

    return ClientTimeout(total=None, sock_connect=SOCKET_TIMEOUT_S, sock_read=SOCKET_TIMEOUT_S)


def is_local(uri: str) -> bool:
    """Whether the URI is a path of this machine."""
    return isinstance(filesystem(uri)[0], LocalFileSystem)


def clean_path(relative: str) -> str:
    """A path below some root, in normal form ("./a//b.jpg" becomes "a/b.jpg").

    Args:
        relative: A POSIX path.

    Raises:
        OutsideRootError: `relative` is empty, absolute, leaves the root, or has a drive, scheme, backslash or NUL.
    """
    normal = posixpath.normpath(relative)
    if (
        not relative
        or "\x00" in relative
        or "\\" in relative
        or "://" in relative
        or posixpath.isabs(relative)
        or normal in (".", "..")
        or normal.startswith("../")
        or (len(normal) > 1 and normal[1] == ":")
    ):
        raise OutsideRootError(relative)
    return normal


def require_folder(name: str, uri: str) -> None:
    """Refuse a local folder that does not exist; in an object store a folder may be there without being listed.

    Raises:
        StageError: `uri` is empty or a local path that is not a folder.
    """
    if not uri:
        raise StageError(f"{name}: is empty, wanted a folder or an object-store URI.")
    if is_local(uri) and not os.path.isdir(filesystem(uri)[1]):
        raise StageError(f"{name}: {uri} is not a folder. Give an existing folder or an object-store URI.")


def require_regular_file(path: str | os.PathLike[str]) -> None:
    """Refuse a pipe, a socket or a device: reading one may never end. Nothing there, or a folder, passes.

    Raises:
        StageError: It is none that can be read to its end.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return  # whoever opens it says what is wrong
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise StageError(f"{os.fspath(path)}: is a pipe, a socket or a device, wanted a regular file.")


@contextmanager
def room_on_disk(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Say in one sentence that a block could not write to `folder`.

    Raises:
        StageError: The disk is full or read-only.
    """
    try:
        yield
    except OSError as error:
        if not is_full_disk(error):
            raise
        reason = "is on a read-only disk" if error.errno == errno.EROFS else "has no room left on its disk"
        raise StageError(f"{os.fspath(folder)}: {reason} ({first_line(error)}). Make room or take another.") from error


def read_bytes(fs: fsspec.AbstractFileSystem, path: str, max_bytes: int, uri: str) -> bytes:
    """The first bytes of a file; all of it if it has at most `max_bytes`.

    Args:
        fs: Its file system.
        path: Its path there.
        max_bytes: Bound, since a store may lie about the size.
        uri: For messages.

    Raises:
        FileNotFoundError: Nothing is there; for a store, only if it says so.
        OSError: A local file that cannot be read, or a folder.
        StageError: The store refuses it.
        StoreError: The store does not answer.
    """
    if isinstance(fs, LocalFileSystem):
        with fs.open(path, "rb") as local:
            return _read_up_to(local, max_bytes)
    if read := object_reader(fs):
        return retried(uri, lambda: read(path, max_bytes))

    def work() -> bytes:
        with fs.open(path, "rb") as handle:
            data = _asked_twice(handle, 0, lambda: _read_up_to(handle, max_bytes))
            size = getattr(handle, "size", None)
        if isinstance(size, int) and len(data) < min(size, max_bytes):
            raise ShortBodyError(f"only {len(data)} of {size} bytes came")
        return data

    return retried(uri, work)


def version_of(info: Mapping[str, Any]) -> dict[str, str]:
    """What tells one version of a stored file from another.

    Args:
        info: What fsspec's `info` or `find` says of the file.

    Returns:
        Its size, etag, generation, time of change: what the store knows, as text.
    """
    return {name: str(info[name]) for name in ("size", *_VERSION_ENTRIES) if info.get(name) is not None}


def _read_up_to(handle: IO[bytes], size: int) -> bytes:
    """Read until `size` bytes or the end: a stream hands over what has come, which may be less than was asked for."""
    pieces = []
    while size > 0 and (piece := handle.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _asked_twice(
    handle: IO[bytes], at: int, read: Callable[[], bytes], check: Callable[[], None] = lambda: None
) -> bytes:
    """Read, and once more where the store may answer then.

    Opening a file is a request too: of a store that fails every second one, reading would fail for ever if each try
    began with opening.

    Args:
        handle: What is read from; one that reads on from a lost connection if it knows its length.
        at: Where it stands.
        read: Reads.
        check: Called after a second try, which may find another file than the first.
    """
    try:
        return read()
    # Every store has error classes of its own.
    except Exception as error:
        if getattr(handle, "size", None) is None or not handle.seekable() or meaning(error) is not Meaning.LATER:
            raise
        handle.seek(at)
        found = read()
        check()
        return found


class StoredFile:
    """A file of a store, read once from its beginning to its end, over lost connections too."""

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, uri: str) -> None:
        """Open it; errors as of `read_bytes`."""
        self._fs, self._path, self._uri = fs, path, uri
        self._at = 0
        self._whole = False  # whether the server gives no parts
        self._handle: IO[bytes] | None = None
        self._version = retried(uri, self._look)
        retried(uri, self._reopen)

    def _look(self) -> dict[str, str]:
        info = self._fs.info(self._path)
        if info.get("type") == "directory":
            raise IsADirectoryError(self._uri)
        return version_of(info)

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none only at the end.

        Raises:
            StageError: The file was replaced meanwhile, or the store refuses it.
            StoreError: The store does not answer, or the file ends before its length.
        """
        try:
            block = retried(self._uri, lambda: self._try(size))
        except FileNotFoundError:
            raise self._replaced() from None
        self._at += len(block)
        return block

    def _try(self, size: int) -> bytes:
        handle = self._handle or self._reopen()
        try:
            read = partial(handle.read, size)
            block = read() if self._whole else _asked_twice(handle, self._at, read, self._require_same)
            length = getattr(handle, "size", None)
            if not block and isinstance(length, int) and self._at < length:
                raise ShortBodyError(f"only {self._at} of {length} bytes came")
        except Exception as error:
            self.close()
            if isinstance(error, ValueError) and "range requests" in str(error) and not self._whole:
                self._whole = True
                return self._try(size)
            raise
        return block

    def _reopen(self) -> IO[bytes]:
        self._require_same()
        options = {"block_size": 0} if self._whole else {}
        handle: IO[bytes] = self._fs.open(self._path, "rb", **options)
        if getattr(handle, "size", None) is None or self._whole:
            self._skip(handle)
        else:
            handle.seek(self._at)
        self._handle = handle
        return handle

    def _require_same(self) -> None:
        """Raise StageError where the file was replaced since its first bytes were read."""
        if self._at and retried(self._uri, self._look) != self._version:
            raise self._replaced()

    def _skip(self, handle: IO[bytes]) -> None:
        left = self._at
        while left:
            block = handle.read(min(left, _SKIPPED_BYTES))
            if not block:
                raise ShortBodyError(f"only {self._at - left} of the first {self._at} bytes came again")
            left -= len(block)

    def _replaced(self) -> StageError:
        return StageError(f"{redacted(self._uri)}: was replaced while it was read. Run again.")

    def close(self) -> None:
        """Close it; a later read would open it again."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None


def sha256_of(uri: str) -> str:
    """Hex sha256 of a file, read a block at a time; errors as `open_binary`."""
    digest = hashlib.sha256()
    with open_binary(uri) as source:
        while block := source.read(_HASHED_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def open_binary(uri: str) -> Iterator[ByteSource]:
    """Open a file, local or of a store, to read it once from its beginning to its end.

    Raises:
        OSError: As of `read_bytes`.
        StageError: It is a pipe or a device, or the store refuses it.
        StoreError: The store does not answer.
    """
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        require_regular_file(path)
        with open(path, "rb") as local:
            yield local
        return
    stored = StoredFile(fs, path, uri)
    try:
        yield stored
    finally:
        stored.close()


@contextmanager
def atomic_writer(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Write a local file that appears under its name only if the block ends without an error.

    Args:
        path: The final name; its folder is created.
        mode: "wb", or "w" for UTF-8 text.
    """
    target = Path(path)
    temporary = target.parent / f".{target.name}.{secrets.token_hex(8)}"
    with room_on_disk(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8") as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
