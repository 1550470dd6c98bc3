"""Runs a stage as a task of Kubeflow Pipelines: artifact metadata, metrics, and a failure that can be read."""

import hashlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from free2ds_common import __version__
from free2ds_common.datasets import MANIFEST, Dataset, sha256_of_file
from free2ds_common.errors import StageError
from free2ds_common.failure import ERROR_FILE, Failure
from free2ds_common.lineage import MADE_FROM, digests
from free2ds_common.result import StageResult
from free2ds_common.retry import StoreError
from free2ds_common.run_facts import image
from free2ds_common.runlog import configure_logging
from free2ds_common.stopping import Stopped

# What Kubernetes reads the last words of a container from; there in a pod alone.
TERMINATION_LOG = Path("/dev/termination-log")
_TERMINATION_BYTES = 4096
# What people read where an artifact's port says too little; the attention stages name theirs by model and shard.
DISPLAY_NAMES: Mapping[str, Mapping[str, str]] = {
    "resolve": {"resolved": "pinned versions"},
    "ingest": {"rejects": "rejected records"},
    "reuse": {"llava_missing": "records for LLaVA to score", "mgm_missing": "records for MGM to score"},
    "bert_features": {"features": "text features"},
    "cluster_scoring": {"scores": "text scores", "kmeans": "text clusters"},
    "finetune": {"tuned_model": "trained model", "adapter": "adapters", "training": "training in numbers"},
    "evaluate": {"evaluation": "judged answers", "metrics": "evaluation in numbers"},
    "verdict": {"comparison": "comparison in numbers", "report": "did selecting help?"},
    "joint_selection": {
        "selected": "selected records",
        "scores": "scores of all records",
        "random": "random control",
        "baseline": "clusters and ranges for later runs",
        "summary": "summary in numbers",
    },
}


class Artifact(Protocol):
    """What is used of kfp's output artifacts; the metrics of those that have `log_metric` are shown in KFP."""

    path: str
    metadata: dict[str, Any]


def run_task(
    stage: str, work: Callable[[], StageResult], versions: dict[str, str], /, **artifacts: Artifact
) -> StageResult:
    """Run a stage as a KFP task and describe its outputs.

    A failure also goes to `ERROR_FILE`, beside the outputs, and to `TERMINATION_LOG`, where there is one.

    Args:
        stage: The stage's name.
        work: The stage with its config bound.
        versions: The versions of what the task reads, kept with every artifact: they decide the cache, not the work.
        **artifacts: The task's output artifacts by port name. Each gets a display name, the counts, the metadata and
            its checksum, or with `StageResult.terse` that alone. One with `log_metric` gets numbers alone, since the
            page that compares runs shows all there is: `StageResult.highlights`, or else counts and metrics.

    Returns:
        What the stage returned.

    Raises:
        SystemExit: After one sentence on stderr, the last thing that is printed: code 2 when the set-up is wrong, 1
            when a store does not answer or the stage crashed, whose traceback stands above.
    """
    configure_logging(replace=True)
    try:
        result = work()
        for port, artifact in artifacts.items():
            _describe(stage, port, artifact, result, versions)
    except Exception as error:
        if not isinstance(error, StageError | StoreError | Stopped):
            traceback.print_exc()
        folder = Path(next(iter(artifacts.values())).path).parent
        raise SystemExit(_told(Failure.of(stage, error), folder)) from None
    return result


def _told(failure: Failure, folder: Path) -> int:
    """Leave a failure where people and programs look for it; returns the exit code."""
    failure.write(folder / ERROR_FILE)
    return tell(failure)


def tell(failure: Failure) -> int:
    """Say a failure as the last words of a container; returns the exit code.

    The launcher of Kubeflow prints lines of its own after the stage's: empty ones set the sentence apart.
    """
    if TERMINATION_LOG.is_file():
        # Kubernetes keeps no more.
        TERMINATION_LOG.write_bytes(f"error: {failure.sentence}".encode()[:_TERMINATION_BYTES])
    print(f"\n\nerror: {failure.sentence}\n\n", file=sys.stderr, flush=True)
    return failure.exit_code


def _describe(stage: str, port: str, artifact: Artifact, result: StageResult, versions: dict[str, str]) -> None:
    """Give an artifact its metadata, and its metrics where it takes any."""
    counts = asdict(result.counts)
    name = DISPLAY_NAMES.get(stage, {}).get(port, port)
    if not hasattr(artifact, "log_metric"):
        made_by = {"code_version": __version__, "image": image(), **versions}
        told = {**made_by, **result.metadata, **counts, **_content(artifact.path)}
        terse = result.terse_of.get(port, result.terse)
        artifact.metadata.update({"display_name": name, **(told if terse is None else terse)})
        return
    artifact.metadata["display_name"] = name
    shown = result.highlights if result.highlights is not None else {**counts, **result.metrics}
    for metric, value in shown.items():
        artifact.log_metric(metric, value)
    # A local task with a Metrics output is cached only when a file lies at its path.
    if not os.path.exists(artifact.path):
        with open(artifact.path, "w", encoding="utf-8") as handle:
            handle.write("{}")


def _content(path: str) -> dict[str, Any]:
    """Schema, rows and checksum of what lies at a path: a sealed folder, a folder of those, a file, or nothing."""
    place = Path(path)
    if place.is_file():
        return {"sha256": sha256_of_file(place)}
    if (place / MANIFEST).is_file():
        return _sealed(place)
    inner = [_sealed(manifest.parent)["sha256"] for manifest in sorted(place.glob(f"*/{MANIFEST}"))]
    return {"sha256": hashlib.sha256(" ".join(inner).encode()).hexdigest()} if inner else {}


def _sealed(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    told = {name: manifest[name] for name in ("schema", "rows")} | {"sha256": Dataset(folder, manifest).sha256}
    return {**told, MADE_FROM: digests(manifest[MADE_FROM])} if MADE_FROM in manifest else told
