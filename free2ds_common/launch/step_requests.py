"""What each step of a run asks a cluster for: image, cores, memory, GPUs and nodes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from free2ds_common.launch.package import Package, StageTask
from free2ds_common.launch.resources import NEEDS

# The step `demand` hands a run parameter on to each model that has something new to look at.
_HANDED_ON = re.compile(r"demand\.(llava|mgm)_")
_PARAMETER = re.compile(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}")


@dataclass(frozen=True)
class StepRequest:
    """One step.

    Attributes:
        stage: Name of its folder in components/.
        image: That it runs.
        cpu: Cores, a Kubernetes quantity.
        memory: A Kubernetes quantity.
        gpu_type: Resource name of its accelerator; empty where it asks for none.
        gpu_count: Accelerators.
        node_selector: Labels that its node must have.
        tolerations: Taints that do not keep it away.
    """

    stage: str
    image: str
    cpu: str
    memory: str
    gpu_type: str
    gpu_count: int
    node_selector: Mapping[str, str]
    tolerations: Sequence[Mapping[str, Any]]


def step_requests(package: Package, values: Mapping[str, Any]) -> list[StepRequest]:
    """What each stage asks for at most, in the order of `NEEDS`; of equal steps one.

    Args:
        package: The pipeline, with the images and the pods' options that are to run.
        values: The run parameters that are not left at their defaults.
    """
    every = package.with_defaults(values)
    found: list[StepRequest] = []
    for task in sorted(package.stage_tasks, key=lambda task: list(NEEDS).index(task.stage)):
        request = _request(package, task, every)
        if request not in found:
            found.append(request)
    return found


def _request(package: Package, task: StageTask, values: Mapping[str, Any]) -> StepRequest:
    executor = package.spec["components"][task.component]["executorLabel"]
    container = package.spec["deploymentSpec"]["executors"][executor]["container"]
    resources = container.get("resources", {})
    accelerator = resources.get("accelerator", {})
    count = int(_value(accelerator.get("resourceCount", "0"), task, values))
    kubernetes = package.platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {})
    pod = kubernetes.get("executors", {}).get(executor, {})
    selector = pod.get("nodeSelector", {}).get("nodeSelectorJson")
    tolerations: list[Mapping[str, Any]] = []
    for toleration in pod.get("tolerations", []):
        tolerations += values[_run_parameter(toleration["tolerationJson"])]
    return StepRequest(
        stage=task.stage,
        image=container["image"],
        cpu=resources.get("resourceCpuRequest", "0"),
        memory=resources.get("resourceMemoryRequest", "0"),
        gpu_type=_value(accelerator["resourceType"], task, values) if count else "",
        gpu_count=count,
        node_selector=values[_run_parameter(selector)] if selector else {},
        tolerations=tolerations,
    )


def _value(text: str, task: StageTask, values: Mapping[str, Any]) -> str:
    """A text of the spec with the parameter that it stands for, if it is one."""
    if not (found := _PARAMETER.fullmatch(text)):
        return text
    source = task.sources.get(found[1]) or _HANDED_ON.sub("", task.made[found[1]])
    return str(values[source])


def _run_parameter(source: Mapping[str, str]) -> str:
    """The run parameter of a platform's input, which every graph calls as the run does."""
    return source["componentInputParameter"].removeprefix("pipelinechannel--")
