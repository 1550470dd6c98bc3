"""Workers that are killed, and workers that do the same work at the same time."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from free2ds_common.results_store import writer
from tests.faults.conftest import FULL, ROWS_PER_PART
from tests.support.results import parts
from tests.support.stages import run_stages

KILLS = 20 if FULL else 2
WORKERS = 4 if FULL else 2


@pytest.fixture(scope="session")
def processes():
    """Starts workers that have torch already: each is a copy of one that imported the stages."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.stages"])
    return context


def work(folder, example, cache_uri, computed, seconds):
    """A worker; adds a byte to a file for every result that it computes."""
    add = writer.PartWriter.add

    def counted(self, key, bucket, result):
        with open(computed, "ab", buffering=0) as handle:
            handle.write(b".")
        add(self, key, bucket, result)

    writer.PartWriter.add = counted
    writer.ROWS_PER_PART = ROWS_PER_PART
    started = time.monotonic()
    run_stages(folder, example, cache_uri)
    Path(seconds).write_text(str(time.monotonic() - started))


def count(path):
    return path.stat().st_size if path.exists() else 0


def saved(store):
    return sum(int(path.name.split("-")[2]) for path in parts(store))


def test_killed_at_random_points(processes, run, undisturbed, example, tmp_path):
    """Never more than the part that was not ended is computed twice.

    The first half of the workers are killed after some results each, so that all of them are killed in the work; the
    others at any time.
    """
    store, computed, seconds = tmp_path / "store", tmp_path / "computed", tmp_path / "seconds"
    timed = processes.Process(target=work, args=(tmp_path / "w", example, str(tmp_path / "other"), os.devnull, seconds))
    timed.start()
    timed.join()
    whole = float(seconds.read_text())
    chance = random.Random(11)
    most = 2 * sum(undisturbed.answered.values()) // KILLS
    for number in range(KILLS):
        worker = processes.Process(
            target=work, args=(tmp_path / "killed", example, str(store), computed, tmp_path / "never")
        )
        worker.start()
        if number >= KILLS // 2:
            worker.join(chance.uniform(0, whole))
        else:
            enough = count(computed) + chance.randint(1, most)
            while worker.is_alive() and count(computed) < enough:
                time.sleep(0.001)
        if worker.is_alive():
            os.kill(worker.pid, signal.SIGKILL)
        worker.join()
    done, kept = count(computed), saved(store)
    assert done - kept <= KILLS * ROWS_PER_PART
    assert kept > 0
    last = run(store)
    assert last.selected == undisturbed.selected
    assert sum(last.computed.values()) == sum(last.answered.values()) - kept
    # What a writer had begun is no part.
    assert run(store).computed == {"llava": 0, "mgm": 0, "text": 0}


def test_several_workers_on_one_data_set(processes, run, undisturbed, example, tmp_path):
    store = tmp_path / "store"
    workers = [
        processes.Process(
            target=work, args=(tmp_path / f"w{number}", example, str(store), os.devnull, tmp_path / f"s{number}")
        )
        for number in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * WORKERS
    for number in range(WORKERS):
        assert (tmp_path / f"w{number}/selected.json").read_bytes() == undisturbed.selected
    after = run(store)
    assert (after.selected, after.computed) == (undisturbed.selected, {"llava": 0, "mgm": 0, "text": 0})
