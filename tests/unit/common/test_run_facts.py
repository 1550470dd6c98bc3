"""What summary and report say of when and how a run was made."""

import pytest

from free2ds_common import run_facts as facts_module
from free2ds_common.run_facts import RunFacts, environment_of, run_facts


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Two minutes after 2001-09-09 01:46:40 UTC, and nothing told."""
    monkeypatch.setattr(facts_module.time, "time", lambda: 1_000_000_120.04)
    for name in ("FREE2DS_STARTED", "FREE2DS_COMMAND", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_what_the_command_tells_its_stages():
    assert environment_of(1_000_000_000, "free2ds run") == {
        "FREE2DS_STARTED": "2001-09-09T01:46:40+00:00",
        "FREE2DS_COMMAND": "free2ds run",
    }


def test_the_run_counts_from_its_own_start(environment):
    for name, value in environment_of(1_000_000_000, "free2ds run").items():
        environment.setenv(name, value)
    environment.setenv("OMP_NUM_THREADS", "3")
    assert run_facts(1_000_000_100) == RunFacts("2001-09-09T01:46:40+00:00", 120.0, "free2ds run", 3)


def test_without_a_command_the_stage_counts_from_its_own_start(environment):
    environment.setattr(facts_module.os, "cpu_count", lambda: 5)
    assert run_facts(1_000_000_100) == RunFacts("2001-09-09T01:48:20+00:00", 20.0, "", 5)


@pytest.mark.parametrize(("value", "threads"), [("4,2", 4), ("0", 5), ("many", 5), ("", 5)])
def test_threads(environment, value, threads):
    environment.setattr(facts_module.os, "cpu_count", lambda: 5)
    environment.setenv("OMP_NUM_THREADS", value)
    assert run_facts(1_000_000_100).threads == threads


def test_a_command_shows_no_credentials(environment):
    environment.setenv("FREE2DS_COMMAND", "free2ds run --param dataset_uri=https://me:secret@host/d.json")
    assert "secret" not in run_facts(1_000_000_100).command
