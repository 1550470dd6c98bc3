"""order=key: which turns train and which are the first centroids, by hashes of what they are, not where."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b

import numpy as np

from components.cluster_scoring.config import ClusterScoringSettings
from components.cluster_scoring.features import Features
from components.cluster_scoring.kmeans import MAX_POINTS_PER_CENTROID
from components.cluster_scoring.lloyd import Training, train
from components.cluster_scoring.turns import Turns
from free2ds_common.errors import StageError

logger = logging.getLogger(__name__)

_HASH_ROWS = 65_536


def keyed_training(
    features: Features, turns: Turns, num_clusters: int, settings: ClusterScoringSettings, pool: ThreadPoolExecutor
) -> Training:
    """Train on at most 256 turns per cluster.

    Args:
        features: All messages.
        turns: Who said them.
        num_clusters: K; there are fewer centroids where the training turns have fewer distinct embeddings.
        settings: Of the stage.
        pool: Its threads share the work.

    Raises:
        StageError: An embedding is not finite.

    Source:
        docs/method.md, section 4.
    """
    sample = training_turns(turns, num_clusters * MAX_POINTS_PER_CENTROID, settings.seed)
    points, weights = training_points(features, turns.message[sample], settings.seed)
    logger.info("k-means: %d turns, %d train, %d distinct embeddings", len(turns.message), len(sample), len(points))
    return train(points, weights, min(num_clusters, len(points)), settings.num_iterations, pool)


def training_turns(turns: Turns, count: int, seed: int) -> np.ndarray:
    """The turns with the smallest hashes of record key and turn.

    Records with the same key have the same turns: which of them is taken makes no difference.

    Args:
        turns: All turns.
        count: How many, at most.
        seed: Key of the hash.

    Returns:
        int64 row numbers, (count,) or all.
    """
    if len(turns.message) <= count:
        return np.arange(len(turns.message))
    words = np.fromiter(_turn_words(turns, seed), np.uint64, len(turns.message))
    return np.argpartition(words, count - 1)[:count]


def _turn_words(turns: Turns, seed: int) -> Iterator[int]:
    keyed = blake2b(digest_size=8, key=_secret(seed), person=b"turn")
    for start in range(0, len(turns.unique_id), _HASH_ROWS):
        keys = turns.record_key.slice(start, _HASH_ROWS).to_pylist()
        for key, count in zip(keys, turns.per_record[start : start + _HASH_ROWS].tolist(), strict=True):
            of_record = keyed.copy()
            of_record.update(key.encode())
            for turn in range(count):
                of_turn = of_record.copy()
                of_turn.update(turn.to_bytes(4, "little"))
                yield int.from_bytes(of_turn.digest(), "little")


def training_points(features: Features, messages: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct embeddings of messages, by hash of the message.

    Args:
        features: All messages.
        messages: int64, (n,), row numbers, repeats allowed.
        seed: Key of the hash.

    Returns:
        float32, (m, dimensions), and float64, (m,), how often each is said.

    Raises:
        StageError: An embedding is not finite.
    """
    rows, counts = np.unique(messages, return_counts=True)
    secret = _secret(seed)
    digests = [
        blake2b(key.encode(), digest_size=16, key=secret, person=b"message").digest() for key in features.keys(rows)
    ]
    order = np.array(sorted(range(len(rows)), key=digests.__getitem__))
    points = features.gather(rows[order])
    points += 0  # -0.0 is 0.0, in the bytes too
    firsts: dict[bytes, int] = {}
    of = np.array([firsts.setdefault(blake2b(point, digest_size=16).digest(), row) for row, point in enumerate(points)])
    kept = np.array(list(firsts.values()))
    weights = np.bincount(of, counts[order])[kept]
    if len(kept) < len(points):
        points = points[kept]
    if not np.isfinite(np.add.reduce(points, axis=0)).all():
        raise StageError("features: an embedding is not finite. Rerun bert_features.")
    return points, weights


def _secret(seed: int) -> bytes:
    return seed.to_bytes(8, "little")
