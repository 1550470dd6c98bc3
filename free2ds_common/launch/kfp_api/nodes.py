"""Whether the cluster's nodes can take what the steps will ask for; looked at where a kubeconfig is there.

What counts is what a node may give away at all, not what is free now: other pods end.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from kubernetes.client import V1Node, V1Taint
from kubernetes.utils import parse_quantity

from free2ds_common.launch.step_requests import StepRequest

# What the lock files of the images are for.
PLATFORM = "linux/amd64"
_KEEPS_AWAY = ("NoSchedule", "NoExecute")
# Of a node's images the kubelet reports the 50 largest and no more.
_REPORTED_IMAGES = 50


def misfits(steps: Sequence[StepRequest], nodes: Sequence[V1Node]) -> list[str]:
    """The steps that no node can ever take, as the nodes are now.

    Args:
        steps: What is asked for.
        nodes: The cluster's; none if they are not known.

    Returns:
        A sentence for all steps that the same keeps away.
    """
    if not nodes:
        return []
    stages: dict[str, list[str]] = {}
    for step in steps:
        if sentence := _misfit(step, nodes):
            stages.setdefault(sentence, []).append(step.stage)
    return [f"{_listed(names)}: {sentence}" for sentence, names in stages.items()]


def image_warnings(steps: Sequence[StepRequest], nodes: Sequence[V1Node]) -> list[str]:
    """What keeps an image from starting on a node that takes its step.

    Args:
        steps: What is asked for.
        nodes: The cluster's; none if they are not known.

    Returns:
        A sentence each.
    """
    usable = [node for node in nodes if any(_takes(node, step) for step in steps)]
    warnings = []
    foreign = [node for node in usable if (platform := _platform(node)) and platform != PLATFORM]
    if foreign:
        warnings.append(
            f"{len(foreign)} of the {len(usable)} nodes that may run steps, such as {foreign[0].metadata.name}, "
            f"{'is' if len(foreign) == 1 else 'are'} {_platform(foreign[0])}, but the images are made for {PLATFORM}: "
            "there they start only if they were built on such a machine."
        )
    # Without a registry's host a name is one of Docker Hub, where these are not.
    local = {step.image for step in steps if "/" not in step.image}
    missing = sorted(image for image in local if (image, False) in _presence(steps, nodes))
    if missing:
        warnings.append(
            f"{len(missing)} images without a registry, such as {missing[0]}, are on none of the nodes that may run "
            "their steps, and cannot be pulled. Push them, and give --registry."
        )
    return warnings


def images_to_pull(steps: Sequence[StepRequest], nodes: Sequence[V1Node]) -> list[str]:
    """The images that no node has which may run their steps: the first pod of each waits for them.

    Args:
        steps: What is asked for.
        nodes: The cluster's; none if they are not known.

    Returns:
        Their names; without those of which it cannot be told, as where nodes hold more images than they report.
    """
    return sorted({image for image, present in _presence(steps, nodes) if not present})


def _presence(steps: Sequence[StepRequest], nodes: Sequence[V1Node]) -> set[tuple[str, bool]]:
    """Each image with whether it is on a node that takes its step; without those of which it cannot be told."""
    found = set()
    for step in steps:
        taking = [node for node in nodes if _takes(node, step)]
        reported = [node.status.images or [] for node in taking]
        names = {name for images in reported for image in images for name in image.names or []}
        # A node writes the registry out that a name leaves to it.
        present = any(name == step.image or name.endswith(f"/{step.image}") for name in names)
        if present or (taking and all(0 < len(images) < _REPORTED_IMAGES for images in reported)):
            found.add((step.image, present))
    return found


def _misfit(step: StepRequest, nodes: Sequence[V1Node]) -> str:
    """Why no node takes a step; empty where one does."""
    selector = step.node_selector
    labelled = [node for node in nodes if (node.metadata.labels or {}).items() >= selector.items()]
    if not labelled:
        wanted = ", ".join(f"{name}={value}" for name, value in selector.items())
        return f"gpu_node_selector wants nodes with {wanted}, and none of the {len(nodes)} nodes has that."
    open_ones = [node for node in labelled if not _untolerated(node, step)]
    if not open_ones:
        taint = _untolerated(labelled[0], step)[0]
        with_labels = " with the labels of gpu_node_selector" if selector else ""
        remedy = " Add it to gpu_tolerations." if step.tolerations or selector else ""
        return (
            f"each of the {len(labelled)} nodes{with_labels} has a taint that the step does not tolerate, such as "
            f"{taint.key}={taint.value or ''}:{taint.effect}.{remedy}"
        )
    if any(_is_large_enough(node, step) for node in open_ones):
        return ""
    largest = max(open_ones, key=lambda node: _size(node, step))
    had = (largest.status.allocatable or {}).get
    gpus = f" and {had(step.gpu_type, '0')} {step.gpu_type}" if step.gpu_count else ""
    return (
        f"the step asks for {_wanted(step)}, and none of the {len(open_ones)} nodes that may run it has as much; the "
        f"largest, {largest.metadata.name}, has {had('cpu', 'unknown')} cores, {had('memory', 'unknown')} of "
        f"memory{gpus}."
    )


def _wanted(step: StepRequest) -> str:
    gpus = f" and {step.gpu_count} {step.gpu_type}" if step.gpu_count else ""
    return f"{step.cpu} cores, {step.memory} of memory{gpus}"


def _takes(node: V1Node, step: StepRequest) -> bool:
    labelled = (node.metadata.labels or {}).items() >= step.node_selector.items()
    return labelled and not _untolerated(node, step) and _is_large_enough(node, step)


def _is_large_enough(node: V1Node, step: StepRequest) -> bool:
    """Whether a node could give a step what it asks for; a resource that it says nothing of is no obstacle."""
    allocatable = node.status.allocatable or {}
    if step.gpu_count > int(parse_quantity(allocatable.get(step.gpu_type, "0"))):
        return False
    wanted = {"cpu": step.cpu, "memory": step.memory}
    return all(
        parse_quantity(quantity) <= parse_quantity(allocatable[resource])
        for resource, quantity in wanted.items()
        if resource in allocatable
    )


def _size(node: V1Node, step: StepRequest) -> tuple[Decimal, Decimal, Decimal]:
    """What nodes are compared by: what the step finds too little of first."""
    allocatable = node.status.allocatable or {}
    names = [step.gpu_type, "memory", "cpu"] if step.gpu_count else ["memory", "cpu"]
    sizes = [parse_quantity(allocatable.get(name, "0")) for name in names]
    return (sizes[0], sizes[1], sizes[2] if step.gpu_count else Decimal(0))


def _platform(node: V1Node) -> str:
    """Such as linux/arm64; empty where the node does not say."""
    info = node.status.node_info
    return f"{info.operating_system}/{info.architecture}" if info and info.architecture else ""


def _listed(names: Sequence[str]) -> str:
    """Names without repetition: "a, b and c"."""
    *most, last = dict.fromkeys(names)
    return f"{', '.join(most)} and {last}" if most else last


def _untolerated(node: V1Node, step: StepRequest) -> list[V1Taint]:
    """The taints of a node that keep a step away; one that is cordoned or not ready has such a taint too."""
    taints = [taint for taint in node.spec.taints or [] if taint.effect in _KEEPS_AWAY]
    return [taint for taint in taints if not any(_tolerates(one, taint) for one in step.tolerations)]


def _tolerates(toleration: Mapping[str, Any], taint: V1Taint) -> bool:
    """As Kubernetes decides it: an empty key with Exists takes every taint, an empty effect every effect."""
    if toleration.get("effect") not in (None, "", taint.effect):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint.key)
    return toleration.get("key") == taint.key and (toleration.get("value") or "") == (taint.value or "")
