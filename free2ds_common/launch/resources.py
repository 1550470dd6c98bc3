"""What the steps of a pipeline ask of a cluster: the run parameters, and how a step gets them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kfp import dsl, kubernetes

from free2ds_common.launch.kubernetes_names import (
    require_count,
    require_labels,
    require_quantity,
    require_resource_name,
    require_tolerations,
)
from free2ds_common.launch.store_access import StoreAccessSettings

# As every image says itself. A number, since Kubernetes cannot tell of a name whether it is root's.
USER = 10001
GPU_NODE_SELECTOR = {"nvidia.com/gpu.present": "true"}
GPU_TOLERATIONS = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


@dataclass(frozen=True, kw_only=True)
class ResourceSettings(StoreAccessSettings):
    """The run parameters that say what steps ask for; no stage reads them.

    Attributes:
        require_gpu: Whether an attention or BERT step that finds no GPU fails at once; not with a gpu_count of 0. Off
            in a local run unless it is given.
        gpu_type: Resource name of the accelerator that the attention and BERT steps ask for.
        gpu_count: Accelerators per step; 0 for a cluster without any.
        gpu_step_cpu: CPU cores requested by a step with an accelerator.
        gpu_step_memory: Memory requested by a step with an accelerator.
        cpu_step_cpu: CPU cores requested by every other step.
        cpu_step_memory: Memory requested by every other step.
        node_selector: Labels of the nodes that have the accelerator.
        tolerations: Taints of those nodes that do not keep the steps away.
    """

    require_gpu: bool = True
    gpu_type: str = "nvidia.com/gpu"
    # Text like all of them: the driver of KFP 2.17 drops an accelerator count that is a number, without a word.
    gpu_count: str = "1"
    gpu_step_cpu: str = "4"
    gpu_step_memory: str = "32Gi"
    cpu_step_cpu: str = "2"
    cpu_step_memory: str = "8Gi"
    node_selector: Mapping[str, str] = field(default_factory=lambda: dict(GPU_NODE_SELECTOR))
    tolerations: Sequence[Mapping[str, Any]] = field(default_factory=lambda: list(GPU_TOLERATIONS))

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        require_resource_name("gpu_type", self.gpu_type)
        require_count("gpu_count", self.gpu_count)
        for name in ("gpu_step_cpu", "gpu_step_memory", "cpu_step_cpu", "cpu_step_memory"):
            require_quantity(name, getattr(self, name))
        require_labels("node_selector", self.node_selector)
        require_tolerations("tolerations", self.tolerations)


@dataclass(frozen=True, kw_only=True)
class CpuStep:
    """What a step without an accelerator asks for; inside a pipeline the values are its parameters.

    Attributes:
        cpu: Cores, as Kubernetes writes them.
        memory: As Kubernetes writes it.
    """

    cpu: str
    memory: str

    def ask(self, task: dsl.PipelineTask) -> dsl.PipelineTask:
        """Give the step its resources and its user, and let a lost pod be tried again."""
        task.set_cpu_request(self.cpu)
        task.set_memory_request(self.memory)
        # What pod security "restricted" wants beside what the backend itself sets in every pod.
        kubernetes.set_security_context(task, run_as_user=USER, run_as_non_root=True)
        task.set_retry(num_retries=2, backoff_duration="60s", backoff_factor=2.0, backoff_max_duration="600s")
        return task


@dataclass(frozen=True, kw_only=True)
class GpuStep(CpuStep):
    """What a step with an accelerator asks for.

    Attributes:
        gpu_type: Resource name of the accelerator.
        gpu_count: How many of them, as text.
        node_selector: Labels of the nodes that have it.
        tolerations: Taints of those nodes that do not keep the step away.
    """

    gpu_type: str
    gpu_count: str
    node_selector: dict[str, str]
    tolerations: list[dict[str, Any]]

    def ask(self, task: dsl.PipelineTask) -> dsl.PipelineTask:
        """Give the step its resources, its nodes, and shared memory."""
        super().ask(task)
        task.set_accelerator_type(self.gpu_type)
        task.set_accelerator_limit(self.gpu_count)
        kubernetes.add_node_selector_json(task, self.node_selector)
        kubernetes.add_toleration_json(task, self.tolerations)
        # A container's own /dev/shm is 64 MB: too small for torch to hand tensors between processes.
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit="8Gi")
        return task
