"""Copies folders to an object store."""

from functools import partial
from pathlib import Path

from fsspec import AbstractFileSystem

from free2ds_common.retry import retried
from free2ds_common.storage import filesystem


def put_folder(folder: Path, uri: str, last: str = "") -> None:
    """Copy all files of a folder to a store.

    Args:
        folder: On this machine.
        uri: The folder that they go to; what is there already stays.
        last: Name of the file that is copied after all others.

    Raises:
        StageError: The store refuses one.
        StoreError: The store does not answer.
    """
    fs, root = filesystem(uri)
    for path in sorted(folder.rglob("*"), key=lambda path: (path.name == last, path)):
        if path.is_file():
            place = f"{root.rstrip('/')}/{path.relative_to(folder).as_posix()}"
            retried(uri, partial(_put, fs, path, place))


def _put(fs: AbstractFileSystem, path: Path, place: str) -> None:
    fs.makedirs(place.rpartition("/")[0], exist_ok=True)
    fs.put_file(str(path), place)


def remove_folder(uri: str) -> None:
    """Remove a folder of a store, if it is there.

    Args:
        uri: The folder.

    Raises:
        StageError: The store refuses it.
        StoreError: The store does not answer.
    """
    fs, root = filesystem(uri)

    def remove() -> None:
        fs.invalidate_cache()
        if fs.find(root):
            fs.rm(root, recursive=True)

    retried(uri, remove)
