"""Clocks that jump by years, forwards and backwards, while stages run: the same outputs, the same waiting."""

import itertools
import time
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest

from free2ds_common.downloads import local_folder
from free2ds_common.retry import MAX_TRIES, StoreError, retried
from tests.faults.test_inputs_store import outputs
from tests.support.commands import STAGES

YEAR_S = 365 * 86_400.0
# The page says when it was made; the summary too.
SAYS_WHEN = {"report", "summary"}


@pytest.fixture
def jumping(monkeypatch):
    """The time of day is another one whenever somebody looks; the monotonic clock goes on."""
    now, years = time.time(), itertools.cycle([0, 10, -10, 1, -1])
    monkeypatch.setattr(time, "time", lambda: now + YEAR_S * next(years))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_writes_the_same(chain, jumping, tmp_path, stage):
    assert chain.run(stage, tmp_path) == 0
    found, wanted = outputs(tmp_path), outputs(chain.work / stage)
    assert found.keys() == wanted.keys()
    differing = {path.as_posix() for path in found if found[path] != wanted[path]}
    assert differing <= SAYS_WHEN


def test_a_model_is_copied_once(jumping, tmp_path):
    fsspec.filesystem("memory").pipe("/clock-model/config.json", b"{}")
    folders = {local_folder("memory://clock-model", str(tmp_path)) for _ in range(5)}
    assert [Path(folder, "config.json").read_bytes() for folder in folders] == [b"{}"]


def test_a_store_is_tried_as_often(jumping, monkeypatch):
    pauses = []
    monkeypatch.setattr(
        "free2ds_common.retry.time", SimpleNamespace(time=time.time, monotonic=time.monotonic, sleep=pauses.append)
    )
    with pytest.raises(StoreError, match=f"in {MAX_TRIES} tries"):
        retried("gs://a", lambda: (_ for _ in ()).throw(ConnectionError("reset")))
    assert len(pauses) == MAX_TRIES - 1
