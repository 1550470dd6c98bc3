"""What Kubernetes says of a run's pods and the UI does not: unschedulable, no such image, quota, killed for memory."""

import base64
import gzip
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import kubernetes
import urllib3

from free2ds_common.errors import StageError, first_line
from free2ds_common.launch.kfp_api.steps import iteration_in

TIMEOUT_S = 10.0
_UNKNOWN = (kubernetes.client.ApiException, urllib3.exceptions.HTTPError, OSError)
# On workflows and pods.
_RUN_LABEL = "pipeline/runid"
_NODE_NAME = "workflows.argoproj.io/node-name"
# Between a workflow's name and a step's in a node's name.
_NO_STEPS = {"root", "entrypoint", "executor"}
# Argo's, in front of what the container said; by itself it says nothing.
_EXIT_CODE = re.compile(r"^(Error|main: Error) \(exit code \d+\)(: )?")
# A pod that has only just been asked for.
_USUAL = {"", "ContainerCreating", "PodInitializing"}


@dataclass(frozen=True)
class Note:
    """What Kubernetes says of one pod.

    Attributes:
        step: Of which step it is.
        pod: Its name; empty where none could be made.
        message: What is said.
        waiting: Whether it may still begin.
    """

    step: str
    pod: str
    message: str
    waiting: bool


class Kube:
    """The Kubernetes API, where a kubeconfig leads to one.

    Attributes:
        namespace: Of the pods.
    """

    def __init__(self, client: kubernetes.client.ApiClient, namespace: str) -> None:
        """Keep both."""
        self._pods = kubernetes.client.CoreV1Api(client)
        self._objects = kubernetes.client.CustomObjectsApi(client)
        self._client = client
        self.namespace = namespace
        self._answers = True

    @classmethod
    def find(cls, kubeconfig: str, namespace: str) -> "Kube | None":
        """The cluster of a kubeconfig; None where there is none.

        Args:
            kubeconfig: Its file; empty takes KUBECONFIG or kubectl's own, if it is there.
            namespace: Of the pods.

        Raises:
            StageError: The file that was asked for cannot be read.
        """
        default = os.environ.get("KUBECONFIG", "") or os.path.expanduser("~/.kube/config")
        if not kubeconfig and not os.path.exists(default.partition(os.pathsep)[0]):
            return None
        try:
            client = kubernetes.config.new_client_from_config(config_file=kubeconfig or None)
        # yaml's errors, and those of programs that give credentials.
        except Exception as error:
            if not kubeconfig:
                return None
            raise StageError(f"--kubeconfig: {kubeconfig} cannot be used ({first_line(error)}).") from None
        client.rest_client.pool_manager.connection_pool_kw["retries"] = urllib3.Retry(1, read=0)
        return cls(client, namespace)

    def notes(self, run_id: str) -> list[Note]:
        """What is said of a run's pods that wait or have failed; nothing where Kubernetes does not answer.

        Args:
            run_id: Of the run.
        """
        selector = f"{_RUN_LABEL}={run_id}"
        options = {"label_selector": selector, "_request_timeout": TIMEOUT_S}
        notes: dict[str, Note] = {}
        if not self._answers:
            return []
        try:
            workflows = self._objects.list_namespaced_custom_object(
                "argoproj.io", "v1alpha1", self.namespace, "workflows", **options
            )
            for workflow in workflows["items"]:
                notes |= {note.pod or note.step: note for note in _of_workflow(workflow)}
            for pod in self._pods.list_namespaced_pod(self.namespace, **options).items:
                notes |= {note.pod: note for note in _of_pod(pod)}
        except _UNKNOWN as error:
            # It is an extra: what the API of Kubeflow Pipelines knows is said all the same. Where nothing answers it is
            # not asked again, which would take its time at every look at a run.
            self._answers = isinstance(error, kubernetes.client.ApiException)
        return list(notes.values())

    def nodes(self) -> list[Any]:
        """The cluster's nodes; none where they may not be seen."""
        try:
            return list(self._pods.list_node(_request_timeout=TIMEOUT_S).items)
        except _UNKNOWN:
            return []

    def may_grow(self) -> bool:
        """Whether something adds nodes when steps wait for them, or that cannot be told.

        The Cluster Autoscaler, also as GKE and AKS have it, says so in a ConfigMap; Karpenter, also as EKS has it, is
        known by its node pools.
        """
        reads: list[Callable[[], Any]] = [
            lambda: self._pods.read_namespaced_config_map(
                "cluster-autoscaler-status", "kube-system", _request_timeout=TIMEOUT_S
            ),
            lambda: self._objects.list_cluster_custom_object(
                "karpenter.sh", "v1", "nodepools", limit=1, _request_timeout=TIMEOUT_S
            ),
        ]
        return not all(_is_absent(read) for read in reads)

    def lacks(self, kind: str, name: str) -> bool:
        """Whether the namespace has no object of a name, as far as can be told.

        Args:
            kind: As in a path of the API: secrets, persistentvolumeclaims.
            name: Of the object.
        """
        # The object's name and labels alone: what is in a Secret stays where it is.
        header = {"Accept": "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"}
        path = f"/api/v1/namespaces/{self.namespace}/{kind}/{name}"
        return _is_absent(
            lambda: self._client.call_api(
                path,
                "GET",
                header_params=header,
                auth_settings=["BearerToken"],
                response_type="object",
                _request_timeout=TIMEOUT_S,
            )
        )

    def pipeline_root(self) -> str:
        """Where the installation keeps artifacts, as its launcher's settings say; empty where they do not."""
        try:
            found = self._pods.read_namespaced_config_map(
                "kfp-launcher", self.namespace, _request_timeout=TIMEOUT_S
            ).data
        except _UNKNOWN:
            return ""
        return str((found or {}).get("defaultPipelineRoot", ""))


def _is_absent(read: Callable[[], Any]) -> bool:
    """Whether the API says that what is read is not there; a refusal says nothing."""
    try:
        read()
    except kubernetes.client.ApiException as error:
        return bool(error.status == 404)
    except _UNKNOWN:
        return False
    return False


def said_by(message: str | None) -> str:
    """What is left of a message of Argo's once "Error (exit code 1)" is taken off, which every failure has."""
    return _EXIT_CODE.sub("", " ".join((message or "").split()))


def step_of(node_name: str) -> str:
    """The step that one of Argo's nodes belongs to, by the node's full name.

    The name is that of the workflow and of all nodes above, with points between them; turns of a loop have a number.
    """
    parts = [re.sub(r"\(\d+\)$", "", part) for part in node_name.split(".")[1:]]
    steps = [part for part in parts if part not in _NO_STEPS and not part.startswith("iteration")]
    turn = next(filter(None, map(iteration_in, reversed(parts))), "")
    name = re.sub(r"\(.*$", "", steps[-1]).removesuffix("-driver") if steps else node_name
    return f"{name} (turn {int(turn) + 1})" if turn else name


def _of_workflow(workflow: Mapping[str, Any]) -> Iterator[Note]:
    status = workflow.get("status", {})
    nodes = status.get("nodes") or {}
    if packed := status.get("compressedNodes"):
        nodes = json.loads(gzip.decompress(base64.b64decode(packed)))
    for node in nodes.values():
        phase, message = node.get("phase", ""), said_by(node.get("message"))
        if node.get("type") != "Pod" or not message or phase not in ("Pending", "Failed", "Error"):
            continue
        yield Note(step_of(node.get("name", "")), node.get("podName", ""), message, waiting=phase == "Pending")


def _of_pod(pod: kubernetes.client.V1Pod) -> Iterator[Note]:
    name, step = pod.metadata.name, step_of((pod.metadata.annotations or {}).get(_NODE_NAME, pod.metadata.name))
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            yield Note(step, name, f"{condition.reason}: {said_by(condition.message)}", waiting=True)
    for container in [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]:
        waiting, ended = container.state.waiting, container.state.terminated
        if waiting and (waiting.reason or "") not in _USUAL:
            yield Note(step, name, f"{waiting.reason}: {said_by(waiting.message)}".rstrip(": "), waiting=True)
        elif ended and ended.exit_code and container.name == "main":
            said = said_by(ended.message) or ("" if ended.reason == "Error" else ended.reason or "")
            if said:
                yield Note(step, name, said, waiting=False)
