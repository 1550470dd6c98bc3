"""Where checkpoints are kept, and which one is gone on from."""

import json

import fsspec
import pytest

from components.finetune.checkpoints import Checkpoints


def write(checkpoints, step, whole=True):
    folder = checkpoints.folder / f"checkpoint-{step}"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "state").write_text(f"state {step}")
    if whole:
        checkpoints.publish(step)
    return folder


@pytest.fixture(params=["folder", "store"])
def uri(request, tmp_path):
    if request.param == "folder":
        yield str(tmp_path / "cache")
        return
    fs = fsspec.filesystem("memory")
    yield "memory://finetune-checkpoints"
    fs.rm("/finetune-checkpoints", recursive=True)


def test_without_a_place_nothing_is_found_again(tmp_path):
    checkpoints = Checkpoints("", {"a": 1}, tmp_path / "one")
    write(checkpoints, 1)
    assert Checkpoints("", {"a": 1}, tmp_path / "other").latest() is None
    assert checkpoints.uri == ""


def test_the_last_one_is_gone_on_from(uri, tmp_path):
    checkpoints = Checkpoints(uri, {"a": 1}, tmp_path / "one")
    for step in (2, 10):
        write(checkpoints, step)
    found = Checkpoints(uri, {"a": 1}, tmp_path / "other").latest()
    assert found.name == "checkpoint-10"
    assert (found / "inner" / "state").read_text() == "state 10"
    assert json.loads((found / "complete.json").read_text()) == {"step": 10}


def test_one_that_is_not_whole_is_passed_over(uri, tmp_path):
    checkpoints = Checkpoints(uri, {"a": 1}, tmp_path / "one")
    write(checkpoints, 2)
    write(checkpoints, 4, whole=False)
    assert Checkpoints(uri, {"a": 1}, tmp_path / "other").latest().name == "checkpoint-2"


def test_what_is_half_written_in_a_folder_is_removed(tmp_path):
    checkpoints = Checkpoints(str(tmp_path / "cache"), {"a": 1}, tmp_path)
    half = write(checkpoints, 4, whole=False)
    assert checkpoints.latest() is None
    assert not half.exists()


def test_other_inputs_have_other_checkpoints(uri, tmp_path):
    write(Checkpoints(uri, {"a": 1}, tmp_path / "one"), 2)
    assert Checkpoints(uri, {"a": 2}, tmp_path / "other").latest() is None


def test_a_store_keeps_the_last_two(tmp_path):
    checkpoints = Checkpoints("memory://finetune-two", {}, tmp_path)
    for step in (2, 4, 6):
        write(checkpoints, step)
    names = fsspec.filesystem("memory").ls(f"/finetune-two/{checkpoints.uri.partition('two/')[2]}", detail=False)
    assert [name.rpartition("/")[2] for name in sorted(names)] == ["checkpoint-4", "checkpoint-6"]


def test_credentials_are_not_shown(tmp_path):
    assert "secret" not in Checkpoints("s3://key:secret@bucket/cache", {}, tmp_path).uri
