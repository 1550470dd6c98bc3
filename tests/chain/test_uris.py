"""All stages as commands whose ports are URIs of a store: the same bytes as with folders of this machine."""

import json
from pathlib import Path

import fsspec
import pytest

from free2ds_common.datasets import MANIFEST
from tests.support.commands import INPUTS, STAGES

STORE = "memory://chain-of-uris"


def content(below, data):
    """What does not say when or by which command it was made."""
    if below.endswith(MANIFEST):
        return json.loads(data)["parts"]
    return "" if below.rpartition("/")[2] in ("report", "summary") else data


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_on_uris(chain, stage, tmp_path, monkeypatch, capsys):
    files = fsspec.filesystem("memory")
    for place in INPUTS.get(stage, {}).values():
        for path in (chain.work / place).rglob("*"):
            if path.is_file():
                files.pipe(f"/chain-of-uris/{path.relative_to(chain.work)}", path.read_bytes())
    outputs = {path.name: path for path in (chain.work / stage).iterdir()}
    changes = {option.replace("-", "_"): f"{STORE}/{place}" for option, place in INPUTS.get(stage, {}).items()}
    changes |= {name: f"{STORE}/out/{stage}/{name}" for name in outputs}
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    assert chain.run(stage, Path("not-used"), **changes) == 0
    expected = {
        path.relative_to(chain.work).as_posix(): path.read_bytes()
        for path in (chain.work / stage).rglob("*")
        if path.is_file()
    }
    found = {
        path.removeprefix("/chain-of-uris/out/"): files.cat(path) for path in files.find(f"/chain-of-uris/out/{stage}")
    }
    assert {below: content(below, data) for below, data in found.items()} == {
        below: content(below, data) for below, data in expected.items()
    }
    printed = capsys.readouterr()
    told = [printed.out, printed.err, *(data.decode(errors="ignore") for data in found.values())]
    assert not any(str(scratch) in text for text in told)
