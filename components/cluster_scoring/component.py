"""Kubeflow ports of the cluster_scoring stage."""

from kfp import dsl


@dsl.component(base_image="free2ds-cluster-scoring:dev", install_kfp_package=False)
def cluster_scoring(
    features: dsl.Input[dsl.Dataset],
    scores: dsl.Output[dsl.Dataset],
    kmeans: dsl.Output[dsl.Dataset],
    num_clusters: int,
    num_iterations: int,
    seed: int,
    code_version: str,
):
    """Score how typical each record's messages are: how near they lie to a k-means centroid.

    Args:
        features: The folder of bert_features.
        scores: text_scores/1, one row per record.
        kmeans: kmeans/1, one row per cluster: centroid, size, typical message.
        num_clusters: Centroids.
        num_iterations: Rounds of k-means.
        seed: Of k-means.
        code_version: Any text that changes when the code in an image changes under the same tag; decides the cache.
    """
    from components.cluster_scoring.stage import ClusterScoringConfig, run
    from free2ds_common.kfp_output import run_component

    config = ClusterScoringConfig(
        features=[features.path],
        num_clusters=num_clusters,
        num_iterations=num_iterations,
        seed=seed,
        scores=scores.path,
        kmeans=kmeans.path,
    )
    run_component(lambda: run(config), {"code_version": code_version}, scores=scores, kmeans=kmeans)
