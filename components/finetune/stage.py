"""Trains a model on a selection: from its records to adapters, a merged model and a page about the training."""

import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.distributed.launcher.api import LaunchConfig

from components.finetune.checkpoints import Checkpoints
from components.finetune.config import FinetuneConfig
from components.finetune.nodes import train_on_nodes
from components.finetune.report import write_report
from components.finetune.samples import records_sha256
from components.finetune.training import Outcome, Work, train_in_processes
from free2ds_common.checkpoints import TRAINING, fingerprint, resolve_model
from free2ds_common.errors import StageError
from free2ds_common.inference.device import choose_device, device_name, dtype_name, torch_dtype
from free2ds_common.result import StageResult
from free2ds_common.storage import atomic_writer, room_on_disk

logger = logging.getLogger(__name__)

# Raised when the same records, model and settings give other losses than before.
TRAINING_VERSION = 1
_PACKAGES = ("torch", "transformers", "peft", "accelerate")
# Settings that decide no loss.
_PLACES = (
    "selected",
    "tuned_model",
    "adapter",
    "report",
    "cache_uri",
    "checkpoint_steps",
    "node_resources",
    "nodes",
    "picture_workers",
    "runtime",
    "require_gpu",
    "max_reject_fraction",
    "model",
    "revision",
    "image_root_uri",
)


def run(config: FinetuneConfig) -> StageResult:
    """Train, merge, and write what came of it.

    Raises:
        StageError: Wrong settings, no such records or model, no GPU where one is required, too many unusable records,
            or a loss that is no number.
        StoreError: A store does not answer.
        Stopped: The system asked the training to end; a checkpoint is kept.
    """
    config.check()
    return train_on_nodes(config) if config.nodes > 1 else train_and_tell(config)


def train_and_tell(config: FinetuneConfig, launch: LaunchConfig | None = None) -> StageResult:
    """Train, merge, and write what came of it, on this machine or as one of several nodes.

    Args:
        config: Settings and ports.
        launch: How the processes of several nodes find each other; the first node alone writes. None for one machine.

    Raises:
        StageError: As of `run`.
        StoreError: A store does not answer.
        Stopped: The system asked the training to end; a checkpoint is kept.
    """
    device = choose_device(config.require_gpu)
    per_node = launch.nproc_per_node if launch else config.num_processes or max(1, torch.cuda.device_count())
    processes = per_node * config.nodes
    # Before a model is fetched for nothing.
    sha256 = records_sha256(config.selected)
    folder = Path(resolve_model(config.model, config.revision))
    settings = _settings(config, folder, device, sha256, processes)
    logger.info("%s learns from %s on: %s, %d processes", config.model, config.selected, settings["device"], processes)
    for output in (config.tuned_model, config.adapter):
        _empty(Path(output))
    with tempfile.TemporaryDirectory(prefix="free2ds-finetune-") as scratch:
        checkpoints = Checkpoints(config.cache_uri, _deciding(config, settings), Path(scratch))
        if last := checkpoints.latest():
            logger.info("goes on from %s of %s", last.name, checkpoints.uri)
        outcome = train_in_processes(Work(config, folder, device.type, processes, checkpoints, last), launch)
    content = _content(outcome, settings)
    told = {**content, "records": outcome.counts.written, "history": outcome.history}
    for output in (config.adapter, config.tuned_model):
        with atomic_writer(Path(output) / TRAINING, "w") as handle:
            json.dump(told, handle, indent=1)
    write_report(config.report, config, outcome, content)
    return StageResult(outcome.counts, content["metrics"], {**content, "parameters": _changed(config)})


def _settings(
    config: FinetuneConfig, folder: Path, device: torch.device, sha256: str, processes: int
) -> dict[str, Any]:
    """What the result is made of."""
    return {
        "model": config.model,
        "revision": config.revision,
        "model_fingerprint": fingerprint(folder),
        "selected_sha256": sha256,
        "image_root_uri": config.image_root_uri,
        "dtype": dtype_name(torch_dtype(config.dtype, device)),
        "device": device_name(device),
        "nodes": config.nodes,
        "processes": processes,
        "parameters": {name: value for name, value in asdict(config).items() if name not in _PLACES},
        "versions": {name: version(name) for name in _PACKAGES},
    }


def _deciding(config: FinetuneConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the losses, up to the last bits that devices and releases of packages differ in."""
    names = ("model_fingerprint", "selected_sha256", "image_root_uri", "dtype", "processes", "parameters")
    return {"version": TRAINING_VERSION, **{name: settings[name] for name in names}}


def _changed(config: FinetuneConfig) -> dict[str, Any]:
    """Settings that are not the recipe's: an artifact's metadata has to stay short."""
    defaults = {field.name: field.default for field in fields(config)}
    return {name: value for name, value in asdict(config).items() if name not in _PLACES and value != defaults[name]}


def _empty(folder: Path) -> None:
    """An empty output folder.

    Raises:
        StageError: There is a file in its place, or no room.
    """
    try:
        with room_on_disk(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise StageError(f"{folder}: is or lies below a file, wanted a folder to write to.") from None


def _content(outcome: Outcome, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What artifacts and training.json say."""
    losses = [step["loss"] for step in outcome.history]
    last = losses[-max(1, len(losses) // 10) :]
    tokens = float(sum(step["tokens"] for step in outcome.history))
    seconds = sum(step["seconds"] for step in outcome.history)
    metrics = {
        "steps": float(len(losses)),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "mean_loss_of_last_tenth": sum(last) / len(last),
        "tokens": tokens,
        "seconds": seconds,
        "device_hours": seconds * settings["processes"] / 3600,
        "tokens_per_second": tokens / seconds,
        "trained_parameters": float(outcome.trained_parameters),
        "truncated": float(outcome.truncated),
        "peak_gpu_gib": outcome.peak_gpu_gib,
    }
    return {**settings, "metrics": metrics, "rejected_by_reason": dict(outcome.rejected)}
