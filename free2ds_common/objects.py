"""Objects of S3 and GCS read whole by one request each; fsspec's files ask for the length first, then for the bytes."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem, sync

from free2ds_common.retry import ShortBodyError, http_status

# Given a path and a number of bytes: the first bytes of the object.
Read = Callable[[str, int], bytes]
_NO_SUCH_RANGE = 416


def object_reader(fs: AbstractFileSystem) -> Read | None:
    """What reads an object of this store by one request; None where that is not known.

    Errors are those of the store's library, ShortBodyError where fewer bytes came than the store has.
    """
    if not isinstance(fs, AsyncFileSystem):
        return None
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    ask = _ask_s3 if "s3" in protocols else _ask_gcs if "gs" in protocols else None
    return None if ask is None else partial(_read, partial(ask, fs))


def _read(ask: Callable[[str, str], tuple[Mapping[str, Any], bytes]], path: str, max_bytes: int) -> bytes:
    try:
        headers, data = ask(path, f"bytes=0-{max_bytes - 1}")
    except Exception as error:
        # An empty object has no first byte.
        if http_status(error) == _NO_SUCH_RANGE:
            return b""
        raise
    # Of GCS a compressed object is unpacked on the way, and its length is another.
    length = re.search(r"/(\d+)$", headers.get("Content-Range") or "")
    if length and len(data) < min(int(length[1]), max_bytes) and not headers.get("Content-Encoding"):
        raise ShortBodyError(f"only {len(data)} of {length[1]} bytes came")
    return data[:max_bytes]


def _ask_s3(fs: AsyncFileSystem, path: str, part: str) -> tuple[Mapping[str, Any], bytes]:
    bucket, key, version = fs.split_path(path)
    chosen = {"VersionId": version} if version else {}

    async def ask() -> tuple[Mapping[str, Any], bytes]:
        answer = await fs._call_s3("get_object", Bucket=bucket, Key=key, Range=part, **chosen)
        # Read to its end, or broken, a body gives its connection back.
        return answer, await answer["Body"].read()

    # One visit to the thread that asks, not two.
    answer, data = sync(fs.loop, ask)
    return {"Content-Range": answer.get("ContentRange")}, data


def _ask_gcs(fs: AsyncFileSystem, path: str, part: str) -> tuple[Mapping[str, Any], bytes]:
    found: tuple[Mapping[str, Any], bytes] = fs.call("GET", fs.url(path), headers={"Range": part})
    return found
