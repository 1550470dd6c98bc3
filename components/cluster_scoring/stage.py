"""How typical each record's messages are: distance to the nearest k-means centroid of all messages."""

import binascii
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.cluster_scoring.config import ClusterScoringConfig
from free2ds_common.datasets import Dataset, DatasetWriter, open_dataset, open_parts
from free2ds_common.errors import StageError
from free2ds_common.result import Counts, StageResult
from free2ds_common.schemas import TEXT_SCORES, TEXT_TURNS, kmeans_schema, text_messages_schema

logger = logging.getLogger(__name__)

# FAISS trains on at most this many points per centroid; part of the method.
MAX_POINTS_PER_CENTROID = 256
_BLOCK_ROWS = 16_384
_SAME_IN_ALL_PARTS = ("model_fingerprint", "dtype", "max_tokens", "records_sha256")


@dataclass(frozen=True)
class Turns:
    """Who said which distinct message, ordered by record and turn.

    Attributes:
        message: int64, (turns,), index of the distinct message.
        starts: int64, (records,), first turn of each record.
        unique_id: int64, (records,), ascending.
        record_key: One per record.
    """

    message: np.ndarray
    starts: np.ndarray
    unique_id: np.ndarray
    record_key: pa.ChunkedArray


def run(config: ClusterScoringConfig) -> StageResult:
    """Cluster all turns and score every record.

    Args:
        config: Settings.

    Raises:
        StageError: Wrong settings, no features, parts that do not belong together or leave turns out.

    Source:
        method.md section 4. Differs in memory only: duplicates are never materialised.
    """
    config.check()
    messages, turn_tables = _open_parts(config.features)
    turns = join_turns(messages, turn_tables)
    num_messages = sum(part.num_rows for part in messages)
    clusters = min(config.num_clusters, num_messages)
    if clusters < config.num_clusters:
        logger.warning("%d distinct messages: %d clusters instead of %d", num_messages, clusters, config.num_clusters)
    sample = training_rows(len(turns.message), clusters, config.seed)
    logger.info("k-means: %d turns, %d train %d clusters", len(turns.message), len(sample), clusters)
    points = _gather(messages, turns.message[sample])
    index, objectives = train(points, clusters, config.num_iterations, config.seed)
    del points
    distances, nearest = _assign(index, messages)
    similarities = similarity(distances)
    counts = np.diff(turns.starts, append=len(turns.message))
    scores = np.add.reduceat(similarities[turns.message].astype(np.float64), turns.starts) / counts
    settings = {
        "num_clusters": clusters,
        "num_clusters_asked": config.num_clusters,
        "num_iterations": config.num_iterations,
        "seed": config.seed,
        "faiss_version": faiss.__version__,
        **{name: messages[0].manifest[name] for name in ("model", "revision", *_SAME_IN_ALL_PARTS)},
    }
    with DatasetWriter(config.scores, TEXT_SCORES) as writer:
        columns = [pa.array(turns.unique_id), turns.record_key, pa.array(counts.astype(np.int32)), pa.array(scores)]
        writer.write(pa.table(columns, names=TEXT_SCORES.arrow.names))
        writer.manifest.update(settings)
    if config.kmeans:
        _write_model(config.kmeans, index, nearest, turns.message, messages, distances, settings, objectives)
    metrics = {
        "distinct_messages": float(num_messages),
        "turns": float(len(turns.message)),
        "clusters": float(clusters),
        "objective": float(objectives[-1]),
        "largest_squared_distance": float(distances.max()),
        "mean_text_similarity": float(scores.mean()),
    }
    return StageResult(Counts(read=len(scores), written=len(scores)), metrics, settings)


def similarity(squared_distances: np.ndarray) -> np.ndarray:
    """1 - d / max(d).

    Args:
        squared_distances: float32, (n,), non-negative.

    Returns:
        float32, (n,), in [0, 1]; all ones where every distance is zero.

    Source:
        method.md section 4; in float32 as the reference computes it.
    """
    largest = squared_distances.max()
    if largest == 0:
        return np.ones_like(squared_distances)
    return 1 - squared_distances / largest


def training_rows(num_turns: int, clusters: int, seed: int) -> np.ndarray:
    """The turns that FAISS would train on, given all of them.

    Args:
        num_turns: Rows of the full, duplicated matrix.
        clusters: K.
        seed: FAISS's.

    Returns:
        int64 row numbers, in FAISS's order; all rows in order where there are at most 256 K.

    Source:
        faiss/Clustering.cpp, subsample_training_set: the first 256 K entries of rand_perm(n, seed).
    """
    most = clusters * MAX_POINTS_PER_CENTROID
    if num_turns <= most:
        return np.arange(num_turns)
    permutation = np.empty(num_turns, dtype=np.int32)
    faiss.rand_perm(faiss.swig_ptr(permutation), num_turns, seed)
    return permutation[:most].astype(np.int64)


def train(points: np.ndarray, clusters: int, iterations: int, seed: int) -> tuple[faiss.Index, list[float]]:
    """FAISS k-means, on a GPU where faiss-gpu finds one.

    Args:
        points: float32, (n, dimensions), at most 256 per cluster.
        clusters: K.
        iterations: Of Lloyd's algorithm.
        seed: Of the initial centroids.

    Returns:
        The index over the centroids (Euclidean), and the objective after each iteration.
    """
    kmeans = faiss.Kmeans(
        points.shape[1],
        clusters,
        niter=iterations,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=MAX_POINTS_PER_CENTROID,
        gpu=getattr(faiss, "get_num_gpus", lambda: 0)() > 0,
    )
    kmeans.train(points)
    return kmeans.index, [float(value) for value in kmeans.obj]


def join_turns(messages: Sequence[Dataset], turn_tables: Sequence[Dataset]) -> Turns:
    """Replace message keys by row numbers, parts together, in the order of the full matrix.

    Raises:
        StageError: A key is no hex sha256, a turn's message has no embedding, or a record's turns are not all there.
    """
    message = pc.index_in(_message_keys(turn_tables), value_set=_message_keys(messages).combine_chunks())
    if message.null_count:
        raise StageError(
            f"features: {message.null_count} turns without an embedding. Rerun bert_features for all parts."
        )
    table = pa.concat_tables([part.table(["unique_id", "turn"]) for part in turn_tables])
    if not table.num_rows:
        raise StageError("features: no turns in them. Check that ingest wrote records.")
    unique_id, turn = (table.column(name).to_numpy() for name in ("unique_id", "turn"))
    order = np.lexsort((turn, unique_id))
    unique_id, turn = unique_id[order], turn[order]
    starts = np.flatnonzero(np.diff(unique_id, prepend=unique_id[0] - 1))
    expected = np.arange(len(turn)) - np.repeat(starts, np.diff(starts, append=len(turn)))
    wrong = np.flatnonzero(turn != expected)
    if len(wrong):
        raise StageError(
            f"features: turns of record {unique_id[wrong[0]]} are missing or there twice. Rerun bert_features."
        )
    return Turns(
        message.to_numpy().astype(np.int64)[order],
        starts,
        unique_id[starts],
        _record_keys(turn_tables),
    )


def _message_keys(tables: Sequence[Dataset]) -> pa.ChunkedArray:
    """`message_key` of all parts as 32 bytes each: as hex they would be most of the stage's memory."""
    chunks = []
    for part in tables:
        for batch in part.batches(["message_key"], _BLOCK_ROWS):
            try:
                packed = binascii.unhexlify(batch.column(0).cast(pa.binary()).cast(pa.binary(64)).buffers()[1])
            except (pa.ArrowInvalid, binascii.Error) as error:
                raise StageError("features: a message_key is not a hex sha256. Rerun bert_features.") from error
            chunks.append(pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(batch), [None, pa.py_buffer(packed)]))
    return pa.chunked_array(chunks, pa.binary(32))


def _record_keys(turn_tables: Sequence[Dataset]) -> pa.ChunkedArray:
    """One key per record, by ascending unique_id; each record has one turn 0."""
    firsts = [
        pa.Table.from_batches([batch.filter(pc.equal(batch.column(2), 0))]).select(["unique_id", "record_key"])
        for part in turn_tables
        for batch in part.batches(["unique_id", "record_key", "turn"], _BLOCK_ROWS)
    ]
    return pa.concat_tables(firsts).sort_by("unique_id").column("record_key")


def _open_parts(folders: Sequence[str]) -> tuple[list[Dataset], list[Dataset]]:
    messages = open_parts(
        [Path(folder) / "messages" for folder in folders], text_messages_schema(1), _SAME_IN_ALL_PARTS, "features"
    )
    turns = [open_dataset(Path(folder) / "turns", TEXT_TURNS) for folder in folders]
    given = sorted(part.manifest["part"] for part in messages)
    wanted = sorted(f"{number}/{len(messages)}" for number in range(len(messages)))
    if given != wanted:
        raise StageError(f"features: got parts {', '.join(given)}, wanted {', '.join(wanted)}. Give every part once.")
    return messages, turns


def _blocks(messages: Sequence[Dataset]) -> Iterator[np.ndarray]:
    """Embeddings in order, block by block, float32 (rows, dimensions)."""
    for part in messages:
        for batch in part.batches(["embedding"], _BLOCK_ROWS):
            column = batch.column(0)
            yield column.flatten().to_numpy().reshape(len(column), -1)


def _gather(messages: Sequence[Dataset], rows: np.ndarray) -> np.ndarray:
    """Embeddings of the given distinct messages, in the given order, reading each block once."""
    order = np.argsort(rows, kind="stable")
    points: np.ndarray | None = None
    start = done = 0
    for block in _blocks(messages):
        if points is None:
            points = np.empty((len(rows), block.shape[1]), dtype=np.float32)
        stop = done + int(np.searchsorted(rows[order[done:]], start + len(block)))
        points[order[done:stop]] = block[rows[order[done:stop]] - start]
        start, done = start + len(block), stop
    assert points is not None
    return points


def _assign(index: faiss.Index, messages: Sequence[Dataset]) -> tuple[np.ndarray, np.ndarray]:
    """Squared distance to, and number of, the nearest centroid of every distinct message."""
    found = [index.search(np.ascontiguousarray(block), 1) for block in _blocks(messages)]
    distances = np.concatenate([distance[:, 0] for distance, _ in found])
    return np.maximum(distances, 0), np.concatenate([number[:, 0] for _, number in found])


def _write_model(
    folder: str,
    index: faiss.Index,
    nearest: np.ndarray,
    said: np.ndarray,
    messages: Sequence[Dataset],
    distances: np.ndarray,
    settings: dict,
    objectives: list[float],
) -> None:
    """Centroids, sizes in turns, and each cluster's most typical message."""
    centroids = index.reconstruct_n(0, index.ntotal)
    sizes = np.bincount(nearest[said], minlength=len(centroids))
    by_distance = np.lexsort((distances, nearest))
    clusters, firsts = np.unique(nearest[by_distance], return_index=True)
    typical = dict(zip(clusters.tolist(), by_distance[firsts].tolist(), strict=True))
    wanted = set(typical.values())
    texts: dict[int, str] = {}
    start = 0
    for part in messages:
        for batch in part.batches(["message"], _BLOCK_ROWS):
            for row in wanted & set(range(start, start + len(batch))):
                texts[row] = batch.column(0)[row - start].as_py()
            start += len(batch)
    with DatasetWriter(folder, kmeans_schema(centroids.shape[1])) as writer:
        writer.write(
            [
                {
                    "cluster": number,
                    "num_turns": int(sizes[number]),
                    "typical_message": texts.get(typical.get(number, -1), ""),
                    "centroid": centroid,
                }
                for number, centroid in enumerate(centroids)
            ]
        )
        writer.manifest.update(settings, objective=objectives)
