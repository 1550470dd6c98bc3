"""Hands a stage's result to Kubeflow: artifact metadata, metrics, and an error without a traceback page."""

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from free2ds_common.cli import EXIT_WRONG_SETUP
from free2ds_common.errors import StageError
from free2ds_common.result import StageResult
from free2ds_common.runlog import configure_logging


def run_component(work: Callable[[], StageResult], versions: Mapping[str, str], /, **artifacts: Any) -> StageResult:
    """Run a stage as a KFP task and describe its outputs.

    Args:
        work: The stage with its settings bound.
        versions: The run's version parameters, kept with every artifact: they decide the cache, not the work.
        **artifacts: The task's output artifacts by port name. Each gets a display name, the counts and the metadata;
            one with `log_metric` also gets the metrics.

    Raises:
        SystemExit: Code 2 after one sentence on stderr, when the set-up is wrong.
    """
    configure_logging(replace=True)
    try:
        result = work()
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(EXIT_WRONG_SETUP) from None
    for port, artifact in artifacts.items():
        artifact.metadata.update({"display_name": port, **versions, **result.metadata, **vars(result.counts)})
        if hasattr(artifact, "log_metric"):
            for name, value in {**vars(result.counts), **result.metrics}.items():
                artifact.log_metric(name, value)
            # A local task with a Metrics output is cached only when a file lies at its path.
            if not os.path.exists(artifact.path):
                with open(artifact.path, "w", encoding="utf-8") as handle:
                    handle.write("{}")
    return result
