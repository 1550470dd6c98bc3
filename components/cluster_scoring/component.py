"""Kubeflow ports of the cluster_scoring stage."""

from kfp import dsl


@dsl.component(base_image="free2ds-cluster-scoring:dev", install_kfp_package=False)
def cluster_scoring(
    features: dsl.Input[dsl.Dataset],
    scores: dsl.Output[dsl.Dataset],
    kmeans: dsl.Output[dsl.Dataset],
    num_clusters: int,
    kmeans_uri: str,
    kmeans_version: str,
    seed: int,
    options: str,
) -> None:
    """Score how typical each record's messages are: how near they lie to a k-means centroid."""
    from components.cluster_scoring.config import ClusterScoringConfig
    from components.cluster_scoring.stage import run
    from free2ds_common.kfp_task import run_task
    from free2ds_common.options import read_options

    config = ClusterScoringConfig(
        **read_options(ClusterScoringConfig, options),
        features=[features.path],
        num_clusters=num_clusters,
        kmeans_uri=kmeans_uri,
        seed=seed,
        scores=scores.path,
        kmeans=kmeans.path,
    )
    versions = {"kmeans_version": kmeans_version}
    run_task("cluster_scoring", lambda: run(config), versions, scores=scores, kmeans=kmeans)
