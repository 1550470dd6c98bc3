"""What tells the bytes of a picture from others, without reading them where a store knows."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from free2ds_common.objects import protocols_of
from free2ds_common.pictures import PictureProblem, picture_location, read_picture_bytes
from free2ds_common.retry import retried
from free2ds_common.storage import is_local, version_of

# Requests for what a store knows; files read and hashed.
_ASKING, _HASHING = 32, min(8, 2 * (os.cpu_count() or 1))

Identity = tuple[str, ...]


def picture_identities(image_root_uri: str, images: Iterable[str]) -> dict[str, Identity | None]:
    """Identify pictures.

    On this machine, and where a store says nothing but a size, by sha256 of the bytes: a time of change is kept by
    copies and may be restored, and ingest has read every local picture anyway. On S3 and GCS by what the store keeps
    of the bytes (etag, md5) with the size, wherever they are; elsewhere by place, size and what the store calls version
    or time of change.

    Args:
        image_root_uri: The folder that the images are relative to.
        images: Paths below it.

    Returns:
        By image; None for one that cannot be read, about which the stage says more when it tries.

    Raises:
        StageError: The store refuses to say.
        StoreError: The store does not answer.
    """
    distinct = list(dict.fromkeys(images))
    if not distinct:
        return {}
    threads = _HASHING if is_local(image_root_uri) else _ASKING
    with ThreadPoolExecutor(threads, thread_name_prefix="identity") as pool:
        found = list(pool.map(lambda image: _identity(image_root_uri, image), distinct))
    return dict(zip(distinct, found, strict=True))


def _identity(image_root_uri: str, image: str) -> Identity | None:
    try:
        fs, path, uri = picture_location(image_root_uri, image)
        if not isinstance(fs, LocalFileSystem):
            info = retried(uri, lambda: fs.info(path))
            if known := _known(info, path, protocols_of(fs)):
                return known
        return ("sha256", hashlib.sha256(read_picture_bytes(image_root_uri, image)).hexdigest())
    except (PictureProblem, FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


def _known(info: Mapping[str, Any], path: str, protocols: set[str]) -> Identity | None:
    """A picture by what its store says of it; None where that is its size alone."""
    version = version_of(info)
    # Of an object put together from others GCS knows no md5.
    if "gs" in protocols and "md5Hash" in version:
        return ("md5", version["md5Hash"], version["size"])
    if "s3" in protocols and "ETag" in version:
        return ("etag", version["ETag"], version["size"])
    if version.keys() <= {"size"}:
        return None
    return ("version", path, *(f"{name}={value}" for name, value in sorted(version.items())))
