"""What tells the bytes of a picture from others, without reading them where a store knows."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from free2ds_common.listing import LIST_AFTER, list_pictures
from free2ds_common.objects import protocols_of
from free2ds_common.pictures import PictureProblem, picture_location, read_picture_bytes
from free2ds_common.retry import retried
from free2ds_common.storage import OutsideRootError, clean_path, filesystem, is_local, version_of

# Requests for what a store knows; files read and hashed.
_ASKING, _HASHING = 32, min(8, 2 * (os.cpu_count() or 1))

Identity = tuple[str, ...]


def picture_identities(image_root_uri: str, images: Iterable[str]) -> dict[str, Identity | None]:
    """Identify pictures.

    On this machine, and where a store says nothing but a size, by sha256 of the bytes: a time of change is kept by
    copies and may be restored, and ingest has read every local picture anyway. On S3 and GCS by what the store keeps
    of the bytes (etag, md5) with the size, wherever they are; elsewhere by place, size and what the store calls version
    or time of change. Of S3 and GCS, folders of which many pictures are wanted are listed.

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
        known = _listed(image_root_uri, distinct, pool)
        found = list(pool.map(lambda image: known.get(image) or _identity(image_root_uri, image), distinct))
    return dict(zip(distinct, found, strict=True))


def _listed(image_root_uri: str, images: Iterable[str], pool: ThreadPoolExecutor) -> dict[str, Identity]:
    """What listings say of pictures, in folders of which many are wanted and where it is what a look at each says."""
    fs, root = filesystem(image_root_uri)
    protocols = protocols_of(fs)
    if protocols.isdisjoint({"s3", "gs"}):
        return {}
    wanted: dict[str, list[str]] = defaultdict(list)
    for image in images:
        if _is_normal(image):
            wanted[image.rpartition("/")[0]].append(image)
    many = [folder for folder, inside in wanted.items() if len(inside) > LIST_AFTER]
    found: dict[str, Identity] = {}
    listings = pool.map(lambda folder: list_pictures(fs, root, image_root_uri, folder), many)
    for folder, files in zip(many, listings, strict=True):
        for image in wanted[folder]:
            if identity := _of_bytes((files or {}).get(image.rpartition("/")[2], {}), protocols):
                found[image] = identity
    return found


def _is_normal(image: str) -> bool:
    """Whether a path is one below the root, as the store has it."""
    try:
        return clean_path(image) == image
    except OutsideRootError:
        return False


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
    if identity := _of_bytes(version, protocols):
        return identity
    if version.keys() <= {"size"}:
        return None
    return ("version", path, *(f"{name}={value}" for name, value in sorted(version.items())))


def _of_bytes(version: Mapping[str, str], protocols: set[str]) -> Identity | None:
    """A picture by what S3 or GCS keep of its bytes; None where that is nothing."""
    # Of an object put together from others GCS knows no md5.
    if "gs" in protocols and "md5Hash" in version:
        return ("md5", version["md5Hash"], version["size"])
    if "s3" in protocols and "ETag" in version:
        return ("etag", version["ETag"], version["size"])
    return None
