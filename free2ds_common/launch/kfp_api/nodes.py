"""Whether the cluster's nodes have what the steps will ask for; looked at where a kubeconfig is there."""

from collections.abc import Mapping, Sequence
from typing import Any

from kubernetes.client import V1Node, V1Taint

_KEEPS_AWAY = ("NoSchedule", "NoExecute")


def node_warnings(values: Mapping[str, Any], nodes: Sequence[V1Node]) -> list[str]:
    """What keeps a step with an accelerator from every node there is now; a cluster may still grow.

    Args:
        values: All run parameters.
        nodes: The cluster's; none if they are not known.

    Returns:
        A sentence each.
    """
    count = int(values["gpu_count"])
    if not nodes or not count:
        return []
    selector, tolerations, kind = values["gpu_node_selector"], values["gpu_tolerations"], values["gpu_type"]
    labelled = [node for node in nodes if (node.metadata.labels or {}).items() >= selector.items()]
    if not labelled:
        wanted = ", ".join(f"{name}={value}" for name, value in selector.items())
        return [f"gpu_node_selector: none of the {len(nodes)} nodes has {wanted}; steps wait until one has."]
    open_ones = [node for node in labelled if not _untolerated(node, tolerations)]
    if not open_ones:
        taint = _untolerated(labelled[0], tolerations)[0]
        return [
            f"gpu_tolerations: each of the {len(labelled)} nodes with the labels of gpu_node_selector has a taint that "
            f"is not tolerated, such as {taint.key}={taint.value or ''}:{taint.effect}."
        ]
    if not any(int((node.status.allocatable or {}).get(kind, "0")) >= count for node in open_ones):
        return [f"gpu_count: none of the {len(open_ones)} nodes that may be used has {count} {kind}."]
    return []


def _untolerated(node: V1Node, tolerations: Sequence[Mapping[str, Any]]) -> list[V1Taint]:
    """The taints of a node that keep a step away."""
    taints = [taint for taint in node.spec.taints or [] if taint.effect in _KEEPS_AWAY]
    return [taint for taint in taints if not any(_tolerates(one, taint) for one in tolerations)]


def _tolerates(toleration: Mapping[str, Any], taint: V1Taint) -> bool:
    """As Kubernetes decides it: an empty key with Exists takes every taint, an empty effect every effect."""
    if toleration.get("effect") not in (None, "", taint.effect):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint.key)
    return toleration.get("key") == taint.key and (toleration.get("value") or "") == (taint.value or "")
