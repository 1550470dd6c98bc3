"""The loop as a user runs it, on a small example data set and tiny models: interrupted as it trains, and run again.

Two seeds without `everything` are `make demo-loop`, which `.ci/run` runs and checks.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples.make import make

REPOSITORY = Path(__file__).resolve().parents[2]
ARMS = ["selected:1", "random:1", "everything:3"]


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loop")
    make(folder, 40, seed=7)
    return folder


@pytest.fixture(scope="module")
def command(example):
    values = {
        "dataset_uri": example / "dataset.json",
        "image_root_uri": example / "images",
        **{f"{name}_model": example / "models" / name for name in ("llava", "mgm", "bert")},
        "train_model": example / "models" / "llava",
        "max_new_tokens": 4,
        "num_shards": 1,
        "train_options": "batch_size=4 lora_rank=2 lora_alpha=4 checkpoint_steps=1",
        "arms": json.dumps(ARMS),
        "benchmark_uris": ",".join(str(example / "benchmarks" / name) for name in ("colours", "shapes")),
        "resamples": 50,
    }
    options = [option for name, value in values.items() for option in ("--param", f"{name}={value}")]
    return [sys.executable, "pipeline.py", "run", "--pipeline", "loop", "--output-dir", str(example / "out"), *options]


@pytest.fixture(scope="module")
def environment(example):
    return {**os.environ, "XDG_CACHE_HOME": str(example / "cache")}


@pytest.fixture(scope="module")
def interrupted(example, command, environment):
    """Ctrl-C once a training has a whole checkpoint; returns the names of those that are there then."""
    run = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True)
    whole = "free2ds/results/finetune/*/checkpoint-*/complete.json"
    while not list((example / "cache").glob(whole)):
        assert run.poll() is None, run.stdout.read()
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 130, said
    return {path.parent.parent.name for path in (example / "cache").glob(whole)}


@pytest.fixture(scope="module")
def results(example, command, environment, interrupted):
    again = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    return example / "out"


@pytest.fixture(scope="module")
def comparison(results):
    return json.loads((results / "comparison.json").read_text())


def test_trainings_that_were_interrupted_go_on(results, interrupted):
    went_on = re.findall(r"goes on from checkpoint-\d+ of \S+/finetune/(\w+)", (results / "run.log").read_text())
    assert interrupted
    assert set(went_on) == interrupted


def test_what_selects_is_not_computed_again(results):
    reuse = json.loads((results / "summary.json").read_text())["reuse"]
    assert {model: one["computed"] for model, one in reuse.items()} == {"llava": 0, "mgm": 0, "text": 0}


def test_leaves_the_selection_and_the_verdict(results):
    names = {path.name for path in results.iterdir() if not path.name.startswith(".")}
    wanted = {"selected.json", "random.json", "scores", "kmeans", "rejects.jsonl", "report.html", "summary.json"}
    assert names == wanted | {"comparison.json", "verdict.html", "run.log"}


def test_every_arm_was_trained_and_measured(comparison):
    assert comparison["arms_asked"] == ARMS
    assert comparison["seeds"] == {"selected": 1, "random": 1, "everything": 1}
    assert set(comparison["arms"]) == {"colours", "shapes"}
    assert set(comparison["arms"]["shapes"]) == {"untuned", "selected", "random", "everything"}


def test_everything_is_the_baseline(comparison):
    assert comparison["baseline"] == "everything"
    assert "everything" not in comparison["relative"]


def test_each_arm_learnt_from_its_own_records(comparison):
    """A fifth of 40, and all of them."""
    assert comparison["costs"]["records"] == {"selected": 8, "random": 8, "everything": 40}


def test_the_costs_are_known(comparison):
    costs = comparison["costs"]
    assert costs["selecting_hours"] > 0
    assert set(costs["selecting_device_hours"]) == {"llava", "mgm", "text"}
    assert all(hours > 0 for hours in costs["training_device_hours"].values())


def test_the_sentence_is_in_log_and_page(results, comparison):
    assert comparison["sentence"].startswith("Selecting beat random on ")
    assert comparison["sentence"] in (results / "run.log").read_text()
    assert comparison["sentence"] in (results / "verdict.html").read_text()
