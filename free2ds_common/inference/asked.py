"""What settings a model will have, known before it is loaded: a stage that asked for the same wrote them down.

`<cache_uri>/attention_asked/<key>.json`: the key is over what is asked for, the file says what that came to. No torch.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, try_to_load_from_cache

from free2ds_common import __version__
from free2ds_common.checkpoints import download_folder
from free2ds_common.errors import StageError, first_line
from free2ds_common.redact import redacted
from free2ds_common.results_store.key import canonical, settings_key
from free2ds_common.results_store.parts import publish
from free2ds_common.retry import StoreError, retried
from free2ds_common.settings import AUTO, AttentionSettings
from free2ds_common.storage import filesystem, read_bytes
from free2ds_common.versions import folder_version

logger = logging.getLogger(__name__)

# Raised when the same model and prompt give other maps than before.
CAPTURE_VERSION = 1
KIND, FOLDER = "attention", "attention_asked"
# Of what `settings` of the attention stage says: what decides a map. Not the device, and not the model's name or place.
DECIDING = (
    "model_fingerprint",
    "prompt",
    "preprocessing",
    "max_new_tokens",
    "dtype",
    "grid",
    "capture_version",
)
_COMMIT = re.compile("[0-9a-f]{40}")
# Of a folder, as `free2ds_common.versions` writes it.
_FILES = re.compile(r"\d+ files [0-9a-f]{32}")
_MAX_BYTES = 1 << 20
# Of one answer of the hub.
_TIMEOUT_S = 10.0


def known_settings(config: AttentionSettings, *, on_gpu: bool) -> dict[str, Any]:
    """The settings that an earlier stage found when it loaded what this one asks for.

    Args:
        config: What is asked for.
        on_gpu: Whether the model will run on a GPU, which decides the number format auto.

    Returns:
        As in the attention stage's manifest, without the device; empty where nothing is known: nobody asked for it, the
        model has no version, the file is not as it was written, or an encoder outside the model's folder is another.

    Raises:
        StageError: The store refuses to say.
        StoreError: It does not answer.
    """
    path = _path(config, on_gpu)
    if path is None:
        return {}
    fs, place = filesystem(path)
    try:
        found = json.loads(read_bytes(fs, place, _MAX_BYTES, path))
        settings = {name: found["settings"][name] for name in (*DECIDING, "model_type")}
        if found["settings_key"] != deciding_key(settings):
            raise ValueError("another checksum")
        towers = [(tower["place"], tower["version"]) for tower in found["towers"]]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        logger.warning("%s: is not as it was written (%s); it counts as absent", redacted(path), first_line(error))
        return {}
    for place, version in towers:
        if _version(place) != version:
            logger.info("%s: is not known to be the encoder of earlier runs, %s; all counts as new", place, version)
            return {}
    del settings["model_type"]
    return {"model": config.model, "revision": config.revision, **settings}


def remember_settings(
    config: AttentionSettings, settings: Mapping[str, Any], folders: Sequence[Path], *, on_gpu: bool
) -> None:
    """Write down what the model came to that a stage asked for; what cannot be written is named in a warning.

    Args:
        config: What was asked for.
        settings: Of the loaded model, as in the stage's manifest.
        folders: Those that it was read from, its own first.
        on_gpu: As in `known_settings`.
    """
    path, towers = _path(config, on_gpu), _towers(folders[1:])
    if path is None or towers is None:
        return
    deciding = deciding_settings(config, settings)
    content = {
        "settings": deciding,
        "settings_key": deciding_key(deciding),
        "towers": [{"place": place, "version": version} for place, version in towers],
        "model": redacted(config.model),
    }
    folder, _, name = path.rpartition("/")
    try:
        fs, place = filesystem(folder)
        publish(fs, place.rstrip("/"), redacted(folder), name, json.dumps(content, indent=1).encode())
    except (StageError, StoreError, OSError) as error:
        logger.warning("%s: could not be written (%s); a later run loads the model", redacted(path), first_line(error))


def forget_settings(cache_uri: str, key: str) -> None:
    """Remove what was written down of a model whose results go.

    Args:
        cache_uri: The results store.
        key: Of `deciding_key`: the name of the results' folder.

    Raises:
        StageError: The store refuses it.
        StoreError: The store does not answer.
    """
    fs, root = filesystem(f"{cache_uri.rstrip('/')}/{FOLDER}")
    for path in fs.ls(root, detail=False) if fs.isdir(root) else []:
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            if json.loads(read_bytes(fs, path, _MAX_BYTES, cache_uri))["settings_key"] == key:
                retried(cache_uri, partial(fs.rm_file, path))


def deciding_settings(config: AttentionSettings, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides a map beside the record: what results are kept under.

    Args:
        config: Says the model's type.
        settings: As in the stage's manifest.
    """
    return {name: settings[name] for name in DECIDING} | {"model_type": config.model_type}


def deciding_key(deciding: Mapping[str, Any]) -> str:
    """The name of the folder in the results store.

    Args:
        deciding: As of `deciding_settings`.
    """
    return settings_key({"kind": KIND, **deciding})


def _path(config: AttentionSettings, on_gpu: bool) -> str | None:
    """Where the answer to what is asked for stands; None where the same words may mean another model tomorrow."""
    version = _pinned(config)
    if not config.cache_uri or version is None:
        return None
    auto_dtype = "bfloat16" if on_gpu else "float32"
    asked = {
        "model": version,
        "stage": config.OWN_TYPE,
        "model_type": config.model_type,
        "prompt": config.prompt,
        "max_new_tokens": config.max_new_tokens,
        "dtype": auto_dtype if config.dtype == AUTO else config.dtype,
        "towers": [redacted(getattr(config, name, "")) for name in ("vision_tower", "vision_tower_aux")],
        "capture_version": CAPTURE_VERSION,
        "code_version": __version__,
    }
    return f"{config.cache_uri.rstrip('/')}/{FOLDER}/{hashlib.sha256(canonical(asked)).hexdigest()[:32]}.json"


def _pinned(config: AttentionSettings) -> list[str] | None:
    """What names one model for ever: a commit, or a folder's version with its place: times of files may be alike."""
    if _FILES.fullmatch(config.revision):
        return [config.revision, redacted(config.model)]
    is_place = os.path.isdir(config.model) or ("://" in config.model and not config.model.startswith("hf://"))
    return [config.revision] if not is_place and _COMMIT.fullmatch(config.revision) else None


def _towers(folders: Sequence[Path]) -> list[tuple[str, str]] | None:
    """Encoders outside the model's folder, each with its version; None where one cannot be found again."""
    found = []
    for folder in folders:
        if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name):
            hub_id = folder.parent.parent.name.removeprefix("models--").replace("--", "/")
            found.append((hub_id, folder.name))
        elif folder.resolve().is_relative_to(download_folder().resolve()):
            return None
        else:
            found.append((str(folder.resolve()), folder_version(str(folder))))
    return found


def _version(tower: str) -> str:
    """Of an encoder, by its folder or hub id, now; empty where nobody can say."""
    if os.path.isabs(tower):
        return folder_version(tower) if os.path.isdir(tower) else ""
    try:
        return HfApi().model_info(tower, revision="main", timeout=_TIMEOUT_S).sha or ""
    # The hub's own errors, and those of the network. What was downloaded is what the attention stage would take.
    except Exception as error:
        cached = try_to_load_from_cache(tower, "config.json", revision="main")
        if isinstance(cached, str):
            return Path(cached).parent.name
        logger.warning("%s: the hub does not say its version (%s)", tower, first_line(error))
        return ""
