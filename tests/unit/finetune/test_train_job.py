"""A TrainJob by Kubeflow's SDK, against a Kubernetes over HTTP."""

import builtins
import logging

import pytest
from kubeflow_trainer_api import models
from kubernetes import client

from components.finetune.config import FinetuneConfig
from components.finetune.train_job import TrainJob
from free2ds_common.errors import StageError
from free2ds_common.stopping import Stopped
from tests.support.trainer_stub import OWN_POD, RUNTIME, ended, node_pod

NAME = "free2ds-1"
COMMAND = ["python", "-m", "components.finetune.node", "--job", "s3://b/job"]
RUNNING = {"running": client.V1ContainerStateRunning()}


@pytest.fixture
def create(cluster):
    def made(**changes):
        given = {"selected": "s", "tuned_model": "m", "adapter": "a", "report": "r", "image_root_uri": "s3://b/images"}
        given |= {"cache_uri": "s3://b/cache", "nodes": 2, "node_resources": "nvidia.com/gpu=8,cpu=16"}
        job = TrainJob(NAME)
        job.create(FinetuneConfig(**{**given, **changes}), COMMAND)
        return job

    return made


class TestCreate:
    def test_it_is_what_the_custom_resource_takes(self, create, cluster):
        create()
        body = {name: cluster.job[name] for name in ("apiVersion", "kind", "metadata", "spec")}
        model = models.TrainerV1alpha1TrainJob.from_dict(body)
        stored = model.to_dict()
        assert stored["spec"] == body["spec"]
        assert (body["apiVersion"], body["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")

    def test_every_node_runs_the_steps_own_image_with_the_command(self, create, cluster):
        create()
        trainer = cluster.job["spec"]["trainer"]
        given = {"nvidia.com/gpu": "8", "cpu": "16"}
        assert trainer == {
            "image": "registry.example/free2ds-finetune:1",
            "command": COMMAND,
            "numNodes": 2,
            "resourcesPerNode": {"requests": given, "limits": given},
        }
        assert cluster.job["spec"]["runtimeRef"]["name"] == "torch-distributed"

    def test_it_waits_in_the_queue_of_the_runs_steps(self, create, cluster):
        create()
        assert cluster.job["metadata"]["labels"] == {
            "app.kubernetes.io/part-of": "free2ds",
            "kueue.x-k8s.io/queue-name": "gpus",
        }

    def test_its_pods_have_what_the_steps_pod_has(self, create, cluster):
        create()
        (patch,) = cluster.job["spec"]["runtimePatches"]
        (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
        pod = job["template"]["spec"]["template"]["spec"]
        assert job["name"] == "node"
        assert pod["serviceAccountName"] == "pipeline-runner"
        assert pod["nodeSelector"] == {"gpu": "yes"}
        assert pod["tolerations"] == [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        (container,) = pod["containers"]
        # Kubeflow Trainer refuses variables here.
        assert container.keys() == {"name", "volumeMounts", "securityContext"}
        assert container["securityContext"] == {"runAsNonRoot": True, "runAsUser": 10001}

    def test_credentials_are_references_mounted_as_files(self, create, cluster):
        create()
        (patch,) = cluster.job["spec"]["runtimePatches"]
        (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
        pod = job["template"]["spec"]["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        secret = {"key": "AWS_ACCESS_KEY_ID", "path": "AWS_ACCESS_KEY_ID"}
        place = {"key": "AWS_ENDPOINT_URL", "path": "AWS_ENDPOINT_URL"}
        assert volumes[mounts["/etc/free2ds/environment"]]["projected"]["sources"] == [
            {"secret": {"name": "store-keys", "items": [secret], "optional": True}},
            {"configMap": {"name": "store-place", "items": [place], "optional": True}},
        ]
        assert volumes[mounts["/models"]]["persistentVolumeClaim"] == {"claimName": "models"}
        assert volumes[mounts["/dev/shm"]]["emptyDir"] == {"medium": "Memory"}
        assert "/kfp" not in mounts

    def test_no_resources_are_those_of_the_runtime(self, create, cluster):
        create(node_resources="")
        assert "resourcesPerNode" not in cluster.job["spec"]["trainer"]

    def test_no_such_runtime(self, create):
        with pytest.raises(
            StageError, match=r"runtime: Kubernetes knows no TrainingRuntime other in namespace default"
        ):
            create(runtime="other")

    def test_a_runtime_with_a_trainer_of_its_own(self, create, cluster):
        metadata = {"name": "tune", "labels": {"trainer.kubeflow.org/framework": "torchtune"}}
        cluster.runtimes["tune"] = {**RUNTIME, "metadata": metadata}
        with pytest.raises(StageError, match=r"runtime: tune trains by itself"):
            create(runtime="tune")

    def test_a_runtime_that_is_none(self, create, cluster):
        cluster.runtimes["bare"] = {**RUNTIME, "metadata": {"name": "bare"}}
        with pytest.raises(StageError, match=r"Kubernetes refuses the TrainJob .*must have .*framework"):
            create(runtime="bare")

    def test_outside_a_step(self, create, monkeypatch):
        monkeypatch.setenv("KFP_POD_NAME", "elsewhere")
        with pytest.raises(StageError, match=r"nodes: no pod elsewhere in namespace default, and so this is no step"):
            create()

    def test_in_a_pod_that_is_no_step(self, create, cluster):
        cluster.own.spec.containers.pop()
        with pytest.raises(StageError, match=rf"nodes: pod {OWN_POD} has no container main"):
            create()

    def test_what_kubernetes_refuses(self, create, cluster):
        cluster.fail(r"POST .*/trainjobs", 400, b'{"message": "denied the request: no such queue"}')
        with pytest.raises(StageError, match=r"nodes: Kubernetes refuses the TrainJob \(.*no such queue"):
            create()

    def test_rights_that_are_missing(self, create, cluster):
        cluster.fail(r"POST .*/trainjobs", 403, b'{"message": "cannot create resource trainjobs"}')
        with pytest.raises(StageError, match=r"nodes: the step's account may not .*manifests/components/trainer"):
            create()


class TestFollow:
    def test_to_its_end_with_what_the_first_node_says(self, create, cluster, caplog):
        job = create()
        cluster.pods = [node_pod(NAME, 0, RUNNING), node_pod(NAME, 1, RUNNING)]
        cluster.asked_for = lambda job: cluster.end("Complete") if len(cluster.asked(r"GET .*/log")) > 1 else None
        with caplog.at_level(logging.INFO):
            job.follow(lambda: False)
        said = [record.getMessage() for record in caplog.records if "node 0: " in record.getMessage()]
        assert said == ["node 0: first line", "node 0: second line"]

    def test_a_failure_is_the_sentence_of_the_node_that_failed_first(self, create, cluster):
        job = create()
        cluster.end("Failed")
        crash = ended(1, "error: RuntimeError: connection closed by peer", minute=5)
        first = ended(1, "error: OutOfMemoryError: CUDA out of memory", minute=4)
        cluster.pods = [node_pod(NAME, 0, crash), node_pod(NAME, 1, first)]
        with pytest.raises(StageError, match=f"TrainJob {NAME} failed: node 1: OutOfMemoryError: CUDA out of memory$"):
            job.follow(lambda: False)

    def test_a_node_without_last_words(self, create, cluster):
        job = create()
        cluster.end("Failed")
        cluster.pods = [node_pod(NAME, 1, ended(137, reason="OOMKilled"))]
        with pytest.raises(StageError, match=r"failed: node 1: exit code 137 \(OOMKilled\)"):
            job.follow(lambda: False)

    def test_a_failure_without_pods_is_what_kubeflow_trainer_says(self, create, cluster):
        job = create()
        cluster.end("Failed", "DeadlineExceeded", "active for too long")
        with pytest.raises(StageError, match="failed: DeadlineExceeded: active for too long"):
            job.follow(lambda: False)

    def test_a_wrong_setting_is_not_tried_again(self, create, cluster):
        """Kubernetes has started the node again; the TrainJob has not failed."""
        job = create()
        wrong = ended(2, "error: max_length: got 9000, wanted at most 4096.", minute=5)
        lost = ended(1, "error: RuntimeError: connection closed by peer", minute=4)
        cluster.pods = [node_pod(NAME, 0, RUNNING, lost), node_pod(NAME, 1, RUNNING, wrong)]
        with pytest.raises(StageError, match="cannot go on: node 1: max_length: got 9000, wanted at most 4096"):
            job.follow(lambda: False)

    def test_a_crash_is_left_to_kubernetes(self, create, cluster, caplog):
        job = create()
        cluster.pods = [node_pod(NAME, 1, RUNNING, ended(1, "error: RuntimeError: lost"))]
        looks = iter([False, False, True])
        with pytest.raises(Stopped):
            job.follow(lambda: next(looks))
        told = [record.getMessage() for record in caplog.records if "RuntimeError: lost" in record.getMessage()]
        assert told == ["node 1: RuntimeError: lost; Kubernetes starts it again if the runtime says so"]

    @pytest.mark.parametrize(
        ("state", "why", "told"),
        [
            ({}, "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", "0/3 nodes are available"),
            (
                {"waiting": client.V1ContainerStateWaiting(reason="ErrImagePull", message="gone")},
                "",
                "ErrImagePull: gone",
            ),
        ],
    )
    def test_what_a_node_waits_for_is_said_once(self, create, cluster, caplog, state, why, told):
        job = create()
        cluster.pods = [node_pod(NAME, 1, state, why=why)]
        looks = iter([False, False, True])
        with pytest.raises(Stopped):
            job.follow(lambda: next(looks))
        assert len([record for record in caplog.records if told in record.getMessage()]) == 1

    def test_what_every_pod_waits_for_is_not_said(self, create, cluster, caplog):
        job = create()
        cluster.pods = [node_pod(NAME, 1, {"waiting": client.V1ContainerStateWaiting(reason="ContainerCreating")})]
        with pytest.raises(Stopped):
            job.follow(lambda: True)
        assert "waits" not in caplog.text

    def test_stopped_as_asked_to(self, create, cluster):
        job = create()
        with pytest.raises(Stopped, match=f"stopped as asked to; TrainJob {NAME} is removed: run again to go on"):
            job.follow(lambda: True)

    def test_somebody_removed_it(self, create, cluster):
        job = create()
        cluster.jobs.clear()
        with pytest.raises(StageError, match=f"TrainJob {NAME} was removed while it ran"):
            job.follow(lambda: False)

    def test_kubernetes_may_fail_to_answer_for_a_while(self, create, cluster):
        job = create()
        cluster.fail(r"GET .*/trainjobs/.*", 503)
        cluster.end("Complete")
        answer = cluster.answer

        def mended(call):
            if len(cluster.calls) > 12:
                cluster._failures.clear()
            return answer(call)

        cluster.answer = mended
        job.follow(lambda: False)

    def test_but_not_for_ever(self, create, cluster):
        job = create()
        cluster.fail(r"GET .*/trainjobs/.*", 503)
        with pytest.raises(StageError, match=r"Kubernetes has not answered for 0 s \(Service Unavailable\)"):
            job.follow(lambda: False)


class TestEarlier:
    def test_there_is_none(self, cluster):
        assert TrainJob(NAME).exists() is False

    def test_one_that_runs_is_kept(self, create):
        assert create().exists() is True

    def test_one_that_failed_makes_room(self, create, cluster):
        job = create()
        cluster.end("Failed")
        assert job.exists() is False
        assert cluster.jobs == {}


def test_it_is_removed(create, cluster):
    create().delete()
    assert cluster.jobs == {}


def test_one_that_cannot_be_removed_is_named(create, cluster, caplog):
    job = create()
    cluster.fail(r"DELETE .*", 500)
    job.delete()
    assert f"kubectl delete trainjob {NAME}" in caplog.text


def test_without_kubernetes(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(StageError, match="nodes: there is no Kubernetes here"):
        TrainJob(NAME)


def test_without_the_sdk(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **named):
        if name == "kubeflow.trainer":
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(StageError, match="nodes: the package kubeflow is not installed here"):
        TrainJob(NAME)
