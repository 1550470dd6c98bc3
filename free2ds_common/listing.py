"""The files in a folder of a store: names, sizes, and what tells one version of a file from another."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from fsspec import AbstractFileSystem

from free2ds_common.retry import retried
from free2ds_common.storage import identity_of

# Names a page, the most that S3 and GCS give.
PAGE = 1000


class Listed(NamedTuple):
    """What a store's listing says of a file.

    Attributes:
        size: In bytes; 1 where the store does not say.
        identity: See `identity_of`.
    """

    size: int
    identity: str


# Given a bucket, a prefix and where to go on: one page's files by name, and where to go on, "" at the end.
_Page = Callable[[str, str, str], tuple[Mapping[str, Listed], str]]


def list_folder(fs: AbstractFileSystem, folder: str, uri: str) -> dict[str, Listed]:
    """List a folder.

    GCS and S3 are asked page by page for what is wanted: fsspec keeps all that a store knows of an object, and starts
    from the beginning where one page of hundreds fails.

    Args:
        fs: The store.
        folder: Path of the folder in it.
        uri: For messages.

    Returns:
        The files directly in the folder, by name; empty if there is no folder.

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
            return {_name(entry["name"]): _stored(entry) for entry in files}
        bucket, _, key = folder.strip("/").partition("/")
        return _all_pages(ask, bucket, f"{key}/" if key else "", uri)
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _all_pages(ask: _Page, bucket: str, prefix: str, uri: str) -> dict[str, Listed]:
    files: dict[str, Listed] = {}
    token = ""
    while True:
        page, token = retried(uri, partial(ask, bucket, prefix, token))
        files.update(page)
        if not token:
            return files


def _pages_of(fs: AbstractFileSystem) -> _Page | None:
    """What asks a store for one page; None for one that is asked through fsspec alone."""
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)

    def of_gcs(bucket: str, prefix: str, token: str) -> tuple[Mapping[str, Listed], str]:
        fields = "items(name,size,generation),nextPageToken"
        wanted = {"prefix": prefix, "delimiter": "/", "maxResults": PAGE, "fields": fields}
        if token:
            wanted["pageToken"] = token
        page: Mapping[str, Any] = fs.call("GET", "b/{}/o", bucket, json_out=True, **wanted)
        return {_name(item["name"]): _stored(item) for item in page.get("items", ())}, page.get("nextPageToken", "")

    def of_s3(bucket: str, prefix: str, token: str) -> tuple[Mapping[str, Listed], str]:
        more = {"ContinuationToken": token} if token else {}
        page: Mapping[str, Any] = fs.call_s3(
            "list_objects_v2", fs.req_kw, Bucket=bucket, Prefix=prefix, Delimiter="/", MaxKeys=PAGE, **more
        )
        files = {_name(item["Key"]): _stored({**item, "size": item["Size"]}) for item in page.get("Contents", ())}
        return files, page.get("NextContinuationToken", "")

    if "gs" in protocols:
        return of_gcs
    return of_s3 if "s3" in protocols else None


def _stored(info: Mapping[str, Any]) -> Listed:
    return Listed(1 if info.get("size") is None else int(info["size"]), identity_of(info))


def _name(path: str) -> str:
    """The last part; "" for an object that stands for its folder."""
    return path.rpartition("/")[2]
