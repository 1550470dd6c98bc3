"""The folder of a local run's results: what is replaced, what is refused, and what is left when something fails."""

import errno
import os
import subprocess
import sys
from contextlib import suppress

import pytest

from free2ds_common.errors import StageError
from free2ds_common.launch import output_folder
from free2ds_common.launch.output_folder import LOCK, OutputFolder

NAMES = ("selected.json", "scores", "rejects.jsonl")


def publish(path, text, parts=("part-0",), **options):
    """A run that leaves `text` in all its results."""
    with OutputFolder(path, NAMES, **options) as output:
        output.log_path.write_text(text)
        for name in ("selected.json", "rejects.jsonl"):
            (output.work / name).write_text(text)
        (output.work / "scores").mkdir()
        for part in parts:
            (output.work / "scores" / part).write_text(text)
        output.publish({name: output.work / name for name in NAMES})
    return output


def visible(path):
    return sorted(found.name for found in path.iterdir() if not found.name.startswith("."))


def test_results_and_log_of_an_earlier_run_are_replaced(tmp_path):
    publish(tmp_path, "old", parts=("part-0", "part-1"))
    publish(tmp_path, "new")
    assert visible(tmp_path) == ["rejects.jsonl", "run.log", "scores", "selected.json"]
    assert [part.name for part in (tmp_path / "scores").iterdir()] == ["part-0"]
    assert {(tmp_path / name).read_text() for name in ("selected.json", "rejects.jsonl", "run.log")} == {"new"}


def test_files_of_other_names_are_not_looked_at(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "work-plan").mkdir()
    publish(tmp_path, "one")
    publish(tmp_path, "two")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "work-plan").is_dir()


@pytest.mark.parametrize("name", [*NAMES, "run.log"])
def test_what_no_run_left_is_refused_before_anything_runs(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(StageError, match=rf"--output-dir: {tmp_path}/{name} is of no earlier run\."):
        publish(tmp_path, "new")
    assert (tmp_path / name).read_text() == "mine"
    assert visible(tmp_path) == [name]


def test_a_file_that_was_added_to_the_scores_is_refused(tmp_path):
    publish(tmp_path, "old")
    (tmp_path / "scores/mine.csv").write_text("mine")
    with pytest.raises(StageError, match=r"scores/mine.csv is of no earlier run\."):
        publish(tmp_path, "new")
    assert (tmp_path / "scores/mine.csv").read_text() == "mine"


@pytest.mark.parametrize("target", ["elsewhere", "nowhere"])
def test_a_link_in_the_place_of_a_result_is_refused(tmp_path, target):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/scores").symlink_to(tmp_path / target)
    with pytest.raises(StageError, match=rf"--output-dir: {tmp_path}/out/scores is a link\."):
        publish(tmp_path / "out", "new")


def test_a_marker_that_cannot_be_read_makes_nothing_ours(tmp_path):
    publish(tmp_path, "old")
    (tmp_path / output_folder.MARKER).write_text("[")
    with pytest.raises(StageError, match="is of no earlier run"):
        publish(tmp_path, "new")


def test_two_runs_never_share_a_folder(tmp_path):
    with (
        OutputFolder(tmp_path, NAMES),
        pytest.raises(StageError, match=rf"--output-dir: another run is writing to {tmp_path}\."),
    ):
        publish(tmp_path, "second")
    publish(tmp_path, "third")
    assert (tmp_path / "selected.json").read_text() == "third"


@pytest.mark.parametrize("failing", range(1, 8))
def test_when_a_move_fails_both_runs_results_are_there(tmp_path, monkeypatch, failing):
    """Whichever of the moves it is: three results and the log, the first of each pair takes the old one away."""
    publish(tmp_path, "old")
    moves, real = [], os.replace

    def replace(source, target):
        moves.append(target)
        if len(moves) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(output_folder.os, "replace", replace)
    with pytest.raises(StageError, match=r"cannot be moved to .* \(No space left on device\)\. They are in ") as failed:
        publish(tmp_path, "new")
    (work,) = tmp_path.glob("work-*")
    assert str(work) in str(failed.value)
    assert {(tmp_path / name).read_text() for name in ("selected.json", "rejects.jsonl", "run.log")} == {"old"}
    assert (tmp_path / "scores/part-0").read_text() == "old"
    assert {(work / name).read_text() for name in ("selected.json", "rejects.jsonl", "scores/part-0")} == {"new"}
    monkeypatch.undo()
    publish(tmp_path, "again")
    assert work.is_dir(), "kept results are not stale"


def test_a_run_that_fails_leaves_earlier_results_and_its_own_log(tmp_path):
    publish(tmp_path, "old")
    with suppress(ZeroDivisionError), OutputFolder(tmp_path, NAMES) as output:
        output.log_path.write_text("failed")
        raise ZeroDivisionError
    assert visible(tmp_path) == ["rejects.jsonl", "run.log", "scores", "selected.json", "unfinished.log"]
    assert (tmp_path / "run.log").read_text() == "old"
    publish(tmp_path, "new")
    assert visible(tmp_path) == ["rejects.jsonl", "run.log", "scores", "selected.json"]


def test_work_of_a_killed_run_is_cleared_and_kept_work_is_not(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from free2ds_common.launch.output_folder import OutputFolder; "
        "OutputFolder(Path(sys.argv[1]), []).__enter__(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    (killed,) = tmp_path.glob("work-*")
    kept = publish(tmp_path, "one", keep_work=True).work
    assert not killed.exists()
    publish(tmp_path, "two")
    assert [kept] == list(tmp_path.glob("work-*"))


def test_a_path_that_kubeflow_would_rewrite_is_refused(tmp_path):
    with pytest.raises(StageError, match=r"holds \{\{\$, which Kubeflow Pipelines replaces"):
        publish(tmp_path / "{{$.inputs}}", "new")


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StageError, match=rf"--output-dir: {tmp_path}/file/out cannot be written to \(Not a directory\)"
    ):
        publish(tmp_path / "file/out", "new")


def test_a_full_disk_at_the_start_is_one_sentence(tmp_path, monkeypatch):
    def full(**options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(output_folder.tempfile, "mkdtemp", full)
    with pytest.raises(StageError, match=r"cannot be written to \(No space left on device\)"):
        publish(tmp_path, "new")
    monkeypatch.undo()
    publish(tmp_path, "new")
    assert (tmp_path / LOCK).exists()
