"""Names and sizes of the files in a folder of a store."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fsspec import AbstractFileSystem

from free2ds_common.retry import retried

# Names a page, the most that S3 and GCS give.
PAGE = 1000
# Given a bucket, a prefix and where to go on: names and sizes of one page, and where to go on, "" at the end.
_Page = Callable[[str, str, str], tuple[Mapping[str, int], str]]


def file_sizes(fs: AbstractFileSystem, folder: str, uri: str) -> dict[str, int]:
    """List a folder.

    GCS and S3 are asked page by page for what is wanted: fsspec keeps all that a store knows of an object, and starts
    from the beginning where one page of hundreds fails.

    Args:
        fs: The store.
        folder: Path of the folder in it.
        uri: For messages.

    Returns:
        Sizes in bytes of the files directly in the folder, by name; empty if there is no folder. A file whose size the
        store does not say has 1.

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
            return {_name(entry["name"]): 1 if entry.get("size") is None else int(entry["size"]) for entry in files}
        bucket, _, key = folder.strip("/").partition("/")
        return _all_pages(ask, bucket, f"{key}/" if key else "", uri)
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _all_pages(ask: _Page, bucket: str, prefix: str, uri: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    token = ""
    while True:
        page, token = retried(uri, partial(ask, bucket, prefix, token))
        sizes.update(page)
        if not token:
            return sizes


def _pages_of(fs: AbstractFileSystem) -> _Page | None:
    """What asks a store for one page; None for one that is asked through fsspec alone."""
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)

    def of_gcs(bucket: str, prefix: str, token: str) -> tuple[Mapping[str, int], str]:
        wanted = {"prefix": prefix, "delimiter": "/", "maxResults": PAGE, "fields": "items(name,size),nextPageToken"}
        if token:
            wanted["pageToken"] = token
        page: Mapping[str, Any] = fs.call("GET", "b/{}/o", bucket, json_out=True, **wanted)
        sizes = {_name(item["name"]): int(item["size"]) for item in page.get("items", ())}
        return sizes, page.get("nextPageToken", "")

    def of_s3(bucket: str, prefix: str, token: str) -> tuple[Mapping[str, int], str]:
        more = {"ContinuationToken": token} if token else {}
        page: Mapping[str, Any] = fs.call_s3(
            "list_objects_v2", fs.req_kw, Bucket=bucket, Prefix=prefix, Delimiter="/", MaxKeys=PAGE, **more
        )
        return {_name(item["Key"]): item["Size"] for item in page.get("Contents", ())}, page.get(
            "NextContinuationToken", ""
        )

    if "gs" in protocols:
        return of_gcs
    return of_s3 if "s3" in protocols else None


def _name(path: str) -> str:
    """The last part; "" for an object that stands for its folder."""
    return path.rpartition("/")[2]
