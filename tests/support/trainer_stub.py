"""As much of Kubernetes with Kubeflow Trainer as a step with several nodes asks for, over HTTP."""

import json
from collections.abc import Callable
from typing import Any

from kubernetes import client

from tests.support.http_stub import Call, KubernetesStub, Reply

NAMESPACE = "default"
OWN_POD = "run-finetune-1"
WHEN = "2026-01-01T00:00:00Z"
_MODELS = client.ApiClient()
_TRAINER = "/apis/trainer.kubeflow.org/v1alpha1"
# As Kubeflow Trainer installs it.
RUNTIME = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "ClusterTrainingRuntime",
    "metadata": {"name": "torch-distributed", "labels": {"trainer.kubeflow.org/framework": "torch"}},
    "spec": {
        "mlPolicy": {"numNodes": 1, "torch": {"numProcPerNode": "auto"}},
        "template": {
            "spec": {
                "replicatedJobs": [
                    {
                        "name": "node",
                        "template": {
                            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
                            "spec": {"template": {"spec": {"containers": [{"name": "node", "image": "pytorch"}]}}},
                        },
                    }
                ]
            }
        },
    },
}


class TrainerStub(KubernetesStub):
    """A cluster with Kubeflow Trainer.

    Attributes:
        jobs: TrainJobs by name.
        runtimes: ClusterTrainingRuntimes by name.
        pods: Of all nodes.
        own: The step's own pod.
        log: What the first node prints.
        made: Called with each TrainJob that is made.
        asked_for: Called with each TrainJob that is asked for, before the answer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[str, dict[str, Any]] = {}
        self.runtimes = {"torch-distributed": RUNTIME}
        self.pods: list[client.V1Pod] = []
        self.own = own_pod()
        self.log = ["first line", "second line"]
        self.made: Callable[[dict[str, Any]], None] = lambda job: None
        self.asked_for: Callable[[dict[str, Any]], None] = lambda job: None
        jobs = f"{_TRAINER}/namespaces/{NAMESPACE}/trainjobs"
        self.route(f"POST {jobs}", self._create)
        self.route(f"GET {jobs}/([^/]+)", self._job)
        self.route(f"DELETE {jobs}/([^/]+)", self._delete)
        self.route(f"GET {_TRAINER}/clustertrainingruntimes/([^/]+)", self._runtime)
        self.route(f"GET /api/v1/namespaces/{NAMESPACE}/pods/{OWN_POD}", lambda call: _object(self.own))
        self.route(f"GET /api/v1/namespaces/{NAMESPACE}/pods", self._list_pods)
        self.route(
            f"GET /api/v1/namespaces/{NAMESPACE}/pods/[^/]+/log",
            lambda call: Reply(body="".join(f"{line}\n" for line in self.log).encode(), content_type="text/plain"),
        )

    def end(self, kind: str, reason: str = "", message: str = "") -> None:
        """Let all TrainJobs have ended, as Complete or Failed."""
        condition = {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": WHEN}
        for job in self.jobs.values():
            job["status"] = {"conditions": [condition]}

    @property
    def job(self) -> dict[str, Any]:
        """The only TrainJob."""
        (found,) = self.jobs.values()
        return found

    def _create(self, call: Call) -> Reply:
        job = json.loads(call.body)
        job["metadata"] |= {"namespace": NAMESPACE, "creationTimestamp": WHEN}
        self.jobs[job["metadata"]["name"]] = job
        self.made(job)
        return Reply(201, json.dumps(job).encode())

    def _job(self, call: Call, name: str) -> Reply:
        if name in self.jobs:
            self.asked_for(self.jobs[name])
        return _found(self.jobs, name)

    def _runtime(self, call: Call, name: str) -> Reply:
        return _found(self.runtimes, name)

    def _delete(self, call: Call, name: str) -> Reply:
        reply = _found(self.jobs, name)
        self.jobs.pop(name, None)
        return reply

    def _list_pods(self, call: Call) -> Reply:
        name = call.query["labelSelector"].partition(",")[0].partition("=")[2]
        pods = [pod for pod in self.pods if pod.metadata.labels["jobset.sigs.k8s.io/jobset-name"] == name]
        return Reply(body=json.dumps({"items": _MODELS.sanitize_for_serialization(pods)}).encode())


def _found(objects: dict[str, dict[str, Any]], name: str) -> Reply:
    return Reply(body=json.dumps(objects[name]).encode()) if name in objects else Reply(404, b'{"code": 404}')


def _object(found: Any) -> Reply:
    return Reply(body=json.dumps(_MODELS.sanitize_for_serialization(found)).encode())


def own_pod() -> client.V1Pod:
    """The pod of the step, as the pipeline and Kubeflow make it."""
    secret = client.V1SecretKeySelector(name="store-keys", key="AWS_ACCESS_KEY_ID", optional=True)
    config_map = client.V1ConfigMapKeySelector(name="store-place", key="AWS_ENDPOINT_URL", optional=True)
    variables = [
        client.V1EnvVar("AWS_ACCESS_KEY_ID", value_from=client.V1EnvVarSource(secret_key_ref=secret)),
        client.V1EnvVar("AWS_ENDPOINT_URL", value_from=client.V1EnvVarSource(config_map_key_ref=config_map)),
        client.V1EnvVar("KFP_POD_NAME", value="own"),
    ]
    claim = client.V1PersistentVolumeClaimVolumeSource(claim_name="models")
    mounts = [client.V1VolumeMount(name="models", mount_path="/models"), client.V1VolumeMount("/kfp", name="kfp")]
    main = client.V1Container(
        name="main",
        image="registry.example/free2ds-finetune:1",
        env=variables,
        volume_mounts=mounts,
        security_context=client.V1SecurityContext(run_as_user=10001, run_as_non_root=True),
    )
    spec = client.V1PodSpec(
        containers=[client.V1Container(name="wait", image="argo"), main],
        service_account_name="pipeline-runner",
        node_selector={"gpu": "yes"},
        tolerations=[client.V1Toleration(key="gpu", operator="Exists", effect="NoSchedule")],
        image_pull_secrets=[client.V1LocalObjectReference(name="registry")],
        volumes=[
            client.V1Volume(name="models", persistent_volume_claim=claim),
            client.V1Volume(name="kfp", empty_dir=client.V1EmptyDirVolumeSource()),
        ],
    )
    labels = {"kueue.x-k8s.io/queue-name": "gpus", "pipeline/runid": "1"}
    return client.V1Pod(metadata=client.V1ObjectMeta(name=OWN_POD, labels=labels), spec=spec)


def node_pod(job: str, node: int, state: dict[str, Any], last: dict[str, Any] | None = None, why: str = "") -> Any:
    """The pod of a node.

    Args:
        job: The TrainJob's name.
        node: Its number.
        state: Arguments of V1ContainerState.
        last: The same of its last state.
        why: Why it cannot be scheduled; empty where it can.
    """
    labels = {
        "jobset.sigs.k8s.io/jobset-name": job,
        "jobset.sigs.k8s.io/replicatedjob-name": "node",
        "batch.kubernetes.io/job-completion-index": str(node),
    }
    status = client.V1ContainerStatus(
        name="node",
        image="i",
        image_id="",
        ready=False,
        restart_count=0,
        state=client.V1ContainerState(**state),
        last_state=client.V1ContainerState(**(last or {})),
    )
    conditions = [client.V1PodCondition(type="PodScheduled", status="False", message=why)] if why else []
    return client.V1Pod(
        metadata=client.V1ObjectMeta(name=f"{job}-node-0-{node}", labels=labels, creation_timestamp=WHEN),
        spec=client.V1PodSpec(containers=[client.V1Container(name="node", image="i")]),
        status=client.V1PodStatus(phase="Running", container_statuses=[status], conditions=conditions),
    )


def ended(exit_code: int, message: str = "", minute: int = 0, reason: str = "Error") -> dict[str, Any]:
    """The state of a container that has ended."""
    when = WHEN.replace("00:00:00", f"00:{minute:02}:00")
    return {
        "terminated": client.V1ContainerStateTerminated(
            exit_code=exit_code, message=message, reason=reason, finished_at=when
        )
    }
