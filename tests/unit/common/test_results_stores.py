"""The results store and the identity of pictures on every kind of location; S3 and GCS are real servers."""

import os

import pytest

from free2ds_common.errors import StageError
from free2ds_common.results_store import pictures as pictures_module
from free2ds_common.results_store.pictures import picture_identities
from free2ds_common.results_store.upkeep import broken_parts, compact, remove, shelves
from free2ds_common.storage import filesystem
from tests.support.buckets import BUCKET
from tests.support.results import key, open_store, row
from tests.support.stores import Answer

# A web server takes no files.
TAKING = pytest.mark.parametrize("place", ["plain path", "file", "memory", "s3", "gs"], indirect=True)


@pytest.fixture
def uri(place):
    return f"{place.uri}/store"


@TAKING
def test_results_are_kept_and_found(uri, tmp_path):
    store = open_store(uri)
    assert len(store.take([key(1)], [0], tmp_path)) == 0
    store.write([row(1), row(2)])
    store.write([row(3, bucket=9)])
    found = store.take([key(number) for number in (1, 2, 3, 4)], range(1024), tmp_path)
    assert [found.row(key(number))["number"] for number in (1, 2, 3)] == [1, 2, 3]
    assert key(4) not in found


@TAKING
def test_looking_after_them(uri, tmp_path):
    store = open_store(uri)
    for number in (1, 2, 3):
        store.write([row(number)])
    (shelf,) = shelves(uri)
    assert (shelf.kind, shelf.rows, len(shelf.parts), shelf.settings["model"]) == ("numbers", 3, 3, "M")
    assert all(stored.written for stored in shelf.parts)
    assert list(broken_parts(shelf)) == []
    assert compact(shelf) == (3, 1)
    (shelf,) = shelves(uri)
    assert len(shelf.parts) == 1
    assert len(store.take([key(1), key(2), key(3)], [0], tmp_path)) == 3
    remove(shelf.fs, [stored.part for stored in shelf.parts])
    assert shelves(uri) == []


def test_nobody_can_keep_results_on_a_web_server(store, pauses):
    with pytest.raises(Exception, match=r"could not be read|may not be read|nothing there"):
        open_store(f"{store.url}/results").write([row(1)])


def overwrite(place, below, content):
    """Replace a file; moto takes that of who signs only."""
    if place.uri.startswith("s3"):
        fs, root = filesystem(place.uri)
        fs.pipe_file(f"{root}/{below}", content)
    else:
        place.put(below, content)


def test_the_bytes_of_a_picture_decide_its_identity(place):
    place.put("images/a.png", b"one")
    place.put("images/b.png", b"two")
    before = picture_identities(f"{place.uri}/images", ["a.png", "b.png", "a.png", "none.png"])
    assert list(before) == ["a.png", "b.png", "none.png"]
    assert before["none.png"] is None
    assert before["a.png"] != before["b.png"]
    assert picture_identities(f"{place.uri}/images", ["a.png"])["a.png"] == before["a.png"]
    overwrite(place, "images/a.png", b"ONE")
    assert picture_identities(f"{place.uri}/images", ["a.png"])["a.png"] != before["a.png"]


@pytest.mark.parametrize("place", ["memory", "http", "s3", "gs"], indirect=True)
def test_pictures_of_a_store_are_not_read(place, monkeypatch):
    place.put("images/a.png", b"one")
    monkeypatch.setattr(pictures_module, "read_picture_bytes", None)
    assert picture_identities(f"{place.uri}/images", ["a.png"])["a.png"]


@pytest.mark.parametrize("place", ["plain path", "file", "s3", "gs"], indirect=True)
def test_the_same_bytes_elsewhere_are_the_same_picture(place):
    """Where a store knows something of the bytes."""
    for folder in ("one", "two"):
        place.put(f"{folder}/{folder}.png", b"the same")
    one = picture_identities(f"{place.uri}/one", ["one.png"])["one.png"]
    assert picture_identities(f"{place.uri}/two", ["two.png"])["two.png"] == one


@pytest.fixture(params=["s3", "gcs"])
def bucket(request, monkeypatch):
    """A store whose folders are listed once more than two pictures are wanted."""
    monkeypatch.setattr(pictures_module, "LIST_AFTER", 2)
    return request.getfixturevalue(request.param)


def asked_for(bucket, root, images):
    """Identities, and how many requests there were about the folder "crowd" and about other pictures."""
    bucket.forget()
    found = picture_identities(root, images)
    of_many = sum("crowd" in path for _, path in bucket.asked)
    return found, of_many, len(bucket.asked) - of_many


def test_a_folder_of_which_many_pictures_are_wanted_is_listed(bucket, tmp_path, monkeypatch):
    """By one request, and what it says is what a look at each says."""
    many, few = [f"crowd/{name}.png" for name in ("a b", "ü", "1+1=2&3")], ["few/a.png", "few/b.png"]
    for number, image in enumerate(many + few):
        bucket.put(f"{tmp_path.name}/{image}", b"x" * (number + 1))
    root = f"{bucket.scheme}{BUCKET}/{tmp_path.name}"
    found, of_many, others = asked_for(bucket, root, many + few)
    assert of_many == 1
    assert others >= len(few)
    monkeypatch.setattr(pictures_module, "LIST_AFTER", 100)
    looked_at, of_many, _ = asked_for(bucket, root, many + few)
    assert looked_at == found
    assert of_many >= len(many)
    assert {identity[0] for identity in found.values()} == ({"etag"} if bucket.scheme == "s3://" else {"md5"})


@pytest.mark.parametrize("after", [0, 2], ids=["listed", "looked at"])
def test_an_identity_is_what_keys_of_stored_results_were_made_of(bucket, tmp_path, monkeypatch, after):
    """The md5 of b"one", as each store has it, and its size."""
    monkeypatch.setattr(pictures_module, "LIST_AFTER", after)
    bucket.put(f"{tmp_path.name}/a.png", b"one")
    expected = {
        "s3://": ("etag", '"f97c5d29941bfb1b2fdab0874906ab82"', "3"),
        "gs://": ("md5", "+XxdKZQb+xsv2rCHSQargg==", "3"),
    }[bucket.scheme]
    assert picture_identities(f"{bucket.scheme}{BUCKET}/{tmp_path.name}", ["a.png"]) == {"a.png": expected}


def test_what_a_listing_does_not_have_is_looked_at(bucket, tmp_path):
    images = ["a.png", "b.png", "none.png", "x/../a.png", "../../none.png"]
    for image in images[:2]:
        bucket.put(f"{tmp_path.name}/{image}", image.encode())
    found = picture_identities(f"{bucket.scheme}{BUCKET}/{tmp_path.name}/", images)
    assert found["x/../a.png"] == found["a.png"] != found["b.png"]
    assert (found["none.png"], found["../../none.png"]) == (None, None)


def test_nothing_outside_the_root_is_listed(bucket, tmp_path):
    images = [f"../{tmp_path.name}-other/{number}.png" for number in range(3)]
    for number in range(3):
        bucket.put(f"{tmp_path.name}-other/{number}.png", b"one")
    assert set(picture_identities(f"{bucket.scheme}{BUCKET}/{tmp_path.name}", images).values()) == {None}
    assert bucket.asked == []


def test_a_folder_that_may_not_be_listed_is_looked_at(bucket, tmp_path, caplog):
    images = ["a.png", "b.png", "c.png"]
    for image in images:
        bucket.put(f"{tmp_path.name}/{image}", image.encode())
    root = f"{bucket.scheme}{BUCKET}/{tmp_path.name}"
    bucket.faults[:] = [Answer(403)]
    assert None not in picture_identities(root, images).values()
    assert "Its pictures are looked up one by one." in caplog.text


def test_a_listing_without_a_word_on_the_bytes_is_not_enough(gcs, tmp_path, monkeypatch):
    """Of an object put together from others GCS has no md5."""
    monkeypatch.setattr(pictures_module, "LIST_AFTER", 0)
    gcs.put(f"{tmp_path.name}/a.png", b"one")
    listed = {"a.png": {"size": "3", "generation": "1"}}
    monkeypatch.setattr(pictures_module, "list_pictures", lambda *_: listed)
    assert picture_identities(f"gs://{BUCKET}/{tmp_path.name}", ["a.png"])["a.png"][0] == "md5"


def test_where_a_store_says_only_a_size_the_bytes_are_read(place, monkeypatch):
    place.put("images/a.png", b"one")
    monkeypatch.setattr(pictures_module, "version_of", lambda info: {"size": "3"})
    # sha256 of b"one".
    digest = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    assert picture_identities(f"{place.uri}/images", ["a.png"]) == {"a.png": ("sha256", digest)}


def test_a_time_of_change_decides_nothing_on_this_machine(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    before = picture_identities(str(tmp_path), ["a.png"])
    os.utime(path, (1, 1))
    assert picture_identities(str(tmp_path), ["a.png"]) == before


def test_a_link_out_of_the_root_has_no_identity(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"one")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").symlink_to(tmp_path / "secret.png")
    assert picture_identities(str(tmp_path / "images"), ["a.png", "../secret.png"]) == {
        "a.png": None,
        "../secret.png": None,
    }


def test_a_root_that_cannot_be_opened(tmp_path):
    with pytest.raises(StageError, match="nowhere://x"):
        picture_identities("nowhere://x", ["a.png"])
