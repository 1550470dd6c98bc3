"""The files in a folder of a store: names, sizes, and what tells one version of a file from another."""

import logging
import posixpath
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fsspec import AbstractFileSystem

from free2ds_common.errors import StageError
from free2ds_common.objects import protocols_of
from free2ds_common.redact import redacted
from free2ds_common.retry import retried
from free2ds_common.storage import version_of

logger = logging.getLogger(__name__)

# Names a page, the most that S3 and GCS give.
PAGE = 1000
# A folder is listed, not looked at picture by picture, once so many are wanted of it: an answer holds 1,000 names, but
# only one is asked for at a time, and a small data set on a folder of millions is better off without.
LIST_AFTER = 500
# See `version_of`.
Version = Mapping[str, str]
# Given a bucket, a prefix and where to go on: one page's files by name, and where to go on, "" at the end.
_Page = Callable[[str, str, str], tuple[Mapping[str, Version], str]]


def list_pictures(fs: AbstractFileSystem, root: str, image_root_uri: str, folder: str) -> dict[str, Version] | None:
    """List a folder of pictures; None, and a line in the log, if the store refuses that.

    Args:
        fs: The store.
        root: Path in it of the folder that record images are relative to.
        image_root_uri: URI of that folder, for messages.
        folder: Path below it, in normal form; "" for itself.

    Raises:
        StoreError: The store does not answer.
    """
    uri = posixpath.join(image_root_uri.rstrip("/"), folder)
    logger.info("listing %s", redacted(uri))
    try:
        return list_folder(fs, posixpath.join(root.rstrip("/"), folder), uri)
    except StageError as error:
        logger.warning("%s Its pictures are looked up one by one.", error)
        return None


def list_folder(fs: AbstractFileSystem, folder: str, uri: str) -> dict[str, Version]:
    """List a folder.

    GCS and S3 are asked page by page for what is wanted: fsspec keeps all that a store knows of an object, and starts
    from the beginning where one page of hundreds fails.

    Args:
        fs: The store.
        folder: Path of the folder in it.
        uri: For messages.

    Returns:
        What `version_of` says of the files directly in the folder, by name: of S3 and GCS size and etag, or generation
        and md5, as a look at each would say. Empty if there is no folder.

    Raises:
        StageError: The store refuses to list it.
        StoreError: The store does not answer.
    """
    try:
        ask = _pages_of(fs)
        if ask is None:
            entries = retried(uri, lambda: fs.ls(folder, detail=True))
            # Else it stays in memory.
            fs.invalidate_cache(folder)
            files = [entry for entry in entries if entry.get("type") != "directory"]
            return {_name(entry["name"]): version_of(entry) for entry in files}
        bucket, _, key = folder.strip("/").partition("/")
        return _all_pages(ask, bucket, f"{key}/" if key else "", uri)
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _all_pages(ask: _Page, bucket: str, prefix: str, uri: str) -> dict[str, Version]:
    files: dict[str, Version] = {}
    token = ""
    while True:
        page, token = retried(uri, partial(ask, bucket, prefix, token))
        files.update(page)
        if not token:
            return files


def _pages_of(fs: AbstractFileSystem) -> _Page | None:
    """What asks a store for one page; None for one that is asked through fsspec alone."""
    protocols = protocols_of(fs)

    def of_gcs(bucket: str, prefix: str, token: str) -> tuple[Mapping[str, Version], str]:
        fields = "items(name,size,generation,md5Hash),nextPageToken"
        wanted = {"prefix": prefix, "delimiter": "/", "maxResults": PAGE, "fields": fields}
        if token:
            wanted["pageToken"] = token
        page: Mapping[str, Any] = fs.call("GET", "b/{}/o", bucket, json_out=True, **wanted)
        return {_name(item["name"]): version_of(item) for item in page.get("items", ())}, page.get("nextPageToken", "")

    def of_s3(bucket: str, prefix: str, token: str) -> tuple[Mapping[str, Version], str]:
        more = {"ContinuationToken": token} if token else {}
        page: Mapping[str, Any] = fs.call_s3(
            "list_objects_v2", fs.req_kw, Bucket=bucket, Prefix=prefix, Delimiter="/", MaxKeys=PAGE, **more
        )
        files = {
            _name(item["Key"]): {"size": str(item["Size"]), "ETag": item["ETag"]} for item in page.get("Contents", ())
        }
        return files, page.get("NextContinuationToken", "")

    if "gs" in protocols:
        return of_gcs
    return of_s3 if "s3" in protocols else None


def _name(path: str) -> str:
    """The last part; "" for an object that stands for its folder."""
    return path.rpartition("/")[2]
