"""Folders of stores are listed page by page, each page tried again by itself."""

import pytest

from free2ds_common import listing
from free2ds_common.errors import StageError
from free2ds_common.listing import list_folder
from free2ds_common.storage import filesystem, version_of
from tests.support.stores import Answer

NAMES = {f"{number}.png": number + 1 for number in range(5)}


def listed(place, folder):
    fs, path = filesystem(f"{place.uri}/{folder}")
    return {name: int(file["size"]) for name, file in list_folder(fs, path, "the folder").items()}


@pytest.fixture
def place(place, request, monkeypatch):
    monkeypatch.setattr(listing, "PAGE", 2)
    for name, size in NAMES.items():
        place.put(f"pictures/{name}", b"x" * size)
    place.put("pictures/below/6.png", b"x")
    place.put("pictures2/7.png", b"x")
    return place


@pytest.mark.parametrize("place", ["memory", "s3", "gs"], indirect=True)
def test_the_files_of_a_folder_and_nothing_else(place):
    assert listed(place, "pictures") == NAMES
    assert listed(place, "pictures/") == NAMES
    assert listed(place, "none") == {}


@pytest.mark.parametrize("place", ["s3", "gs"], indirect=True)
def test_a_page_that_fails_is_asked_for_again(place, s3, gcs, pauses):
    for bucket in (s3, gcs):
        bucket.forget()
        bucket.faults += [Answer(503), Answer(reset=True)]
    assert listed(place, "pictures") == NAMES
    # Two that failed. S3: five files and a folder in pages of two; the emulator of GCS gives all in one.
    assert len(s3.asked + gcs.asked) == (2 + 3 if place.uri.startswith("s3") else 2 + 1)


@pytest.mark.parametrize("place", ["s3", "gs"], indirect=True)
def test_a_store_that_does_not_list(place, s3, gcs):
    for bucket in (s3, gcs):
        bucket.faults += [Answer(403)]
    with pytest.raises(StageError, match=r"^the folder: may not be read"):
        listed(place, "pictures")


@pytest.mark.parametrize("place", ["s3", "gs"], indirect=True)
def test_a_listing_says_what_a_look_at_each_file_says(place):
    fs, path = filesystem(f"{place.uri}/pictures")
    files = list_folder(fs, path, "the folder")
    telling = {"s3://": "ETag", "gs://": "generation"}[place.uri[:5]]
    assert files.keys() == NAMES.keys()
    for name, file in files.items():
        assert {"size", telling} <= file.keys()
        assert file.items() <= version_of(fs.info(f"{path}/{name}")).items()
