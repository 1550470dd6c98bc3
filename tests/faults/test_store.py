"""A results store that fails, is damaged or full: the selection stays what it was, and the counts add up."""

import os
import random
import subprocess

import pytest

from free2ds_common.results_store import writer
from free2ds_common.retry import StoreError
from tests.faults.conftest import FULL
from tests.support import faulty
from tests.support.requirements import missing
from tests.support.results import parts

NONE = {"llava": 0, "mgm": 0, "text": 0}


def test_a_second_run_computes_nothing(run, undisturbed, tmp_path):
    first = run(tmp_path / "store")
    assert (first.selected, first.reused) == (undisturbed.selected, NONE)
    second = run(tmp_path / "store", num_shards=5)
    assert (second.selected, second.computed) == (undisturbed.selected, NONE)


@pytest.fixture
def failing(tmp_path):
    """A store, and its file system's class."""
    store = faulty.install()
    store.failed = 0
    yield f"faulty://{tmp_path}/store", store
    store.every = 0


@pytest.mark.parametrize("how", ["busy", "timeout", "reset", "truncated", "altered"] if FULL else ["busy", "truncated"])
@pytest.mark.parametrize("every", [2, 3, 7] if FULL else [3])
def test_every_kth_request_fails(run, undisturbed, failing, how, every):
    uri, store = failing
    store.every, store.how = every, how
    first = run(uri)
    second = run(uri)
    assert store.failed > 0
    assert first.selected == second.selected == undisturbed.selected
    assert first.computed == undisturbed.computed
    # Bytes that are altered twice on their way are taken for a part that is.
    assert second.computed == NONE or how == "altered"


def test_a_store_that_never_answers_ends_the_run_before_it_computes(run, failing):
    uri, store = failing
    store.every, store.how = 1, "timeout"
    with pytest.raises(StoreError, match="could not be read in 8 tries"):
        run(uri)


def test_a_store_that_takes_nothing_costs_the_results_alone(run, undisturbed, failing, monkeypatch, caplog):
    uri, store = failing

    def refuse(*_, **__):
        raise PermissionError("Forbidden")

    monkeypatch.setattr(store, "pipe_file", refuse)
    assert run(uri).selected == undisturbed.selected
    assert "results could not be kept" in caplog.text
    assert run(uri).computed == undisturbed.computed


@pytest.mark.parametrize("seed", range(5 if FULL else 1))
def test_damaged_parts_are_computed_again(run, undisturbed, tmp_path, caplog, seed):
    """Some cut off, some with another byte, some empty."""
    run(tmp_path / "store")
    chance = random.Random(seed)
    damaged = chance.sample(parts(tmp_path / "store"), 6)
    lost = {"attention": 0, "text": 0}
    for number, path in enumerate(damaged):
        data = bytearray(path.read_bytes())
        if number % 3 == 0:
            data = data[: chance.randrange(len(data))]
        elif number % 3 == 1:
            data[chance.randrange(len(data))] ^= 0xFF
        else:
            data = bytearray()
        path.write_bytes(data)
        lost[path.parts[-3]] += int(path.name.split("-")[2])
    caplog.clear()
    again = run(tmp_path / "store")
    assert again.selected == undisturbed.selected
    assert again.computed["llava"] + again.computed["mgm"] == lost["attention"]
    assert again.computed["text"] == lost["text"]
    for path in damaged:
        assert path.name in caplog.text
    assert run(tmp_path / "store").computed == NONE


def test_a_clock_that_jumps_changes_nothing(run, undisturbed, tmp_path, monkeypatch):
    """Neither the wall clock, back by years and forth again, nor one that stands still."""
    chance = random.Random(3)
    monkeypatch.setattr("time.time", lambda: chance.choice([0.0, 4e9]))
    monkeypatch.setattr(writer, "SECONDS_PER_PART", 0.0)
    assert run(tmp_path / "store").selected == undisturbed.selected
    second = run(tmp_path / "store")
    assert (second.selected, second.computed) == (undisturbed.selected, NONE)


def test_a_full_disk_costs_the_results_alone(run, undisturbed, tmp_path, caplog):
    """A file system of 64 kB: some parts fit."""
    if os.geteuid() != 0:
        missing("needs root, to mount a small file system")
    store = tmp_path / "small"
    store.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(store)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        first = run(store)
        assert first.selected == undisturbed.selected
        assert "has no room left on its disk" in caplog.text
        kept = len(parts(store))
        assert kept
        second = run(store)
        assert second.selected == undisturbed.selected
        assert sum(second.reused.values()) > 0
    finally:
        subprocess.run(["umount", str(store)], check=True)
