"""A folder of every kind of location."""

import zlib
from functools import partial
from urllib.parse import quote

import fsspec
import pytest

from tests.support.buckets import BUCKET
from tests.support.stores import Answer


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
