"""The manifests build, and say what the README says."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"


def build(folder: str) -> dict[tuple[str, str], dict]:
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl (for kubectl kustomize)")
    built = subprocess.run(["kubectl", "kustomize", MANIFESTS / folder], capture_output=True, text=True, check=True)
    objects = yaml.safe_load_all(built.stdout)
    return {(item["kind"], item["metadata"]["name"]): item for item in objects}


def test_base_takes_the_pods_own_credentials_for_gs():
    objects = build("base")
    assert set(objects) == {("ServiceAccount", "pipeline-runner"), ("ConfigMap", "kfp-launcher")}
    data = objects["ConfigMap", "kfp-launcher"]["data"]
    assert yaml.safe_load(data["providers"]) == {"gs": {"default": {"credentials": {"fromEnv": True}}}}
    assert data["defaultPipelineRoot"] == "minio://mlpipeline/v2/artifacts"


def test_gke_overlay_binds_the_account_and_names_the_bucket():
    objects = build("overlays/gke")
    account = objects["ServiceAccount", "pipeline-runner"]["metadata"]
    assert account["namespace"] == "kubeflow"
    assert account["annotations"] == {"iam.gke.io/gcp-service-account": "free2ds@PROJECT.iam.gserviceaccount.com"}
    launcher = objects["ConfigMap", "kfp-launcher"]
    assert launcher["data"]["defaultPipelineRoot"] == "gs://BUCKET/free2ds"
    assert "providers" in launcher["data"]
