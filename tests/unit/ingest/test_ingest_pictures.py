"""Pictures of a store are looked up, many at a time, and never read."""

import threading
from types import SimpleNamespace

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from components.ingest import pictures
from components.ingest.pictures import Pictures
from free2ds_common import listing
from free2ds_common.listing import list_folder

ROOT = "memory://ingest-pictures"


class Watched(MemoryFileSystem):
    """Notes what is asked, and may refuse to list."""

    protocol = "memory"
    cachable = False
    may_list = True

    def __init__(self):
        super().__init__()
        self.looked_up, self.listed = [], []

    def info(self, path, **options):
        self.looked_up.append(path.removeprefix("/ingest-pictures/"))
        return super().info(path, **options)

    def ls(self, path, detail=True, **options):
        self.listed.append(path.removeprefix("/ingest-pictures"))
        if not self.may_list:
            raise PermissionError("no listing")
        return super().ls(path, detail, **options)

    def open(self, path, *arguments, **options):
        raise AssertionError(f"{path} was read")


@pytest.fixture
def store(monkeypatch):
    memory = fsspec.filesystem("memory")
    for number in range(8):
        memory.pipe(f"/ingest-pictures/a/{number}.png", b"not decoded")
    memory.pipe("/ingest-pictures/b/0.png", b"not decoded")
    memory.pipe("/ingest-pictures/a/empty.png", b"")
    memory.pipe("/ingest-pictures/a/large.png", b"x" * 20)
    monkeypatch.setattr(pictures, "MAX_BYTES", 19)
    monkeypatch.setattr(pictures, "LIST_AFTER", 2)
    watched = Watched()
    for module in (pictures, "free2ds_common.pictures"):
        place = module if isinstance(module, str) else module.__name__
        monkeypatch.setattr(f"{place}.filesystem", lambda uri: (watched, "/ingest-pictures"))
    yield watched
    memory.rm("/ingest-pictures", recursive=True)


def reasons(names, at_a_time=1):
    """Why each picture cannot be used, or None; looked at some at a time."""
    found = {}
    with Pictures(ROOT) as checks:
        for start in range(0, len(names), at_a_time):
            some = names[start : start + at_a_time]
            for name in some:
                checks.look_at(name)
            for name in some:
                problem = checks.problem(name)
                found[name] = problem and (problem.reason, problem.detail)
        assert checks.checked == "found"
    return found


BAD = ["a/empty.png", "a/large.png", "a/none.png"]
NAMES = [*BAD, *(f"a/{number}.png" for number in range(8)), *BAD, "b/0.png", "a"]
PROBLEMS = {name: None for name in NAMES} | {
    "a/empty.png": ("image_unreadable", f"{ROOT}/a/empty.png is empty"),
    "a/large.png": ("image_too_large", f"{ROOT}/a/large.png has more than 19 bytes"),
    "a/none.png": ("image_missing", f"no file at {ROOT}/a/none.png"),
    "a": ("image_missing", f"no file at {ROOT}/a"),
}


@pytest.mark.parametrize("may_list", [True, False])
@pytest.mark.parametrize("list_after", [0, 1, 2, 3, 100])
@pytest.mark.parametrize("at_a_time", [1, 3, 100])
def test_one_by_one_or_by_listing_the_verdict_is_the_same(store, monkeypatch, may_list, list_after, at_a_time):
    monkeypatch.setattr(pictures, "LIST_AFTER", list_after)
    store.may_list = may_list
    assert reasons(NAMES, at_a_time) == PROBLEMS


def test_a_folder_with_many_is_listed_once_and_few_are_looked_up(store):
    reasons(NAMES)
    # The third of a folder starts its listing.
    assert store.listed == ["/a"]
    assert sorted(store.looked_up) == ["a", "a/empty.png", "a/large.png", "b/0.png"]


def test_what_may_not_be_listed_is_looked_up_once_each(store, caplog):
    store.may_list = False
    reasons(NAMES, 100)
    assert store.listed == ["/a"]
    assert sorted(store.looked_up) == sorted(set(NAMES))
    assert [line.message for line in caplog.records if "one by one" in line.message] == [
        f"{ROOT}/a: may not be read (PermissionError: no listing). Give credentials that may read it; without the "
        "right to list, some stores say the same of what is not there. Its pictures are looked up one by one."
    ]


def test_pictures_are_looked_up_at_the_same_time(store, monkeypatch):
    monkeypatch.setattr(pictures, "LIST_AFTER", 100)
    together = threading.Barrier(8)

    def info(path, **_):
        together.wait(10)
        return {"type": "file", "size": 1}

    monkeypatch.setattr(store, "info", info)
    assert reasons([f"a/{number}.png" for number in range(8)], 8) == {f"a/{number}.png": None for number in range(8)}


def test_a_web_server_is_asked_one_by_one(store, monkeypatch):
    monkeypatch.setattr(Watched, "protocol", "https")
    reasons(NAMES)
    assert store.listed == []


def test_pages_of_gcs(monkeypatch):
    """The emulator of GCS has no pages."""
    monkeypatch.setattr(listing, "PAGE", 2)
    pages = {
        None: {
            "items": [{"name": "in/a.png", "size": "3", "generation": "7"}, {"name": "in/", "size": "0"}],
            "nextPageToken": "t",
        },
        "t": {
            "items": [{"name": "in/b.png", "size": "0", "generation": "9"}],
            "prefixes": ["in/below/"],
            "nextPageToken": "u",
        },
        "u": {},
    }
    asked = []

    def call(method, path, bucket, *, json_out, **wanted):
        asked.append((method, path, bucket, wanted["prefix"], wanted["delimiter"], wanted["maxResults"]))
        return pages.pop(wanted.get("pageToken"))

    store = SimpleNamespace(protocol=("gs", "gcs"), call=call)
    assert list_folder(store, "data/in/", "the folder") == {
        "a.png": {"size": "3", "generation": "7"},
        "": {"size": "0"},
        "b.png": {"size": "0", "generation": "9"},
    }
    assert asked == [("GET", "b/{}/o", "data", "in/", "/", 2)] * 3


def test_the_bucket_itself_is_a_folder():
    asked = []
    store = SimpleNamespace(
        protocol="s3", req_kw={}, call_s3=lambda method, known, **wanted: asked.append(wanted) or {"Contents": []}
    )
    assert list_folder(store, "data", "the folder") == {}
    assert asked == [{"Bucket": "data", "Prefix": "", "Delimiter": "/", "MaxKeys": 1000}]
