"""Locations are URIs opened through fsspec: plain paths, gs://, s3://, memory://, https://, hf://."""

import os
import posixpath
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from free2ds_common.errors import StageError


class OutsideRootError(ValueError):
    """A relative path that is absolute or leaves its root."""


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI and the path inside it.

    Raises:
        StageError: The protocol is unknown or its package is not installed.
    """
    try:
        found: tuple[fsspec.AbstractFileSystem, str] = url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise StageError(
            f"{uri}: cannot be opened ({error}). Wanted a path or a URI such as gs://bucket/folder."
        ) from error
    return found


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


@contextmanager
def atomic_writer(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Write a local file that appears under its name only if the block ends without an error.

    Args:
        path: The final name; its folder is created.
        mode: "wb", or "w" for UTF-8 text.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{secrets.token_hex(8)}"
    try:
        with open(temporary, mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def local_folder(uri: str, cache_dir: str) -> str:
    """A local folder with the files below `uri`: the folder itself if it is local, otherwise a download.

    Args:
        uri: A folder.
        cache_dir: Where a download goes; a finished one is reused.

    Raises:
        StageError: There is nothing at `uri`.
        OutsideRootError: The store lists a name that leaves `uri`.
    """
    fs, root = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        if not os.path.isdir(root):
            raise StageError(f"{uri}: no folder there. Give a folder that holds the model's files.")
        return root
    target = Path(cache_dir) / fsspec.utils.tokenize(uri)
    if not target.is_dir():
        try:
            # Some stores list a folder as an empty object whose name ends in a slash.
            files = [remote for remote in fs.find(root) if not remote.endswith("/")]
        except FileNotFoundError:
            files = []
        if not files or files == [root]:
            raise StageError(f"{uri}: no folder with files there. Give a folder that holds the model's files.")
        os.makedirs(cache_dir, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=cache_dir, prefix=".download-"))
        try:
            for remote in files:
                place = partial / clean_path(posixpath.relpath(remote, root))
                place.parent.mkdir(parents=True, exist_ok=True)
                fs.get_file(remote, str(place))
            os.replace(partial, target)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            # Another task with the same cache was faster.
            if not (isinstance(error, OSError) and target.is_dir()):
                raise
    return str(target)
