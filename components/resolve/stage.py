"""Checks what a run is asked for, and turns what may move into what does not: branches, objects and folders."""

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Any

from components.bert_features.config import BertFeaturesSettings
from components.cluster_scoring.frozen import open_frozen
from components.ingest.reader import open_records
from components.llava_attention.config import LlavaAttentionSettings
from components.mgm_attention.config import MgmAttentionSettings
from components.resolve.config import ResolveConfig, ResolveSettings
from components.resolve.models import Model, is_hub_id, look_at
from components.resolve.training import benchmark_versions, look_at_training
from components.resolve.wiring import LOOP, WIRING, given_options, is_loop
from free2ds_common.checkpoints import fingerprint
from free2ds_common.errors import SettingError
from free2ds_common.options import join_options
from free2ds_common.redact import redacted, redacted_values
from free2ds_common.result import Counts, StageResult
from free2ds_common.retry import retried
from free2ds_common.settings import AUTO, AttentionSettings
from free2ds_common.storage import WEB, atomic_writer, filesystem, is_local, require_folder
from free2ds_common.versions import file_version, folder_version

logger = logging.getLogger(__name__)

_MODELS: dict[str, type[AttentionSettings] | type[BertFeaturesSettings]] = {
    "llava_attention": LlavaAttentionSettings,
    "mgm_attention": MgmAttentionSettings,
    "bert_features": BertFeaturesSettings,
}


@dataclass(frozen=True)
class Resolved:
    """What the other stages are given in place of what may move.

    Attributes:
        dataset_version: Of the data set.
        image_root_version: Of the pictures' folder; empty without one.
        llava_revision: Of LLaVA: a commit, or the version of its folder.
        llava_options: Its options but for the revision, those at their defaults left out.
        mgm_revision: The same of MGM.
        mgm_options: The same of MGM.
        bert_revision: The same of BERT.
        bert_options: The same of BERT.
        cluster_options: Options of k-means.
        kmeans_version: Of the clusters of an earlier run; empty without them.
        select_options: Options of the selection.
        previous_selected_version: Of the selection of an earlier run; empty without one.
        train_revision: Of the model to train: a commit, or the version of its folder; empty without a training.
        benchmark_versions: Of the benchmark folders, separated by commas; empty without them.
    """

    dataset_version: str
    image_root_version: str
    llava_revision: str
    llava_options: str
    mgm_revision: str
    mgm_options: str
    bert_revision: str
    bert_options: str
    cluster_options: str
    kmeans_version: str
    select_options: str
    previous_selected_version: str
    train_revision: str
    benchmark_versions: str


def run(config: ResolveConfig) -> StageResult:
    """Check everything, then find out the versions.

    Args:
        config: Settings and port.

    Raises:
        StageError: A wrong setting, or a location that cannot be read.
        StoreError: A store does not answer.
    """
    values = settings_of(config)
    models = look(values)
    resolved = resolve(values, models)
    for name, value in asdict(resolved).items():
        logger.info("%s: %s", name, value or "(empty)")
    found = asdict(resolved) | {"dataset_uri": config.dataset_uri, "image_root_uri": config.image_root_uri}
    found["on_gpu"] = config.on_gpu
    if config.benchmark_uris:
        found["benchmark_uris"] = config.benchmark_uris
    found |= {(WIRING | LOOP)[stage].sources["model"]: model.place for stage, model in models.items()}
    with atomic_writer(config.resolved, "w") as handle:
        json.dump(redacted_values(found), handle, indent=1, sort_keys=True)
    return StageResult(Counts(read=0, written=0), metadata=found)


def settings_of(config: ResolveConfig) -> ResolveSettings:
    """A config without its port."""
    return ResolveSettings(**{field.name: getattr(config, field.name) for field in fields(ResolveSettings)})


def look(settings: ResolveSettings, *, only_local: bool = False) -> dict[str, Model]:
    """Check every setting, and that everything that a run reads is there and can be read.

    Args:
        settings: What the run is asked for.
        only_local: Look at files and folders alone: containers in a network of their own reach other stores than this.

    Returns:
        The models that were looked at, by stage.

    Raises:
        StageError: A wrong setting, a location that cannot be read, a model of another kind, or too few records.
        StoreError: A store does not answer.
    """
    settings.check()
    if not only_local or _is_path(settings.dataset_uri):
        _look_at_dataset(settings.dataset_uri, settings.num_samples)
    if settings.image_root_uri:
        require_folder("image_root_uri", settings.image_root_uri)
        if not only_local and not is_local(settings.image_root_uri):
            _look_at_pictures(settings.image_root_uri)
    values = asdict(settings)
    models: dict[str, Model] = {}
    for stage, kind in _MODELS.items():
        name = WIRING[stage].sources["model"]
        options = given_options(stage, values)
        revision = options.get("revision", kind.revision)
        if not only_local or _is_path(values[name]):
            models[stage] = look_at(name, values[name], revision)
            _require_kind(name, stage, models[stage], options)
        for option, place in options.items():
            # Any other tower is a name inside the model's folder, or a hub id.
            known = option.startswith("vision_tower") and not is_hub_id(place)
            if known and (not only_local or _is_path(place)):
                look_at(f"{WIRING[stage].text}: {option}", place, revision)
    if settings.kmeans_uri and (not only_local or _is_path(settings.kmeans_uri)):
        open_frozen(settings.kmeans_uri, _known_embeddings(given_options("bert_features", values), models))
    earlier = settings.previous_selected_uri
    if earlier and (not only_local or _is_path(earlier)):
        _look_at_file("previous_selected_uri", earlier)
    if settings.cache_uri and not only_local and not is_local(settings.cache_uri):
        _look_at_results(settings.cache_uri)
    if is_loop(values) and (trained := look_at_training(values, only_local=only_local)):
        models["finetune"] = trained
    return models


def _known_embeddings(options: Mapping[str, str], models: Mapping[str, Model]) -> dict[str, object]:
    """What can be said now of the embeddings' manifest: without a download, and not knowing where "auto" will run."""
    dtype = options.get("dtype", BertFeaturesSettings.dtype)
    known: dict[str, object] = {} if dtype == BertFeaturesSettings.dtype else {"dtype": dtype}
    model = models.get("bert_features")
    if model is not None and model.commit:
        known["model_fingerprint"] = f"commit {model.commit}"
    elif model is not None and is_local(model.place):
        known["model_fingerprint"] = fingerprint(filesystem(model.place)[1])
    return known


def resolve(settings: ResolveSettings, models: Mapping[str, Model]) -> Resolved:
    """Find out the versions.

    Args:
        settings: What the run is asked for, checked.
        models: As `look` returned them.

    Raises:
        StageError: A location may not be listed, or is empty.
        StoreError: A store does not answer.
    """
    values = asdict(settings)
    options = {stage: given_options(stage, values) for stage in WIRING}
    for stage, kind in _MODELS.items():
        options[stage].pop("revision", None)
        if issubclass(kind, AttentionSettings):
            options[stage].setdefault("model_type", model_type(kind, models[stage]))
    texts = {stage: join_options(_changed(stage, given)) for stage, given in options.items()}
    return Resolved(
        dataset_version=file_version(settings.dataset_uri),
        image_root_version=folder_version(settings.image_root_uri) if settings.image_root_uri else "",
        llava_revision=models["llava_attention"].version(),
        llava_options=texts["llava_attention"],
        mgm_revision=models["mgm_attention"].version(),
        mgm_options=texts["mgm_attention"],
        bert_revision=models["bert_features"].version(),
        bert_options=texts["bert_features"],
        cluster_options=texts["cluster_scoring"],
        kmeans_version=folder_version(settings.kmeans_uri) if settings.kmeans_uri else "",
        select_options=texts["joint_selection"],
        previous_selected_version=(
            file_version(settings.previous_selected_uri) if settings.previous_selected_uri else ""
        ),
        train_revision=models["finetune"].version() if "finetune" in models else "",
        benchmark_versions=benchmark_versions(settings.benchmark_uris),
    )


def model_type(kind: type[AttentionSettings], model: Model) -> str:
    """The stage's own model, or auto, by the model's config; the own one where it says nothing."""
    own = not model.architecture or model.architecture in kind.ARCHITECTURES
    return kind.OWN_TYPE if own else AUTO


def _changed(stage: str, options: Mapping[str, str]) -> dict[str, str]:
    """Options that are not at their defaults, so that saying a default is saying nothing."""
    defaults = {field.name: field.default for field in fields(WIRING[stage].settings)}
    return {name: value for name, value in options.items() if value != str(defaults[name])}


def _require_kind(name: str, stage: str, model: Model, options: Mapping[str, str]) -> None:
    """Refuse a model of another kind than the stage's, as far as the config tells.

    Raises:
        SettingError: It is one.
    """
    kind = _MODELS[stage]
    if issubclass(kind, BertFeaturesSettings):
        found = model.config.get("model_type")
        if found is not None and found not in kind.MODEL_TYPES:
            raise SettingError(
                name, f"{redacted(model.place)} is of model type {found}, wanted one of {', '.join(kind.MODEL_TYPES)}."
            )
        return
    chosen = options.get("model_type") or model_type(kind, model)
    if chosen == AUTO and not any("vision" in entry for entry in model.config):
        said = model.architecture or "of a kind that it does not say"
        raise SettingError(name, f"{redacted(model.place)} is {said}, which reads no pictures (no vision_config).")


def _is_path(place: str) -> bool:
    """Whether a place is on this machine, there or not."""
    return "://" not in place and not is_hub_id(place)


def _look_at_file(name: str, uri: str) -> None:
    """See that a file is there.

    Raises:
        StageError: It is not, or its store refuses.
        StoreError: Its store does not answer.
    """
    fs, path = filesystem(uri)
    try:
        found = retried(uri, lambda: fs.info(path))
    except OSError:
        found = {}
    if found.get("type") != "file":
        raise SettingError(name, f"{redacted(uri)} is no file that can be read. Give that of an earlier run.")


def _look_at_pictures(uri: str) -> None:
    """See that a store has a folder; a web server cannot be asked for one.

    Raises:
        StageError: There is nothing, or the store refuses.
        StoreError: It does not answer.
    """
    if uri.startswith(WEB):
        return
    fs, root = filesystem(uri)
    try:
        retried(uri, lambda: fs.info(root))
    except FileNotFoundError:
        raise SettingError("image_root_uri", f"{redacted(uri)}: nothing is there. Check the URI.") from None


def _look_at_results(uri: str) -> None:
    """See that a results store answers; it may be empty, and not there yet.

    Raises:
        StageError: It refuses.
        StoreError: It does not answer.
    """
    fs, root = filesystem(uri)
    # Empty, and a store says so, or not there yet.
    with suppress(FileNotFoundError):
        retried(uri, lambda: fs.ls(root, detail=False))


def count_records(uri: str) -> int:
    """How many records a data set has, unusable ones too.

    Raises:
        StageError: It cannot be read.
    """
    with open_records(uri) as reader:
        return sum(1 for _ in reader)


def _look_at_dataset(uri: str, num_samples: int) -> None:
    """Open the data set; count its records where a number of them is asked for.

    Raises:
        StageError: It cannot be read, or has too few records.
    """
    if not num_samples:
        with open_records(uri):
            return
    records = count_records(uri)
    if records < num_samples:
        raise SettingError(
            "num_samples", f"got {num_samples}, but {redacted(uri)} has only {records} records. Ask for fewer."
        )


def outputs(result: StageResult) -> dict[str, Any]:
    """What the Kubeflow task hands on."""
    return {name: result.metadata[name] for name in (*(field.name for field in fields(Resolved)), "on_gpu")}
