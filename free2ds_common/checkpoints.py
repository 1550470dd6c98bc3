"""Finds a model's files (in a folder, an object store or the hub) and fingerprints them."""

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from free2ds_common.datasets import sha256_of_file
from free2ds_common.downloads import local_folder
from free2ds_common.errors import StageError, first_line
from free2ds_common.retry import StoreError, retried
from free2ds_common.storage import require_regular_file
from free2ds_common.versions import require_versions

_WEIGHT_SUFFIXES = (".safetensors", ".bin")
_SETTINGS_SUFFIXES = (".json", ".model", ".txt", ".jinja")
# What finetune says of a training, beside the model that it made: no part of the model.
TRAINING = "training.json"


def resolve_model(model: str, revision: str, cache_dir: str = "") -> str:
    """A local folder with a model's files.

    Args:
        model: A folder, an object-store URI, or a hub id such as "google-bert/bert-base-uncased".
        revision: Hub branch or commit; of a folder or URI the version that it has to have, if it is one.
        cache_dir: Where a download from an object store goes; empty for a folder below HF_HOME or the temporary one.

    Raises:
        StageError: Nothing is there, it has changed, the store refuses it, or the hub cannot be reached.
        StoreError: The store does not answer.
    """
    if not model:
        raise StageError("model: is empty, wanted a folder, a URI or a hub id.")
    require_versions("model", [model], revision)
    if "://" in model and not model.startswith("hf://"):
        return local_folder(model, cache_dir or str(download_folder()))
    if os.path.isdir(model):
        return model
    hub_id = model.removeprefix("hf://").removeprefix("models/")
    if model.startswith((".", "/", "~")) or hub_id.count("/") > 1:
        raise StageError(f"model: {model} is no folder. Give an existing folder, a URI or a hub id.")
    from huggingface_hub import snapshot_download

    def download() -> str:
        return snapshot_download(hub_id, revision=revision, ignore_patterns=["*.h5", "*.msgpack", "*.onnx", "onnx/*"])

    try:
        return retried(model, download)
    except (StageError, StoreError, OSError) as error:
        said = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise StageError(
            f"model: {model} at revision {revision} is no folder here and could not be fetched from the hub "
            f"({first_line(said)})."
        ) from error


def download_folder() -> Path:
    """Where downloads of models from object stores go."""
    return Path(os.environ.get("HF_HOME") or tempfile.gettempdir()) / "free2ds-models"


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a settings file of a model folder.

    Raises:
        FileNotFoundError: It is not there.
        StageError: It is not a JSON object, or a pipe or a device.
    """
    require_regular_file(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise StageError(f"{path.parent}: {path.name} is no JSON object. Copy the model folder again.")
    return found


def fingerprint(folder: str | os.PathLike[str]) -> str:
    """What a model folder holds: "commit <hash>" for a hub download, otherwise "sha256 <hex>".

    The sha256 covers names and contents of weights, settings, tokenizer and chat template, sub-folders included:
    folders with the same fingerprint give the same results, wherever they are.
    """
    root = Path(folder)
    # The layout of the hub's cache. The commit identifies the files without reading 14 GB.
    if root.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", root.name):
        return f"commit {root.name}"
    files = sorted(
        (path.relative_to(root).as_posix(), path)
        for path in root.rglob("*")
        if path.is_file() and path.suffix in (*_WEIGHT_SUFFIXES, *_SETTINGS_SUFFIXES) and path.name != TRAINING
    )
    digest = hashlib.sha256(json.dumps([(name, sha256_of_file(path)) for name, path in files]).encode())
    return f"sha256 {digest.hexdigest()}"
