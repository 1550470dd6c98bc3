"""k-means by FAISS, as it would run on the full matrix of all turns, duplicates included, which is never built."""

from collections.abc import Iterable
from dataclasses import dataclass

import faiss
import numpy as np

# FAISS trains on at most this many points per centroid; part of the method.
MAX_POINTS_PER_CENTROID = 256


@dataclass(frozen=True)
class Clustering:
    """Trained centroids and every distinct message's nearest one.

    Attributes:
        centroids: float32, (clusters, dimensions).
        objectives: Sum of squared distances of the training points after each iteration.
        squared_distances: float32 (order=key: float64), (messages,), to the nearest centroid.
        nearest: int64, (messages,), number of the nearest centroid.
    """

    centroids: np.ndarray
    objectives: list[float]
    squared_distances: np.ndarray
    nearest: np.ndarray


def training_rows(num_turns: int, num_clusters: int, seed: int) -> np.ndarray:
    """The turns that FAISS would train on, given all of them.

    Args:
        num_turns: Rows of the full matrix.
        num_clusters: K.
        seed: FAISS's.

    Returns:
        int64 row numbers, in FAISS's order; all rows in order if there are at most 256 K.

    Source:
        faiss/Clustering.cpp, subsample_training_set: the first 256 K entries of rand_perm(n, seed).
    """
    max_rows = num_clusters * MAX_POINTS_PER_CENTROID
    if num_turns <= max_rows:
        return np.arange(num_turns)
    permutation = np.empty(num_turns, dtype=np.int32)
    faiss.rand_perm(faiss.swig_ptr(permutation), num_turns, seed)
    return permutation[:max_rows].astype(np.int64)


def train(points: np.ndarray, num_clusters: int, num_iterations: int, seed: int) -> tuple[faiss.Index, list[float]]:
    """FAISS k-means, on a GPU if faiss-gpu finds one.

    Args:
        points: float32, (n, dimensions), at most 256 per cluster.
        num_clusters: K.
        num_iterations: Of Lloyd's algorithm.
        seed: Of the initial centroids.

    Returns:
        The index over the centroids (Euclidean), and the objective after each iteration.
    """
    kmeans = faiss.Kmeans(
        points.shape[1],
        num_clusters,
        niter=num_iterations,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=MAX_POINTS_PER_CENTROID,
        gpu=getattr(faiss, "get_num_gpus", lambda: 0)() > 0,
    )
    kmeans.train(points)
    return kmeans.index, [float(value) for value in kmeans.obj]


def nearest_centroids(index: faiss.Index, blocks: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Assign every vector to a centroid.

    Args:
        index: Of the centroids.
        blocks: float32, (rows, dimensions) each.

    Returns:
        float32 squared distances, not below 0, and int64 numbers of the nearest centroids, each (all rows,).
    """
    found = [index.search(np.ascontiguousarray(block), 1) for block in blocks]
    distances = np.concatenate([distance[:, 0] for distance, _ in found])
    return np.maximum(distances, 0), np.concatenate([number[:, 0] for _, number in found])


def similarity(squared_distances: np.ndarray, largest: float | None = None) -> np.ndarray:
    """1 - d / max(d).

    Args:
        squared_distances: float32 or float64, (n,), non-negative.
        largest: Instead of max(d); where a distance is larger the similarity is 0.

    Returns:
        The same type, (n,), in [0, 1]; ones where the distance is zero, whatever the largest is.

    Source:
        docs/method.md, section 4; in float32 as the reference computes it, with order=key in float64.
    """
    largest = squared_distances.max() if largest is None else largest
    if largest == 0:
        alike: np.ndarray = (squared_distances == 0).astype(squared_distances.dtype)
        return alike
    similarities: np.ndarray = np.maximum(1 - squared_distances / largest, 0)
    return similarities
