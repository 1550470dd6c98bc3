"""Runs a stage as a task of Kubeflow Pipelines: artifact metadata, metrics, and a failure that can be read."""

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from free2ds_common import __version__
from free2ds_common.failure import ERROR_FILE, run_reported
from free2ds_common.result import StageResult
from free2ds_common.runlog import configure_logging


class Artifact(Protocol):
    """What is used of kfp's output artifacts; the metrics of those that have `log_metric` are shown in KFP."""

    path: str
    metadata: dict[str, Any]


def run_task(
    stage: str, work: Callable[[], StageResult], versions: dict[str, str], /, **artifacts: Artifact
) -> StageResult:
    """Run a stage as a KFP task and describe its outputs.

    A failure also goes to `ERROR_FILE`, beside the outputs.

    Args:
        stage: The stage's name.
        work: The stage with its config bound.
        versions: The task's version parameters, kept with every artifact: they decide the cache, not the work.
        **artifacts: The task's output artifacts by port name. Each gets a display name, the counts and the metadata;
            one with `log_metric` also the counts and the metrics as metrics. With `StageResult.terse` that alone.

    Returns:
        What the stage returned.

    Raises:
        SystemExit: After one sentence on stderr: code 2 when the set-up is wrong, 1 when a store does not answer.
    """
    configure_logging(replace=True)

    results: list[StageResult] = []

    def task() -> None:
        result = work()
        results.append(result)
        for port, artifact in artifacts.items():
            _describe(port, artifact, result, versions)

    folder = Path(next(iter(artifacts.values())).path).parent
    if exit_code := run_reported(stage, task, folder / ERROR_FILE):
        raise SystemExit(exit_code)
    return results[0]


def _describe(port: str, artifact: Artifact, result: StageResult, versions: dict[str, str]) -> None:
    """Give an artifact its metadata, and its metrics where it takes any."""
    counts = asdict(result.counts)
    told = (
        {"code_version": __version__, **versions, **result.metadata, **counts} if result.terse is None else result.terse
    )
    artifact.metadata.update({"display_name": port, **told})
    if not hasattr(artifact, "log_metric"):
        return
    for name, value in {**counts, **result.metrics}.items():
        artifact.log_metric(name, value)
    # A local task with a Metrics output is cached only when a file lies at its path.
    if not os.path.exists(artifact.path):
        with open(artifact.path, "w", encoding="utf-8") as handle:
            handle.write("{}")
