"""Locations: paths below a root, what a URI means, atomic files, files of stores."""

import errno
import io
import os
import posixpath
import stat
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from free2ds_common.errors import StageError
from free2ds_common.retry import StoreError
from free2ds_common.storage import (
    OutsideRootError,
    atomic_writer,
    clean_path,
    filesystem,
    is_local,
    open_binary,
    read_bytes,
    require_folder,
    require_regular_file,
    room_on_disk,
)
from tests.support.stores import Answer


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


@pytest.mark.parametrize("name", ["a::b.json", "memory::b.json", "a b.json", "a%20b.json", "a://b.json", "gs:x.json"])
def test_a_path_of_this_machine_is_read_as_it_is(tmp_path, name):
    """fsspec takes "::" for a chain of file systems: /data/a::b was read from /data/a."""
    (tmp_path / "a").write_bytes(b"another file")
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"this file")
    for uri in (f"{tmp_path}/{name}", f"file://{tmp_path}/{name}"):
        with open_binary(uri) as handle:
            assert handle.read(100) == b"this file"


def test_a_relative_path_with_two_colons_is_read_if_it_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a::b").write_bytes(b"x")
    assert filesystem("a::b")[1] == str(tmp_path / "a::b")
    with pytest.raises(StageError, match=r"^rel::none: cannot be opened \(Protocol not known: "):
        filesystem("rel::none")


@pytest.mark.parametrize(
    ("there", "found"),
    [
        (["a b.json"], "a b.json"),
        (["a%20b.json"], "a%20b.json"),
        (["a b.json", "a%20b.json"], "a%20b.json"),
        ([], "a%20b.json"),
    ],
)
def test_a_file_uri_is_decoded_where_only_the_decoded_path_is_there(tmp_path, there, found):
    for name in there:
        (tmp_path / name).touch()
    assert filesystem(f"file://{tmp_path}/a%20b.json")[1] == str(tmp_path / found)


def test_a_folder_s_file_uri_is_decoded_too(tmp_path):
    (tmp_path / "bücher").mkdir()
    require_folder("image_root_uri", f"file://{tmp_path}/b%C3%BCcher")


def test_a_wrong_uri_is_told_without_its_password():
    with pytest.raises(StageError) as caught:
        filesystem("nosuch://user:hunter2@host/x")
    assert "hunter2" not in str(caught.value)


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StageError, match=r"pipe: is a pipe, a socket or a device, wanted a regular file\.$"):
        require_regular_file(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    with pytest.raises(StageError, match="link: is a pipe"), open_binary(str(tmp_path / "link")):
        pass


def test_a_device_is_refused():
    with pytest.raises(StageError, match=r"^/dev/zero: is a pipe, a socket or a device"), open_binary("/dev/zero"):
        pass


def test_files_folders_and_what_is_not_there_are_no_pipes(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path, tmp_path / "none", "a\0b"):
        require_regular_file(path)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "has no room left on its disk"),
        (errno.EDQUOT, "has no room left on its disk"),
        (errno.EROFS, "is on a read-only disk"),
    ],
)
def test_a_disk_that_takes_nothing(tmp_path, number, words):
    with pytest.raises(StageError, match=f"^{tmp_path}: {words}"), room_on_disk(tmp_path):
        raise OSError(number, os.strerror(number))


def test_other_errors_of_the_disk_stay(tmp_path):
    with pytest.raises(IsADirectoryError), room_on_disk(tmp_path):
        tmp_path.write_text("")


def test_atomic_writer_on_a_full_disk(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("free2ds_common.storage.os.fsync", full)

    def write():
        with atomic_writer(tmp_path / "file") as handle:
            handle.write(b"new")

    with pytest.raises(StageError, match=f"^{tmp_path}: has no room left on its disk .*No space left on device"):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


# Files of stores

BODY = bytes(range(256)) * 40
PARTS_OF_ALL = Answer(body=BODY)


def fetched(uri, max_bytes=1 << 20):
    fs, path = filesystem(uri)
    return read_bytes(fs, path, max_bytes, uri)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_store_is_asked_again(store, pauses, status):
    assert fetched(store.script("/x.jpg", Answer(status), Answer(status), Answer(status), PARTS_OF_ALL)) == BODY
    assert len(pauses) == 1  # a try asks twice, by HEAD and by GET
    assert 0.25 <= pauses[0] <= 0.5


@pytest.mark.parametrize(
    "broken", [Answer(reset=True), Answer(body=BODY, sent=100), Answer(body=BODY, sent=0)], ids=["reset", "cut", "none"]
)
def test_a_lost_connection_is_tried_again(store, pauses, broken):
    """HEAD is answered, then comes the broken answer, then both again."""
    url = store.script("/x.jpg", PARTS_OF_ALL, broken, PARTS_OF_ALL)
    assert fetched(url) == BODY


def test_a_body_shorter_than_the_store_said_is_tried_again(store, pauses):
    url = store.script("/x.jpg", PARTS_OF_ALL, Answer(body=BODY[:50]), PARTS_OF_ALL)
    assert fetched(url) == BODY


class Sized(io.BytesIO):
    """A file that says its length and hands over 1000 bytes at a time."""

    size = len(BODY)

    def read(self, size=-1, /):
        return super().read(min(size, 1000))


class Short(fsspec.AbstractFileSystem):
    """A store whose files end before their length: whole/x never, once/x the first time, always/x always."""

    protocol = "short"

    def __init__(self):
        super().__init__()
        self.opened = 0

    def info(self, path):
        return {"name": path, "size": len(BODY), "type": "file"}

    def open(self, path, mode):
        self.opened += 1
        short = path.startswith("always") or (path.startswith("once") and self.opened == 1)
        return Sized(BODY[:-1] if short else BODY)


@pytest.fixture
def short():
    fsspec.register_implementation("short", Short, clobber=True)
    Short.clear_instance_cache()


def test_a_store_that_hands_over_a_little_at_a_time(short, pauses):
    assert fetched("short://whole/x") == BODY
    assert pauses == []


@pytest.mark.parametrize("read", [lambda uri: fetched(uri), lambda uri: streamed(uri)], ids=["at once", "as a stream"])
def test_a_body_shorter_than_its_length(short, pauses, read):
    assert read("short://once/x") == BODY
    assert len(pauses) == 1
    with pytest.raises(StoreError, match=r"^short://always/x: .* in 8 tries .*only 10239 of 10240 bytes came\)$"):
        read("short://always/x")


def test_a_slow_store_is_given_up(store, pauses, monkeypatch):
    monkeypatch.setattr("free2ds_common.storage.SOCKET_TIMEOUT_S", 0.05)
    monkeypatch.setattr("free2ds_common.retry.MAX_TRIES", 2)
    url = store.script("/x.jpg", Answer(body=BODY, delay_s=0.2))
    with pytest.raises(StoreError, match=f"^{url}: could not be read in 2 tries within .* s \\(.*[Tt]ime"):
        fetched(url)


def test_a_store_that_stays_busy_fails_with_the_file_s_name(store, pauses):
    url = store.script("/x.jpg", Answer(503))
    with pytest.raises(StoreError, match=rf"^{url}: could not be read in 8 tries within 0 s \(.*503.*Service Unavail"):
        fetched(url)
    assert len(pauses) == 7
    assert sum(pauses) < 48


def test_nobody_there(pauses):
    with pytest.raises(StoreError, match=r"^http://127\.0\.0\.1:9/x: could not be read in 8 tries .*Cannot connect"):
        fetched("http://127.0.0.1:9/x")


@pytest.mark.parametrize("status", [404, 410])
def test_only_not_found_is_missing(store, pauses, status):
    with pytest.raises(FileNotFoundError):
        fetched(store.script("/x.jpg", Answer(status)))
    assert pauses == []


@pytest.mark.parametrize("status", [401, 403, 407])
def test_a_store_that_refuses_fails_at_once_with_the_file_s_name(store, pauses, status):
    url = store.script("/x.jpg", Answer(status))
    with pytest.raises(StageError, match=rf"^{url}: may not be read \(.*{status}.*Give credentials that may read it"):
        fetched(url)
    assert pauses == []


@pytest.mark.parametrize("status", [400, 409, 451])
def test_other_answers_are_no_missing_file(store, pauses, status):
    url = store.script("/x.jpg", Answer(status))
    with pytest.raises(StoreError, match=f"^{url}: could not be read .*{status}"):
        fetched(url)
    assert pauses == []


def test_a_signed_url_is_told_without_its_signature(store, pauses):
    store.script("/x.jpg", Answer(403))
    with pytest.raises(StageError) as caught:
        fetched(f"{store.url}/x.jpg?X-Amz-Signature=abcdef")
    assert "abcdef" not in str(caught.value)
    assert "/x.jpg?X-Amz-Signature=***: may not be read" in str(caught.value)


def test_a_picture_without_a_length_comes_whole(store):
    """A stream hands over what has come, which may be less than was asked for."""
    assert fetched(store.script("/x.jpg", Answer(body=BODY, chunked=True))) == BODY


def test_no_more_than_the_bound_is_read(store, tmp_path):
    assert fetched(store.script("/x.jpg", PARTS_OF_ALL), 100) == BODY[:100]
    (tmp_path / "x").write_bytes(BODY)
    assert fetched(str(tmp_path / "x"), 100) == BODY[:100]


def test_an_empty_file(store, tmp_path):
    assert fetched(store.script("/x.jpg", Answer())) == b""
    (tmp_path / "x").touch()
    assert fetched(str(tmp_path / "x")) == b""


def streamed(uri, size=1000):
    with open_binary(uri) as handle:
        return b"".join(iter(lambda: handle.read(size), b""))


@pytest.fixture
def small_blocks(monkeypatch):
    """A file is fetched in parts of 1000 bytes."""
    monkeypatch.setattr("fsspec.implementations.http.DEFAULT_BLOCK_SIZE", 1000)
    fsspec.filesystem("http").clear_instance_cache()
    yield
    fsspec.filesystem("http").clear_instance_cache()


@pytest.mark.parametrize(
    "broken",
    [Answer(503), Answer(reset=True), Answer(body=BODY, sent=10), Answer(body=b"", ranges=False)],
    ids=["busy", "reset", "cut", "short"],
)
def test_a_long_file_is_read_on_where_the_connection_was_lost(store, pauses, small_blocks, broken):
    """Asked for: version, length, four parts, and then the broken answer."""
    url = store.script("/x.json", *[PARTS_OF_ALL] * 6, broken, PARTS_OF_ALL)
    assert streamed(url) == BODY


def test_a_long_file_of_a_server_that_gives_no_parts(store, pauses, small_blocks):
    assert streamed(store.script("/x.json", Answer(body=BODY, ranges=False))) == BODY


def test_a_long_file_without_a_length(store, pauses):
    assert streamed(store.script("/x.json", Answer(body=BODY, chunked=True))) == BODY


def test_a_stream_that_breaks_off_is_read_again_up_to_there(store, pauses):
    """Asked for: version (HEAD, GET, as there is no length), length (both), the broken stream, and all again."""
    whole = Answer(body=BODY, chunked=True)
    url = store.script("/x.json", *[whole] * 4, Answer(body=BODY, chunked=True, sent=5000), whole)
    assert streamed(url) == BODY
    assert len(pauses) == 1


def test_a_file_that_was_replaced_while_it_was_read(store, pauses, small_blocks):
    old, new = Answer(body=BODY, etag='"1"'), Answer(body=BODY, etag='"2"')
    url = store.script("/x.json", *[old] * 6, Answer(503), new)
    with pytest.raises(StageError, match=f"^{url}: was replaced while it was read"):
        streamed(url)


def test_a_file_that_vanished_while_it_was_read(store, pauses, small_blocks):
    url = store.script("/x.json", *[PARTS_OF_ALL] * 6, Answer(503), Answer(404))
    with pytest.raises(StageError, match=f"^{url}: was replaced while it was read"):
        streamed(url)


def test_a_file_of_another_store_is_streamed():
    fsspec.filesystem("memory").pipe("/storage/stream", BODY)
    assert streamed("memory://storage/stream") == BODY


def test_a_folder_of_a_store_is_no_file():
    fsspec.filesystem("memory").pipe("/storage/folder/file", b"")
    with pytest.raises(IsADirectoryError):
        streamed("memory://storage/folder")
