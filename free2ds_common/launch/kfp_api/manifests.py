"""The pipeline as objects of Kubernetes, for installations that keep pipelines there: `kubectl apply -f`."""

from typing import Any

from free2ds_common.launch.kfp_api.versions import pipeline_name, version_name
from free2ds_common.launch.package import Package

API_VERSION = "pipelines.kubeflow.org/v2beta1"


def kubernetes_manifests(package: Package, namespace: str) -> list[dict[str, Any]]:
    """A Pipeline and the PipelineVersion that this package is; versions applied before stay beside it.

    Args:
        package: The pipeline, with the images that are to run.
        namespace: Where they go; empty leaves it to kubectl.
    """
    name = pipeline_name(package)
    described = {"description": text} if (text := package.spec["pipelineInfo"].get("description")) else {}
    version = {"displayName": version_name(package), "pipelineName": name, "pipelineSpec": dict(package.spec)}
    if package.platform:
        version["platformSpec"] = dict(package.platform)
    return [
        _object("Pipeline", name, namespace, {"displayName": name} | described),
        _object("PipelineVersion", version_name(package), namespace, version | described),
    ]


def _object(kind: str, name: str, namespace: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}
