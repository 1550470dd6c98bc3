"""What the steps of a pipeline ask of a cluster: what each needs, and the run parameters that say where GPUs are.

What a step needs is written into the compiled file. As run parameters it would be a part of the step's inputs: whoever
gave a step more memory after it ran out of it would lose every finished one. `--resource` of `compile`, `submit` and
`schedule` changes it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kfp import dsl, kubernetes

from free2ds_common.launch.kubernetes_names import (
    require_count,
    require_labels,
    require_resource_name,
    require_tolerations,
)
from free2ds_common.launch.store_access import StoreAccessSettings
from free2ds_common.settings import Settings

# As every image says itself. A number, since Kubernetes cannot tell of a name whether it is root's.
USER = 10001
GPU_NODE_SELECTOR = {"nvidia.com/gpu.present": "true"}
GPU_TOLERATIONS = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
_HOUR_S = 3600


@dataclass(frozen=True, kw_only=True)
class StepNeeds:
    """What a step asks for.

    Attributes:
        cpu: Cores that are requested.
        memory: That is requested.
        limited: Whether that is its limit too.
        hours: After which its pod is ended.
        cached: Whether the result of an earlier run with the same inputs is taken.
        retried: Whether a lost pod is tried again.
        why: Where the numbers come from.
        why_cached: Why the cache is right, or not.
    """

    cpu: str
    memory: str
    limited: bool
    hours: int
    cached: bool = True
    retried: bool = True
    why: str
    why_cached: str


NEEDS: Mapping[str, StepNeeds] = {
    "resolve": StepNeeds(
        cpu="1",
        memory="2Gi",
        limited=False,
        hours=1,
        cached=False,
        retried=False,
        why="reads the data set as a stream and lists folders",
        why_cached="it looks at what is there now; a wrong set-up fails at once",
    ),
    "ingest": StepNeeds(
        cpu="4",
        memory="4Gi",
        limited=True,
        hours=12,
        why="a stream of records, and 100 million pixels at a time: 0.2 to 1.2 GB",
        why_cached="resolve says which bytes lie at both URIs",
    ),
    "reuse": StepNeeds(
        cpu="4",
        memory="4Gi",
        limited=True,
        hours=12,
        why="20,000 records at a time, with their maps",
        why_cached="resolve says which models and which pictures; an equal run has the same shards again",
    ),
    "demand": StepNeeds(
        cpu="1",
        memory="512Mi",
        limited=True,
        hours=1,
        why="reads nothing",
        why_cached="its inputs are all that it reads",
    ),
    "split": StepNeeds(
        cpu="1",
        memory="2Gi",
        limited=True,
        hours=2,
        why="an external sort of 50,000 records at a time",
        why_cached="its input is an artifact",
    ),
    "llava_attention": StepNeeds(
        cpu="4",
        memory="32Gi",
        limited=False,
        hours=168,
        why="the weights of 7B pass through memory once, 14 GB; pictures are decoded on the cores",
        why_cached="resolve says which model and which pictures",
    ),
    "mgm_attention": StepNeeds(
        cpu="4",
        memory="32Gi",
        limited=False,
        hours=168,
        why="as for LLaVA",
        why_cached="as for LLaVA",
    ),
    "bert_features": StepNeeds(
        cpu="4",
        memory="8Gi",
        limited=False,
        hours=24,
        why="1.0 to 1.3 GB beyond the model's own",
        why_cached="resolve says which model",
    ),
    "cluster_scoring": StepNeeds(
        cpu="4",
        memory="8Gi",
        limited=True,
        hours=24,
        why="1.5 GB for 3.5 million messages, 4.1 GB for 34 million; its bound is 8 GB",
        why_cached="its input is an artifact",
    ),
    "joint_selection": StepNeeds(
        cpu="2",
        memory="6Gi",
        limited=True,
        hours=12,
        why="1.1 GB for 665,298 records, 3.6 GB for ten times as many",
        why_cached="its inputs are artifacts, and resolve says which pictures the report shows",
    ),
    "finetune": StepNeeds(
        cpu="8",
        memory="64Gi",
        limited=False,
        hours=168,
        why="the weights of 7B twice, 28 GB, when they are merged; pictures are decoded on the cores",
        why_cached="its records are artifacts, and resolve says which model and which pictures",
    ),
    "evaluate": StepNeeds(
        cpu="4",
        memory="32Gi",
        limited=False,
        hours=48,
        why="as for LLaVA's attention",
        why_cached="resolve says which benchmarks and which untuned model; a trained one is an artifact",
    ),
    "verdict": StepNeeds(
        cpu="1",
        memory="4Gi",
        limited=True,
        hours=2,
        why="a row per question and model",
        why_cached="its inputs are artifacts",
    ),
}


@dataclass(frozen=True, kw_only=True)
class ResourceSettings(StoreAccessSettings):
    """The run parameters that say where steps run; no stage reads them.

    Attributes:
        gpu_type: Resource name of the accelerator that the attention and BERT steps ask for.
        gpu_count: Accelerators per attention or BERT step, which fails at once without one; 0 for a cluster without
            any, and in a local run unless it is given.
        gpu_node_selector: Labels of the nodes that have the accelerator.
        gpu_tolerations: Taints of those nodes that do not keep the steps away.
    """

    gpu_type: str = "nvidia.com/gpu"
    # Text like all of them: the driver of KFP 2.17 drops an accelerator count that is a number, without a word.
    gpu_count: str = "1"
    gpu_node_selector: Mapping[str, str] = field(default_factory=lambda: dict(GPU_NODE_SELECTOR))
    gpu_tolerations: Sequence[Mapping[str, Any]] = field(default_factory=lambda: list(GPU_TOLERATIONS))

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        require_resource_name("gpu_type", self.gpu_type)
        require_count("gpu_count", self.gpu_count)
        require_labels("gpu_node_selector", self.gpu_node_selector)
        require_tolerations("gpu_tolerations", self.gpu_tolerations)


@dataclass(frozen=True, kw_only=True)
class LoopSettings(Settings):
    """The run parameters of the loop that belong to no stage's settings.

    Attributes:
        train_gpu_count: Accelerators of a training's step, all in one pod; 0 as for gpu_count.
        train_options: What few trainings change: lora_rank, learning_rate, max_steps, ...
        evaluate_options: What few evaluations change: prompt, max_new_tokens, batch_size, harness, ...
    """

    train_gpu_count: str = "1"
    train_options: str = ""
    evaluate_options: str = ""

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        require_count("train_gpu_count", self.train_gpu_count)


def ask(task: dsl.PipelineTask, display_name: str) -> dsl.PipelineTask:
    """Give a step its name in the graph, what it needs, and its user; let a lost pod be tried again.

    Args:
        task: A task of a stage.
        display_name: For people; without blanks, as the backend makes folders of it.
    """
    # The second task of a stage in one graph is "split-2".
    needs = NEEDS[re.sub(r"-\d+$", "", task.name).replace("-", "_")]
    task.set_display_name(display_name)
    task.set_cpu_request(needs.cpu)
    task.set_memory_request(needs.memory)
    if needs.limited:
        task.set_memory_limit(needs.memory)
    task.set_caching_options(needs.cached)
    kubernetes.set_timeout(task, needs.hours * _HOUR_S)
    # What pod security "restricted" wants beside what the backend itself sets in every pod.
    kubernetes.set_security_context(task, run_as_user=USER, run_as_non_root=True)
    if needs.retried:
        task.set_retry(num_retries=2, backoff_duration="60s", backoff_factor=2.0, backoff_max_duration="600s")
    return task


@dataclass(frozen=True, kw_only=True)
class GpuNodes:
    """Where steps with an accelerator run; inside a pipeline the values are its parameters.

    Attributes:
        type: Resource name of the accelerator.
        count: How many of them a step gets, as text.
        selector: Labels of the nodes that have it.
        tolerations: Taints of those nodes that do not keep the step away.
    """

    type: str
    count: str
    selector: dict[str, str]
    tolerations: list[dict[str, Any]]

    def ask(self, task: dsl.PipelineTask, display_name: str) -> dsl.PipelineTask:
        """As `ask`, and give the step its accelerator, its nodes, and shared memory."""
        ask(task, display_name)
        task.set_accelerator_type(self.type)
        task.set_accelerator_limit(self.count)
        kubernetes.add_node_selector_json(task, self.selector)
        kubernetes.add_toleration_json(task, self.tolerations)
        # A container's own /dev/shm is 64 MB: too small for torch to hand tensors between processes.
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit="8Gi")
        return task
