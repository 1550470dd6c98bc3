"""Pull secrets and the volume of models: options of the commands that compile."""

import pytest
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2 as pb

import pipeline
from tests.support.kfp_stub import KfpStub

WITH_MODELS = ["exec-bert-features", "exec-llava-attention", "exec-mgm-attention"]
# Before any of them loads one, it is looked at.
LOOK_AT_MODELS = [*WITH_MODELS, "exec-resolve", "exec-reuse"]
REQUIRED = ["--param", "dataset_uri=gs://b/d.json", "--param", "image_root_uri=gs://b/i"]


@pytest.fixture
def pods(tmp_path):
    def compiled_with(*options):
        file = tmp_path / "free2ds.yaml"
        assert pipeline.main(["compile", "--output", str(file), *options]) == 0
        spec, platform = yaml.safe_load_all(file.read_text())
        executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        stages = [name for name, work in spec["deploymentSpec"]["executors"].items() if "container" in work]
        return {name: executors[name] for name in stages}

    return compiled_with


def test_without_options_there_are_none(pods):
    assert not [pod for pod in pods().values() if {"imagePullSecret", "pvcMount", "podMetadata"} & set(pod)]


def test_every_pod_pulls_with_the_secrets(pods):
    found = pods("--pull-secret", "one", "--pull-secret", "two")
    assert len(found) == 11
    for pod in found.values():
        assert [secret["secretNameParameter"] for secret in pod["imagePullSecret"]] == [
            {"runtimeValue": {"constant": "one"}},
            {"runtimeValue": {"constant": "two"}},
        ]


def test_steps_that_load_a_model_have_the_volume(pods):
    found = pods("--models-claim", "weights")
    mounts = {name: pod["pvcMount"] for name, pod in found.items() if "pvcMount" in pod}
    assert sorted(mounts) == LOOK_AT_MODELS
    assert mounts["exec-bert-features"] == [
        {
            "constant": "weights",
            "pvcNameParameter": {"runtimeValue": {"constant": "weights"}},
            "mountPath": "/models",
        }
    ]


@pytest.fixture
def asked(tmp_path):
    def compiled_with(*options):
        file = tmp_path / "free2ds.yaml"
        assert pipeline.main(["compile", "--output", str(file), *options]) == 0
        spec, _ = yaml.safe_load_all(file.read_text())
        executors = spec["deploymentSpec"]["executors"]
        return {name: work["container"]["resources"] for name, work in executors.items() if "container" in work}

    return compiled_with


def test_a_step_may_need_more(asked):
    before = asked()
    found = asked("--resource", "llava_attention.memory=64Gi", "--resource", "joint_selection.cpu=8")
    assert found["exec-llava-attention"]["resourceMemoryRequest"] == "64Gi"
    assert "resourceMemoryLimit" not in found["exec-llava-attention"]
    # The old numbers beside them would say otherwise.
    assert "memoryRequest" not in found["exec-llava-attention"]
    assert found["exec-joint-selection"]["resourceCpuRequest"] == "8"
    assert found["exec-joint-selection"]["resourceMemoryRequest"] == "6Gi"
    assert {name: found[name] == before[name] for name in found} == {
        name: name not in ("exec-llava-attention", "exec-joint-selection") for name in found
    }


def test_a_limit_stays_a_limit(asked):
    found = asked("--resource", "split.memory=16Gi")["exec-split"]
    assert (found["resourceMemoryRequest"], found["resourceMemoryLimit"]) == ("16Gi", "16Gi")


def test_all_steps_may_need_less(asked):
    found = asked("--resource", "all.cpu=250m", "--resource", "all.memory=1Gi", "--resource", "split.memory=3Gi")
    memory = {name: one["resourceMemoryRequest"] for name, one in found.items()}
    assert len(memory) == 11
    assert memory == {name: "3Gi" if name.startswith("exec-split") else "1Gi" for name in found}
    assert {one["resourceCpuRequest"] for one in found.values()} == {"250m"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("split", "--resource: got 'split', wanted STAGE.cpu=... or STAGE.memory=..., such as 64Gi."),
        ("split.disk=1Gi", "--resource: got 'split.disk=1Gi', wanted STAGE.cpu=... or STAGE.memory=..., such as 64Gi."),
        (
            "spilt.cpu=1",
            "--resource: there is no step 'spilt', wanted all or one of bert_features, cluster_scoring, demand, ingest",
        ),
        ("split.cpu=1 GB", "--resource split.cpu: got '1 GB', wanted a Kubernetes quantity such as 500m, 2"),
    ],
)
def test_what_is_no_resource_is_refused(text, message, tmp_path, capsys):
    assert pipeline.main(["compile", "--output", str(tmp_path / "x.yaml"), "--resource", text]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_steps_with_a_gpu_are_queued(pods):
    found = pods("--queue", "team")
    labels = {name: pod["podMetadata"] for name, pod in found.items() if "podMetadata" in pod}
    assert labels == {name: {"labels": {"kueue.x-k8s.io/queue-name": "team"}} for name in WITH_MODELS}


def test_the_backend_can_read_them(pods):
    for pod in pods("--pull-secret", "one", "--models-claim", "weights", "--queue", "q").values():
        message = json_format.ParseDict(pod, pb.KubernetesExecutorConfig())
        assert message.image_pull_secret[0].secret_name_parameter.runtime_value.constant.string_value == "one"
        assert message.security_context.run_as_user == 10001


@pytest.mark.parametrize("option", ["--pull-secret", "--models-claim", "--queue"])
def test_what_is_no_name_is_refused(option, tmp_path, capsys):
    assert pipeline.main(["compile", "--output", str(tmp_path / "f.yaml"), option, "My Secret"]) == 2
    assert f"{option}: wanted the name of an object in the cluster" in capsys.readouterr().err


@pytest.fixture
def submit(monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with KfpStub() as backend:

        def command(*options):
            code = pipeline.main(["submit", *REQUIRED, "--host", backend.url, *options])
            return code, [run.runtime_config.parameters for run in backend.runs.values()]

        yield command


def test_a_model_of_the_volume_is_no_path_of_this_machine(submit):
    code, runs = submit("--param", "llava_model=/models/llava", "--models-claim", "weights")
    assert (code, [run["llava_model"] for run in runs]) == (0, ["/models/llava"])


@pytest.mark.parametrize(
    ("value", "claim"),
    [("/models/llava", []), ("/model/llava", ["--models-claim", "weights"]), ("/models", ["--models-claim", "w"])],
)
def test_other_paths_are(value, claim, submit, capsys):
    code, runs = submit("--param", f"llava_model={value}", *claim)
    assert (code, runs) == (2, [])
    assert f"llava_model: {value} is a path of this machine, which no pod sees" in capsys.readouterr().err
