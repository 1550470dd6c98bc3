"""A data set that grows, shrinks and comes in another order: what is new is computed, and nothing else."""

import json
import random
import shutil

import pytest

from examples.make import make
from tests.faults.conftest import FULL
from tests.support.stages import grow, run_stages


@pytest.fixture
def data(example, tmp_path):
    """A copy of the example that may be changed."""
    folder = tmp_path / "data"
    shutil.copytree(example / "images", folder / "images")
    (folder / "models").symlink_to(example / "models")
    shutil.copy(example / "dataset.json", folder / "dataset.json")
    return folder


def test_grown_shuffled_and_cut_otherwise(data, tmp_path, undisturbed):
    store = str(tmp_path / "store")
    first = run_stages(tmp_path / "work", data, store)
    make(tmp_path / "extra", 4 if FULL else 2, seed=99)
    grow(data, "dataset.json", "grown.json", tmp_path / "extra")
    fresh = run_stages(tmp_path / "fresh", data, "", num_shards=5, dataset="grown.json")
    grown = run_stages(tmp_path / "work", data, store, num_shards=5, dataset="grown.json")
    assert grown.selected == fresh.selected
    for model in ("llava", "mgm"):
        assert grown.reused[model] == first.answered[model]
        assert grown.computed[model] == fresh.answered[model] - first.answered[model]
    assert grown.computed["text"] == fresh.answered["text"] - first.answered["text"]


def test_a_weekly_run_with_the_clusters_of_the_first_one(data, tmp_path):
    """What was scored before keeps its score: nothing but new records changes the selection of the highest."""
    store = str(tmp_path / "store")
    first = run_stages(tmp_path / "first", data, store)
    make(tmp_path / "extra", 6, seed=99)
    new = grow(data, "dataset.json", "grown.json", tmp_path / "extra")
    second = run_stages(tmp_path / "second", data, store, dataset="grown.json", earlier=tmp_path / "first")
    assert second.reused == first.answered
    assert sum(second.computed.values()) < sum(first.computed.values())
    changes = json.loads((tmp_path / "second/summary.json").read_text())["changes"]
    selected = [len(json.loads(found.selected)) for found in (first, second)]
    assert changes["stayed"] + sum(changes["dropped_out"].values()) == selected[0]
    assert changes["stayed"] + sum(changes["came_in"].values()) == selected[1]
    assert changes["came_in"].get("new_record", 0) <= new
    # No record of before is ranked otherwise, whatever is new.
    assert "score_rank" not in {**changes["came_in"], **changes["dropped_out"]}
    assert changes["settings"] == []


def test_shrunk_and_with_a_changed_question(data, tmp_path):
    store = str(tmp_path / "store")
    run_stages(tmp_path / "work", data, store)
    records = json.loads((data / "dataset.json").read_text())
    random.Random(1).shuffle(records)
    records = records[: len(records) // 2]
    asked = next(record for record in records if "image" in record)
    asked["conversations"][0]["value"] = "<image>\nWhat is new here?"
    (data / "changed.json").write_text(json.dumps(records))
    changed = run_stages(tmp_path / "work", data, store, num_shards=1, dataset="changed.json")
    fresh = run_stages(tmp_path / "fresh", data, "", num_shards=1, dataset="changed.json")
    assert changed.selected == fresh.selected
    assert (changed.computed["llava"], changed.computed["mgm"]) == (1, 1)
