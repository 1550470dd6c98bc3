"""Example data, and the selection that no fault may change."""

import os

import pytest

from examples.make import make
from free2ds_common import retry
from free2ds_common.results_store import writer
from tests.support.stages import run_stages

# Full numbers by `make faults`; in between, few enough for every change.
FULL = bool(os.environ.get("FREE2DS_FAULTS"))
ROWS_PER_PART = 3


@pytest.fixture(scope="session")
def example(tmp_path_factory):
    folder = tmp_path_factory.mktemp("example")
    make(folder, 40 if FULL else 24, seed=7)
    return folder


@pytest.fixture(scope="session")
def undisturbed(example, tmp_path_factory):
    """A run without a store."""
    return run_stages(tmp_path_factory.mktemp("undisturbed"), example, "")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Many parts, and a store that is asked again at once."""
    monkeypatch.setattr(writer, "ROWS_PER_PART", ROWS_PER_PART)
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(retry, "LONGEST_PAUSE_S", 0.01)


@pytest.fixture
def run(example, tmp_path, monkeypatch):
    """Run all stages with a store; the counts always add up."""
    # Half of a run's time here; no fault reaches it.
    monkeypatch.setattr("components.joint_selection.stage.write_report", lambda *_: None)

    def start(cache_uri, **options):
        outcome = run_stages(tmp_path / "work", example, str(cache_uri), **options)
        for model, answered in outcome.answered.items():
            assert outcome.reused[model] + outcome.computed[model] == answered
        return outcome

    return start
