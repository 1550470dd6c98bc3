"""Every command that manifests/README.md shows is one that works: run here as far as that goes without a cluster."""

import base64
import json
import os
import re
import shlex
import shutil
import subprocess

import pytest
import yaml

import pipeline
from free2ds_common.launch.package import Package
from free2ds_common.launch.parameters import check_parameters, read_parameters
from free2ds_common.launch.resources import GPU_NODE_SELECTOR, GPU_TOLERATIONS, ResourceSettings
from free2ds_common.launch.store_access import CONFIG_MAP_KEYS, SECRET_KEYS
from tests.support.manifests import MANIFESTS, build, kubectl

REPOSITORY = MANIFESTS.parent
TEXT = (MANIFESTS / "README.md").read_text(encoding="utf-8").replace("\\\n", "")
COMMANDS = re.findall(r"^ {4}((?:kubectl|free2ds|make|sh|sed|key\(\)) .*)$", TEXT, re.MULTILINE)
# The values of the variables that it uses, and the files.
VARIABLES = {
    **dict.fromkeys(("HF_TOKEN", "KEY", "SECRET", "NAME", "PASSWORD"), "value"),
    "REGISTRY": "registry.example/team",
    "TAG": "1.2.3",
}


def starting(*words):
    return [command for command in COMMANDS if command.startswith(" ".join(words))]


def dry_run(command, tmp_path):
    """What a `kubectl create` would make."""
    (tmp_path / "key.json").write_text('{"type": "service_account"}')
    # In place of the cluster that the commands in a command ask.
    (tmp_path / "kubectl").write_text("#!/bin/sh\necho 'of the cluster:' \"$6 $7\" | base64\n")
    (tmp_path / "kubectl").chmod(0o755)
    (keys,) = starting("key()")
    command = command.replace("kubectl", kubectl(), 1)
    result = subprocess.run(
        ["sh", "-c", f"{keys}\n{command} --dry-run=client -o yaml"],
        env={**os.environ, **VARIABLES, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return yaml.safe_load(result.stdout)


def test_every_command_is_looked_at():
    """By the tests here, or by those of all pages (free2ds, make)."""
    looked_at = {
        "kubectl apply --server-side": test_what_is_applied_is_there,
        "kubectl -n kubeflow create": test_objects_are_made_as_the_pods_look_for_them,
        "kubectl -n kubeflow set env": test_the_priority_is_set,
        "kubectl label node": test_nodes_get_the_label_and_taint_of_the_defaults,
        "kubectl taint node": test_nodes_get_the_label_and_taint_of_the_defaults,
        "kubectl kustomize manifests/models": test_models_are_copied,
        "kubectl -n kubeflow wait": test_models_are_copied,
        "key()": test_the_keys_of_kubeflows_store_are_copied,
        "sed ": test_placeholders_are_replaced,
        "kubectl -n kubeflow port-forward": test_the_api_is_reached_as_on_kind,
        "sh manifests": test_the_suite_is_run_on_kind,
        "make ": None,
        "free2ds ": None,
    }
    assert [command for command in COMMANDS if not command.startswith(tuple(looked_at))] == []


@pytest.mark.parametrize("page", ["README.md", "manifests/README.md"])
def test_what_is_applied_is_there(page):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    (command,) = re.findall(r"^ {4}(kubectl apply [^#\n]*[^#\s])", text, re.MULTILINE)
    assert command == "kubectl apply --server-side --force-conflicts -k manifests/overlays/gke"
    assert build("overlays/gke")


def test_an_overlay_of_ones_own_builds(tmp_path):
    lines = re.search(r"((?: {4}(?:apiVersion|kind|resources|components):.*\n)+)", TEXT)[1]
    overlay = yaml.safe_load(lines)
    for key in ("resources", "components"):
        overlay[key] = [os.path.relpath(MANIFESTS / "overlays/mine" / path, tmp_path) for path in overlay[key]]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    built = subprocess.run([kubectl(), "kustomize", tmp_path], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr


def test_objects_are_made_as_the_pods_look_for_them(tmp_path):
    made = [dry_run(command, tmp_path) for command in starting("kubectl", "-n", "kubeflow", "create")]
    keys = [(item["kind"], item["metadata"]["name"], set(item["data"])) for item in made]
    assert keys == [
        ("Secret", "free2ds-store", {"HF_TOKEN"}),
        ("Secret", "free2ds-store", {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"}),
        ("ConfigMap", "free2ds-store", {"AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"}),
        ("Secret", "free2ds-store", {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}),
        ("Secret", "free2ds-store", {"FSSPEC_GS"}),
        ("Secret", "free2ds-registry", {".dockerconfigjson"}),
    ]
    known = {"Secret": set(SECRET_KEYS) | {".dockerconfigjson"}, "ConfigMap": set(CONFIG_MAP_KEYS)}
    assert all(found <= known[kind] for kind, _, found in keys)
    assert {ResourceSettings.store_secret, ResourceSettings.store_config_map} == {"free2ds-store"}
    assert {item["metadata"]["namespace"] for item in made} == {"kubeflow"}


def test_googles_key_file_becomes_what_fsspec_reads(tmp_path):
    (command,) = [command for command in starting("kubectl", "-n", "kubeflow", "create") if "FSSPEC_GS" in command]
    show = command.replace("kubectl -n kubeflow create secret generic free2ds-store --from-literal=", "printf %s ")
    (tmp_path / "key.json").write_text('{"type": "service_account"}')
    shown = subprocess.run(["sh", "-c", show], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert json.loads(shown.removeprefix("FSSPEC_GS=")) == {"token": {"type": "service_account"}}


def test_the_priority_is_set(tmp_path):
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "ml-pipeline"},
        "spec": {
            "selector": {"matchLabels": {"app": "ml-pipeline"}},
            "template": {
                "metadata": {"labels": {"app": "ml-pipeline"}},
                "spec": {"containers": [{"name": "ml-pipeline-api-server", "image": "image:1"}]},
            },
        },
    }
    (tmp_path / "ml-pipeline.yaml").write_text(yaml.safe_dump(deployment))
    (command,) = starting("kubectl", "-n", "kubeflow", "set")
    local = command.replace("deployment/ml-pipeline", "--local -o yaml -f ml-pipeline.yaml").split(" ", 1)[1]
    result = subprocess.run(
        ["sh", "-c", f"{kubectl()} {local}"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    (container,) = yaml.safe_load(result.stdout)["spec"]["template"]["spec"]["containers"]
    (variable,) = container["env"]
    assert variable["name"] == "COMPILED_PIPELINE_SPEC_PATCH"
    with_component = yaml.safe_load((MANIFESTS / "components/priority/priority-class.yaml").read_text())
    assert json.loads(variable["value"]) == {"podPriorityClassName": with_component["metadata"]["name"]}


def test_nodes_get_the_label_and_taint_of_the_defaults():
    (label,), (taint,) = starting("kubectl", "label"), starting("kubectl", "taint")
    assert [label.split()[-1]] == [f"{name}={value}" for name, value in GPU_NODE_SELECTOR.items()]
    key, effect = re.fullmatch(r"([^=]+)=present:(\w+)", taint.split()[-1]).groups()
    assert [{"key": key, "operator": "Exists", "effect": effect}] == GPU_TOLERATIONS


def test_models_are_copied():
    (command,) = starting("kubectl", "kustomize")
    render, _, applied = command.rpartition(" | ")
    assert applied == "kubectl apply -f -"
    result = subprocess.run(
        ["sh", "-c", render.replace("kubectl", kubectl(), 1)],
        cwd=REPOSITORY,
        env={**os.environ, **VARIABLES},
        capture_output=True,
        text=True,
        check=True,
    )
    job = yaml.safe_load(result.stdout)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/team/free2ds-bert-features:1.2.3"
    assert container["env"][0] == {
        "name": "MODELS",
        "value": "llava-hf/llava-1.5-7b-hf google-bert/bert-base-uncased",
    }
    (wait,) = starting("kubectl", "-n", "kubeflow", "wait")
    assert wait.split()[-1] == f"job/{job['metadata']['name']}"


def test_the_keys_of_kubeflows_store_are_copied(tmp_path):
    (command,) = [command for command in starting("kubectl", "-n", "kubeflow", "create") if "$(key" in command]
    data = dry_run(command, tmp_path)["data"]
    read = {name: base64.b64decode(value).decode() for name, value in data.items()}
    assert read == {
        "AWS_ACCESS_KEY_ID": "of the cluster: -o jsonpath={.data.accesskey}",
        "AWS_SECRET_ACCESS_KEY": "of the cluster: -o jsonpath={.data.secretkey}",
    }


def test_placeholders_are_replaced(tmp_path):
    (command,) = starting("sed")
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    built = subprocess.run(
        [kubectl(), "kustomize", tmp_path / "manifests/overlays/gke"], capture_output=True, text=True, check=True
    ).stdout
    assert "free2ds@my-project.iam.gserviceaccount.com" in built
    assert "gs://my-bucket/free2ds" in built
    assert not re.search("PROJECT|BUCKET", built)


def test_the_api_is_reached_as_on_kind():
    (command,) = starting("kubectl", "-n", "kubeflow", "port-forward")
    assert f"{command} > /dev/null &" in (MANIFESTS / "overlays/kind/forward.sh").read_text()


def test_the_suite_is_run_on_kind():
    (command,) = starting("sh")
    script, *rest = shlex.split(command)[1:]
    assert (REPOSITORY / script).is_file()
    assert rest[:2] == ["make", "test-cluster"]


def test_variables_of_make_are_known():
    known = set(re.findall(r"^(\w+) \??:?= ?", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    commands = [*COMMANDS, *re.findall(r"^ {4}(make .*)$", (REPOSITORY / "README.md").read_text(), re.MULTILINE)]
    given = {name for command in commands if "make " in command for name in re.findall(r"\b([A-Z_]+)=", command)}
    assert given - known == set()


@pytest.fixture(scope="module")
def package():
    return Package.compile(pipeline.free2ds)


def test_a_cluster_without_gpus_has_a_whole_set_of_parameters(package):
    """Nothing of the defaults that asks for a GPU's node is left, and the checks of all stages accept it."""
    file = str(REPOSITORY / "examples/configs/no-gpu.yaml")
    values = read_parameters(package, file, ["dataset_uri=s3://b/d.json", "image_root_uri=s3://b/i"])
    check_parameters(package, values)
    found = {name: values[name] for name in ("gpu_count", "gpu_node_selector", "gpu_tolerations")}
    assert found == {"gpu_count": "0", "gpu_node_selector": {}, "gpu_tolerations": []}
    assert "(../examples/configs/no-gpu.yaml)" in TEXT
