"""Copies folders of object stores to this machine, once per version of their files."""

import base64
import hashlib
import json
import posixpath
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
from fsspec.implementations.local import LocalFileSystem

from free2ds_common.errors import StageError
from free2ds_common.objects import copy_in_parts, protocols_of
from free2ds_common.redact import redacted
from free2ds_common.retry import ShortBodyError, retried
from free2ds_common.storage import WEB, OutsideRootError, clean_path, filesystem, room_on_disk, version_of

# Begins the names of downloads under way. One that is this old is of a run that was killed.
_UNDER_WAY = ".download-"
_STALE_S = 24 * 3600.0
# Files of one folder, and parts of one large file of GCS: a store gives each request only so many bytes a second.
_AT_A_TIME = 8
_LARGE_BYTES = 64 << 20
_CHECKED_BYTES = 4 << 20


@dataclass(frozen=True)
class _Stored:
    """A file of a store.

    Attributes:
        path: In the store.
        uri: For messages.
        version: See `version_of`.
    """

    path: str
    uri: str
    version: Mapping[str, str]


def local_folder(uri: str, cache_dir: str) -> str:
    """A local folder with the files below `uri`: the folder itself if it is local, otherwise a download.

    A finished download is used again as long as the store's files have the same names, sizes and versions (etags,
    generations, times of change). From a store that knows no versions it is made anew each time, and kept once per
    content.

    Args:
        uri: A folder.
        cache_dir: Where downloads go; several processes may share it.

    Raises:
        StageError: There is nothing at `uri`, the store refuses it or lists names that cannot be files below it, its
            files changed meanwhile, or the disk is full.
        StoreError: The store does not answer.
    """
    fs, root = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        if not Path(root).is_dir():
            raise StageError(f"{uri}: no folder there. Give an existing folder or a URI.")
        return root
    cache = Path(cache_dir)
    files = _files_below(fs, root, uri)
    known = all(file.version.keys() - {"size"} for file in files.values())
    name = _digest([redacted(uri), _versions(files)])
    if (cache / name).is_dir():
        return str(cache / name)
    with room_on_disk(cache):
        cache.mkdir(parents=True, exist_ok=True)
        _remove_stale_downloads(cache)
        folder = Path(tempfile.mkdtemp(dir=cache, prefix=_UNDER_WAY))
        try:
            with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="download") as pool:
                # The first error cancels what has not begun.
                list(pool.map(lambda place: _fetch(fs, files[place], folder / place), files))
            if _versions(_files_below(fs, root, uri)) != _versions(files):
                raise StageError(f"{redacted(uri)}: its files changed while they were copied. Run again.")
            target = cache / (name if known else f"{name}-{_content(folder)}")
            _publish(folder, target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return str(target)


def _publish(folder: Path, target: Path) -> None:
    """Give a finished download its name, unless another process with the same cache was faster."""
    try:
        folder.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _files_below(fs: fsspec.AbstractFileSystem, root: str, uri: str) -> dict[str, _Stored]:
    """The files below a folder of a store by their path below it, in order of the paths.

    Raises:
        StageError: There are none, or names that cannot be files below a folder of this machine.
    """
    find = partial(_links, fs, root, root) if root.startswith(WEB) else partial(_found, fs, root)
    try:
        found = retried(uri, lambda: list(find()))
    except (FileNotFoundError, NotADirectoryError):
        found = []
    files: dict[str, _Stored] = {}
    for below, stored, info in found:
        try:
            place = clean_path(below)
        except OutsideRootError:
            raise StageError(f"{redacted(uri)}: the store lists {below!r}, which is no name of a file in it.") from None
        if place in files:
            raise StageError(f"{redacted(uri)}: the store lists {place!r} twice, once as {below!r}.")
        files[place] = _Stored(stored, f"{uri.rstrip('/')}/{below}", version_of(info))
    if not files:
        raise StageError(f"{redacted(uri)}: no folder with files there. Give the URI of a folder.")
    for place in files:
        if above := next((str(folder) for folder in Path(place).parents if str(folder) in files), None):
            raise StageError(
                f"{redacted(uri)}: the store lists {above!r} and {place!r}, which cannot both be files here."
            )
    return dict(sorted(files.items()))


def _found(fs: fsspec.AbstractFileSystem, root: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Path below the root, path and info of every file of an object store."""
    fs.invalidate_cache()
    for path, info in fs.find(root, detail=True).items():
        # Some stores list a folder as an empty object whose name ends in a slash; a file lists itself.
        if not path.endswith("/") and path.strip("/") != root.strip("/"):
            yield posixpath.relpath(path, root), path, info


def _links(fs: fsspec.AbstractFileSystem, root: str, folder: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """The same of a web server's pages that list a folder.

    fsspec's own `find` leaves out a sub-folder whose page the server did not give.
    """
    urls: list[str] = fs.ls(folder, detail=False)
    for url in urls:
        below = unquote(url.removeprefix(root.rstrip("/") + "/"))
        # "?C=N;O=D" orders the page by name.
        if "?" in url.removeprefix(root) or below.rstrip("/") in ("", ".", ".."):
            continue
        if not url.endswith("/"):
            with _listed(url):
                yield below, url, retried(url, partial(fs.info, url))
        elif url.startswith(folder) and ".." not in below.split("/"):
            with _listed(url):
                yield from _links(fs, root, url)


def _fetch(fs: fsspec.AbstractFileSystem, file: _Stored, place: Path) -> None:
    size, crc32c = file.version.get("size"), file.version.get("crc32c")
    is_large = "gs" in protocols_of(fs) and not fs.requester_pays and int(size or 0) >= _LARGE_BYTES

    def fetch() -> None:
        if is_large:
            copy_in_parts(fs, file.path, place, _AT_A_TIME)
        else:
            fs.get_file(file.path, str(place))
        came = place.stat().st_size
        if size is not None and size != str(came):
            raise ShortBodyError(f"{came} bytes came, the store said {size}")
        if crc32c and not is_large and (found := _crc32c(place)) != crc32c:
            raise ShortBodyError(f"its crc32c is {found}, the store said {crc32c}")

    place.parent.mkdir(parents=True, exist_ok=True)
    with _listed(file.uri):
        retried(file.uri, fetch)


def _crc32c(path: Path) -> str:
    """The checksum that GCS keeps of every object."""
    import google_crc32c

    checksum = google_crc32c.Checksum()
    with path.open("rb") as handle:
        for _ in checksum.consume(handle, _CHECKED_BYTES):
            pass
    return base64.b64encode(checksum.digest()).decode()


@contextmanager
def _listed(uri: str) -> Iterator[None]:
    """Say that something is not there although the store lists it."""
    try:
        yield
    except FileNotFoundError:
        raise StageError(f"{redacted(uri)}: is listed but not there. Mend the folder or run again.") from None


def _versions(files: Mapping[str, _Stored]) -> dict[str, Mapping[str, str]]:
    return {place: file.version for place, file in files.items()}


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _content(folder: Path) -> str:
    """A digest of the names and contents of all files."""
    contents = {}
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as handle:
                contents[path.relative_to(folder).as_posix()] = hashlib.file_digest(handle, "sha256").hexdigest()
    return _digest(contents)


def _remove_stale_downloads(cache: Path) -> None:
    """Remove what runs left that were killed while they downloaded."""
    oldest = time.time() - _STALE_S
    for folder in cache.glob(f"{_UNDER_WAY}*"):
        # Another process may be removing it, or another user own it.
        with suppress(OSError):
            if max(path.stat().st_mtime for path in (folder, *folder.rglob("*"))) < oldest:
                shutil.rmtree(folder, ignore_errors=True)
