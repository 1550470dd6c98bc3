"""Training on several machines: the step hands the work to a TrainJob and takes what comes of it.

The step itself trains nothing. Its pod has the artifacts of Kubeflow Pipelines, the nodes have none: what to learn from
goes to them, and what was learnt comes back, by folders below `cache_uri`.
"""

import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from components.finetune.checkpoints import KIND
from components.finetune.config import FinetuneConfig
from components.finetune.samples import records_sha256
from components.finetune.train_job import TrainJob
from components.finetune.transfer import put_folder, remove_folder
from free2ds_common.downloads import local_folder
from free2ds_common.errors import StageError
from free2ds_common.result import Counts, StageResult
from free2ds_common.stopping import stop_requests
from free2ds_common.storage import room_on_disk

logger = logging.getLogger(__name__)

# Of what goes to the nodes.
_JOB, _SETTINGS, _SELECTED = "job", "settings.json", "selected"
_RECORDS = "selected.json"
# Of what comes back; the result is written last.
_OUTPUTS, _RESULT = "outputs", "result.json"
_PORTS = {"tuned_model": "model", "adapter": "adapter", "report": "report.html"}
_KEY_LETTERS = 32
# Of a TrainJob's name, which its pods' names begin with.
_NAME_LETTERS = 12


def train_on_nodes(config: FinetuneConfig) -> StageResult:
    """Let a TrainJob train; its outputs are those of a training in this process.

    A run that finds the TrainJob of an earlier one, which was killed, follows it.

    Args:
        config: Settings and ports.

    Raises:
        StageError: There is no cluster, no such runtime, or a node failed; with the node's own sentence.
        StoreError: A store does not answer.
        Stopped: The system asked for the end; the TrainJob is removed, its checkpoints stay.
    """
    decided = {name: value for name, value in asdict(config).items() if name not in (*_PORTS, "selected")}
    key = sha256(json.dumps([decided, records_sha256(config.selected)], sort_keys=True).encode()).hexdigest()[
        :_KEY_LETTERS
    ]
    uri = f"{config.cache_uri.rstrip('/')}/{KIND}/{key}"
    job = TrainJob(f"free2ds-{key[:_NAME_LETTERS]}")
    with stop_requests() as stop_requested:
        if job.exists():
            logger.info("follows TrainJob %s, which an earlier run left", job.name)
        else:
            remove_folder(uri)
            _hand_over(config, f"{uri}/{_JOB}")
            job.create(config, ["python", "-m", "components.finetune.node", "--job", uri])
        try:
            job.follow(stop_requested)
            result = _fetch(config, f"{uri}/{_OUTPUTS}")
        finally:
            job.delete()
    remove_folder(uri)
    return result


def _hand_over(config: FinetuneConfig, uri: str) -> None:
    """Copy settings and records to where the nodes find them."""
    with tempfile.TemporaryDirectory(prefix="free2ds-nodes-") as scratch:
        folder, selected = Path(scratch), Path(config.selected)
        # It is each node that has GPUs or none.
        needs_gpu = any("/" in name or name.lower() == "gpu" for name in config.given_per_node)
        settings = asdict(replace(config, require_gpu=needs_gpu))
        (folder / _SETTINGS).write_text(json.dumps(settings), encoding="utf-8")
        if selected.is_dir():
            put_folder(selected, f"{uri}/{_SELECTED}")
        else:
            (folder / _SELECTED).mkdir()
            (folder / _SELECTED / _RECORDS).symlink_to(selected.resolve())
        put_folder(folder, uri)


def received(uri: str, scratch: Path) -> FinetuneConfig:
    """What a node is to do.

    Args:
        uri: Of the TrainJob's folder.
        scratch: Local folder, where records and outputs go.

    Raises:
        StageError: Nothing is there.
        StoreError: The store does not answer.
    """
    folder = Path(local_folder(f"{uri}/{_JOB}", str(scratch / "job")))
    settings: Mapping[str, Any] = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    selected = folder / _SELECTED
    if (selected / _RECORDS).is_file():
        selected = selected / _RECORDS
    outputs = {port: str(scratch / _OUTPUTS / name) for port, name in _PORTS.items()}
    return FinetuneConfig(**{**settings, **outputs, "selected": str(selected)})


def give_back(uri: str, scratch: Path, result: StageResult) -> None:
    """Copy what came of a training to where the step finds it.

    Args:
        uri: Of the TrainJob's folder.
        scratch: As of `received`.
        result: Of the stage.

    Raises:
        StageError: The store refuses it.
        StoreError: The store does not answer.
    """
    told = {"counts": asdict(result.counts), "metrics": dict(result.metrics), "metadata": dict(result.metadata)}
    (scratch / _OUTPUTS / _RESULT).write_text(json.dumps(told), encoding="utf-8")
    put_folder(scratch / _OUTPUTS, f"{uri}/{_OUTPUTS}", last=_RESULT)


def _fetch(config: FinetuneConfig, uri: str) -> StageResult:
    """Copy what the nodes made to the step's outputs.

    Raises:
        StageError: The TrainJob ended without it.
    """
    beside = Path(config.tuned_model).absolute().parent
    with room_on_disk(beside):
        beside.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=beside, prefix=".nodes-") as scratch:
            folder = Path(local_folder(uri, scratch))
            if not (folder / _RESULT).is_file():
                raise StageError(f"{uri}: the nodes ended without a result. Run again to go on.")
            told = json.loads((folder / _RESULT).read_text(encoding="utf-8"))
            for port, name in _PORTS.items():
                target = Path(getattr(config, port))
                if target.is_dir():
                    shutil.rmtree(target)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(folder / name, target)
    return StageResult(Counts(**told["counts"]), told["metrics"], told["metadata"])
