"""What a local run looks at before its first stage: a wrong path should not cost the hours of the attention stages."""

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, try_to_load_from_cache

from components.cluster_scoring.frozen import open_frozen
from components.ingest.reader import open_records
from free2ds_common.checkpoints import fingerprint
from free2ds_common.errors import SettingError, StageError, first_line
from free2ds_common.launch.package import Package
from free2ds_common.retry import retried
from free2ds_common.settings import ModelSettings
from free2ds_common.storage import filesystem, is_local, require_folder

_CONFIG = "config.json"
# Of the hub; a download comes later and may take as long as it takes.
_TIMEOUT_S = 20.0


def check_inputs(package: Package, values: Mapping[str, Any], *, only_local: bool = False) -> None:
    """Look whether data set, pictures, models and old clusters are there and fit, and whether records are enough.

    Args:
        package: The pipeline; its graph says which parameter is which stage's.
        values: The parameters that are not left at their defaults, paths absolute.
        only_local: Look at files and folders alone: containers in a network of their own reach other stores than this.

    Raises:
        StageError: Something is not there or cannot be read.
    """
    every = package.with_defaults(values)
    if not only_local or _is_path(every["dataset_uri"]):
        _check_dataset(every["dataset_uri"], every["num_samples"])
    if every["image_root_uri"]:
        require_folder("image_root_uri", every["image_root_uri"])
    for task in package.stage_tasks:
        settings = task.settings_class()
        if not issubclass(settings, ModelSettings):
            continue
        revision = every[task.sources["revision"]]
        for field in fields(settings):
            place = every[task.sources[field.name]]
            is_model = field.name == "model"
            # Any other tower is a name inside the model's folder, or a hub id.
            is_tower = field.name.startswith("vision_tower") and ("://" in place or os.path.isabs(place))
            if (is_model or is_tower) and (not only_local or _is_path(place)):
                _check_model(task.sources[field.name], place, revision)
    if every["kmeans_uri"] and (not only_local or _is_path(every["kmeans_uri"])):
        open_frozen(every["kmeans_uri"], _known_embeddings(every))


def _is_path(place: str) -> bool:
    """Whether a place is on this machine, there or not; hub ids are none."""
    return "://" not in place and (os.path.isabs(place) or os.path.exists(place))


def _check_dataset(uri: str, num_samples: int) -> None:
    """Open the data set; count its records where a number of them is asked for.

    Raises:
        StageError: It cannot be read, or has too few records.
    """
    with open_records(uri) as reader:
        if not num_samples:
            return
        records = sum(1 for _ in reader)
    if records < num_samples:
        raise SettingError("num_samples", f"got {num_samples}, but {uri} has only {records} records. Ask for fewer.")


def _check_model(name: str, model: str, revision: str) -> None:
    """Look whether a model is where the parameter says.

    Raises:
        StageError: It is not, or its store or the hub does not answer.
    """
    if "://" in model and not model.startswith("hf://"):
        _check_store(name, model)
    elif os.path.isdir(model):
        if not (Path(model) / _CONFIG).is_file():
            raise SettingError(name, f"{model} has no {_CONFIG}. Give a model folder, a URI or a hub id.")
    elif model.startswith((".", "/", "~")):
        raise SettingError(name, f"{model} is no folder. Give an existing folder, a URI or a hub id.")
    else:
        _check_hub(name, _hub_id(model), revision)


def _known_embeddings(every: Mapping[str, Any]) -> dict[str, object]:
    """What can be said now of the embeddings' manifest: without a download, and not knowing where "auto" will run."""
    model, revision = every["bert_model"], every["bert_revision"]
    known: dict[str, object] = {} if every["dtype"] == "auto" else {"dtype": every["dtype"]}
    if os.path.isdir(model):
        known["model_fingerprint"] = fingerprint(model)
    elif "://" in model and not model.startswith("hf://"):
        if is_local(model):
            known["model_fingerprint"] = fingerprint(filesystem(model)[1])
    elif isinstance(config := try_to_load_from_cache(_hub_id(model), _CONFIG, revision=revision), str):
        known["model_fingerprint"] = fingerprint(Path(config).parent)
    return known


def _hub_id(model: str) -> str:
    return model.removeprefix("hf://").removeprefix("models/")


def _check_store(name: str, uri: str) -> None:
    fs, root = filesystem(uri)
    try:
        retried(uri, lambda: fs.info(f"{root.rstrip('/')}/{_CONFIG}"))
    except FileNotFoundError:
        raise SettingError(name, f"{uri} has no {_CONFIG}. Give the URI of a model folder.") from None


def _check_hub(name: str, hub_id: str, revision: str) -> None:
    if isinstance(try_to_load_from_cache(hub_id, _CONFIG, revision=revision), str):
        return
    try:
        HfApi().model_info(hub_id, revision=revision, timeout=_TIMEOUT_S)
    # The hub's own errors, those of the network, and names that are none.
    except Exception as error:
        raise StageError(
            f"{name}: {hub_id} at revision {revision} is no folder here and the hub does not give it "
            f"({first_line(error)})."
        ) from error
