"""Objects of S3 and GCS: small ones read by one request each, large ones copied in parts.

fsspec's files ask for the length first, then for the bytes. gcsfs copies a large file in parts too, but few at a time.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem, sync

from free2ds_common.retry import ShortBodyError, http_status

# Given a path and a number of bytes: the first bytes of the object.
Read = Callable[[str, int], bytes]
_NO_SUCH_RANGE = 416
_PART_BYTES = 32 << 20


def protocols_of(fs: AbstractFileSystem) -> set[str]:
    """What URIs of a file system begin with: "s3" and "s3a", "gs" and "gcs"."""
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)


def object_reader(fs: AbstractFileSystem) -> Read | None:
    """What reads an object of this store by one request; None where that is not known.

    Errors are those of the store's library, ShortBodyError where fewer bytes came than the store has.
    """
    if not isinstance(fs, AsyncFileSystem):
        return None
    protocols = protocols_of(fs)
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


def copy_in_parts(fs: AbstractFileSystem, path: str, place: Path, at_a_time: int) -> None:
    """Copy an object of GCS with google-cloud-storage's transfer manager, and hold it against the store's checksum.

    Args:
        fs: gcsfs, whose credentials are used.
        path: Of the object.
        place: The file to write.
        at_a_time: Parts on their way.
    """
    # Here, not at the top: images of stages that read no stores do not have them.
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.storage import Client, transfer_manager

    bucket, key, _ = fs.split_path(path)
    client = Client(project=fs.project or "-", credentials=fs.credentials.credentials or AnonymousCredentials())
    transfer_manager.download_chunks_concurrently(
        client.bucket(bucket).blob(key),
        str(place),
        chunk_size=_PART_BYTES,
        worker_type=transfer_manager.THREAD,
        max_workers=at_a_time,
    )
