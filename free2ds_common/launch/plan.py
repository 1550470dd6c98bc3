"""What a run would do, found out by the code of its first step, with nothing started."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from components.resolve.config import ResolveSettings
from components.resolve.models import Model
from components.resolve.stage import Resolved, count_records, look, resolve
from components.resolve.wiring import LOOP, WIRING, options_of
from free2ds_common.launch.limits import MAX_SHARDS
from free2ds_common.launch.package import Package
from free2ds_common.launch.parameters import each_place
from free2ds_common.launch.preflight import resolve_settings
from free2ds_common.launch.resources import NEEDS
from free2ds_common.launch.step_requests import StepRequest, step_requests
from free2ds_common.launch.tables import table
from free2ds_common.options import split_options
from free2ds_common.redact import redacted, redacted_values
from free2ds_common.storage import is_local


@dataclass(frozen=True)
class PlannedModel:
    """A model that would be used.

    Attributes:
        parameter: The run parameter that names it.
        place: Folder, object-store URI or hub id.
        version: A commit, or the version of a folder.
        model_type: How its stage would load it.
        architecture: What its own config calls it; empty where it says nothing.
    """

    parameter: str
    place: str
    version: str
    model_type: str
    architecture: str


@dataclass(frozen=True)
class Plan:
    """What would be done.

    Attributes:
        pipeline: Its name.
        parameters: All of the run, those at their defaults too.
        versions: Of everything that is read, by the names that `resolve` hands on; empty for what is not used.
        records: Of the data set, unusable ones too; None where they were not counted.
        selected: Of so many records at most; None where that is not known.
        models: What would compute.
        steps: What each step asks a cluster for.
        unknown: What cannot be told before the run, a sentence each.
    """

    pipeline: str
    parameters: Mapping[str, Any]
    versions: Mapping[str, str]
    records: int | None
    selected: int | None
    models: list[PlannedModel]
    steps: list[StepRequest]
    unknown: list[str]

    def as_json(self) -> dict[str, Any]:
        """All of it, without credentials."""
        found: dict[str, Any] = redacted_values(asdict(self))
        return found


def plan(package: Package, values: Mapping[str, Any], *, read_all: bool) -> Plan:
    """Find out what a run would do.

    Args:
        package: The pipeline, with the images and the pods' options that are to run.
        values: The run parameters that are not left at their defaults, paths absolute.
        read_all: Read a data set in a store to its end; one on this machine is read anyway.

    Raises:
        StageError: A wrong setting, or something is not there or cannot be read.
        StoreError: A store does not answer.
    """
    settings = resolve_settings(package, values)
    models = look(settings)
    resolved = resolve(settings, models)
    records = None
    if read_all or is_local(settings.dataset_uri):
        records = count_records(settings.dataset_uri)
    selected = settings.num_samples or (None if records is None else int(records * settings.ratio))
    ends = ("_version", "_versions", "_revision")
    versions = {name: value for name, value in asdict(resolved).items() if name.endswith(ends)}
    return Plan(
        pipeline=package.spec["pipelineInfo"]["name"],
        parameters=package.with_defaults(values),
        versions=versions,
        records=records,
        selected=selected,
        models=[_planned(stage, model, resolved, settings) for stage, model in models.items()],
        steps=step_requests(package, values),
        unknown=list(_unknown(settings.cache_uri, records)),
    )


def lines(found: Plan) -> Iterator[str]:
    """A plan for people, line by line, without credentials."""
    values = found.parameters
    yield f"pipeline {found.pipeline}: nothing was started"
    yield ""
    rows = [("read", "where", "version")]
    for name in ("dataset", "image_root", "kmeans", "previous_selected"):
        uri, version = values[f"{name}_uri"], found.versions[f"{name}_version"]
        if uri:
            rows.append((f"{name}_uri", redacted(uri), version))
    benchmarks = [place for place in each_place(values) if place[0] == "benchmark_uris"]
    versions = found.versions["benchmark_versions"].split(", ")
    rows += [(name, redacted(uri), version) for (name, uri), version in zip(benchmarks, versions, strict=False)]
    rows += [(model.parameter, redacted(model.place), model.version) for model in found.models]
    yield from table(rows)
    yield ""
    yield from table(
        [
            ("model", "loaded as", "calls itself"),
            *((model.parameter, model.model_type, model.architecture or "(nothing)") for model in found.models),
        ]
    )
    yield ""
    if found.records is not None:
        yield f"records: {found.records}, unusable ones too"
    if found.selected is not None:
        yield f"selected: {'' if values['num_samples'] else 'at most '}{found.selected}"
    yield f"shards of each model: {_shards(values)}"
    store = (
        redacted(values["cache_uri"]) or "none (a local run has one in the user's cache, unless --no-cache is given)"
    )
    yield f"results store: {store}"
    yield ""
    yield from table([("step", "cpu", "memory", "accelerators", "nodes", "cache", "image"), *map(_row, found.steps)])
    yield ""
    yield from found.unknown


def _shards(values: Mapping[str, Any]) -> str:
    if values["num_shards"]:
        return f"{values['num_shards']} without a results store; with one, in proportion to what is new"
    return f"one for {values['records_per_shard']:,} records that are not in the results store, at most {MAX_SHARDS}"


def _row(step: StepRequest) -> tuple[str, ...]:
    gpus = f"{step.gpu_count} {step.gpu_type}" if step.gpu_count else ""
    nodes = ", ".join(f"{name}={value}" for name, value in step.node_selector.items()) or "any"
    cached = "yes" if NEEDS[step.stage].cached else "no"
    return (step.stage, step.cpu, step.memory, gpus, nodes, cached, step.image)


def _planned(stage: str, model: Model, resolved: Resolved, settings: ResolveSettings) -> PlannedModel:
    wiring = (WIRING | LOOP)[stage]
    side = wiring.prefix.removesuffix("_") or "train"
    default = getattr(wiring.settings, "model_type", model.config.get("model_type", ""))
    # Of a training resolve hands on the revision alone.
    text = getattr(resolved, f"{side}_options", settings.train_options)
    options = split_options(wiring.text, text, options_of(wiring.text))
    return PlannedModel(
        parameter=wiring.sources["model"],
        place=model.place,
        version=getattr(resolved, f"{side}_revision"),
        model_type=str(options.get("model_type", default)),
        architecture=model.architecture,
    )


def _unknown(cache_uri: str, records: int | None) -> Iterator[str]:
    if records is None:
        yield "The records were not counted: --count-records reads the data set to its end."
    yield "Which records are usable is known when ingest has read them and looked for their pictures."
    if cache_uri:
        yield "How many of them are in the results store, and so are not computed again, is known after ingest."
    else:
        yield "Without a results store every usable record is computed."
    yield "Time and memory depend on models and accelerators: benchmarks/README.md has what was measured."
