"""What a step's own pod was given: the nodes of a TrainJob get the same, so that run parameters decide for both.

Credentials go on as references to their Secrets and ConfigMaps: the step never reads them, and no object holds them.
"""

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from free2ds_common.errors import StageError

# Argo's name of the container that a step is.
_MAIN = "main"
# Of Kubeflow Pipelines; a host's name is cut off where a pod's is long.
_POD_NAME = "KFP_POD_NAME"
# Where nodes find their credentials, a file per variable: Kubeflow Trainer lets no one give a node's container
# variables that refer to Secrets.
ENVIRONMENT_FOLDER = "/etc/free2ds/environment"
_QUEUE = "kueue.x-k8s.io/queue-name"
_VOLUME, _SHARED_MEMORY = "free2ds-environment", "free2ds-shared-memory"


def pod_name() -> str:
    """The name of the pod that this process runs in."""
    return os.environ.get(_POD_NAME) or socket.gethostname()


@dataclass(frozen=True)
class OwnPod:
    """A step's pod, as Kubernetes has it.

    Attributes:
        pod: The object, in the API's own names.
        container: The one that the step is.
    """

    pod: dict[str, Any]
    container: dict[str, Any]

    @classmethod
    def of(cls, pod: dict[str, Any]) -> "OwnPod":
        """Find the step's container.

        Raises:
            StageError: The pod has none: this is no step of Kubeflow Pipelines.
        """
        for container in pod["spec"]["containers"]:
            if container["name"] == _MAIN:
                return cls(pod, container)
        raise StageError(f"nodes: pod {pod['metadata']['name']} has no container {_MAIN}, and so is no step of a run.")

    @property
    def image(self) -> str:
        """What the step's container runs."""
        return str(self.container["image"])

    @property
    def labels(self) -> dict[str, str]:
        """Those that a TrainJob has too: the queue of Kueue that the run's steps wait in."""
        labels = self.pod["metadata"].get("labels") or {}
        return {_QUEUE: labels[_QUEUE]} if _QUEUE in labels else {}

    def node_pod(self) -> dict[str, Any]:
        """What the pods of nodes have beside what their runtime gives them; what the step's pod has not is None."""
        spec = self.pod["spec"]
        claims = {volume["name"]: volume for volume in spec.get("volumes") or [] if "persistentVolumeClaim" in volume}
        return {
            "service_account_name": spec.get("serviceAccountName"),
            "node_selector": spec.get("nodeSelector"),
            "tolerations": spec.get("tolerations"),
            "image_pull_secrets": spec.get("imagePullSecrets"),
            "volumes": [
                *claims.values(),
                {"name": _VOLUME, "projected": {"sources": list(self._credentials())}},
                # Of 64 MB otherwise, too few for what the processes of a node pass to each other.
                {"name": _SHARED_MEMORY, "emptyDir": {"medium": "Memory"}},
            ],
        }

    def node_container(self) -> dict[str, Any]:
        """What the container of a node has beside what its runtime gives it."""
        claims = {v["name"] for v in self.pod["spec"].get("volumes") or [] if "persistentVolumeClaim" in v}
        return {
            "security_context": self.container.get("securityContext"),
            "volume_mounts": [
                *(mount for mount in self.container.get("volumeMounts") or [] if mount["name"] in claims),
                {"name": _VOLUME, "mountPath": ENVIRONMENT_FOLDER, "readOnly": True},
                {"name": _SHARED_MEMORY, "mountPath": "/dev/shm"},
            ],
        }

    def _credentials(self) -> Iterator[dict[str, Any]]:
        """Sources of a projected volume: a file for each variable that refers to a Secret or ConfigMap."""
        for variable in self.container.get("env") or []:
            for kind, source in (("secretKeyRef", "secret"), ("configMapKeyRef", "configMap")):
                if reference := (variable.get("valueFrom") or {}).get(kind):
                    item = {"key": reference["key"], "path": variable["name"]}
                    # Without `optional` a pod waits for ever for what need not exist.
                    yield {source: {"name": reference["name"], "items": [item], "optional": True}}


def read_environment(folder: str = ENVIRONMENT_FOLDER) -> None:
    """Give this process the variables that a node finds as files.

    Args:
        folder: Where they are; there need be none.
    """
    if not os.path.isdir(folder):
        return
    for name in os.listdir(folder):
        # Kubernetes keeps versions of the files in folders whose names begin like this.
        if not name.startswith(".."):
            with open(os.path.join(folder, name), encoding="utf-8") as handle:
                os.environ.setdefault(name, handle.read())
