"""What comes after a selection: a training and an evaluation for each arm, one of the untuned model, and the verdict.

Nested pipelines of `pipeline.py`: a loop's body must be one call of another pipeline, and the loop stands in its own.
"""

from typing import Any, NamedTuple

from kfp import dsl

from components.evaluate.component import evaluate
from components.finetune.component import finetune
from components.verdict.component import verdict
from free2ds_common.launch.resources import GpuNodes, ask
from free2ds_common.launch.store_access import StoreAccess

# Trainings at the same time on a cluster.
PARALLEL_ARMS = 8


@dsl.pipeline(name="one-arm", display_name="One training")
def one_arm(
    arm: str,
    selected: dsl.Input[dsl.Dataset],
    random: dsl.Input[dsl.Dataset],
    everything: dsl.Input[dsl.Dataset],
    image_root_uri: str,
    image_root_version: str,
    max_reject_fraction: float,
    train_model: str,
    train_revision: str,
    train_options: str,
    train_gpu_count: str,
    benchmark_uris: str,
    benchmark_versions: str,
    evaluate_options: str,
    resamples: int,
    seed: int,
    cache_uri: str,
    gpu_type: str,
    gpu_count: str,
    gpu_node_selector: dict[str, str],
    gpu_tolerations: list[dict[str, Any]],
    store_secret: str,
    store_config_map: str,
) -> dsl.Dataset:
    """One turn of the loop: a training and what became of it."""
    access = StoreAccess(secret=store_secret, config_map=store_config_map)
    trained = finetune(
        selected=selected,
        random=random,
        everything=everything,
        arm=arm,
        image_root_uri=image_root_uri,
        image_root_version=image_root_version,
        model=train_model,
        revision=train_revision,
        options=train_options,
        max_reject_fraction=max_reject_fraction,
        cache_uri=cache_uri,
        gpu_count=train_gpu_count,
    )
    nodes = GpuNodes(type=gpu_type, count=train_gpu_count, selector=gpu_node_selector, tolerations=gpu_tolerations)
    access.give(nodes.ask(trained, "train"))
    measured = evaluate(
        benchmarks=benchmark_uris,
        benchmark_versions=benchmark_versions,
        model=train_model,
        revision=train_revision,
        label=arm,
        options=evaluate_options,
        resamples=resamples,
        seed=seed,
        gpu_count=gpu_count,
        tuned=trained.outputs["tuned_model"],
    )
    nodes = GpuNodes(type=gpu_type, count=gpu_count, selector=gpu_node_selector, tolerations=gpu_tolerations)
    access.give(nodes.ask(measured, "measure"))
    return measured.outputs["evaluation"]


class Verdict(NamedTuple):
    """What the loop is for."""

    comparison: dsl.Metrics
    verdict: dsl.HTML


@dsl.pipeline(name="train-and-measure", display_name="Train, measure and compare")
def train_and_measure(
    arms: list[str],
    selected: dsl.Input[dsl.Dataset],
    random: dsl.Input[dsl.Dataset],
    everything: dsl.Input[dsl.Dataset],
    summary: dsl.Input[dsl.Metrics],
    image_root_uri: str,
    image_root_version: str,
    max_reject_fraction: float,
    train_model: str,
    train_revision: str,
    train_options: str,
    train_gpu_count: str,
    benchmark_uris: str,
    benchmark_versions: str,
    evaluate_options: str,
    resamples: int,
    seed: int,
    cache_uri: str,
    gpu_type: str,
    gpu_count: str,
    gpu_node_selector: dict[str, str],
    gpu_tolerations: list[dict[str, Any]],
    store_secret: str,
    store_config_map: str,
) -> Verdict:
    """The loop over the arms, the untuned model, and what follows."""
    access = StoreAccess(secret=store_secret, config_map=store_config_map)
    nodes = GpuNodes(type=gpu_type, count=gpu_count, selector=gpu_node_selector, tolerations=gpu_tolerations)
    untuned = evaluate(
        benchmarks=benchmark_uris,
        benchmark_versions=benchmark_versions,
        model=train_model,
        revision=train_revision,
        label="untuned",
        options=evaluate_options,
        resamples=resamples,
        seed=seed,
        gpu_count=gpu_count,
    )
    access.give(nodes.ask(untuned, "measure-untuned"))
    with dsl.ParallelFor(arms, name="arms", parallelism=PARALLEL_ARMS) as arm:
        measured = one_arm(
            arm=arm,
            selected=selected,
            random=random,
            everything=everything,
            image_root_uri=image_root_uri,
            image_root_version=image_root_version,
            max_reject_fraction=max_reject_fraction,
            train_model=train_model,
            train_revision=train_revision,
            train_options=train_options,
            train_gpu_count=train_gpu_count,
            benchmark_uris=benchmark_uris,
            benchmark_versions=benchmark_versions,
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
        measured.set_display_name("One training")
    compared = verdict(
        untuned=untuned.outputs["evaluation"],
        evaluations=dsl.Collected(measured.outputs["Output"]),
        summary=summary,
        arms=arms,
        resamples=resamples,
        seed=seed,
    )
    ask(compared, "compare")
    return Verdict(comparison=compared.outputs["comparison"], verdict=compared.outputs["report"])
