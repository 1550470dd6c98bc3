"""Whether a model is there, what it is, and which version of it."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

from free2ds_common.checkpoints import read_json_object
from free2ds_common.errors import SettingError, StageError, first_line
from free2ds_common.redact import redacted
from free2ds_common.retry import StoreError, retried
from free2ds_common.storage import filesystem, read_bytes
from free2ds_common.versions import folder_version

_CONFIG = "config.json"
_MAX_CONFIG_BYTES = 10 << 20
# Of one answer of the hub.
_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Model:
    """A model that is there.

    Attributes:
        place: Folder, object-store URI or hub id.
        config: Its config.json.
        commit: Of a hub id; empty for a folder or URI.
    """

    place: str
    config: Mapping[str, Any]
    commit: str = ""

    @property
    def architecture(self) -> str:
        """What the model's own config calls it; empty where it says nothing."""
        found = self.config.get("architectures")
        return str(found[0]) if isinstance(found, list) and found else ""

    def version(self) -> str:
        """A commit, or the version of a folder.

        Raises:
            StageError: The folder may not be listed.
        """
        return self.commit or folder_version(self.place)


def is_hub_id(place: str) -> bool:
    """Whether a place is none of a folder and an object-store URI."""
    if "://" in place:
        return place.startswith("hf://")
    return not os.path.isdir(place) and not place.startswith((".", "/", "~"))


def look_at(name: str, place: str, revision: str) -> Model:
    """Find a model and read its config.

    Args:
        name: The run parameter, for messages.
        place: Folder, object-store URI or hub id.
        revision: Branch, tag or commit of a hub id.

    Raises:
        StageError: Nothing is there, it is no model folder, or it may not be read.
        StoreError: Its store does not answer.
    """
    if is_hub_id(place):
        return _of_hub(name, place, revision)
    if "://" in place:
        return Model(place, _of_store(name, place))
    folder = Path(place)
    if not folder.is_dir():
        raise SettingError(name, f"{place} is no folder. Give an existing folder, a URI or a hub id.")
    try:
        return Model(place, read_json_object(folder / _CONFIG))
    except FileNotFoundError:
        raise SettingError(name, f"{place} has no {_CONFIG}. Give a model folder, a URI or a hub id.") from None


def _of_store(name: str, uri: str) -> Mapping[str, Any]:
    fs, root = filesystem(uri)
    try:
        content = read_bytes(fs, f"{root.rstrip('/')}/{_CONFIG}", _MAX_CONFIG_BYTES, uri)
    except OSError:
        raise SettingError(name, f"{redacted(uri)} has no {_CONFIG}. Give the URI of a model folder.") from None
    return _parsed(name, uri, content)


def _parsed(name: str, place: str, content: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise SettingError(name, f"{redacted(place)}: {_CONFIG} is no JSON object. Copy the model folder again.")
    return found


def _of_hub(name: str, place: str, revision: str) -> Model:
    hub_id = place.removeprefix("hf://").removeprefix("models/")
    cached = try_to_load_from_cache(hub_id, _CONFIG, revision=revision) if hub_id.count("/") <= 1 else None
    kept = Path(cached) if isinstance(cached, str) else None

    def ask() -> Model:
        commit = HfApi().model_info(hub_id, revision=revision, timeout=_TIMEOUT_S).sha
        assert commit is not None
        path = hf_hub_download(hub_id, _CONFIG, revision=commit)
        return Model(place, _parsed(name, place, Path(path).read_bytes()), commit)

    # A commit never changes.
    if kept is not None and kept.parent.name == revision:
        return Model(place, _parsed(name, place, kept.read_bytes()), revision)
    try:
        # What was downloaded before can be used without waiting for a hub that does not answer.
        return retried(hub_id, ask) if kept is None else ask()
    # The hub's own errors, those of the network, and names that are none.
    except Exception as error:
        if kept is not None and re.fullmatch("[0-9a-f]{40}", kept.parent.name):
            return Model(place, _parsed(name, place, kept.read_bytes()), kept.parent.name)
        cause = error.__cause__ if isinstance(error, StageError | StoreError | FileNotFoundError) else None
        said = first_line(cause if isinstance(cause, Exception) else error)
        raise SettingError(
            name, f"{hub_id} at revision {revision} is no folder here and the hub does not give it ({said})."
        ) from error
