"""Starting runs and finding them again."""

import posixpath
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import kfp_server_api
from kfp_server_api import V2beta1Run

from free2ds_common.launch.kfp_api.backend import Backend, named
from free2ds_common.launch.kfp_api.steps import FINISHED
from free2ds_common.launch.kfp_api.versions import Version

_NEWEST_FIRST = "created_at desc"
# What a data set's file name ends with.
_ENDINGS = re.compile(r"(\.(json|jsonl|ndjson|gz))+$", re.IGNORECASE)


def run_name(values: Mapping[str, Any], now: datetime) -> str:
    """How a run is called that nobody named: by its data set and the time.

    Args:
        values: Its parameters.
        now: When it is started.
    """
    file = posixpath.basename(urlsplit(str(values.get("dataset_uri", ""))).path.rstrip("/"))
    return f"{_ENDINGS.sub('', file) or 'free2ds'} {now.astimezone(UTC):%Y-%m-%d %H:%M}"


def start(backend: Backend, version: Version, values: Mapping[str, Any], name: str, experiment: str) -> str:
    """Start one run.

    Args:
        backend: Where.
        version: What runs.
        values: Its parameters.
        name: How the UI calls the run.
        experiment: Groups runs in the UI; made if there is none.

    Returns:
        The run's id.

    Raises:
        StageError: The backend refuses.
    """
    run = V2beta1Run(
        experiment_id=experiment_id(backend, experiment, make=True),
        display_name=name,
        pipeline_version_reference=version.reference,
        runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters=dict(values)),
    )
    return str(backend.call(f"run {name}", backend.client.runs.run_service_create_run, run).run_id)


def experiment_id(backend: Backend, name: str, *, make: bool = False) -> str:
    """The id of an experiment by its name; empty where there is none and none is to be made.

    Raises:
        StageError: The backend refuses.
    """
    experiments = backend.client.experiments
    listed = backend.every(
        "the list of experiments",
        experiments.experiment_service_list_experiments,
        "experiments",
        filter=named(name),
        **backend.scope,
    )
    if found := next(listed, None):
        return str(found.experiment_id)
    if not make:
        return ""
    wanted = kfp_server_api.V2beta1Experiment(display_name=name, **backend.scope)
    create = experiments.experiment_service_create_experiment
    return str(backend.call(f"experiment {name}", create, wanted).experiment_id)


def get_run(backend: Backend, run_id: str) -> V2beta1Run:
    """A run with its tasks: V2beta1Run.

    Raises:
        StageError: There is none of this id.
    """
    return backend.call(f"run {run_id}", backend.client.runs.run_service_get_run, run_id)


def runs_of(backend: Backend, experiment: str) -> Iterator[V2beta1Run]:
    """The runs of an experiment, the newest first; of all experiments where it is empty.

    Raises:
        StageError: The backend refuses.
    """
    where: dict[str, str] = backend.scope
    if experiment:
        found = experiment_id(backend, experiment)
        if not found:
            return
        where = {"experiment_id": found}
    yield from backend.every(
        "the list of runs", backend.client.runs.run_service_list_runs, "runs", sort_by=_NEWEST_FIRST, **where
    )


def is_finished(run: V2beta1Run) -> bool:
    """Whether a run has come to its end."""
    return (run.state or "") in FINISHED
