"""What a store does to a stage: nothing but "not found" rejects a record, and no credentials leave the process."""

import io
import json
import os

import pytest
from PIL import Image

from components.ingest.config import IngestConfig
from components.ingest.stage import run
from free2ds_common.errors import StageError
from free2ds_common.retry import StoreError
from tests.support.stores import Answer


def png():
    buffer = io.BytesIO()
    Image.effect_noise((8, 8), 50).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def ingest(store, tmp_path):
    """Reads two records, each with a picture, from a store."""
    asked = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "!"}]
    records = [{"id": name, "image": name, "conversations": asked} for name in ("a.png", "b.png")]
    store.script("/data.json", Answer(body=json.dumps(records).encode()))
    for name in ("a.png", "b.png"):
        store.script(f"/pictures/{name}", Answer(body=png()))

    def start(**changes):
        config = IngestConfig(
            **{
                "dataset_uri": f"{store.url}/data.json",
                "image_root_uri": f"{store.url}/pictures",
                "max_reject_fraction": 0.5,
                "records": str(tmp_path / "records"),
                "rejects": str(tmp_path / "rejects.jsonl"),
            }
            | changes
        )
        return run(config)

    return start


def reasons(result):
    return result.metadata["reject_reasons"]


def test_all_there(ingest):
    assert ingest().counts.written == 2


def test_a_picture_that_is_not_there_rejects_its_record(ingest, store, pauses):
    store.script("/pictures/b.png", Answer(404))
    assert reasons(ingest()) == {"image_missing": 1}


@pytest.mark.parametrize("answer", [Answer(503), Answer(500), Answer(429), Answer(reset=True)], ids=repr)
def test_a_store_that_is_busy_for_a_moment_rejects_nothing(ingest, store, pauses, answer):
    good = store.answers["/pictures/b.png"][0]
    store.script("/pictures/b.png", answer, answer, good)
    assert reasons(ingest()) == {}


@pytest.mark.parametrize("answer", [Answer(503), Answer(500), Answer(429), Answer(reset=True)], ids=repr)
def test_a_store_that_stays_so_fails_the_run_with_the_picture_s_name(ingest, store, pauses, answer):
    store.script("/pictures/b.png", answer)
    with pytest.raises(StoreError, match=f"^{store.url}/pictures/b.png: could not be read in 8 tries"):
        ingest()


@pytest.mark.parametrize("status", [401, 403])
def test_a_store_that_refuses_fails_the_run_with_the_picture_s_name(ingest, store, pauses, status):
    store.script("/pictures/b.png", Answer(status))
    with pytest.raises(StageError, match=rf"^{store.url}/pictures/b.png: may not be read \(.*{status}"):
        ingest()


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (Answer(404), StageError, "data.json: nothing there. Give the path"),
        (Answer(403), StageError, "data.json: may not be read"),
        (Answer(503), StoreError, "data.json: could not be read in 8 tries"),
        (Answer(body=b"[{}]", sent=1), StoreError, "data.json: could not be read in 8 tries"),
    ],
    ids=["missing", "refused", "busy", "cut"],
)
def test_a_data_set_that_cannot_be_read(ingest, store, pauses, answer, kind, message):
    store.script("/data.json", answer)
    with pytest.raises(kind, match=f"^{store.url}/{message}"):
        ingest()


def test_a_pipe_as_a_data_set(ingest, tmp_path):
    os.mkfifo(tmp_path / "data.json")
    with pytest.raises(StageError, match=r"data\.json: is a pipe, a socket or a device"):
        ingest(dataset_uri=str(tmp_path / "data.json"))


def test_no_credentials_in_anything_that_is_written(ingest, store, tmp_path, pauses):
    host = store.url.removeprefix("http://")
    store.script("/pictures/b.png", Answer(404))
    result = ingest(
        dataset_uri=f"{store.url}/data.json?token=hunter2", image_root_uri=f"http://user:hunter3@{host}/pictures"
    )
    assert result.metadata["dataset_uri"] == f"{store.url}/data.json?token=***"
    assert result.metadata["image_root_uri"] == f"http://***@{host}/pictures"
    assert result.counts.written == 1
    written = "".join(
        path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".parquet"
    )
    assert f"http://***@{host}/pictures/b.png" in written
    assert "hunter" not in written
