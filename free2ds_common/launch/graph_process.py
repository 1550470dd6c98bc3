"""The process in which kfp.local runs the graph, and how its output becomes progress lines and one sentence.

A process of its own, because kfp.local changes process-wide state, prints a page per task, and its tasks can only be
stopped together, as a process group.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from free2ds_common.failure import ERROR_FILE, EXIT_CRASH, EXIT_WRONG_SETUP, Failure
from free2ds_common.redact import redacted

# For the batch in flight of a stage with a results store; the others end at once.
STOP_TIMEOUT_S = 15.0
# In the work folder: the compiled pipeline, its arguments, how containers are started, the paths of its outputs.
PIPELINE, ARGUMENTS, CONTAINERS, OUTPUTS = "free2ds.yaml", "arguments.json", "containers.json", "outputs.json"
# In the work folder: what the tasks write.
TASKS = "tasks"

LOG_LINE = re.compile(
    r"\S+ (?P<time>\d\d:\d\d:\d\d)\S* (?P<level>[A-Z]+) (?:components|free2ds_common)\.(?P<where>\w+)\S*: "
)
FAILED_TASK = re.compile(r"Task '(?P<task>[\w-]+)' finished with status FAILURE|Inner task failed: '(?P<inner>[\w-]+)'")
# As a traceback ends. faiss prints exceptions that it got over, as Name("...").
EXCEPTION = re.compile(r"[\w.]*(Error|Exception|Interrupt)(: .*)?")
COLOUR = re.compile(r"\x1b\[\d+m")


class GraphFailed(Exception):
    """A stage of a local run failed.

    Attributes:
        exit_code: What the command exits with.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        """Keep both."""
        super().__init__(message)
        self.exit_code = exit_code


def run_graph(work: Path, log_path: Path, threads: int, facts: Mapping[str, str]) -> None:
    """Run `execute_graph` in a process group that never outlives this call.

    Args:
        work: The folder with the compiled pipeline and its arguments.
        log_path: Gets every line that the stages print.
        threads: CPU threads per stage.
        facts: Environment variables that tell the stages of the run.

    Raises:
        GraphFailed: A stage failed.
    """
    repository = str(Path(__file__).resolve().parents[2])
    scratch = work / "tmp"
    scratch.mkdir()
    environment = {
        "OMP_NUM_THREADS": str(threads),
        # glibc keeps what threads free in an arena per thread: decoding large pictures in many took 7 GB.
        "MALLOC_ARENA_MAX": "2",
        **os.environ,
        **facts,
        "PATH": f"{_folder_of_python3(work)}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        # The tasks import the stages from here, whatever folder they run in.
        "PYTHONPATH": os.pathsep.join(filter(None, [repository, os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
        # Every task leaves a copy of its own code in the temporary folder.
        "TMPDIR": str(scratch),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "free2ds_common.launch.graph_process", str(work)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
    )
    try:
        watch(process, work, log_path)
    except BaseException:
        stop_group(process)
        raise


def _folder_of_python3(work: Path) -> Path:
    """A folder whose python3 is this python: its own, or one in the work folder."""
    own = Path(sys.executable).parent
    if (own / "python3").exists() and os.path.samefile(own / "python3", sys.executable):
        # Preferred: a work folder may lie where nothing can be executed, or have a colon in its name.
        return own
    python = work / "bin" / "python3"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    return python.parent


def watch(process: subprocess.Popen[str], work: Path, log_path: Path) -> None:
    """Show the stages' own progress lines, keep everything in a log file, and stop at the first failure.

    Args:
        process: Runs `execute_graph`, stdout and stderr in one pipe.
        work: The run's folder, where a failing task leaves its `ERROR_FILE`.
        log_path: Gets every line.

    Raises:
        GraphFailed: A stage failed; the message is the stage's own sentence where it has one.
    """
    assert process.stdout is not None
    task = last_exception = ""
    with log_path.open("w", encoding="utf-8") as log:
        for line in process.stdout:
            # The lines of KFP hold every parameter.
            line = redacted(COLOUR.sub("", line))
            log.write(line)
            log.flush()
            line = line.strip()
            if shown := LOG_LINE.match(line):
                level = "" if shown["level"] == "INFO" else shown["level"] + " "
                print(f"{shown['time']} {shown['where']}: {level}{line[shown.end() :]}", flush=True)
            elif failed := FAILED_TASK.search(line):
                task = (failed["task"] or failed["inner"]).replace("-", "_")
                break
            elif EXCEPTION.fullmatch(line):
                last_exception = line
    if task or process.wait() != 0:
        failure = first_failure(work) or Failure(
            task or "kfp.local",
            last_exception or "it ended without a message; perhaps the machine ran out of memory",
            EXIT_CRASH,
        )
        if failure.exit_code == EXIT_WRONG_SETUP:
            raise GraphFailed(failure.sentence, failure.exit_code)
        raise GraphFailed(f"{failure.stage}: {failure.sentence}. The whole log is in {log_path}.", failure.exit_code)


def first_failure(work: Path) -> Failure | None:
    """What the first task that failed left in its `ERROR_FILE`; None where a task was killed before it could."""
    files = sorted((work / TASKS).rglob(ERROR_FILE), key=lambda path: path.stat().st_mtime)
    return Failure.read(files[0]) if files else None


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


def execute_graph(folder: Path) -> None:
    """Run a compiled pipeline through kfp.local and write where its outputs are.

    With `CONTAINERS`, which holds what every container is started with, each task runs in its image; without it, each
    is a process.

    Args:
        folder: Holds `PIPELINE` and `ARGUMENTS`; gets `OUTPUTS`.
    """
    import kfp.components
    from kfp import local

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
    graph = kfp.components.load_component_from_file(str(folder / PIPELINE))
    outputs = graph(**json.loads((folder / ARGUMENTS).read_text(encoding="utf-8"))).outputs
    values = {name: getattr(output, "path", output) for name, output in outputs.items()}
    (folder / OUTPUTS).write_text(json.dumps(values), encoding="utf-8")


if __name__ == "__main__":
    execute_graph(Path(sys.argv[1]))
