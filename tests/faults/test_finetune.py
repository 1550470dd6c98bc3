"""Trainings in processes of their own: killed ones, and several that train together."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest

from components.finetune.checkpoints import COMPLETE, Checkpoints
from components.finetune.training import Work, train_in_processes
from free2ds_common.errors import StageError
from free2ds_common.failure import EXIT_STOPPED
from tests.faults.conftest import FULL
from tests.support.training import losses, small_llava, training, write_records

KILLS = 10 if FULL else 1
STEPS = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Where the records are, and the model."""
    folder = tmp_path_factory.mktemp("made")
    write_records(folder)
    return folder, small_llava(folder / "llava")


def command(made, out, **changes):
    config = asdict(training(*made, out, num_epochs=2, lora_dropout=0.2, **changes))
    options = [f"--{name.replace('_', '-')}={value}" for name, value in config.items() if not isinstance(value, bool)]
    return [sys.executable, "-m", "components.finetune", *options]


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_random_points_the_losses_are_the_same(made, tmp_path, processes):
    """With two, torchrun's launcher is killed; what it started ends with it, or it would go on training beside us."""
    together = {"num_processes": processes}
    subprocess.run(command(made, f"whole{processes}", **together), check=True, capture_output=True)
    chance = random.Random(5)
    for number in range(KILLS):
        cache, after = tmp_path / f"cache{number}", chance.randrange(1, STEPS - 1)
        out = f"killed{processes}-{number}"
        again = command(made, out, cache_uri=str(cache), checkpoint_steps=1, **together)
        process = subprocess.Popen(again, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not list(cache.glob(f"finetune/*/checkpoint-{after}/{COMPLETE}")):
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(chance.random() / 10)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        subprocess.run(again, check=True, capture_output=True)
        assert losses(made[0], out) == losses(made[0], f"whole{processes}")


def test_several_processes_end_after_the_same_step_when_asked_to(made, tmp_path):
    again = command(made, "stopped", cache_uri=str(tmp_path), checkpoint_steps=1000, num_processes=2, max_steps=500)
    process = subprocess.Popen(again, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for _ in range(2):  # each process says it when it can be asked
        while "500 steps of" not in process.stdout.readline():
            assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate()
    assert process.returncode == EXIT_STOPPED
    assert "error: stopped as asked to" in said
    assert len(list(tmp_path.glob(f"finetune/*/checkpoint-*/{COMPLETE}"))) == 1


def test_two_processes_learn_as_one_does(made, tmp_path):
    """Their own picture workers, and a batch of text alone, are in it."""

    def trained(processes, **changes):
        config = training(*made, lora_dropout=0.0, gradient_checkpointing=True, num_processes=processes, **changes)
        checkpoints = Checkpoints("", {}, tmp_path / str(processes))
        return train_in_processes(Work(config, made[1], "cpu", processes, checkpoints, None))

    one, two = trained(1), trained(2, picture_workers=1)
    # In the last step are two records, one pass: the other process repeats records from the beginning.
    for name in ("loss", "tokens"):
        found, wanted = ([step[name] for step in outcome.history[:2]] for outcome in (two, one))
        assert found == pytest.approx(wanted, abs=1e-5)
    assert len(two.history) == len(one.history) == 3


def test_what_a_process_cannot_do_is_one_sentence(made, tmp_path):
    config = training(*made, num_processes=2, projector="connector")
    with pytest.raises(StageError, match="has no module connector"):
        train_in_processes(Work(config, made[1], "cpu", 2, Checkpoints("", {}, tmp_path), None))
