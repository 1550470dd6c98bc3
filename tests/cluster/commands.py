"""The project's own commands, as the suite calls them: the one place that knows their words."""

import contextlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pipeline
from tests.cluster.settings import WORK, Settings

EXPERIMENT = "free2ds-test"


@dataclass(frozen=True)
class Said:
    """What a command did.

    Attributes:
        code: Its exit code.
        text: What it printed, errors at the end.
    """

    code: int
    text: str


def call(*arguments: str) -> Said:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = pipeline.main(arguments)
    return Said(code, out.getvalue() + err.getvalue())


def told(*arguments: str) -> str:
    """What a command prints that must succeed."""
    said = call(*arguments)
    assert said.code == 0, f"{arguments[0]} ended with {said.code}:\n{said.text}"
    return said.text


def options(values: dict[str, Any]) -> list[str]:
    """Parameters as options."""
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return [option for name, text in texts.items() for option in ("--param", f"{name}={text}")]


def cluster(settings: Settings) -> list[str]:
    """Options that say where the cluster is."""
    return [
        *("--host", settings.host, "--ui-host", settings.ui_host, "--namespace", settings.namespace),
        *("--experiment", EXPERIMENT),
    ]


def run_locally(values: dict[str, Any], output_dir: Path) -> None:
    """A run on this machine, from nothing."""
    told("run", "--no-cache", "--output-dir", str(output_dir), *options(WORK | values))


def submit(settings: Settings, values: dict[str, Any], name: str) -> tuple[str, str]:
    """Start a run; returns its id and all that was printed."""
    given = options(WORK | settings.resources | values)
    text = told("submit", *cluster(settings), *settings.images, *settings.needs, "--run-name", name, *given)
    return re.search(r"started run (\S+)", text)[1], text


def why(settings: Settings, run_id: str) -> str:
    """What is wrong with a run."""
    return told("why", run_id, *cluster(settings))


def fetch(settings: Settings, run_id: str, output_dir: Path) -> None:
    """Bring a run's results."""
    root = ["--pipeline-root", settings.pipeline_root] if settings.pipeline_root else []
    told("fetch", run_id, "--output-dir", str(output_dir), *cluster(settings), *root)


def lineage(settings: Settings, run_id: str) -> dict[str, Any]:
    """The chain from a run's selection back to what it was made from."""
    root = ["--pipeline-root", settings.pipeline_root] if settings.pipeline_root else []
    return json.loads(told("lineage", run_id, "--json", *cluster(settings), *root))


def lineage_of_file(uri: str) -> dict[str, Any]:
    """The same of a selection in a store, without asking the cluster."""
    return json.loads(told("lineage", uri, "--json"))


def schedule(settings: Settings, values: dict[str, Any], name: str) -> str:
    """Start runs again and again; returns the schedule's id."""
    given = options(WORK | settings.resources | values)
    text = told(
        "schedule",
        *cluster(settings),
        *settings.images,
        *settings.needs,
        "--name",
        name,
        "--cron",
        settings.cron,
        *given,
    )
    return re.search(r"scheduled (\S+)", text)[1]


def pause(settings: Settings, name: str) -> None:
    """Let a schedule start nothing."""
    told("pause", name, *cluster(settings))


def resume(settings: Settings, name: str) -> None:
    """Let it start runs again."""
    told("resume", name, *cluster(settings))


def unschedule(settings: Settings, name: str) -> Said:
    """End a schedule, and the run of it that goes on."""
    return call("unschedule", name, "--running", "terminate", *cluster(settings))
