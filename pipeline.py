"""The Free2DS graph, from a LLaVA data set to the records worth training on: the one place where stages are wired.

`python pipeline.py --help` lists the commands that run it here, compile it, or start it on a cluster. The functions are
long because KFP wants every parameter in a signature and every input of a step by name.
"""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from kfp import dsl

from components.bert_features.component import bert_features
from components.bert_features.config import BertFeaturesSettings
from components.cluster_scoring.component import cluster_scoring
from components.cluster_scoring.config import ClusterScoringSettings
from components.ingest.component import ingest
from components.ingest.config import IngestSettings
from components.joint_selection.component import joint_selection
from components.joint_selection.config import JointSelectionSettings
from components.llava_attention.component import llava_attention
from components.llava_attention.config import LlavaAttentionSettings
from components.mgm_attention.component import mgm_attention
from components.mgm_attention.config import MgmAttentionSettings
from components.split.component import split
from components.split.config import SplitSettings
from free2ds_common.launch import cli
from free2ds_common.launch.resources import (
    GPU_NODE_SELECTOR,
    GPU_TOLERATIONS,
    CpuStep,
    GpuStep,
    ResourceSettings,
)
from free2ds_common.settings import Versions

# Shards scored at the same time on a cluster; kfp.local never runs more than two.
PARALLEL_SHARDS = 8


class ShardMaps(NamedTuple):
    """Both models' attention maps of one shard."""

    llava: dsl.Dataset
    mgm: dsl.Dataset


@dsl.pipeline(name="score-shard")
def score_shard(
    shard_uri: str,
    image_root_uri: str,
    image_root_version: str,
    llava_model: str,
    llava_revision: str,
    llava_model_type: str,
    llava_prompt: str,
    llava_vision_tower: str,
    mgm_model: str,
    mgm_revision: str,
    mgm_model_type: str,
    mgm_prompt: str,
    mgm_vision_tower: str,
    mgm_vision_tower_aux: str,
    max_new_tokens: int,
    attention_batch_size: int,
    dtype: str,
    cache_uri: str,
    require_gpu: bool,
    gpu_type: str,
    gpu_count: str,
    gpu_step_cpu: str,
    gpu_step_memory: str,
    node_selector: dict[str, str],
    tolerations: list[dict[str, Any]],
    code_version: str,
) -> ShardMaps:
    """One turn of the loop: both models over one shard. A pipeline of its own, because a loop's body must be one."""
    shard = dsl.importer(
        artifact_uri=shard_uri, artifact_class=dsl.Dataset, reimport=False, metadata={"display_name": "shard"}
    )
    llava = llava_attention(
        shard=shard.output,
        image_root_uri=image_root_uri,
        image_root_version=image_root_version,
        model=llava_model,
        revision=llava_revision,
        model_type=llava_model_type,
        prompt=llava_prompt,
        vision_tower=llava_vision_tower,
        max_new_tokens=max_new_tokens,
        batch_size=attention_batch_size,
        dtype=dtype,
        cache_uri=cache_uri,
        require_gpu=require_gpu,
        gpu_count=gpu_count,
        code_version=code_version,
    )
    mgm = mgm_attention(
        shard=shard.output,
        image_root_uri=image_root_uri,
        image_root_version=image_root_version,
        model=mgm_model,
        revision=mgm_revision,
        model_type=mgm_model_type,
        prompt=mgm_prompt,
        vision_tower=mgm_vision_tower,
        vision_tower_aux=mgm_vision_tower_aux,
        max_new_tokens=max_new_tokens,
        batch_size=attention_batch_size,
        dtype=dtype,
        cache_uri=cache_uri,
        require_gpu=require_gpu,
        gpu_count=gpu_count,
        code_version=code_version,
    )
    gpu_step = GpuStep(
        cpu=gpu_step_cpu,
        memory=gpu_step_memory,
        gpu_type=gpu_type,
        gpu_count=gpu_count,
        node_selector=node_selector,
        tolerations=tolerations,
    )
    gpu_step.ask(llava)
    gpu_step.ask(mgm)
    return ShardMaps(llava=llava.outputs["attention"], mgm=mgm.outputs["attention"])


class Selection(NamedTuple):
    """What a run is for."""

    selected: dsl.Dataset
    scores: dsl.Dataset
    report: dsl.HTML
    summary: dsl.Metrics
    random: dsl.Dataset
    baseline: dsl.Dataset
    rejects: dsl.Artifact


@dsl.pipeline(name="free2ds", description="Select the records of a LLaVA data set that are worth training on.")
def free2ds(
    dataset_uri: str,
    image_root_uri: str,
    dataset_version: str = Versions.dataset_version,
    image_root_version: str = Versions.image_root_version,
    llava_model: str = LlavaAttentionSettings.model,
    llava_revision: str = LlavaAttentionSettings.revision,
    llava_model_type: str = LlavaAttentionSettings.model_type,
    llava_prompt: str = LlavaAttentionSettings.prompt,
    llava_vision_tower: str = LlavaAttentionSettings.vision_tower,
    mgm_model: str = MgmAttentionSettings.model,
    mgm_revision: str = MgmAttentionSettings.revision,
    mgm_model_type: str = MgmAttentionSettings.model_type,
    mgm_prompt: str = MgmAttentionSettings.prompt,
    mgm_vision_tower: str = MgmAttentionSettings.vision_tower,
    mgm_vision_tower_aux: str = MgmAttentionSettings.vision_tower_aux,
    bert_model: str = BertFeaturesSettings.model,
    bert_revision: str = BertFeaturesSettings.revision,
    bert_batch_tokens: int = BertFeaturesSettings.batch_tokens,
    num_shards: int = SplitSettings.num_shards,
    max_reject_fraction: float = IngestSettings.max_reject_fraction,
    max_new_tokens: int = LlavaAttentionSettings.max_new_tokens,
    attention_batch_size: int = LlavaAttentionSettings.batch_size,
    dtype: str = LlavaAttentionSettings.dtype,
    num_clusters: int = ClusterScoringSettings.num_clusters,
    num_iterations: int = ClusterScoringSettings.num_iterations,
    order: str = ClusterScoringSettings.order,
    kmeans_uri: str = ClusterScoringSettings.kmeans_uri,
    kmeans_version: str = Versions.kmeans_version,
    ratio: float = JointSelectionSettings.ratio,
    num_samples: int = JointSelectionSettings.num_samples,
    alpha: float = JointSelectionSettings.alpha,
    temperature: float = JointSelectionSettings.temperature,
    sampler: str = JointSelectionSettings.sampler,
    missing_iou: str = JointSelectionSettings.missing_iou,
    text_normalization: str = JointSelectionSettings.text_normalization,
    top_percent: float = JointSelectionSettings.top_percent,
    stratify: str = JointSelectionSettings.stratify,
    previous_selected_uri: str = JointSelectionSettings.previous_selected_uri,
    seed: int = JointSelectionSettings.seed,
    cache_uri: str = LlavaAttentionSettings.cache_uri,
    require_gpu: bool = ResourceSettings.require_gpu,
    gpu_type: str = ResourceSettings.gpu_type,
    gpu_count: str = ResourceSettings.gpu_count,
    gpu_step_cpu: str = ResourceSettings.gpu_step_cpu,
    gpu_step_memory: str = ResourceSettings.gpu_step_memory,
    cpu_step_cpu: str = ResourceSettings.cpu_step_cpu,
    cpu_step_memory: str = ResourceSettings.cpu_step_memory,
    node_selector: dict[str, str] = GPU_NODE_SELECTOR,
    tolerations: list[dict[str, Any]] = GPU_TOLERATIONS,
    code_version: str = Versions.code_version,
) -> Selection:
    """Select the records of a LLaVA data set that are worth training on.

    What each parameter is, and what it may be, is written in the `Settings` of the stage that it goes to, and checked
    there; `launch.package` puts the descriptions into the compiled pipeline.
    """
    cpu_step = CpuStep(cpu=cpu_step_cpu, memory=cpu_step_memory)
    gpu_step = GpuStep(
        cpu=gpu_step_cpu,
        memory=gpu_step_memory,
        gpu_type=gpu_type,
        gpu_count=gpu_count,
        node_selector=node_selector,
        tolerations=tolerations,
    )
    ingested = cpu_step.ask(
        ingest(
            dataset_uri=dataset_uri,
            dataset_version=dataset_version,
            image_root_uri=image_root_uri,
            image_root_version=image_root_version,
            max_reject_fraction=max_reject_fraction,
            code_version=code_version,
        ),
    )
    records = ingested.outputs["records"]
    shards = cpu_step.ask(split(records=records, num_shards=num_shards, code_version=code_version))
    with dsl.ParallelFor(shards.outputs["Output"], parallelism=PARALLEL_SHARDS) as shard_uri:
        maps = score_shard(
            shard_uri=shard_uri,
            image_root_uri=image_root_uri,
            image_root_version=image_root_version,
            llava_model=llava_model,
            llava_revision=llava_revision,
            llava_model_type=llava_model_type,
            llava_prompt=llava_prompt,
            llava_vision_tower=llava_vision_tower,
            mgm_model=mgm_model,
            mgm_revision=mgm_revision,
            mgm_model_type=mgm_model_type,
            mgm_prompt=mgm_prompt,
            mgm_vision_tower=mgm_vision_tower,
            mgm_vision_tower_aux=mgm_vision_tower_aux,
            max_new_tokens=max_new_tokens,
            attention_batch_size=attention_batch_size,
            dtype=dtype,
            cache_uri=cache_uri,
            require_gpu=require_gpu,
            gpu_type=gpu_type,
            gpu_count=gpu_count,
            gpu_step_cpu=gpu_step_cpu,
            gpu_step_memory=gpu_step_memory,
            node_selector=node_selector,
            tolerations=tolerations,
            code_version=code_version,
        )
    features = gpu_step.ask(
        bert_features(
            records=records,
            model=bert_model,
            revision=bert_revision,
            batch_tokens=bert_batch_tokens,
            dtype=dtype,
            cache_uri=cache_uri,
            require_gpu=require_gpu,
            gpu_count=gpu_count,
            code_version=code_version,
        )
    )
    text = cpu_step.ask(
        cluster_scoring(
            features=features.outputs["features"],
            num_clusters=num_clusters,
            num_iterations=num_iterations,
            order=order,
            kmeans_uri=kmeans_uri,
            kmeans_version=kmeans_version,
            seed=seed,
            code_version=code_version,
        ),
    )
    chosen = cpu_step.ask(
        joint_selection(
            records=records,
            llava_attention=dsl.Collected(maps.outputs["llava"]),
            mgm_attention=dsl.Collected(maps.outputs["mgm"]),
            text_scores=text.outputs["scores"],
            kmeans=text.outputs["kmeans"],
            image_root_uri=image_root_uri,
            image_root_version=image_root_version,
            ratio=ratio,
            num_samples=num_samples,
            alpha=alpha,
            temperature=temperature,
            sampler=sampler,
            missing_iou=missing_iou,
            text_normalization=text_normalization,
            top_percent=top_percent,
            stratify=stratify,
            previous_selected_uri=previous_selected_uri,
            max_reject_fraction=max_reject_fraction,
            seed=seed,
            code_version=code_version,
        ),
    )
    return Selection(
        selected=chosen.outputs["selected"],
        scores=chosen.outputs["scores"],
        report=chosen.outputs["report"],
        summary=chosen.outputs["summary"],
        random=chosen.outputs["random"],
        baseline=chosen.outputs["baseline"],
        rejects=ingested.outputs["rejects"],
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    return cli.main(free2ds, argv)


if __name__ == "__main__":
    sys.exit(main())
