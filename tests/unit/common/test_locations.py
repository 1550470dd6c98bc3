"""Every kind of location works the same: a path, file://, memory://, http://, and real servers of S3 and GCS."""

import io
import json
import time
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pyarrow.parquet as pq
import pytest
from fsspec.asyn import AsyncFileSystem
from PIL import Image

from components.ingest.config import IngestConfig
from components.ingest.stage import run
from free2ds_common import downloads, objects
from free2ds_common.checkpoints import resolve_model
from free2ds_common.errors import StageError
from free2ds_common.objects import object_reader
from free2ds_common.pictures import PictureProblem, load_picture, read_picture_bytes
from free2ds_common.retry import StoreError
from free2ds_common.storage import filesystem, open_binary, read_bytes
from tests.support.stores import Answer

BODY = bytes(range(256)) * 40
ODD_NAMES = ["a b.png", "bücher/ü.png", "1+1=2&3.png", "100%.png", "a%20b.png", "what?.png", "c#1.png", "[a]*.png"]


def png(width=8):
    buffer = io.BytesIO()
    Image.new("RGB", (width, 8), "red").save(buffer, "PNG")
    return buffer.getvalue()


def whole(uri):
    fs, path = filesystem(uri)
    return read_bytes(fs, path, 1 << 20, uri)


def streamed(uri):
    with open_binary(uri) as handle:
        return b"".join(iter(lambda: handle.read(1000), b""))


@pytest.mark.parametrize("read", [whole, streamed])
@pytest.mark.parametrize("content", [BODY, b""], ids=["some", "empty"])
def test_a_file(place, read, content):
    place.put("folder/x.bin", content)
    assert read(f"{place.uri}/folder/x.bin") == content


@pytest.mark.parametrize("read", [whole, streamed])
def test_a_file_that_is_not_there(place, read):
    place.put("folder/x.bin", BODY)
    with pytest.raises(FileNotFoundError):
        read(f"{place.uri}/folder/y.bin")


def test_no_more_than_the_bound_is_read(place):
    place.put("x.bin", BODY)
    fs, path = filesystem(f"{place.uri}/x.bin")
    assert read_bytes(fs, path, 100, "x") == BODY[:100]


@pytest.mark.parametrize("slash", ["", "/"])
def test_pictures_of_any_name(place, slash):
    """The width of each is its number."""
    for number, name in enumerate(ODD_NAMES, 1):
        place.put(name, png(number))
    found = [load_picture(place.uri + slash, name).width for name in ODD_NAMES]
    assert found == list(range(1, len(ODD_NAMES) + 1))


def test_a_picture_that_is_not_there(place):
    place.put("a.png", png())
    with pytest.raises(PictureProblem, match=r"^image_missing: no file at .*/b\.png"):
        read_picture_bytes(place.uri, "b.png")


# A web server gives a page for a folder.
@pytest.mark.parametrize("place", ["plain path", "file", "memory", "s3", "gs"], indirect=True)
def test_a_folder_is_no_picture(place):
    place.put("a/b.png", png())
    with pytest.raises(PictureProblem, match=r"^image_missing: no file at .*/a"):
        read_picture_bytes(place.uri, "a")


def test_a_model(place, tmp_path):
    for name, content in {"config.json": b"{}", "weights/one.bin": BODY, "weights/empty.bin": b""}.items():
        place.put(f"model/{name}", content)
    folder = Path(resolve_model(f"{place.uri}/model", "main", str(tmp_path / "cache")))
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {"config.json": b"{}", "weights/one.bin": BODY, "weights/empty.bin": b""}


def test_a_model_that_is_not_there(place, tmp_path):
    with pytest.raises(StageError, match=r"/none(:| is) no folder"):
        resolve_model(f"{place.uri}/none", "main", str(tmp_path / "cache"))


RECORDS = [
    {
        "id": name,
        "image": name,
        "conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "!"}],
    }
    for name in ("a b.png", "folder/b.png", "missing.png")
]


def ingested(place, dataset, out):
    config = IngestConfig(
        dataset_uri=f"{place.uri}/{dataset}",
        image_root_uri=f"{place.uri}/pictures",
        max_reject_fraction=0.5,
        records=str(out / "records"),
        rejects=str(out / "rejects.jsonl"),
    )
    result = run(config)
    parts = sorted((out / "records").rglob("*.parquet"))
    return result.metadata["reject_reasons"], [
        row["image"] for part in parts for row in pq.read_table(part).to_pylist()
    ]


def test_a_data_set_and_its_pictures(place, tmp_path):
    place.put("data.json", json.dumps(RECORDS).encode())
    place.put("pictures/a b.png", png(5))
    place.put("pictures/folder/b.png", png(6))
    reasons, images = ingested(place, "data.json", tmp_path / "out")
    assert reasons == {"image_missing": 1}
    assert sorted(images) == ["a b.png", "folder/b.png"]


def test_a_data_set_that_is_not_there(place, tmp_path):
    with pytest.raises(StageError, match=r"none\.json: nothing there"):
        ingested(place, "none.json", tmp_path / "out")


# What fails for a moment

BUSY = {str(status): Answer(status) for status in (408, 429, 500, 502, 503, 504)}
BROKEN = {"503": Answer(503), "reset": Answer(reset=True), "cut": Answer(sent=100), "no body": Answer(sent=0)}


SHORT = {"short": Answer(sent=100, chunked=True)}


def each(faults):
    return pytest.mark.parametrize("fault", faults.values(), ids=faults.keys())


@pytest.fixture(params=["s3", "gcs"])
def bucket(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def stored(bucket, tmp_path):
    """A file in a bucket that was asked for nothing yet."""
    bucket.put(f"{tmp_path.name}/x.png", BODY)
    return f"{bucket.scheme}data/{tmp_path.name}/x.png"


@each(BUSY | BROKEN | SHORT)
def test_a_bucket_that_fails_for_a_moment(bucket, stored, pauses, fault):
    bucket.faults[:] = [fault] * 3
    assert whole(stored) == BODY
    assert bucket.faults == []


@each(BROKEN)
def test_a_long_file_of_a_bucket_that_fails_for_a_moment(bucket, stored, pauses, fault):
    bucket.faults[:] = [fault] * 3
    assert streamed(stored) == BODY
    assert bucket.faults == []


@each(BROKEN)
def test_a_model_of_a_bucket_that_fails_for_a_moment(bucket, stored, pauses, tmp_path, fault):
    bucket.faults[:] = [fault] * 3
    folder = resolve_model(stored.removesuffix("/x.png"), "main", str(tmp_path / "cache"))
    assert (Path(folder) / "x.png").read_bytes() == BODY
    assert bucket.faults == []


@each(BROKEN | SHORT)
def test_a_large_file_of_a_model_in_gcs_that_fails_for_a_moment(gcs, pauses, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(downloads, "_LARGE_BYTES", len(BODY))
    monkeypatch.setattr(objects, "_PART_BYTES", 2000)
    monkeypatch.setattr(
        "google.api_core.retry.retry_unary.time", SimpleNamespace(monotonic=time.monotonic, sleep=pauses.append)
    )
    gcs.put(f"{tmp_path.name}/x.bin", BODY)
    gcs.put(f"{tmp_path.name}/config.json", b"{}")
    gcs.faults[:] = [None, None, fault] * 4
    folder = resolve_model(f"gs://data/{tmp_path.name}", "main", str(tmp_path / "cache"))
    assert (Path(folder) / "x.bin").read_bytes() == BODY
    # Where google-cloud-storage asks, once at least for each of six parts; which requests failed is up to the threads.
    assert len([path for _, path in gcs.asked if path.startswith("/download/") and "x.bin" in path]) >= 6
    assert gcs.faults.count(fault) <= 2


@each(BROKEN | SHORT)
def test_a_bucket_that_stays_so_fails_with_the_file_s_name(bucket, stored, pauses, fault):
    bucket.faults[:] = [fault] * 1000
    with pytest.raises(StoreError, match=f"^{stored}: could not be read in 8 tries"):
        whole(stored)
    assert len(pauses) == 7


@pytest.mark.parametrize("status", [401, 403])
def test_a_bucket_that_refuses(bucket, stored, pauses, status):
    bucket.faults[:] = [Answer(status)] * 1000
    with pytest.raises(StageError, match=f"^{stored}: may not be read"):
        whole(stored)
    assert pauses == []


def test_a_picture_takes_one_request(bucket, stored):
    whole(stored)
    assert [method for method, _ in bucket.asked] == ["GET"]


class Unpacking(AsyncFileSystem):
    """A store of GCS whose object of 1000 bytes is unpacked on the way."""

    protocol = ("gs", "gcs")

    def url(self, path):
        return path

    def call(self, method, url, headers):
        return {"Content-Range": "bytes 0-999/1000", "Content-Encoding": "gzip"}, b"unpacked"


def test_an_object_that_is_unpacked_on_the_way():
    assert object_reader(Unpacking())("data/x", 1 << 20) == b"unpacked"


def test_as_many_connections_to_s3_as_are_asked_for(monkeypatch):
    fs, _ = filesystem("s3://data/x")
    assert fs.config_kwargs["max_pool_connections"] == 100
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"max_pool_connections": 7, "read_timeout": 3}})
    fs, _ = filesystem("s3://data/x")
    assert fs.config_kwargs == {"max_pool_connections": 7, "read_timeout": 3}


def test_a_bucket_that_never_answers_is_asked_again(bucket, stored, pauses, monkeypatch):
    # Of GCS it is ours, of S3 s3fs's own: 15 s.
    monkeypatch.setattr("free2ds_common.storage.SOCKET_TIMEOUT_S", 0.1)
    monkeypatch.setattr("s3fs.S3FileSystem.read_timeout", 0.1)
    type(filesystem(stored)[0]).clear_instance_cache()
    bucket.faults[:] = [Answer(204, delay_s=1.0)]
    assert whole(stored) == BODY
    assert [method for method, _ in bucket.asked].count("GET") == 2
    type(filesystem(stored)[0]).clear_instance_cache()
