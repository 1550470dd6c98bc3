"""The Free2DS graph, from a LLaVA data set to the records worth training on: the one place where stages are wired.

`python pipeline.py --help` lists the commands that run it here, compile it, or start it on a cluster. The functions are
long because KFP wants every parameter in a signature and every input of a step by name.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kfp import dsl

from components.bert_features.component import bert_features
from components.bert_features.config import BertFeaturesSettings
from components.cluster_scoring.component import cluster_scoring
from components.cluster_scoring.config import ClusterScoringSettings
from components.finetune.config import FinetuneSettings
from components.ingest.component import ingest
from components.ingest.config import IngestSettings
from components.joint_selection.component import joint_selection
from components.joint_selection.config import JointSelectionSettings
from components.llava_attention.component import llava_attention
from components.llava_attention.config import LlavaAttentionSettings
from components.loop import train_and_measure
from components.mgm_attention.component import mgm_attention
from components.mgm_attention.config import MgmAttentionSettings
from components.resolve.component import resolve
from components.resolve.config import ResolveSettings
from components.reuse.component import demand, reuse
from components.split.component import split
from components.split.config import SplitSettings
from components.verdict.config import VerdictSettings
from free2ds_common.launch import cli
from free2ds_common.launch.resources import (
    GPU_NODE_SELECTOR,
    GPU_TOLERATIONS,
    GpuNodes,
    LoopSettings,
    ResourceSettings,
    ask,
)
from free2ds_common.launch.store_access import StoreAccess

# Shards scored at the same time on a cluster; kfp.local never runs more than two.
PARALLEL_SHARDS = 8
# What the loop trains on, and with which seeds; a selection alone has none.
ARMS = ["selected:42", "random:42"]
NO_ARMS: list[str] = []


def score_shard(
    attention: Callable[..., dsl.PipelineTask],
    title: str,
    *,
    shard_uri: str,
    gpu_type: str,
    gpu_count: str,
    gpu_node_selector: dict[str, str],
    gpu_tolerations: list[dict[str, Any]],
    store_secret: str,
    store_config_map: str,
    **settings: str,
) -> dsl.PipelineTask:
    """Wire one shard and one model's step over it into the pipeline that calls this."""
    shard = dsl.importer(
        artifact_uri=shard_uri, artifact_class=dsl.Dataset, reimport=False, metadata={"display_name": "shard"}
    )
    shard.set_display_name("Shard")
    scored = attention(shard=shard.output, gpu_count=gpu_count, **settings)
    nodes = GpuNodes(type=gpu_type, count=gpu_count, selector=gpu_node_selector, tolerations=gpu_tolerations)
    StoreAccess(secret=store_secret, config_map=store_config_map).give(nodes.ask(scored, title))
    return scored


@dsl.pipeline(name="score-llava", display_name="One shard, LLaVA")
def score_llava(
    shard_uri: str,
    image_root_uri: str,
    image_root_version: str,
    model: str,
    revision: str,
    options: str,
    cache_uri: str,
    gpu_type: str,
    gpu_count: str,
    gpu_node_selector: dict[str, str],
    gpu_tolerations: list[dict[str, Any]],
    store_secret: str,
    store_config_map: str,
) -> dsl.Dataset:
    """One turn of LLaVA's loop: a pipeline of its own, because a loop's body must be one."""
    return score_shard(llava_attention, "LLaVA-attention", **locals()).outputs["attention"]


@dsl.pipeline(name="score-mgm", display_name="One shard, MGM")
def score_mgm(
    shard_uri: str,
    image_root_uri: str,
    image_root_version: str,
    model: str,
    revision: str,
    options: str,
    cache_uri: str,
    gpu_type: str,
    gpu_count: str,
    gpu_node_selector: dict[str, str],
    gpu_tolerations: list[dict[str, Any]],
    store_secret: str,
    store_config_map: str,
) -> dsl.Dataset:
    """One turn of MGM's loop."""
    return score_shard(mgm_attention, "MGM-attention", **locals()).outputs["attention"]


class Selected(NamedTuple):
    """What joint_selection makes."""

    selected: dsl.Dataset
    scores: dsl.Dataset
    report: dsl.HTML
    summary: dsl.Metrics
    random: dsl.Dataset
    baseline: dsl.Dataset


@dsl.pipeline(name="score-and-select", display_name="Score all shards and select")
def score_and_select(
    llava_shards: list[str],
    mgm_shards: list[str],
    records: dsl.Input[dsl.Dataset],
    llava_finished: dsl.Input[dsl.Dataset],
    mgm_finished: dsl.Input[dsl.Dataset],
    text_scores: dsl.Input[dsl.Dataset],
    kmeans: dsl.Input[dsl.Dataset],
    image_root_uri: str,
    image_root_version: str,
    llava_model: str,
    llava_revision: str,
    llava_options: str,
    llava_gpu_count: str,
    llava_gpu_node_selector: dict[str, str],
    llava_gpu_tolerations: list[dict[str, Any]],
    mgm_model: str,
    mgm_revision: str,
    mgm_options: str,
    mgm_gpu_count: str,
    mgm_gpu_node_selector: dict[str, str],
    mgm_gpu_tolerations: list[dict[str, Any]],
    cache_uri: str,
    max_reject_fraction: float,
    ratio: float,
    num_samples: int,
    alpha: float,
    seed: int,
    select_options: str,
    previous_selected_uri: str,
    previous_selected_version: str,
    gpu_type: str,
    store_secret: str,
    store_config_map: str,
) -> Selected:
    """Each model's loop over its shards, and what comes after both.

    A pipeline of its own: in a loop of the root the shard would, locally, replace what a task of the root hands on.
    """
    with dsl.ParallelFor(llava_shards, name="llava-shards", parallelism=PARALLEL_SHARDS) as shard_uri:
        llava = score_llava(
            shard_uri=shard_uri,
            image_root_uri=image_root_uri,
            image_root_version=image_root_version,
            model=llava_model,
            revision=llava_revision,
            options=llava_options,
            cache_uri=cache_uri,
            gpu_type=gpu_type,
            gpu_count=llava_gpu_count,
            gpu_node_selector=llava_gpu_node_selector,
            gpu_tolerations=llava_gpu_tolerations,
            store_secret=store_secret,
            store_config_map=store_config_map,
        )
        llava.set_display_name("One shard, LLaVA")
    with dsl.ParallelFor(mgm_shards, name="mgm-shards", parallelism=PARALLEL_SHARDS) as shard_uri:
        mgm = score_mgm(
            shard_uri=shard_uri,
            image_root_uri=image_root_uri,
            image_root_version=image_root_version,
            model=mgm_model,
            revision=mgm_revision,
            options=mgm_options,
            cache_uri=cache_uri,
            gpu_type=gpu_type,
            gpu_count=mgm_gpu_count,
            gpu_node_selector=mgm_gpu_node_selector,
            gpu_tolerations=mgm_gpu_tolerations,
            store_secret=store_secret,
            store_config_map=store_config_map,
        )
        mgm.set_display_name("One shard, MGM")
    chosen = joint_selection(
        records=records,
        llava_attention=dsl.Collected(llava.outputs["Output"]),
        mgm_attention=dsl.Collected(mgm.outputs["Output"]),
        llava_finished=llava_finished,
        mgm_finished=mgm_finished,
        text_scores=text_scores,
        kmeans=kmeans,
        image_root_uri=image_root_uri,
        image_root_version=image_root_version,
        ratio=ratio,
        num_samples=num_samples,
        alpha=alpha,
        max_reject_fraction=max_reject_fraction,
        seed=seed,
        options=select_options,
        previous_selected_uri=previous_selected_uri,
        previous_selected_version=previous_selected_version,
    )
    StoreAccess(secret=store_secret, config_map=store_config_map).give(ask(chosen, "select-and-report"))
    return Selected(
        selected=chosen.outputs["selected"],
        scores=chosen.outputs["scores"],
        report=chosen.outputs["report"],
        summary=chosen.outputs["summary"],
        random=chosen.outputs["random"],
        baseline=chosen.outputs["baseline"],
    )


@dataclass(frozen=True)
class Steps:
    """The steps of a selection whose outputs others take."""

    found: dsl.PipelineTask
    ingested: dsl.PipelineTask
    chosen: dsl.PipelineTask


def select(
    dataset_uri: str,
    image_root_uri: str,
    max_reject_fraction: float,
    num_shards: int,
    records_per_shard: int,
    llava_model: str,
    llava_options: str,
    mgm_model: str,
    mgm_options: str,
    bert_model: str,
    text_options: str,
    num_clusters: int,
    kmeans_uri: str,
    ratio: float,
    num_samples: int,
    alpha: float,
    select_options: str,
    previous_selected_uri: str,
    seed: int,
    cache_uri: str,
    gpu_type: str,
    gpu_count: str,
    gpu_node_selector: dict[str, str],
    gpu_tolerations: list[dict[str, Any]],
    store_secret: str,
    store_config_map: str,
    arms: list[str] = NO_ARMS,
    train_model: str = "",
    train_options: str = "",
    benchmark_uris: str = "",
    evaluate_options: str = "",
    resamples: int = VerdictSettings.resamples,
) -> Steps:
    """Wire the steps of a selection into the pipeline that calls this.

    What has a default is for the loop, whose every part is checked and pinned before the first of them works.
    """
    nodes = GpuNodes(type=gpu_type, count=gpu_count, selector=gpu_node_selector, tolerations=gpu_tolerations)
    access = StoreAccess(secret=store_secret, config_map=store_config_map)
    found = resolve(
        dataset_uri=dataset_uri,
        image_root_uri=image_root_uri,
        max_reject_fraction=max_reject_fraction,
        num_shards=num_shards,
        records_per_shard=records_per_shard,
        llava_model=llava_model,
        llava_options=llava_options,
        mgm_model=mgm_model,
        mgm_options=mgm_options,
        bert_model=bert_model,
        text_options=text_options,
        num_clusters=num_clusters,
        kmeans_uri=kmeans_uri,
        ratio=ratio,
        num_samples=num_samples,
        alpha=alpha,
        select_options=select_options,
        previous_selected_uri=previous_selected_uri,
        seed=seed,
        cache_uri=cache_uri,
        gpu_count=gpu_count,
        arms=arms,
        train_model=train_model,
        train_options=train_options,
        benchmark_uris=benchmark_uris,
        evaluate_options=evaluate_options,
        resamples=resamples,
    )
    access.give(ask(found, "check-and-pin-versions"))
    ingested = ingest(
        dataset_uri=dataset_uri,
        dataset_version=found.outputs["dataset_version"],
        image_root_uri=image_root_uri,
        image_root_version=found.outputs["image_root_version"],
        max_reject_fraction=max_reject_fraction,
    )
    access.give(ask(ingested, "read-data-set"))
    records = ingested.outputs["records"]
    known = reuse(
        records=records,
        image_root_uri=image_root_uri,
        image_root_version=found.outputs["image_root_version"],
        llava_model=llava_model,
        llava_revision=found.outputs["llava_revision"],
        llava_options=found.outputs["llava_options"],
        mgm_model=mgm_model,
        mgm_revision=found.outputs["mgm_revision"],
        mgm_options=found.outputs["mgm_options"],
        on_gpu=found.outputs["on_gpu"],
        cache_uri=cache_uri,
    )
    access.give(ask(known, "take-finished-results"))
    needed = demand(
        llava_new=known.outputs["llava_new"],
        mgm_new=known.outputs["mgm_new"],
        gpu_count=gpu_count,
        gpu_node_selector=gpu_node_selector,
        gpu_tolerations=gpu_tolerations,
    )
    ask(needed, "say-which-GPUs-are-needed")
    llava_shards = split(
        records=known.outputs["llava_missing"], num_shards=num_shards, records_per_shard=records_per_shard
    )
    ask(llava_shards, "split-for-LLaVA")
    mgm_shards = split(records=known.outputs["mgm_missing"], num_shards=num_shards, records_per_shard=records_per_shard)
    ask(mgm_shards, "split-for-MGM")
    features = bert_features(
        records=records,
        model=bert_model,
        revision=found.outputs["bert_revision"],
        options=found.outputs["bert_options"],
        cache_uri=cache_uri,
        gpu_count=gpu_count,
    )
    access.give(nodes.ask(features, "text-features"))
    text = cluster_scoring(
        features=features.outputs["features"],
        num_clusters=num_clusters,
        kmeans_uri=kmeans_uri,
        kmeans_version=found.outputs["kmeans_version"],
        seed=seed,
        options=found.outputs["cluster_options"],
    )
    access.give(ask(text, "text-scores"))
    chosen = score_and_select(
        llava_shards=llava_shards.outputs["Output"],
        mgm_shards=mgm_shards.outputs["Output"],
        records=records,
        llava_finished=known.outputs["llava_finished"],
        mgm_finished=known.outputs["mgm_finished"],
        text_scores=text.outputs["scores"],
        kmeans=text.outputs["kmeans"],
        image_root_uri=image_root_uri,
        image_root_version=found.outputs["image_root_version"],
        llava_model=llava_model,
        llava_revision=found.outputs["llava_revision"],
        llava_options=found.outputs["llava_options"],
        llava_gpu_count=needed.outputs["llava_gpu_count"],
        llava_gpu_node_selector=needed.outputs["llava_gpu_node_selector"],
        llava_gpu_tolerations=needed.outputs["llava_gpu_tolerations"],
        mgm_model=mgm_model,
        mgm_revision=found.outputs["mgm_revision"],
        mgm_options=found.outputs["mgm_options"],
        mgm_gpu_count=needed.outputs["mgm_gpu_count"],
        mgm_gpu_node_selector=needed.outputs["mgm_gpu_node_selector"],
        mgm_gpu_tolerations=needed.outputs["mgm_gpu_tolerations"],
        cache_uri=cache_uri,
        max_reject_fraction=max_reject_fraction,
        ratio=ratio,
        num_samples=num_samples,
        alpha=alpha,
        seed=seed,
        select_options=found.outputs["select_options"],
        previous_selected_uri=previous_selected_uri,
        previous_selected_version=found.outputs["previous_selected_version"],
        gpu_type=gpu_type,
        store_secret=store_secret,
        store_config_map=store_config_map,
    )
    chosen.set_display_name("Score all shards and select")
    return Steps(found, ingested, chosen)


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
    max_reject_fraction: float = IngestSettings.max_reject_fraction,
    num_shards: int = SplitSettings.num_shards,
    records_per_shard: int = SplitSettings.records_per_shard,
    llava_model: str = LlavaAttentionSettings.model,
    llava_options: str = ResolveSettings.llava_options,
    mgm_model: str = MgmAttentionSettings.model,
    mgm_options: str = ResolveSettings.mgm_options,
    bert_model: str = BertFeaturesSettings.model,
    text_options: str = ResolveSettings.text_options,
    num_clusters: int = ClusterScoringSettings.num_clusters,
    kmeans_uri: str = ClusterScoringSettings.kmeans_uri,
    ratio: float = JointSelectionSettings.ratio,
    num_samples: int = JointSelectionSettings.num_samples,
    alpha: float = JointSelectionSettings.alpha,
    select_options: str = ResolveSettings.select_options,
    previous_selected_uri: str = JointSelectionSettings.previous_selected_uri,
    seed: int = JointSelectionSettings.seed,
    cache_uri: str = LlavaAttentionSettings.cache_uri,
    gpu_type: str = ResourceSettings.gpu_type,
    gpu_count: str = ResourceSettings.gpu_count,
    gpu_node_selector: dict[str, str] = GPU_NODE_SELECTOR,
    gpu_tolerations: list[dict[str, Any]] = GPU_TOLERATIONS,
    store_secret: str = ResourceSettings.store_secret,
    store_config_map: str = ResourceSettings.store_config_map,
) -> Selection:
    """Select the records of a LLaVA data set that are worth training on.

    What each parameter is, and what it may be, is written in the `Settings` of the stage that it goes to, and checked
    there; `launch.package` puts the descriptions into the compiled pipeline.
    """
    made = select(**locals())
    return Selection(
        selected=made.chosen.outputs["selected"],
        scores=made.chosen.outputs["scores"],
        report=made.chosen.outputs["report"],
        summary=made.chosen.outputs["summary"],
        random=made.chosen.outputs["random"],
        baseline=made.chosen.outputs["baseline"],
        rejects=made.ingested.outputs["rejects"],
    )


class LoopResult(NamedTuple):
    """What a run of the loop is for: the selection, and whether it helped."""

    selected: dsl.Dataset
    scores: dsl.Dataset
    report: dsl.HTML
    summary: dsl.Metrics
    random: dsl.Dataset
    baseline: dsl.Dataset
    rejects: dsl.Artifact
    comparison: dsl.Metrics
    verdict: dsl.HTML


@dsl.pipeline(
    name="free2ds-loop",
    description="Select records, train on them and on as many at random, and say whether it helped.",
)
def free2ds_loop(
    benchmark_uris: str,
    dataset_uri: str,
    image_root_uri: str,
    max_reject_fraction: float = IngestSettings.max_reject_fraction,
    num_shards: int = SplitSettings.num_shards,
    records_per_shard: int = SplitSettings.records_per_shard,
    llava_model: str = LlavaAttentionSettings.model,
    llava_options: str = ResolveSettings.llava_options,
    mgm_model: str = MgmAttentionSettings.model,
    mgm_options: str = ResolveSettings.mgm_options,
    bert_model: str = BertFeaturesSettings.model,
    text_options: str = ResolveSettings.text_options,
    num_clusters: int = ClusterScoringSettings.num_clusters,
    kmeans_uri: str = ClusterScoringSettings.kmeans_uri,
    ratio: float = JointSelectionSettings.ratio,
    num_samples: int = JointSelectionSettings.num_samples,
    alpha: float = JointSelectionSettings.alpha,
    select_options: str = ResolveSettings.select_options,
    previous_selected_uri: str = JointSelectionSettings.previous_selected_uri,
    seed: int = JointSelectionSettings.seed,
    cache_uri: str = LlavaAttentionSettings.cache_uri,
    gpu_type: str = ResourceSettings.gpu_type,
    gpu_count: str = ResourceSettings.gpu_count,
    gpu_node_selector: dict[str, str] = GPU_NODE_SELECTOR,
    gpu_tolerations: list[dict[str, Any]] = GPU_TOLERATIONS,
    store_secret: str = ResourceSettings.store_secret,
    store_config_map: str = ResourceSettings.store_config_map,
    arms: list[str] = ARMS,
    train_model: str = FinetuneSettings.model,
    train_options: str = LoopSettings.train_options,
    train_gpu_count: str = LoopSettings.train_gpu_count,
    evaluate_options: str = LoopSettings.evaluate_options,
    resamples: int = VerdictSettings.resamples,
) -> LoopResult:
    """Select, train on the selection and on its random control, measure both and the untuned model, and compare."""
    made = select(
        dataset_uri=dataset_uri,
        image_root_uri=image_root_uri,
        max_reject_fraction=max_reject_fraction,
        num_shards=num_shards,
        records_per_shard=records_per_shard,
        llava_model=llava_model,
        llava_options=llava_options,
        mgm_model=mgm_model,
        mgm_options=mgm_options,
        bert_model=bert_model,
        text_options=text_options,
        num_clusters=num_clusters,
        kmeans_uri=kmeans_uri,
        ratio=ratio,
        num_samples=num_samples,
        alpha=alpha,
        select_options=select_options,
        previous_selected_uri=previous_selected_uri,
        seed=seed,
        cache_uri=cache_uri,
        gpu_type=gpu_type,
        gpu_count=gpu_count,
        gpu_node_selector=gpu_node_selector,
        gpu_tolerations=gpu_tolerations,
        store_secret=store_secret,
        store_config_map=store_config_map,
        arms=arms,
        train_model=train_model,
        train_options=train_options,
        benchmark_uris=benchmark_uris,
        evaluate_options=evaluate_options,
        resamples=resamples,
    )
    compared = train_and_measure(
        arms=arms,
        selected=made.chosen.outputs["selected"],
        random=made.chosen.outputs["random"],
        everything=made.ingested.outputs["records"],
        summary=made.chosen.outputs["summary"],
        image_root_uri=image_root_uri,
        image_root_version=made.found.outputs["image_root_version"],
        max_reject_fraction=max_reject_fraction,
        train_model=train_model,
        train_revision=made.found.outputs["train_revision"],
        train_options=train_options,
        train_gpu_count=train_gpu_count,
        benchmark_uris=benchmark_uris,
        benchmark_versions=made.found.outputs["benchmark_versions"],
        evaluate_options=evaluate_options,
        resamples=resamples,
        seed=seed,
        cache_uri=cache_uri,
        gpu_type=gpu_type,
        gpu_count=gpu_count,
        gpu_node_selector=gpu_node_selector,
        gpu_tolerations=gpu_tolerations,
        store_secret=store_secret,
        store_config_map=store_config_map,
    )
    compared.set_display_name("Train, measure and compare")
    return LoopResult(
        selected=made.chosen.outputs["selected"],
        scores=made.chosen.outputs["scores"],
        report=made.chosen.outputs["report"],
        summary=made.chosen.outputs["summary"],
        random=made.chosen.outputs["random"],
        baseline=made.chosen.outputs["baseline"],
        rejects=made.ingested.outputs["rejects"],
        comparison=compared.outputs["comparison"],
        verdict=compared.outputs["verdict"],
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    return cli.main({"select": free2ds, "loop": free2ds_loop}, argv)


if __name__ == "__main__":
    sys.exit(main())
