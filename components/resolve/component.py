"""Kubeflow ports of the resolve stage; long, because Kubeflow needs each one spelled out."""

from typing import NamedTuple

from kfp import dsl


@dsl.component(base_image="free2ds-resolve:dev", install_kfp_package=False)
def resolve(
    resolved: dsl.Output[dsl.Artifact],
    dataset_uri: str,
    image_root_uri: str,
    max_reject_fraction: float,
    llava_model: str,
    llava_options: str,
    mgm_model: str,
    mgm_options: str,
    bert_model: str,
    text_options: str,
    num_shards: int,
    records_per_shard: int,
    num_clusters: int,
    kmeans_uri: str,
    alpha: float,
    num_samples: int,
    ratio: float,
    seed: int,
    select_options: str,
    previous_selected_uri: str,
    cache_uri: str,
    gpu_count: str,
    arms: list[str],
    train_model: str,
    train_options: str,
    benchmark_uris: str,
    evaluate_options: str,
    resamples: int,
) -> NamedTuple(
    "Versions",
    [
        ("dataset_version", str),
        ("image_root_version", str),
        ("llava_revision", str),
        ("llava_options", str),
        ("mgm_revision", str),
        ("mgm_options", str),
        ("bert_revision", str),
        ("bert_options", str),
        ("cluster_options", str),
        ("kmeans_version", str),
        ("select_options", str),
        ("previous_selected_version", str),
        ("train_revision", str),
        ("benchmark_versions", str),
        ("on_gpu", bool),
    ],
):
    """Check what a run is asked for and find out which versions of it lie there now."""
    from components.resolve.config import ResolveConfig
    from components.resolve.stage import outputs, run
    from free2ds_common.kfp_task import run_task

    config = ResolveConfig(
        dataset_uri=dataset_uri,
        image_root_uri=image_root_uri,
        max_reject_fraction=max_reject_fraction,
        llava_model=llava_model,
        llava_options=llava_options,
        mgm_model=mgm_model,
        mgm_options=mgm_options,
        bert_model=bert_model,
        text_options=text_options,
        num_shards=num_shards,
        records_per_shard=records_per_shard,
        num_clusters=num_clusters,
        kmeans_uri=kmeans_uri,
        alpha=alpha,
        num_samples=num_samples,
        ratio=ratio,
        seed=seed,
        select_options=select_options,
        previous_selected_uri=previous_selected_uri,
        cache_uri=cache_uri,
        on_gpu=gpu_count != "0",
        arms=arms,
        train_model=train_model,
        train_options=train_options,
        benchmark_uris=benchmark_uris,
        evaluate_options=evaluate_options,
        resamples=resamples,
        resolved=resolved.path,
    )
    result = run_task("resolve", lambda: run(config), {}, resolved=resolved)
    return tuple(outputs(result).values())
