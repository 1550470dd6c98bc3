"""The pipeline in a backend: a version is uploaded only when what would run has changed."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kfp_server_api
from kfp_server_api import V2beta1Run

from free2ds_common.errors import StageError
from free2ds_common.launch.kfp_api.backend import Backend, named
from free2ds_common.launch.package import Package

_DIGITS = 12


@dataclass(frozen=True)
class Version:
    """A pipeline version of a backend.

    Attributes:
        name: How the UI calls it.
        pipeline_id: Of the pipeline.
        version_id: Of the version.
        uploaded: Whether it was not there before.
    """

    name: str
    pipeline_id: str
    version_id: str
    uploaded: bool

    @property
    def reference(self) -> kfp_server_api.V2beta1PipelineVersionReference:
        """What runs and schedules are pinned to."""
        return kfp_server_api.V2beta1PipelineVersionReference(
            pipeline_id=self.pipeline_id, pipeline_version_id=self.version_id
        )


def pipeline_name(package: Package) -> str:
    """The pipeline's own name."""
    return str(package.spec["pipelineInfo"]["name"])


def version_name(package: Package) -> str:
    """The pipeline's name and a digest of all that a backend reads: equal names are equal pipelines."""
    content = json.dumps([package.spec, package.platform], sort_keys=True)
    return f"{pipeline_name(package)}-{hashlib.sha256(content.encode()).hexdigest()[:_DIGITS]}"


def upload(backend: Backend, package: Package) -> Version:
    """Find the package's version in a backend, or upload it.

    Args:
        backend: Where to.
        package: The pipeline, with the images that are to run.

    Raises:
        StageError: The backend refuses.
    """
    name = version_name(package)
    pipeline_id = _pipeline(backend, package)
    if found := _find(backend, pipeline_id, name):
        return Version(name, pipeline_id, found, uploaded=False)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}.yaml"
        package.write(file)
        made = backend.call(
            f"pipeline version {name}",
            backend.client.pipeline_uploads.upload_pipeline_version,
            str(file),
            name=name,
            pipelineid=pipeline_id,
        )
    return Version(name, pipeline_id, made.pipeline_version_id, uploaded=True)


def _pipeline(backend: Backend, package: Package) -> str:
    """The id of the pipeline, which is made if there is none."""
    name, pipelines = pipeline_name(package), backend.client.pipelines
    if found := _find_pipeline(backend, name):
        return found
    made = backend.call(
        f"pipeline {name}",
        pipelines.pipeline_service_create_pipeline,
        kfp_server_api.V2beta1Pipeline(
            name=name,
            display_name=name,
            description=package.spec["pipelineInfo"].get("description"),
            **backend.scope,
        ),
    )
    return str(made.pipeline_id)


def _find_pipeline(backend: Backend, name: str) -> str:
    listed = backend.every(
        "the list of pipelines",
        backend.client.pipelines.pipeline_service_list_pipelines,
        "pipelines",
        filter=named(name),
        **backend.scope,
    )
    return next((pipeline.pipeline_id for pipeline in listed), "")


def _find(backend: Backend, pipeline_id: str, name: str) -> str:
    listed = backend.every(
        "the list of pipeline versions",
        backend.client.pipelines.pipeline_service_list_pipeline_versions,
        "pipeline_versions",
        pipeline_id,
        filter=named(name),
    )
    return next((version.pipeline_version_id for version in listed), "")


def spec_of(backend: Backend, run: V2beta1Run) -> Mapping[str, Any]:
    """The pipeline spec that a run was started with.

    Args:
        backend: Where it ran.
        run: V2beta1Run.

    Raises:
        StageError: Its version is gone.
    """
    found = run.pipeline_spec
    if not found and (reference := run.pipeline_version_reference):
        what = f"pipeline version {reference.pipeline_version_id} of run {run.run_id}"
        get = backend.client.pipelines.pipeline_service_get_pipeline_version
        found = backend.call(what, get, reference.pipeline_id, reference.pipeline_version_id).pipeline_spec
    if not isinstance(found, dict):
        raise StageError(f"run {run.run_id}: the backend does not say which pipeline it ran.")
    # With a platform spec both stand in one object.
    spec: Mapping[str, Any] = found.get("pipeline_spec", found)
    return spec
