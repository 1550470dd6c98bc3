"""Runs the compiled pipeline on this machine through kfp.local: progress, its results, one sentence when it fails."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from free2ds_common.cli import EXIT_WRONG_SETUP
from free2ds_common.docker_run import container_arguments, stop_containers
from free2ds_common.errors import StageError

# kfp.local runs at most two turns of a loop side by side.
SIDE_BY_SIDE = 2
STOP_TIMEOUT_S = 5.0
CONTAINERS = "containers.json"
TASKS = "tasks"

LOG_LINE = re.compile(
    r"\S+ (?P<time>\d\d:\d\d:\d\d)\S* (?P<level>[A-Z]+) (?:components|free2ds_common)\.(?P<where>\w+)\S*: "
)
FAILED_TASK = re.compile(r"Task '(?P<task>[\w-]+)' finished with status FAILURE|Inner task failed: '(?P<inner>[\w-]+)'")
# As a traceback ends. faiss prints exceptions that it got over, as Name("...").
EXCEPTION = re.compile(r"[\w.]*(Error|Exception|Interrupt)(: .*)?")
COLOUR = re.compile(r"\x1b\[\d+m")
RESULTS = {
    "selected": ("selected.json", "the selected records, LLaVA JSON, in input order"),
    "scores": ("scores", "Parquet, one row per record: every score, both outcomes, probability, selected"),
    "random": ("random.json", "a random draw of the same size: the control to train against"),
    "rejects": ("rejects.jsonl", "the unusable records, each with its reason"),
    "report": ("report.html", "the report; open it in a browser"),
    "summary": ("summary.json", "every count, the tilt of the draw, the parameters"),
}


def execute_graph(work: str) -> None:
    """Run work/free2ds.yaml with work/arguments.json through kfp.local; outputs.json says where its outputs are.

    With work/containers.json, which holds what every container is started with, each task runs in its image; without
    it, each is a process.

    `run_locally` starts this in a process of its own: kfp.local changes process-wide state, prints a page per task, and
    its tasks can only be stopped together as a process group.

    Args:
        work: The folder.
    """
    import kfp.components
    from kfp import local

    folder = Path(work)
    if (folder / CONTAINERS).exists():
        runner = local.DockerRunner(**json.loads((folder / CONTAINERS).read_text(encoding="utf-8")))
    else:
        runner = local.SubprocessRunner(use_venv=False)
        # It replaces the word python3 by this in everything that it hands to a task, paths in parameters included
        # (/usr/lib/python3/...). As it stands here nothing changes, and `run_graph` sees to it that python3 is this
        # python.
        sys.executable = "python3"
    local.init(
        runner,
        pipeline_root=str(folder / TASKS),
        # kfp.local caches by name and URI, not by content: a changed file would go unnoticed.
        enable_caching=False,
    )
    graph = kfp.components.load_component_from_file(str(folder / "free2ds.yaml"))
    outputs = graph(**json.loads((folder / "arguments.json").read_text(encoding="utf-8"))).outputs
    values = {name: getattr(output, "path", output) for name, output in outputs.items()}
    (folder / "outputs.json").write_text(json.dumps(values), encoding="utf-8")


def without_retries(spec: dict[str, Any]) -> dict[str, Any]:
    """The pipeline spec with every task tried once: on one machine a failure repeats itself."""
    for component in (spec["root"], *spec["components"].values()):
        for task in component.get("dag", {}).get("tasks", {}).values():
            task.pop("retryPolicy", None)
    return spec


class GraphFailed(Exception):
    """A stage of a local run failed.

    Attributes:
        exit_code: What the command exits with.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        """Keep both."""
        super().__init__(message)
        self.exit_code = exit_code


def watch(process: subprocess.Popen[str], log_path: Path) -> None:
    """Show the stages' own progress lines, keep everything in a log file, and stop at the first failure.

    Args:
        process: Runs `execute_graph`, stdout and stderr in one pipe.
        log_path: Gets every line.

    Raises:
        GraphFailed: A stage failed; the message is the stage's own sentence where it has one.
    """
    assert process.stdout is not None
    task = last_exception = ""
    with log_path.open("w", encoding="utf-8") as log:
        for line in process.stdout:
            line = COLOUR.sub("", line)
            log.write(line)
            log.flush()
            line = line.strip()
            if shown := LOG_LINE.match(line):
                level = "" if shown["level"] == "INFO" else shown["level"] + " "
                print(f"{shown['time']} {shown['where']}: {level}{line[shown.end() :]}", flush=True)
            elif line.startswith("error: "):
                raise GraphFailed(line.removeprefix("error: "), EXIT_WRONG_SETUP)
            elif failed := FAILED_TASK.search(line):
                task = (failed["task"] or failed["inner"]).replace("-", "_")
                break
            elif EXCEPTION.fullmatch(line):
                last_exception = line
    if task or process.wait() != 0:
        what = last_exception or "it ended without a message; perhaps the machine ran out of memory"
        raise GraphFailed(f"{task or 'kfp.local'}: {what}. The whole log is in {log_path}.", 1)


def run_graph(work: Path, log_path: Path, threads: int) -> None:
    """Run `execute_graph` in a process group that never outlives this call.

    Args:
        work: The folder with free2ds.yaml and arguments.json.
        log_path: Gets every line that the stages print.
        threads: CPU threads per stage.

    Raises:
        GraphFailed: A stage failed.
    """
    repository = str(Path(__file__).resolve().parents[1])
    scratch = work / "tmp"
    scratch.mkdir()
    python = work / "bin" / "python3"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    environment = {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        # The tasks import the stages from here, whatever folder they run in.
        "PYTHONPATH": os.pathsep.join(filter(None, [repository, os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
        # Every task leaves a copy of its own code in the temporary folder.
        "TMPDIR": str(scratch),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "free2ds_common.local_run", str(work)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
    )
    try:
        watch(process, log_path)
    except BaseException:
        stop_group(process)
        raise


def stop_group(process: subprocess.Popen[str]) -> None:
    """End a process and everything it started: first by request, after STOP_TIMEOUT_S by force."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + STOP_TIMEOUT_S
        try:
            os.killpg(process.pid, number)
            while time.monotonic() < deadline:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.05)
        except ProcessLookupError:
            return


def publish_results(outputs: Mapping[str, str], output_dir: Path) -> None:
    """Move a run's results to where the user wants them; an earlier run's are replaced.

    Args:
        outputs: Paths by output name.
        output_dir: On the same file system.

    Raises:
        GraphFailed: An output is missing: kfp.local takes a container that is gone before it looks for a finished one.
    """
    for name in RESULTS:
        if not os.path.exists(outputs[name]):
            raise GraphFailed(f"kfp.local: the run ended without its output {name}; perhaps a stage was killed.", 1)
    for name, (file_name, _) in RESULTS.items():
        target = output_dir / file_name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(outputs[name], target)


def print_results(output_dir: Path, seconds: float) -> None:
    """Say where a run's results are and what they mean.

    Args:
        output_dir: Holds them.
        seconds: How long the run took.
    """
    summary = json.loads((output_dir / "summary.json").read_text(encoding="utf-8"))
    with (output_dir / "rejects.jsonl").open(encoding="utf-8") as lines:
        rejected = sum(1 for _ in lines) + summary["counts"]["rejected"]
    print(
        f"\nFinished in {seconds:.0f} s: {summary['counts']['written']} of {summary['pool']} usable records selected, "
        f"{rejected} records unusable, {summary['without_iou']} ranked without comparing where the models look."
    )
    print(f"Results in {output_dir}:")
    for file_name, meaning in RESULTS.values():
        print(f"  {file_name:<15} {meaning}")


def run_locally(
    spec: dict[str, Any],
    platform: dict[str, Any],
    values: Mapping[str, Any],
    num_shards: int,
    output_dir: Path,
    *,
    keep_work: bool,
    in_images: bool = False,
    network: str = "",
) -> int:
    """Run the whole pipeline and leave its results in a folder.

    Args:
        spec: The compiled pipeline, with the images that are to be used.
        platform: Its second document.
        values: The parameters that are not left at their defaults.
        num_shards: Turns of the loop.
        output_dir: Gets the results; what an earlier run left there stays until this one has succeeded.
        keep_work: Keep what the stages handed to each other, in a folder below `output_dir`.
        in_images: Run every stage in its image instead of as a process.
        network: Docker network of the containers; empty for Docker's own.

    Returns:
        0, or what the command exits with after one sentence on stderr.

    Raises:
        StageError: The folder cannot be written to, or Docker does not answer.
    """
    # More threads than cores make both shards slower.
    threads = max(1, (os.cpu_count() or 1) // min(SIDE_BY_SIDE, num_shards))
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=output_dir, prefix="work-"))
    except OSError as error:
        raise StageError(f"--output-dir: {output_dir} cannot be written to ({error.strerror}).") from None
    log_path = output_dir / "run.log"
    print(f"Running on this machine; everything the stages print goes to {log_path}", flush=True)
    start = time.monotonic()
    try:
        with (work / "free2ds.yaml").open("w", encoding="utf-8") as handle:
            yaml.safe_dump_all([without_retries(spec), platform], handle)
        (work / "arguments.json").write_text(json.dumps(values), encoding="utf-8")
        # Or Docker makes it, and then it belongs to root.
        (work / TASKS).mkdir()
        if in_images:
            containers = container_arguments(values, work.name, threads, network)
            (work / CONTAINERS).write_text(json.dumps(containers), encoding="utf-8")
        run_graph(work, log_path, threads)
        publish_results(json.loads((work / "outputs.json").read_text(encoding="utf-8")), output_dir)
    except GraphFailed as failure:
        message = str(failure)
        for rejects in work.glob("tasks/*/ingest/rejects"):
            if rejects.stat().st_size:
                shutil.copy(rejects, output_dir / "rejects.jsonl")
                print(f"The unusable records are in {output_dir / 'rejects.jsonl'}", file=sys.stderr)
            message = message.replace(str(rejects), str(output_dir / "rejects.jsonl"))
        print(f"error: {message}", file=sys.stderr)
        return failure.exit_code
    finally:
        try:
            if in_images:
                stop_containers(work.name)
        finally:
            if not keep_work:
                shutil.rmtree(work, ignore_errors=True)
    print_results(output_dir, time.monotonic() - start)
    return 0


if __name__ == "__main__":
    execute_graph(sys.argv[1])
