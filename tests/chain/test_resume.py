"""A run that is interrupted, and the same command again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples.make import make
from tests.support.results import parts

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def example(tmp_path):
    make(tmp_path / "example", 60, seed=7)
    return tmp_path / "example"


def test_the_same_command_after_ctrl_c_goes_on(example, tmp_path):
    values = {
        "dataset_uri": example / "dataset.json",
        "image_root_uri": example / "images",
        **{f"{name}_model": example / "models" / name for name in ("llava", "mgm", "bert")},
        "num_clusters": 5,
        "num_shards": 1,
        # Many steps of an answer: it takes a while.
        "max_new_tokens": 60,
        "attention_batch_size": 4,
    }
    options = [option for name, value in values.items() for option in ("--param", f"{name}={value}")]
    command = [sys.executable, "pipeline.py", "run", "--output-dir", str(tmp_path / "out"), *options]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    first = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True)
    for line in first.stdout:
        if "attention" in line and "results are there" in line:
            break
    time.sleep(1)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)
    assert first.returncode == 130
    kept = sum(int(path.name.split("-")[2]) for path in parts(tmp_path / "cache"))
    assert [path for path in parts(tmp_path / "cache") if path.parts[-3] == "attention"]
    again = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout
    reuse = json.loads((tmp_path / "out/summary.json").read_text())["reuse"]
    assert sum(model["reused"] for model in reuse.values()) == kept
    assert f"llava: {reuse['llava']['computed']} results computed, {reuse['llava']['reused']} taken" in again.stdout
