"""Locations: paths below a root, atomic files, folders of models."""

import os
import posixpath
import stat
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from free2ds_common import storage
from free2ds_common.errors import StageError
from free2ds_common.storage import (
    OutsideRootError,
    atomic_writer,
    clean_path,
    filesystem,
    is_local,
    local_folder,
    require_folder,
)


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("a.jpg", "a.jpg"),
        ("coco/train2017/1.jpg", "coco/train2017/1.jpg"),
        ("./a//b/../c.jpg", "a/c.jpg"),
        ("..a/b..c.jpg", "..a/b..c.jpg"),
        ("a b/ü?#%20.jpg", "a b/ü?#%20.jpg"),
        ("ab::c.jpg", "ab::c.jpg"),
        ("folder/", "folder"),
    ],
)
def test_clean_path(path, normal):
    assert clean_path(path) == normal


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "a/..",
        "../a.jpg",
        "a/../../b.jpg",
        "/a.jpg",
        "//a.jpg",
        "a\\..\\b.jpg",
        "C:/a.jpg",
        "a\x00.jpg",
        "gs://bucket/a.jpg",
        "a/https://host/b.jpg",
    ],
)
def test_paths_that_leave_the_root(path):
    with pytest.raises(OutsideRootError):
        clean_path(path)


def test_filesystem():
    assert filesystem("memory://a/b")[1] == "/a/b"
    assert is_local("/tmp")
    assert is_local("relative/folder")
    assert is_local("file:///tmp")
    assert not is_local("memory://a")
    with pytest.raises(StageError, match=r"nosuch://x: cannot be opened .* Wanted a path or a URI such as gs://"):
        filesystem("nosuch://x")


def test_require_folder(tmp_path):
    require_folder("image_root_uri", str(tmp_path))
    require_folder("image_root_uri", "memory://not/there")
    with pytest.raises(StageError, match=r"^image_root_uri: is empty"):
        require_folder("image_root_uri", "")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "none"):
        with pytest.raises(StageError, match=f"^image_root_uri: {path} is not a folder"):
            require_folder("image_root_uri", str(path))


def test_atomic_writer_publishes_at_the_end(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with atomic_writer(path, "w") as handle:
        handle.write("ü")
        assert not path.exists()
    assert path.read_bytes() == "ü".encode()
    with atomic_writer(path) as handle:
        handle.write(b"second")
        assert path.read_bytes() == "ü".encode()
    assert path.read_bytes() == b"second"
    assert [found.name for found in path.parent.iterdir()] == ["file.txt"]


def test_atomic_writer_leaves_nothing_behind_after_an_error(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def break_off():
        with atomic_writer(path) as handle:
            handle.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_atomic_writer_obeys_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_writer(tmp_path / "file") as handle:
            handle.write(b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_local_folder_is_itself(tmp_path):
    assert local_folder(str(tmp_path), "/not/used") == str(tmp_path)
    assert local_folder(f"file://{tmp_path}", "/not/used") == str(tmp_path)
    with pytest.raises(StageError, match="none: no folder there"):
        local_folder(str(tmp_path / "none"), "/not/used")


def test_local_folder_downloads_once(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe("/storage/model/config.json", b"{}")
    memory.pipe("/storage/model/weights/one.bin", b"1")
    folder = Path(local_folder("memory://storage/model", str(tmp_path / "cache")))
    assert (folder / "config.json").read_bytes() == b"{}"
    assert (folder / "weights" / "one.bin").read_bytes() == b"1"
    memory.pipe("/storage/model/config.json", b"changed")
    assert local_folder("memory://storage/model", str(tmp_path / "cache")) == str(folder)
    assert (folder / "config.json").read_bytes() == b"{}"
    assert [found.name for found in (tmp_path / "cache").iterdir()] == [folder.name]


class Listing(fsspec.AbstractFileSystem):
    """A store that lists what a test gives and has the bytes "x" for everything."""

    protocol = "listing"
    names = ()

    def find(self, path, **options):
        return [f"{path}/{name}" for name in self.names]

    def get_file(self, remote, local, **options):
        Path(local).write_bytes(b"x")


@pytest.fixture
def listing(monkeypatch):
    """Registers a store with the given names."""
    fsspec.register_implementation("listing", Listing, clobber=True)
    return lambda *names: monkeypatch.setattr(Listing, "names", names)


@pytest.mark.parametrize("name", ["../x", "weights/../../x", "../../x", "weights/../../../x"])
def test_a_store_that_lists_a_name_above_the_folder_writes_nothing_outside(tmp_path, listing, name):
    listing("config.json", name)
    with pytest.raises(OutsideRootError):
        local_folder("listing://model", str(tmp_path / "a" / "b" / "cache"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_failed_download_leaves_nothing(tmp_path, listing, monkeypatch):
    def break_off(self, remote, local, **options):
        raise ZeroDivisionError

    listing("config.json")
    monkeypatch.setattr(Listing, "get_file", break_off)
    with pytest.raises(ZeroDivisionError):
        local_folder("listing://model", str(tmp_path / "cache"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_folders_that_a_store_lists_as_empty_objects_are_no_files(tmp_path, listing):
    listing("", "config.json", "weights/", "weights/one.bin")
    folder = Path(local_folder("listing://model", str(tmp_path / "cache")))
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert found == ["config.json", "weights/one.bin"]


@given(st.text(alphabet=st.sampled_from("ab./\\:\0~ ü"), max_size=12) | st.text(max_size=12))
@settings(max_examples=200, deadline=None, database=None)
def test_a_clean_path_lies_below_its_root(path):
    try:
        clean = clean_path(path)
    except OutsideRootError:
        return
    below = posixpath.normpath(posixpath.join("/root", clean))
    assert below == f"/root/{clean}"
    assert clean_path(clean) == clean
    assert ".." not in clean.split("/")
    assert "\0" not in clean


@pytest.mark.parametrize("uri", ["memory://storage/nothing", "memory://storage/one-file"])
def test_local_folder_without_files(tmp_path, uri):
    fsspec.filesystem("memory").pipe("/storage/one-file", b"")
    with pytest.raises(StageError, match=f"{uri}: no folder with files there"):
        local_folder(uri, str(tmp_path / "cache"))


def test_two_tasks_that_download_the_same_model(tmp_path, monkeypatch):
    fsspec.filesystem("memory").pipe("/storage/race/config.json", b"mine")
    target = tmp_path / fsspec.utils.tokenize("memory://storage/race")
    replace = os.replace

    def other_was_faster(source, destination):
        target.mkdir()
        (target / "config.json").write_bytes(b"the other's")
        replace(source, destination)

    monkeypatch.setattr(storage.os, "replace", other_was_faster)
    assert local_folder("memory://storage/race", str(tmp_path)) == str(target)
    assert (target / "config.json").read_bytes() == b"the other's"
    assert [found.name for found in tmp_path.iterdir()] == [target.name]
