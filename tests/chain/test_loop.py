"""The loop as a user runs it, on a small example data set and tiny models."""

import json
import re

import pytest

import pipeline
from examples.make import make


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loop")
    make(folder, 40, seed=7)
    values = {
        "dataset_uri": folder / "dataset.json",
        "image_root_uri": folder / "images",
        **{f"{name}_model": folder / "models" / name for name in ("llava", "mgm", "bert")},
        "train_model": folder / "models" / "llava",
        "max_new_tokens": 4,
        "num_shards": 1,
        "train_options": "batch_size=4 lora_rank=2 lora_alpha=4 max_steps=2",
        "arms": json.dumps(["selected:1", "random:1", "everything:3"]),
        "benchmark_uris": ",".join(str(folder / "benchmarks" / name) for name in ("colours", "shapes")),
        "resamples": 50,
    }
    options = [option for name, value in values.items() for option in ("--param", f"{name}={value}")]
    out = folder / "out"
    assert pipeline.main(["run", "--pipeline", "loop", "--no-cache", "--output-dir", str(out), *options]) == 0
    return out


def test_leaves_the_selection_and_the_verdict(results):
    names = {path.name for path in results.iterdir() if not path.name.startswith(".")}
    wanted = {"selected.json", "random.json", "scores", "kmeans", "rejects.jsonl", "report.html", "summary.json"}
    assert names == wanted | {"comparison.json", "verdict.html", "run.log"}


def test_every_arm_was_trained_and_measured(results):
    found = json.loads((results / "comparison.json").read_text())
    assert found["arms_asked"] == ["selected:1", "random:1", "everything:3"]
    assert found["seeds"] == {"selected": 1, "random": 1, "everything": 1}
    assert found["baseline"] == "everything"
    assert set(found["arms"]) == {"colours", "shapes"}
    assert set(found["arms"]["shapes"]) == {"untuned", "selected", "random", "everything"}


def test_each_arm_learnt_from_its_own_records(results):
    """A fifth of 40, and all of them; of which two steps of 4 learn from 8."""
    log = (results / "run.log").read_text()
    assert sorted(re.findall(r"(\d+) records \(\d+ with pictures", log)) == ["40", "8", "8"]
    records = json.loads((results / "comparison.json").read_text())["costs"]["records"]
    assert records == {"selected": 8, "random": 8, "everything": 8}


def test_the_costs_are_known(results):
    costs = json.loads((results / "comparison.json").read_text())["costs"]
    assert costs["selecting_hours"] > 0
    assert all(hours > 0 for hours in costs["training_device_hours"].values())


def test_the_sentence_is_in_log_and_page(results):
    sentence = json.loads((results / "comparison.json").read_text())["sentence"]
    assert sentence.startswith("Selecting beat random on ")
    assert sentence in (results / "run.log").read_text()
    assert sentence in (results / "verdict.html").read_text()
