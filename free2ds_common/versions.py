"""Which version of a file or folder lies at a location: told without reading more of it than is needed."""

import hashlib
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from free2ds_common.datasets import sha256_of_file
from free2ds_common.errors import StageError
from free2ds_common.redact import redacted
from free2ds_common.retry import retried
from free2ds_common.storage import WEB, filesystem, require_regular_file, sha256_of, version_of

# As `folder_version` writes it.
_OF_FOLDER = re.compile(r"\d+ files [0-9a-f]{32}")
# What a store says of an object that is another for other bytes, the surest first.
_TELLING = ("generation", "etag", "ETag", "VersionId", "md5Hash", "crc32c", "Content-MD5", "blob_id")


def file_version(uri: str) -> str:
    """The version of a file: what its store says, or else its sha256.

    Raises:
        StageError: Nothing is there, or it may not be read.
        StoreError: The store does not answer.
    """
    fs, path = filesystem(uri)
    try:
        if isinstance(fs, LocalFileSystem):
            require_regular_file(path)
            return f"sha256 {sha256_of_file(path)}"
        info = retried(uri, lambda: fs.info(path))
    except OSError:
        raise StageError(f"{redacted(uri)}: nothing there that can be read. Check the URI.") from None
    for name in _TELLING:
        if info.get(name) is not None:
            return f"{name.lower()} {str(info[name]).strip(chr(34))}"
    return f"sha256 {sha256_of(uri)}"


def folder_version(uri: str) -> str:
    """The version of a folder: a digest of the names, sizes and versions of all files in it.

    Of a local file its time of change counts as its version: weights are too large to be read for this alone. A folder
    of a web server cannot be listed, so its version is the time: never twice the same, and never found in a cache.

    Raises:
        StageError: There is no file, or the folder may not be listed.
        StoreError: The store does not answer.
    """
    if uri.startswith(WEB):
        return f"unknown {time.time_ns()}"
    fs, root = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        return _digest(_local_files(root))

    def find() -> list[tuple[str, Mapping[str, str]]]:
        fs.invalidate_cache()
        found = fs.find(root, detail=True)
        fs.invalidate_cache()
        return [(path.removeprefix(root), version_of(info)) for path, info in found.items()]

    try:
        files = retried(uri, find)
    except (FileNotFoundError, NotADirectoryError):
        files = []
    if not files:
        raise StageError(f"{redacted(uri)}: no file there. Check the URI.")
    return _digest(files)


def require_versions(name: str, uris: Sequence[str], versions: str) -> None:
    """Refuse folders that are not as they were when their versions were found out.

    Args:
        name: The setting, for the message.
        uris: The folders.
        versions: Of each, separated by commas; what is no version of a folder (a commit, "unknown", nothing at all)
            says nothing.

    Raises:
        StageError: A folder has changed, or cannot be listed any more.
        StoreError: A store does not answer.
    """
    for uri, version in zip(uris, versions.split(", "), strict=False):
        if _OF_FOLDER.fullmatch(version) and folder_version(uri) != version:
            raise StageError(f"{name}: {redacted(uri)} has changed since the run began. Start the run again.")


def _local_files(root: str) -> Iterable[tuple[str, Any]]:
    for folder, _, names in os.walk(root, followlinks=True):
        for name in names:
            path = Path(folder) / name
            # Of links what they lead to; one that leads nowhere is no file.
            if path.is_file():
                found = path.stat()
                yield path.relative_to(root).as_posix(), [found.st_size, found.st_mtime_ns]


def _digest(files: Iterable[tuple[str, Any]]) -> str:
    digest = hashlib.sha256()
    count = 0
    for name, version in sorted(files, key=lambda file: file[0]):
        digest.update(f"{name!r} {version!r}\n".encode())
        count += 1
    return f"{count} files {digest.hexdigest()[:32]}"
