"""How typical each record's messages are: distance to the nearest k-means centroid of all messages."""

import logging
from collections.abc import Mapping
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from components.cluster_scoring.config import KEY, ClusterScoringConfig, ClusterScoringSettings
from components.cluster_scoring.features import Features, open_features
from components.cluster_scoring.frozen import Frozen, open_frozen
from components.cluster_scoring.frozen import doubts as drifted
from components.cluster_scoring.keyed import keyed_training
from components.cluster_scoring.kmeans import Clustering, nearest_centroids, similarity, train, training_rows
from components.cluster_scoring.lloyd import nearest_centroids as nearest_by_float64
from components.cluster_scoring.lloyd import threads
from components.cluster_scoring.number import doubts, fitting
from components.cluster_scoring.turns import Turns, join_turns
from free2ds_common.datasets import DatasetWriter
from free2ds_common.lineage import MADE_FROM, made_from
from free2ds_common.result import Counts, StageResult
from free2ds_common.schemas import TEXT_SCORES, kmeans_schema

logger = logging.getLogger(__name__)


def run(config: ClusterScoringConfig) -> StageResult:
    """Cluster all turns and score every record.

    Args:
        config: Settings.

    Raises:
        StageError: Wrong settings, no features, or parts that do not belong together or leave turns out; or
            centroids of another text model.

    Source:
        docs/method.md, section 4. With order=reference it differs in memory only: duplicates are never materialised.
    """
    config.check()
    features = open_features(config.features)
    turns = join_turns(features)
    num_messages, num_turns = features.num_messages, len(turns.message)
    frozen = open_frozen(config.kmeans_uri, features.manifest) if config.kmeans_uri else None
    clustering = _assign(features, frozen) if frozen else _cluster(features, turns, config)
    num_clusters, distances = len(clustering.centroids), clustering.squared_distances
    measured = _measured(distances, frozen)
    warnings = drifted(frozen, measured) if frozen else doubts(config.num_clusters, num_clusters, num_messages)
    for warning in warnings:
        logger.warning(warning)
    similarities = similarity(distances, frozen.largest if frozen else None)[turns.message].astype(np.float64)
    scores = np.add.reduceat(similarities, turns.starts) / turns.per_record
    manifest = {
        "num_clusters": num_clusters,
        "num_clusters_asked": config.num_clusters,
        "num_iterations": config.num_iterations,
        "iterations_run": len(clustering.objectives),
        "order": config.order,
        "seed": config.seed,
        "distinct_messages": num_messages,
        "warnings": warnings,
        **measured,
        **_computed_with(),
        **features.manifest,
    }
    features_of = {port: [f"{folder}/{port}" for folder in config.features] for port in ("messages", "turns")}
    ancestry = {MADE_FROM: made_from(**features_of)}
    _write_scores(config.scores, turns, scores, clustering.nearest, manifest | ancestry)
    if config.kmeans:
        _write_clusters(config.kmeans, clustering, features, turns, manifest | ancestry)
    metrics = {
        "distinct_messages": float(num_messages),
        "turns": float(num_turns),
        "clusters": float(num_clusters),
        "objective": clustering.objectives[-1],
        "largest_squared_distance": measured["largest_squared_distance"],
        "mean_text_similarity": float(scores.mean()),
    }
    return StageResult(Counts(read=len(scores), written=len(scores)), metrics, manifest)


def _measured(distances: np.ndarray, frozen: Frozen | None) -> dict[str, Any]:
    """The distances at training, which later runs are scored by, and with frozen centroids how far the data moved."""
    if frozen:
        return {**frozen.handed_on, **frozen.drift(distances)}
    return {
        "largest_squared_distance": float(distances.max()),
        "mean_squared_distance": float(distances.mean(dtype=np.float64)),
    }


def _assign(features: Features, frozen: Frozen) -> Clustering:
    """Assign every distinct message to centroids of an earlier run."""
    logger.info("k-means: %d clusters of an earlier run", len(frozen.centroids))
    with threads() as pool:
        distances, nearest = nearest_by_float64(features.blocks(), frozen.centroids, pool)
    return Clustering(frozen.centroids, frozen.manifest["objective"], distances, nearest)


def _cluster(features: Features, turns: Turns, settings: ClusterScoringSettings) -> Clustering:
    """Train on a sample of the turns, then assign every distinct message."""
    num_clusters = fitting(settings.num_clusters, features.num_messages)
    if settings.order == KEY:
        with threads() as pool:
            training = keyed_training(features, turns, num_clusters, settings, pool)
            logger.info("k-means: %d iterations", len(training.objectives))
            distances, nearest = nearest_by_float64(features.blocks(), training.centroids, pool)
        return Clustering(training.centroids, training.objectives, distances, nearest)
    sample = training_rows(len(turns.message), num_clusters, settings.seed)
    logger.info("k-means: %d turns, %d train %d clusters", len(turns.message), len(sample), num_clusters)
    points = features.gather(turns.message[sample])
    index, objectives = train(points, num_clusters, settings.num_iterations, settings.seed)
    del points  # as large as everything else together
    distances, nearest = nearest_centroids(index, features.blocks())
    return Clustering(index.reconstruct_n(0, index.ntotal), objectives, distances, nearest)


def _computed_with() -> dict[str, object]:
    """What else decides the numbers: order=reference by FAISS's kernels, and the embeddings in any case."""
    simd = np.show_config(mode="dicts")["SIMD Extensions"]
    return {
        "faiss_version": faiss.__version__,
        "numpy_version": np.__version__,
        "instruction_sets": [*simd.get("baseline", []), *simd.get("found", [])],
        "faiss_options": faiss.get_compile_options().split(),
    }


def _write_scores(
    folder: str, turns: Turns, scores: np.ndarray, nearest: np.ndarray, manifest: Mapping[str, object]
) -> None:
    columns = [
        pa.array(turns.unique_id),
        turns.record_key,
        pa.array(turns.per_record.astype(np.int32)),
        pa.array(scores),
        pa.array(nearest[turns.message[turns.starts]].astype(np.int32)),
    ]
    with DatasetWriter(folder, TEXT_SCORES) as writer:
        writer.write(pa.table(columns, names=TEXT_SCORES.arrow.names))
        writer.manifest.update(manifest)


def _write_clusters(
    folder: str, clustering: Clustering, features: Features, turns: Turns, manifest: Mapping[str, object]
) -> None:
    """Centroids, sizes in turns, and each cluster's most typical message."""
    nearest = clustering.nearest
    num_turns = np.bincount(nearest[turns.message], minlength=len(clustering.centroids))
    by_distance = np.lexsort((clustering.squared_distances, nearest))
    used, firsts = np.unique(nearest[by_distance], return_index=True)
    typical = dict(zip(used.tolist(), by_distance[firsts].tolist(), strict=True))
    texts = features.texts(set(typical.values()))
    with DatasetWriter(folder, kmeans_schema(clustering.centroids.shape[1])) as writer:
        writer.write(
            [
                {
                    "cluster": number,
                    "num_turns": int(num_turns[number]),
                    "typical_message": texts[typical[number]] if number in typical else "",
                    "centroid": centroid,
                }
                for number, centroid in enumerate(clustering.centroids)
            ]
        )
        writer.manifest.update(manifest, objective=clustering.objectives)
