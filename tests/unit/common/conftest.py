"""Stores that answer by script, and no waiting for them."""

import time
import zlib
from functools import partial
from types import SimpleNamespace
from urllib.parse import quote

import fsspec
import pytest

from tests.support.buckets import BUCKET, GCS, S3, served_bucket
from tests.support.stores import Answer, served


@pytest.fixture(scope="session")
def server():
    with served() as store:
        yield store


@pytest.fixture
def store(server):
    server.answers.clear()
    server.asked.clear()
    return server


@pytest.fixture
def pauses(monkeypatch):
    """How long was waited between tries; nobody waits."""
    found = []
    clock = SimpleNamespace(sleep=found.append, monotonic=time.monotonic)
    monkeypatch.setattr("free2ds_common.retry.time", clock)
    return found


@pytest.fixture(scope="session")
def s3_server():
    with served_bucket(S3) as bucket:
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield bucket
        fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture(scope="session")
def gcs_server():
    with served_bucket(GCS) as bucket:
        yield bucket


@pytest.fixture
def s3(s3_server, monkeypatch):
    """A bucket of S3, whose libraries try once."""
    for name, value in (
        ("AWS_ENDPOINT_URL", s3_server.url),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_MAX_ATTEMPTS", "1"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    s3_server.forget()
    return s3_server


@pytest.fixture
def gcs(gcs_server, monkeypatch):
    """A bucket of GCS, whose library waits for nothing."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server.url)
    monkeypatch.setattr("gcsfs.retry.asyncio", SimpleNamespace(sleep=no_sleep))
    gcs_server.forget()
    return gcs_server


async def no_sleep(seconds):
    pass


@pytest.fixture(params=["plain path", "file", "memory", "http", "s3", "gs"])
def place(request, tmp_path):
    """A folder of every kind of location."""
    # No two tests have the same.
    name = tmp_path.name
    match request.param:
        case "plain path":
            return Place(str(tmp_path), partial(write, tmp_path))
        case "file":
            return Place(f"file://{tmp_path}", partial(write, tmp_path))
        case "memory":
            files = fsspec.filesystem("memory")
            return Place(f"memory://{name}", lambda below, content: files.pipe(f"/{name}/{below}", content))
        case "http":
            store = request.getfixturevalue("store")
            return Place(f"{store.url}/{name}", partial(publish, store, f"/{name}", {}))
    bucket = request.getfixturevalue({"s3": "s3", "gs": "gcs"}[request.param])
    return Place(f"{bucket.scheme}{BUCKET}/{name}", lambda below, content: bucket.put(f"{name}/{below}", content))


class Place:
    """A folder somewhere: its URI, and what stores a file in it."""

    def __init__(self, uri, put):
        self.uri, self.put = uri, put


def write(folder, below, content):
    path = folder / below
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def publish(store, root, pages, below, content):
    """Add a file, and links to it and its folders on the pages that list them."""
    path = f"{root}/{quote(below)}"
    store.script(path, Answer(body=content, etag=f'"{zlib.crc32(content)}"'))
    folder, *parts = root, *quote(below).split("/")
    for number, part in enumerate(parts, 1):
        link = part if number == len(parts) else f"{part}/"
        links = pages.setdefault(folder, [])
        if link not in links:
            links.append(link)
        # Servers send those who leave out the slash to the page with it.
        for page in (folder, folder.rstrip("/")):
            store.page(page, *links)
        folder = f"{folder.rstrip('/')}/{link}"
