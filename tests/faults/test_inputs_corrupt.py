"""A stage's input that was cut off, changed or lost on its way is refused by its file's name; nothing is written."""

import random
import shutil
from pathlib import Path

import pytest

from free2ds_common.datasets import MANIFEST
from tests.support.commands import FULL, INPUTS

FLIPS = 40 if FULL else 2


def cut(content, rng):
    return content[: rng.randrange(len(content))]


def flip(content, rng):
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def swap(content, rng):
    """A block of zeros, as a disk leaves it that lost power."""
    at = rng.randrange(len(content))
    return content[:at] + bytes(min(512, len(content) - at)) + content[at + 512 :]


CASES = [(stage, option) for stage, options in INPUTS.items() for option in options]
CHANGES = [*[(cut, seed) for seed in range(FLIPS)], *[(flip, seed) for seed in range(FLIPS)], (swap, 0)]


@pytest.fixture
def damaged(chain, tmp_path):
    """Runs a stage on a copy of one of its inputs, of which a file is changed."""

    def run(stage, option, kind, change):
        copy = tmp_path / "input"
        shutil.copytree(chain.work / INPUTS[stage][option], copy)
        path = next(path for path in sorted(copy.rglob("*")) if path.is_file() and (path.name == MANIFEST) == kind)
        change(path)
        return path, chain.run(stage, tmp_path / "out", **{option.replace("-", "_"): str(copy)})

    return run


def refused(capfd, path, code, out):
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert (code, len(said)) == (2, 1)
    assert said[0].startswith(f"error: {path.parent}: ")
    assert path.name in said[0]
    assert "erun the stage" in said[0]
    assert not [path for path in Path(out).rglob("*") if path.is_file()]


@pytest.mark.parametrize(("stage", "option"), CASES)
@pytest.mark.parametrize("is_manifest", [False, True], ids=["part", "manifest"])
@pytest.mark.parametrize(("change", "seed"), CHANGES, ids=lambda value: getattr(value, "__name__", value))
def test_a_changed_file_is_refused(damaged, tmp_path, capfd, stage, option, is_manifest, change, seed):
    rng = random.Random(seed)
    path, code = damaged(stage, option, is_manifest, lambda path: path.write_bytes(change(path.read_bytes(), rng)))
    refused(capfd, path, code, tmp_path / "out")


@pytest.mark.parametrize(("stage", "option"), CASES)
@pytest.mark.parametrize("is_manifest", [False, True], ids=["part", "manifest"])
def test_a_lost_file_is_refused(damaged, tmp_path, capfd, stage, option, is_manifest):
    path, code = damaged(stage, option, is_manifest, Path.unlink)
    refused(capfd, path, code, tmp_path / "out")
