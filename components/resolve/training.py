"""What the loop reads after a selection: the model to train and the benchmarks, looked at and pinned before work."""

import json
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem

from components.evaluate.benchmark import DESCRIPTION, Benchmark, read_benchmark, require_names
from components.evaluate.config import split_folders
from components.finetune.config import LLAVA, LLAVA_ARCHITECTURE, FinetuneSettings
from components.resolve.models import Model, is_hub_id, look_at
from components.resolve.wiring import given_options
from free2ds_common.errors import SettingError, StageError
from free2ds_common.redact import redacted
from free2ds_common.retry import retried
from free2ds_common.storage import OutsideRootError, clean_path, filesystem, is_local, read_bytes
from free2ds_common.versions import folder_version

_MAX_DESCRIPTION_BYTES = 1 << 20


def look_at_training(values: Mapping[str, Any], *, only_local: bool = False) -> Model | None:
    """See that the model to train and the benchmarks are there, and that they are such.

    Args:
        values: The run parameters, checked.
        only_local: Look at folders of this machine alone.

    Returns:
        The model; None where only containers reach it.

    Raises:
        StageError: Something is not there, cannot be read, or is something else.
        StoreError: A store does not answer.
    """
    uris = [uri for uri in split_folders(values["benchmark_uris"]) if not only_local or is_local(uri)]
    require_names([_benchmark(uri) for uri in uris])
    place = values["train_model"]
    if only_local and ("://" in place or is_hub_id(place)):
        return None
    options = given_options("finetune", values)
    model = look_at("train_model", place, options.get("revision", FinetuneSettings.revision))
    _require_kind(model, options.get("model_type", FinetuneSettings.model_type))
    return model


def benchmark_versions(text: str) -> str:
    """The versions of benchmark folders, separated by commas as they are.

    Raises:
        StageError: A folder may not be listed, or is empty.
        StoreError: A store does not answer.
    """
    return ", ".join(folder_version(uri) for uri in split_folders(text))


def _require_kind(model: Model, model_type: str) -> None:
    """Refuse a model that finetune does not train, as far as the config tells.

    Raises:
        SettingError: It is one.
    """
    said = f"{redacted(model.place)} is {model.architecture or 'of a kind that it does not say'}"
    if model_type == LLAVA and model.architecture != LLAVA_ARCHITECTURE:
        raise SettingError(
            "train_model",
            f"{said}, wanted {LLAVA_ARCHITECTURE}: LLaVA-1.5 in the Hugging Face layout. Convert it, or give "
            "train_options model_type=auto for another model of transformers.",
        )
    if not any("vision" in entry for entry in model.config):
        raise SettingError("train_model", f"{said}, which reads no pictures (no vision_config).")


def _benchmark(uri: str) -> Benchmark:
    """A benchmark, by its description and questions; of its pictures, gigabytes perhaps, the first is looked for.

    Raises:
        StageError: It is none, or its store refuses.
        StoreError: Its store does not answer.
    """
    fs, root = filesystem(uri)
    with tempfile.TemporaryDirectory(prefix="free2ds-benchmark-") as scratch:
        folder = root
        if not is_local(uri):
            folder = scratch
            _copy(fs, root.rstrip("/"), Path(scratch), uri)
        try:
            benchmark = read_benchmark(Path(folder))
        except StageError as error:
            raise SettingError("benchmark_uris", str(error).replace(folder, redacted(uri))) from None
    image = next((question.image for question in benchmark.questions if question.image), None)
    pictures = benchmark.image_root.replace(folder, root.rstrip("/"), 1)
    if image and not retried(uri, lambda: fs.exists(f"{pictures}/{image}")):
        raise SettingError(
            "benchmark_uris", f"{redacted(uri)}: its first picture, {image}, is not there. Copy the whole folder."
        )
    return benchmark


def _copy(fs: AbstractFileSystem, root: str, folder: Path, uri: str) -> None:
    """Copy the description and the questions of a benchmark, as far as they are there.

    Raises:
        StageError: The store refuses, or the questions are somewhere else.
        StoreError: It does not answer.
    """
    try:
        content = read_bytes(fs, f"{root}/{DESCRIPTION}", _MAX_DESCRIPTION_BYTES, uri)
        (folder / DESCRIPTION).write_bytes(content)
        described = json.loads(content)
        place = clean_path(described["questions"])
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        retried(uri, partial(fs.get_file, f"{root}/{place}", str(folder / place)))
    except OutsideRootError:
        raise SettingError("benchmark_uris", f"{redacted(uri)}: its questions are not below it.") from None
    except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError):
        # The one who reads the folder says what is missing.
        return
