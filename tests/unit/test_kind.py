"""`make cluster-up`: what it asks of kind and kubectl, seen by stand-ins that write down how they were called."""

import os
import subprocess
from pathlib import Path

import pytest

from images import build

KIND = Path(__file__).resolve().parents[2] / "manifests/overlays/kind"
STAND_IN = """#!/bin/sh
# One write, for some run side by side.
echo "{name} $*" >> "$CALLS"
case "{name} $*" in
    "kind get clusters") echo "$CLUSTERS" ;;
    *".data.accesskey"* | *".data.AWS_ACCESS_KEY_ID"*) printf key | base64 ;;
    *".data.secretkey"* | *".data.AWS_SECRET_ACCESS_KEY"*) printf secret | base64 ;;
    *port-forward*) exec sleep 60 ;;
    *"apply --server-side --force-conflicts -f -") cat > /dev/null ;;
esac
"""


@pytest.fixture
def call(tmp_path):
    for name in ("kind", "kubectl", "curl"):
        (tmp_path / name).write_text(STAND_IN.format(name=name))
        (tmp_path / name).chmod(0o755)
    calls = tmp_path / "calls"
    calls.touch()

    def run(script, *arguments, clusters=""):
        environment = {
            **os.environ,
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
            "CALLS": str(calls),
            "CLUSTERS": clusters,
        }
        result = subprocess.run(
            ["sh", KIND / script, *arguments], env=environment, capture_output=True, text=True, timeout=30
        )
        return result, calls.read_text().replace(str(KIND), "HERE").splitlines()

    return run


def test_a_cluster_is_made(call):
    result, calls = call("up.sh", "kfp", "node:1")
    assert result.returncode == 0, result.stderr
    first = [
        "kind get clusters",
        "kind create cluster --name free2ds --config HERE/cluster.yaml --wait 300s --image node:1",
        "kubectl config use-context kind-free2ds",
        "kubectl apply --server-side -k kfp/cluster-scoped-resources",
        "kubectl wait --for condition=established --timeout=120s crd --all",
        "kubectl apply --server-side --force-conflicts -k kfp/env/platform-agnostic",
        "kubectl -n kubeflow wait --for condition=available --timeout=900s deployment --all",
    ]
    assert calls[: len(first)] == first
    loaded = [line for line in calls if line.startswith("kind load")]
    assert loaded == [
        f"kind load docker-image --name free2ds {build.image_name(stage, '', 'dev')}" for stage in build.stages()
    ]
    assert "kubectl apply --server-side --force-conflicts -k HERE" in calls
    (made,) = [line for line in calls if "create secret" in line]
    assert made.endswith("--from-literal=AWS_ACCESS_KEY_ID=key --from-literal=AWS_SECRET_ACCESS_KEY=secret")


def test_a_cluster_that_is_there_is_used_again(call):
    result, calls = call("up.sh", "kfp", clusters="other\nfree2ds")
    assert result.returncode == 0, result.stderr
    assert not [line for line in calls if line.startswith("kind create")]


def test_kind_chooses_its_nodes_image(call):
    _, calls = call("up.sh", "kfp", "")
    (made,) = [line for line in calls if line.startswith("kind create")]
    assert made.endswith("--wait 300s")


def test_kubeflows_manifests_must_be_named(call):
    result, calls = call("up.sh", "")
    assert result.returncode != 0
    assert "manifests/kustomize of Kubeflow Pipelines is missing: make cluster-up KFP_MANIFESTS=..." in result.stderr
    assert calls == []


def test_a_command_reaches_the_cluster(call):
    result, calls = call(
        "forward.sh", "sh", "-c", 'echo "$AWS_ENDPOINT_URL $AWS_ACCESS_KEY_ID $1"; exit 3', "sh", "a b"
    )
    assert (result.returncode, result.stdout) == (3, "http://127.0.0.1:9000 key a b\n")
    assert "kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80" in calls
    assert "kubectl -n kubeflow port-forward svc/seaweedfs 9000:9000" in calls
