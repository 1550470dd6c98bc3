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
