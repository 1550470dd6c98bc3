"""Running a graph on this machine: what the user sees, and what is left when it fails."""

import json
import os
import subprocess
import sys

import pytest
from kfp import compiler, dsl

import pipeline
from free2ds_common.failure import ERROR_FILE, Failure
from free2ds_common.launch import local
from free2ds_common.launch.graph_process import GraphFailed, run_graph, stop_group, watch
from free2ds_common.launch.local import RESULTS
from free2ds_common.launch.output_folder import OutputFolder


class Printed:
    """A process that has printed lines and ended."""

    def __init__(self, *lines, exit_code=0):
        self.stdout = [f"{line}\n" for line in lines]
        self._exit_code = exit_code

    def wait(self):
        return self._exit_code


def test_only_the_stages_own_lines_are_shown_and_all_are_kept(tmp_path, capsys):
    lines = [
        "10:00:00.000 - INFO - Executing task \x1b[96m'ingest'\x1b[0m",
        '    {"inputs": {}}',
        "    2026-01-02 10:00:01,002 INFO components.ingest.stage: read 3 = written 3 + rejected 0",
        "    2026-01-02 10:00:02,003 WARNING free2ds_common.inference.attention_stage: a word",
    ]
    watch(Printed(*lines), tmp_path, tmp_path / "run.log")
    assert capsys.readouterr().out == (
        "10:00:01 ingest: read 3 = written 3 + rejected 0\n10:00:02 inference: WARNING a word\n"
    )
    kept = (tmp_path / "run.log").read_text()
    assert kept.count("\n") == 4
    assert "Executing task 'ingest'" in kept


@pytest.mark.parametrize(
    ("lines", "message", "exit_code"),
    [
        (
            ["    ValueError: boom", "", "10:00 - Task \x1b[96m'bert-features'\x1b[0m finished with status FAILURE"],
            "bert_features: ValueError: boom. The whole log is in ",
            1,
        ),
        (
            ["10:00 - Task 'mgm-attention' finished with status FAILURE"],
            "mgm_attention: it ended without a message; perhaps the machine ran out of memory. The whole log is in ",
            1,
        ),
        (
            [
                "    [KFP Executor 2026-01-02 10:00:01,002 INFO]: Could not load library with AVX2 support due to:",
                """    ModuleNotFoundError("No module named 'faiss.swigfaiss_avx2'")""",
                "10:00 - Task 'llava-attention' finished with status FAILURE",
            ],
            "llava_attention: it ended without a message; perhaps the machine ran out of memory. The whole log is in ",
            1,
        ),
        (["    KeyboardInterrupt", "Task 'split' finished with status FAILURE"], "split: KeyboardInterrupt. The", 1),
        (["RuntimeError: x. Inner task failed: 'split'."], "split: it ended without a message", 1),
        (["OSError: [Errno 28] No space left on device"], "kfp.local: OSError: [Errno 28] No space left on device.", 1),
    ],
)
def test_a_failure_is_one_sentence(lines, message, exit_code, tmp_path):
    with pytest.raises(GraphFailed) as failed:
        watch(Printed(*lines, exit_code=1), tmp_path, tmp_path / "run.log")
    assert str(failed.value).startswith(message)
    assert failed.value.exit_code == exit_code


def leave_failure(work, task, stage, exit_code, sentence):
    """What a task leaves beside its outputs when it fails."""
    path = work / "tasks/free2ds" / task / ERROR_FILE
    path.parent.mkdir(parents=True)
    Failure(stage, sentence, exit_code, {}).write(path)


def test_a_task_that_says_why_it_failed_is_quoted(tmp_path):
    leave_failure(tmp_path, "joint-selection", "joint_selection", 2, "ratio: got 2, wanted a number in (0, 1].")
    line = "10:00 - Task 'joint-selection' finished with status FAILURE"
    with pytest.raises(GraphFailed) as failed:
        watch(Printed("    ValueError: of another library", line), tmp_path, tmp_path / "run.log")
    assert str(failed.value) == "ratio: got 2, wanted a number in (0, 1]."
    assert failed.value.exit_code == 2


def test_a_task_that_crashed_is_named_with_its_error(tmp_path):
    leave_failure(tmp_path, "split", "split", 1, "ValueError: boom")
    with pytest.raises(GraphFailed, match=r"^split: ValueError: boom. The whole log is in .*run.log.$") as failed:
        watch(Printed("Task 'split' finished with status FAILURE"), tmp_path, tmp_path / "run.log")
    assert failed.value.exit_code == 1


def test_of_two_tasks_that_failed_the_first_one_is_quoted(tmp_path):
    leave_failure(tmp_path, "llava-attention", "llava_attention", 2, "model: second")
    leave_failure(tmp_path, "mgm-attention", "mgm_attention", 2, "model: first")
    os.utime(tmp_path / "tasks/free2ds/mgm-attention" / ERROR_FILE, (1, 1))
    with pytest.raises(GraphFailed, match=r"^model: first$"):
        watch(Printed("Task 'score-shard' finished with status FAILURE"), tmp_path, tmp_path / "run.log")


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def crash():
    raise ValueError("boom")


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def never(after: int):
    print("never runs")


def test_the_graph_stops_at_a_crash(tmp_path):
    @dsl.pipeline(name="crashing")
    def crashing():
        never(after=1).after(crash())

    compiler.Compiler().compile(crashing, str(tmp_path / "free2ds.yaml"))
    (tmp_path / "arguments.json").write_text("{}")
    with pytest.raises(GraphFailed, match=r"^crash: ValueError: boom. The whole log is in .*run.log.$"):
        run_graph(tmp_path, tmp_path / "run.log", threads=1, facts={})
    log = (tmp_path / "run.log").read_text()
    assert "Traceback" in log
    assert "Executing task 'never'" not in log


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def echo(path: str) -> str:
    import sys

    return f"{path} {sys.prefix}"


def test_a_path_with_python3_in_it_reaches_the_stage_unchanged(tmp_path):
    work = tmp_path / "lib" / "python3.11 copy"
    work.mkdir(parents=True)

    @dsl.pipeline(name="echoing")
    def echoing(path: str) -> str:
        return echo(path=path).output

    compiler.Compiler().compile(echoing, str(work / "free2ds.yaml"))
    (work / "arguments.json").write_text(json.dumps({"path": "/lib/python3/x"}))
    run_graph(work, work / "run.log", threads=1, facts={})
    assert json.loads((work / "outputs.json").read_text()) == {"Output": f"/lib/python3/x {sys.prefix}"}


def test_stopping_ends_grandchildren_too():
    process = subprocess.Popen(
        ["sh", "-c", "sleep 600 & echo started; wait"], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "started\n"
    stop_group(process)
    # The pipe ends when the last process that holds it is gone.
    assert process.stdout.read() == ""
    process.wait(timeout=5)


def test_a_run_without_an_output_has_failed(tmp_path):
    outputs = {name: str(tmp_path / "work" / file) for name, (file, _) in RESULTS.items()}
    with pytest.raises(GraphFailed, match="the run ended without its output selected; perhaps a stage was killed"):
        local._results(outputs, RESULTS)


def test_a_missing_data_set_leaves_earlier_results_alone(tmp_path, capsys):
    output_dir = tmp_path / "out"
    with OutputFolder(output_dir, ["selected.json"]) as earlier:
        (earlier.work / "selected").write_text("[1]")
        earlier.log_path.write_text("log of the earlier run")
        earlier.publish({"selected.json": earlier.work / "selected"})
    parameters = [f"dataset_uri={tmp_path}/none.json", f"image_root_uri={tmp_path}"]
    options = [option for parameter in parameters for option in ("--param", parameter)]
    assert pipeline.main(["run", "--output-dir", str(output_dir), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}/none.json: ")
    assert error.count("\n") == 1
    visible = sorted(path.name for path in output_dir.iterdir() if not path.name.startswith("."))
    assert visible == ["run.log", "selected.json"]
    assert json.loads((output_dir / "selected.json").read_text()) == [1]
    assert (output_dir / "run.log").read_text() == "log of the earlier run"


def test_rejects_are_shown_when_there_are_too_many(tmp_path, capsys):
    record = {"id": "a", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}
    (tmp_path / "d.json").write_text(json.dumps([record, {"id": "b"}]))
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    options = ["--param", f"dataset_uri={tmp_path}/d.json", "--param", "image_root_uri="]
    for name in ("llava_model", "mgm_model", "bert_model"):
        options += ["--param", f"{name}={tmp_path}/model"]
    assert pipeline.main(["run", "--output-dir", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert f"The unusable records are in {tmp_path}/out/unfinished-rejects.jsonl" in error
    assert "1 of 2 records rejected (conversations_missing 1), more than max_reject_fraction 0.05 allows." in error
    rejects = [json.loads(line) for line in (tmp_path / "out/unfinished-rejects.jsonl").read_text().splitlines()]
    assert [(reject["index"], reject["record"]) for reject in rejects] == [(1, {"id": "b"})]


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def told() -> str:
    import os

    return os.environ["FREE2DS_COMMAND"]


def test_the_stages_are_told_of_the_run(tmp_path, monkeypatch):
    """Also where an earlier run's word is in the environment."""
    monkeypatch.setenv("FREE2DS_COMMAND", "another")

    @dsl.pipeline(name="telling")
    def telling() -> str:
        return told().output

    compiler.Compiler().compile(telling, str(tmp_path / "free2ds.yaml"))
    (tmp_path / "arguments.json").write_text("{}")
    run_graph(tmp_path, tmp_path / "run.log", threads=1, facts={"FREE2DS_COMMAND": "free2ds run"})
    assert json.loads((tmp_path / "outputs.json").read_text()) == {"Output": "free2ds run"}


@pytest.mark.parametrize(
    ("asked", "why"), [(0, "num_clusters=0: a 39th, at most 1000"), (5, "num_clusters=5")], ids=["fitting", "asked"]
)
@pytest.mark.parametrize(("command", "line"), [("free2ds run", "Command: free2ds run\n"), ("", "")])
def test_the_terminal_says_how_the_results_were_made(tmp_path, capsys, command, line, asked, why):
    summary = {
        "counts": {"written": 2, "rejected": 1},
        "pool": 9,
        "without_iou": 3,
        "ingest": {"dataset_sha256": "abc"},
        "warnings": ["Something is doubtful."],
        "reuse": {"llava": {"reused": 1200, "computed": 34}},
        "models": {"text": {"num_clusters": 2, "num_clusters_asked": asked, "distinct_messages": 1234}},
        "run": {"started": "2001-09-09T01:46:40+00:00", "seconds": 1.0, "command": command, "threads": 4},
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "rejects.jsonl").write_text("")
    local.print_results(tmp_path, 12)
    assert (
        f"Text: 2 clusters of 1,234 distinct messages ({why}).\n"
        "llava: 34 results computed, 1,200 taken from the results store.\nwarning: Something is doubtful.\n"
        f"{line}Started 2001-09-09T01:46:40+00:00, 4 threads per stage; sha256 of the data set: abc\nResults in"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("frozen", [{}, {"frozen_from": "abc"}], ids=["trained", "frozen"])
def test_the_terminal_counts_one_as_one(tmp_path, capsys, frozen):
    summary = {
        "counts": {"written": 1, "rejected": 1},
        "pool": 1,
        "without_iou": 0,
        "ingest": {"dataset_sha256": "abc"},
        "warnings": [],
        "reuse": {"mgm": {"reused": 0, "computed": 1}},
        "models": {"text": {"num_clusters": 1, "num_clusters_asked": 0, "distinct_messages": 1, **frozen}},
        "run": {"started": "2001-09-09T01:46:40+00:00", "seconds": 1.0, "command": "", "threads": 1},
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "rejects.jsonl").write_text("")
    local.print_results(tmp_path, 12)
    out = capsys.readouterr().out
    assert "Finished in 12 s: 1 of 1 usable record selected, 1 record unusable, 0 ranked" in out
    assert ("Text: 1 cluster of an earlier run" if frozen else "Text: 1 cluster of 1 distinct message (") in out
    assert "mgm: 1 result computed, 0 taken from the results store." in out
    assert "+00:00, 1 thread per stage;" in out
