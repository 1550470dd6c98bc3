"""What the pods of a TrainJob's nodes tell: why one waits, and why one ended."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from free2ds_common.failure import EXIT_WRONG_SETUP

if TYPE_CHECKING:
    from kubernetes.client import V1Pod

    Pod: TypeAlias = V1Pod
else:
    # There with Kubeflow's SDK alone.
    Pod = object

_INDEX = "batch.kubernetes.io/job-completion-index"
# A node's last words begin so: free2ds_common/kfp_task.py
_WORDS = "error: "
# Of a container that will soon run.
_USUAL = {None, "", "ContainerCreating", "PodInitializing"}


@dataclass(frozen=True)
class Ended:
    """A node that ended with an error.

    Attributes:
        pod: Its pod's name.
        node: Its number.
        exit_code: Of its container.
        finished: When.
        sentence: Which node, and its own last words, or Kubernetes' reason where it had none.
    """

    pod: str
    node: str
    exit_code: int
    finished: str
    sentence: str


def ends(pods: Sequence[Pod]) -> list[Ended]:
    """Nodes that ended with an error, the most telling first: a wrong set-up, then whoever was first.

    A node that fails takes the others with it, which then have less to say.

    Args:
        pods: Of the nodes.
    """
    return sorted(_ends(pods), key=lambda end: (end.exit_code != EXIT_WRONG_SETUP, end.finished))


def _ends(pods: Sequence[Pod]) -> Iterator[Ended]:
    for pod in pods:
        name, node = pod.metadata.name, (pod.metadata.labels or {}).get(_INDEX, "?")
        for container in pod.status.container_statuses or []:
            for state in (container.state, container.last_state):
                ended = state and state.terminated
                if not ended or not ended.exit_code:
                    continue
                said = (ended.message or "").strip().removeprefix(_WORDS)
                said = said or f"exit code {ended.exit_code} ({ended.reason or 'no reason given'})"
                yield Ended(name, node, ended.exit_code, str(ended.finished_at or ""), f"node {node}: {said}")


def waits_for(pod: Pod) -> str:
    """Why a pod does not run; empty where it does, or soon will.

    Args:
        pod: Of a node.
    """
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return str(condition.message or condition.reason or "")
    for container in pod.status.container_statuses or []:
        waiting = container.state and container.state.waiting
        if waiting and waiting.reason not in _USUAL:
            return f"{waiting.reason}: {waiting.message or ''}".rstrip(": ")
    return ""
