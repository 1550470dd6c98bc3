"""Tests of the built images: skipped where there is no Docker engine or `make images` has not run."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from images import build

REPOSITORY = Path(__file__).resolve().parents[2]
BASE_IMAGE = "python:3.11-slim-bookworm"


def docker(*arguments, check=True):
    """Run docker and return what it did."""
    result = subprocess.run(["docker", *map(str, arguments)], capture_output=True, text=True)
    assert not check or result.returncode == 0, result.stderr
    return result


def missing(reason):
    """Skip; in CI, which builds the images first, fail."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def images():
    """What docker says of every stage's image, by stage."""
    try:
        engine = docker("version", check=False)
    except FileNotFoundError:
        missing("needs Docker")
    if engine.returncode:
        missing(f"needs a running Docker engine ({engine.stderr.strip()})")
    names = {stage: build.image_name(stage, "", "dev") for stage in build.stages()}
    shown = docker("image", "inspect", BASE_IMAGE, *names.values(), check=False)
    if shown.returncode:
        missing(f"needs the images, make images-offline ({shown.stderr.strip()})")
    _, *found = json.loads(shown.stdout)
    return dict(zip(names, found, strict=True))


@pytest.fixture(scope="session")
def base():
    """What docker says of the base image."""
    return json.loads(docker("image", "inspect", BASE_IMAGE).stdout)[0]


@pytest.fixture(scope="session")
def example(tmp_path_factory):
    """A small data set and models, as `make demo` makes them."""
    from examples.make import make

    folder = tmp_path_factory.mktemp("example")
    make(folder, 20, seed=7)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


@pytest.fixture(scope="session")
def parameters(example):
    """Parameters of a run on the example."""
    return {
        "dataset_uri": example / "dataset.json",
        "image_root_uri": example / "images",
        **{f"{name}_model": example / "models" / name for name in ("llava", "mgm", "bert")},
        "num_clusters": 5,
        "max_new_tokens": 8,
        "num_shards": 2,
    }
