"""Folders of stores become folders of this machine, once per version."""

import errno
import os
import threading
import time
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest

from free2ds_common.downloads import local_folder
from free2ds_common.errors import StageError
from free2ds_common.retry import StoreError
from tests.support.stores import Answer


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def download(uri, cache):
    return Path(local_folder(uri, str(cache)))


@pytest.fixture
def memory():
    """A store that knows when a file was written."""
    store = fsspec.filesystem("memory")
    store.rm("/models", recursive=True) if store.exists("/models") else None
    return lambda path, content: store.pipe(f"/models/{path}", content)


def test_a_local_folder_is_itself(tmp_path):
    assert local_folder(str(tmp_path), "/not/used") == str(tmp_path)
    assert local_folder(f"file://{tmp_path}", "/not/used") == str(tmp_path)
    with pytest.raises(StageError, match="none: no folder there"):
        local_folder(str(tmp_path / "none"), "/not/used")


def test_a_folder_is_downloaded_once(memory, cache, monkeypatch):
    memory("bert/config.json", b"{}")
    memory("bert/weights/one.bin", b"1")
    folder = download("memory://models/bert", cache)
    assert (folder / "config.json").read_bytes() == b"{}"
    assert (folder / "weights" / "one.bin").read_bytes() == b"1"
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "get_file", None)
    assert download("memory://models/bert", cache) == folder
    assert list(cache.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("path", "content"),
    [("weights/one.bin", b"2"), ("weights/one.bin", b"longer"), ("weights/two.bin", b"")],
    ids=["replaced, same size", "replaced", "added"],
)
def test_replaced_files_are_seen(memory, cache, path, content):
    memory("bert/config.json", b"{}")
    memory("bert/weights/one.bin", b"1")
    before = download("memory://models/bert", cache)
    memory(f"bert/{path}", content)
    after = download("memory://models/bert", cache)
    assert after != before
    assert (after / path).read_bytes() == content
    assert (before / "weights" / "one.bin").read_bytes() == b"1"


def test_a_removed_file_is_seen(memory, cache):
    memory("bert/config.json", b"{}")
    memory("bert/adapter.json", b"{}")
    download("memory://models/bert", cache)
    fsspec.filesystem("memory").rm("/models/bert/adapter.json")
    assert names(download("memory://models/bert", cache)) == ["config.json"]


@pytest.mark.parametrize("uri", ["memory://models/nothing", "memory://models/one-file"])
def test_a_folder_without_files(memory, cache, uri):
    memory("one-file", b"")
    with pytest.raises(StageError, match=f"{uri}: no folder with files there"):
        local_folder(uri, str(cache))


class Listing(fsspec.AbstractFileSystem):
    """A store that lists what a test gives, each with its info, and has the bytes "x" for everything."""

    protocol = "listing"
    files: ClassVar = {}

    def find(self, path, **options):
        return {f"{path}/{name}": info for name, info in self.files.items()}

    def get_file(self, remote, local, **options):
        Path(local).write_bytes(b"x")


@pytest.fixture
def listing(monkeypatch):
    """Registers a store with the given names."""
    fsspec.register_implementation("listing", Listing, clobber=True)

    def lists(*names, **info):
        monkeypatch.setattr(Listing, "files", {name: {"size": 1, "etag": "1", **info} for name in names})

    return lists


@pytest.mark.parametrize(
    "entry", ["etag", "ETag", "generation", "md5Hash", "LastModified", "updated", "mtime", "blob_id", "Last-Modified"]
)
def test_every_store_s_version_decides(listing, cache, entry):
    listing("config.json", **{"etag": None, entry: "1"})
    before = download("listing://model", cache)
    assert download("listing://model", cache) == before
    listing("config.json", **{"etag": None, entry: "2"})
    assert download("listing://model", cache) != before


def test_a_store_without_versions_is_asked_each_time(listing, cache, monkeypatch):
    listing("config.json", etag=None)
    before = download("listing://model", cache)
    assert download("listing://model", cache) == before
    assert list(cache.iterdir()) == [before]
    monkeypatch.setattr(Listing, "get_file", lambda self, remote, local: Path(local).write_bytes(b"y"))
    after = download("listing://model", cache)
    assert (after / "config.json").read_bytes() == b"y"


def test_a_signature_that_changes_is_no_other_model(listing, cache):
    listing("config.json")
    before = download("listing://model?X-Goog-Signature=1", cache)
    assert download("listing://model?X-Goog-Signature=2", cache) == before


def test_a_folder_that_changes_meanwhile(listing, cache, monkeypatch):
    listing("config.json")

    def replaced(self, remote, local):
        Path(local).write_bytes(b"x")
        listing("config.json", etag="2")

    monkeypatch.setattr(Listing, "get_file", replaced)
    with pytest.raises(StageError, match=r"^listing://model: its files changed while they were copied\. Run again"):
        download("listing://model", cache)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "weights/../../x", "../../x", "weights/../../../x", "a\\x", "C:/x"])
def test_a_store_that_lists_a_name_outside_the_folder(tmp_path, listing, name):
    listing("config.json", name)
    with pytest.raises(StageError, match=r"^listing://model: the store lists .*, which is no name of a file in it\.$"):
        local_folder("listing://model", str(tmp_path / "a" / "b" / "cache"))
    assert names(tmp_path) == []


def test_a_store_that_lists_a_file_as_a_folder(listing, cache):
    listing("weights", "weights/one.bin")
    with pytest.raises(StageError, match=r"lists 'weights' and 'weights/one\.bin', which cannot both be files here"):
        download("listing://model", cache)


def test_a_store_that_lists_two_names_of_one_file(listing, cache):
    listing("config.json", "weights//one.bin", "weights/one.bin")
    with pytest.raises(StageError, match=r"lists 'weights/one.bin' twice"):
        download("listing://model", cache)


def test_folders_that_a_store_lists_as_empty_objects_are_no_files(listing, cache):
    listing("", "config.json", "weights/", "weights/one.bin")
    assert names(download("listing://model", cache)) == ["config.json", "weights/one.bin"]


def test_a_short_file_is_fetched_again(listing, cache, pauses, monkeypatch):
    listing("config.json", size=2)
    bodies = [b"", b"x", b"xx"]
    monkeypatch.setattr(Listing, "get_file", lambda self, remote, local: Path(local).write_bytes(bodies.pop(0)))
    assert (download("listing://model", cache) / "config.json").read_bytes() == b"xx"
    assert len(pauses) == 2


def test_a_file_whose_bytes_are_not_the_store_s_is_fetched_again(listing, cache, pauses, monkeypatch):
    # CRC-32C's check value is that of these nine digits: e3069283.
    listing("config.json", size=9, crc32c="4waSgw==")
    bodies = [b"123456780", b"123456789"]
    monkeypatch.setattr(Listing, "get_file", lambda self, remote, local: Path(local).write_bytes(bodies.pop(0)))
    assert (download("listing://model", cache) / "config.json").read_bytes() == b"123456789"
    assert len(pauses) == 1


def test_files_come_side_by_side(listing, cache, monkeypatch):
    meeting = threading.Barrier(4, timeout=10)

    def meet(self, remote, local):
        meeting.wait()
        Path(local).write_bytes(b"x")

    listing("1.bin", "2.bin", "3.bin", "tower/4.bin")
    monkeypatch.setattr(Listing, "get_file", meet)
    assert names(download("listing://model", cache)) == ["1.bin", "2.bin", "3.bin", "tower/4.bin"]


def test_a_file_that_fails_ends_the_download(listing, cache, monkeypatch):
    """Of a hundred files those that have not begun are not fetched."""
    fetched = []

    def fail(self, remote, local):
        fetched.append(remote)
        # The thread that waits for the first is told before the next are through.
        time.sleep(0.05 * (len(fetched) > 1))
        raise KeyError("no such part")

    listing(*[f"{number}.bin" for number in range(100)])
    monkeypatch.setattr(Listing, "get_file", fail)
    monkeypatch.setattr("free2ds_common.downloads._AT_A_TIME", 1)
    with pytest.raises(StoreError, match=r"listing://model/0\.bin: could not be read \(KeyError"):
        download("listing://model", cache)
    assert len(fetched) < 50


def test_a_failed_download_leaves_nothing(listing, cache, monkeypatch):
    def break_off(self, remote, local):
        Path(local).write_bytes(b"half")
        raise KeyboardInterrupt

    listing("config.json")
    monkeypatch.setattr(Listing, "get_file", break_off)
    with pytest.raises(KeyboardInterrupt):
        download("listing://model", cache)
    assert list(cache.iterdir()) == []


def test_a_full_disk(listing, cache, monkeypatch, pauses):
    def full(self, remote, local):
        Path(local).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    listing("config.json")
    monkeypatch.setattr(Listing, "get_file", full)
    with pytest.raises(StageError, match=f"^{cache}: has no room left on its disk"):
        download("listing://model", cache)
    assert list(cache.iterdir()) == []
    assert pauses == []


def left_behind(cache, name, age_s):
    (cache / name / "tower").mkdir(parents=True)
    for path in (cache / name / "tower" / "weights.bin", cache / name / "tower", cache / name):
        if path.suffix:
            path.write_bytes(b"half")
        os.utime(path, (time.time() - age_s,) * 2)


def test_what_a_killed_run_left_is_removed_after_a_day(memory, cache):
    left_behind(cache, ".download-old", 25 * 3600)
    left_behind(cache, ".download-new", 23 * 3600)
    left_behind(cache, "another-model", 25 * 3600)
    memory("bert/config.json", b"{}")
    folder = download("memory://models/bert", cache)
    assert sorted(path.name for path in cache.iterdir()) == sorted([".download-new", "another-model", folder.name])


def test_an_old_download_that_still_grows_stays(memory, cache):
    left_behind(cache, ".download-old", 25 * 3600)
    os.utime(cache / ".download-old" / "tower" / "weights.bin")
    memory("bert/config.json", b"{}")
    download("memory://models/bert", cache)
    assert (cache / ".download-old" / "tower" / "weights.bin").exists()


def test_two_tasks_that_download_the_same_model(memory, cache, monkeypatch):
    memory("race/config.json", b"mine")
    rename = Path.rename

    def other_was_faster(folder, target):
        target.mkdir()
        (target / "config.json").write_bytes(b"the other's")
        return rename(folder, target)

    monkeypatch.setattr(Path, "rename", other_was_faster)
    folder = download("memory://models/race", cache)
    assert (folder / "config.json").read_bytes() == b"the other's"
    assert list(cache.iterdir()) == [folder]


# Of a web server

FILE = Answer(body=b"x", etag="1")


@pytest.fixture
def model(store):
    store.page("/model", "config.json", "tower/", "?C=N;O=D", "../", "/elsewhere")
    store.page("/model/tower/", "with%20blank.bin")
    store.script("/model/config.json", FILE)
    store.script("/model/tower/with%20blank.bin", FILE)
    return f"{store.url}/model"


def test_the_pages_of_a_web_server(model, cache, store):
    folder = download(model, cache)
    assert names(folder) == ["config.json", "tower/with blank.bin"]
    store.asked.clear()
    assert download(model, cache) == folder
    assert ("GET", "/model/config.json") not in store.asked


def test_replaced_weights_of_a_web_server_are_seen(model, cache, store):
    before = download(model, cache)
    store.script("/model/config.json", Answer(body=b"y", etag="2"))
    after = download(model, cache)
    assert (before / "config.json").read_bytes() == b"x"
    assert (after / "config.json").read_bytes() == b"y"


@pytest.mark.parametrize("path", ["/model", "/model/tower/", "/model/config.json"])
def test_a_busy_web_server_is_asked_again(model, cache, store, pauses, path):
    good = store.answers[path][-1]
    store.script(path, Answer(503), Answer(503), good)
    assert names(download(model, cache)) == ["config.json", "tower/with blank.bin"]


@pytest.mark.parametrize("path", ["/model", "/model/tower/", "/model/config.json"])
def test_a_web_server_that_stays_busy_leaves_out_nothing(model, cache, store, pauses, path):
    store.script(path, Answer(503))
    with pytest.raises(StoreError, match="could not be read in 8 tries"):
        download(model, cache)
    assert not cache.exists()


def test_a_web_server_that_refuses_a_file(model, cache, store, pauses):
    store.script("/model/config.json", Answer(403))
    with pytest.raises(StageError, match=r"/model/config\.json: may not be read"):
        download(model, cache)


@pytest.mark.parametrize(
    ("path", "named"), [("/model/config.json", "config.json"), ("/model/tower/", "tower/")], ids=["file", "folder"]
)
def test_a_dead_link(model, cache, store, path, named):
    del store.answers[path]
    with pytest.raises(StageError, match=f"/model/{named}: is listed but not there"):
        download(model, cache)


@pytest.mark.parametrize("link", ["%2e%2e/x", "tower/../../x"])
def test_a_link_that_leaves_the_folder(model, cache, store, link):
    store.page("/model", "config.json", link)
    store.script("/x", FILE)
    with pytest.raises(StageError, match=r"lists .*x', which is no name of a file in it"):
        download(model, cache)
    assert not cache.exists()


def test_no_web_folder(store, cache):
    with pytest.raises(StageError, match="no folder with files there"):
        download(f"{store.url}/nothing", cache)
