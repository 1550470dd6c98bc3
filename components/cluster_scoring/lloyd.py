"""k-means whose result depends on the points and their order alone, on no thread count, block or kernel.

A float32 matrix product proposes: whatever its order of summation, the rounding error of its results has a bound. Every
choice that lies within that bound is decided by float64 sums in a fixed order, and so are all sums that are kept.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import faiss
import numpy as np
from threadpoolctl import threadpool_limits

logger = logging.getLogger(__name__)

# Rows that one thread works on at a time: with 1000 centroids a product of 1 MB. Decides the speed, never the result.
_BLOCK_ROWS = 256
# Points and centroids that float64 compares at a time, as small as that; no part of the result either.
_PAIRS = 128
# Rows of a cluster that are summed at a time. The partial sums are added in order, so this belongs to the result.
_SUMMED_ROWS = 128
# Of float32: half the distance from 1 to the next number.
_UNIT = 2.0**-24


@dataclass(frozen=True)
class Training:
    """Trained centroids.

    Attributes:
        centroids: float32, (clusters, dimensions).
        objectives: Sum of squared distances of the turns that trained, in each iteration that was run.
    """

    centroids: np.ndarray
    objectives: list[float]


@contextmanager
def threads() -> Iterator[ThreadPoolExecutor]:
    """As many threads as FAISS would use, so that OMP_NUM_THREADS holds for both; matrix products take no more."""
    with ThreadPoolExecutor(faiss.omp_get_max_threads()) as pool, threadpool_limits(1, user_api="blas"):
        yield pool


def squared_distances(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Squared distance of each point to the one beside it. Rows do not influence each other.

    Halves are added to halves: element-wise float64 sums, which no processor and no library rounds or orders otherwise.

    Args:
        points: float32, (n, dimensions).
        others: float32, (n, dimensions).

    Returns:
        float64, (n,).
    """
    squares = np.subtract(points, others, dtype=np.float64)
    np.square(squares, out=squares)
    return _row_sums(squares)


def _row_sums(values: np.ndarray) -> np.ndarray:
    """Sums of the rows in a fixed order; overwrites `values`."""
    width = values.shape[1]
    while width > 1:
        half = width // 2
        values[:, :half] += values[:, width - half : width]
        width -= half
    return values[:, 0].copy()


def nearest_centroids(
    blocks: Iterable[np.ndarray], centroids: np.ndarray, pool: ThreadPoolExecutor
) -> tuple[np.ndarray, np.ndarray]:
    """Every point's nearest centroid, of equally near ones the first.

    Args:
        blocks: float32, (rows, dimensions) each.
        centroids: float32, (clusters, dimensions).
        pool: Its threads share the work.

    Returns:
        float64 squared distances and int64 numbers of the nearest centroids, each (all rows,).
    """
    number_of = _assignment(centroids)
    distances, numbers = [], []

    def found(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        number = number_of(rows)
        return squared_distances(rows, centroids[number]), number

    for block in blocks:
        for distance, number in pool.map(found, _in_pieces(block)):
            distances.append(distance)
            numbers.append(number)
    return np.concatenate(distances), np.concatenate(numbers)


def _in_pieces(points: np.ndarray, rows: int = 0) -> Iterator[np.ndarray]:
    rows = rows or _BLOCK_ROWS
    return (points[start : start + rows] for start in range(0, len(points), rows))


def _assignment(centroids: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function from points to the numbers of their nearest centroids."""
    # Around their common middle the vectors are short, and so is the error of their products.
    middle = centroids.mean(axis=0)
    moved = centroids - middle
    norms = np.sqrt(np.concatenate([squared_distances(rows, rows[:1] * 0) for rows in _in_pieces(moved, _PAIRS)]))
    halves = (norms**2 / 2).astype(np.float32)
    # |x - c|^2 / 2 without |x|^2 / 2, which is the same for all centroids, is |c|^2 / 2 - x c. A sum of n products is
    # wrong by at most n u / (1 - n u) |x| |c|, in any order and with any fused operations (N. Higham, Accuracy and
    # Stability of Numerical Algorithms, section 3.1). Eight more roundings: moving x and c, which moves |c|^2 too, the
    # half, the difference, |x| itself; the rest is slack.
    terms = centroids.shape[1] + 8
    error = terms * _UNIT / (1 - terms * _UNIT)
    longest, tiny = norms.max(), terms * float(np.finfo(np.float32).tiny)

    def number_of(points: np.ndarray) -> np.ndarray:
        around = points - middle
        scores = around @ moved.T
        np.subtract(halves, scores, out=scores)
        rows = np.arange(len(points))
        numbers: np.ndarray = scores.argmin(axis=1)
        if len(centroids) == 1:
            return numbers
        best = scores[rows, numbers]
        lengths = np.sqrt(np.einsum("ij,ij->i", around, around).astype(np.float64)) * (1 + error)
        # Twice: the best and the one compared with it may both be wrong, in opposite directions.
        largest = best + 2 * (error * (lengths * longest + longest**2 / 2) + tiny)
        scores[rows, numbers] = np.inf
        unsure = np.flatnonzero(scores.min(axis=1) <= largest)
        scores[rows, numbers] = best
        for row in _runs(unsure):
            numbers[row] = _decided(points[row], centroids, scores[row] <= largest[row, None])
        return numbers

    return number_of


def _runs(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + _BLOCK_ROWS // 8] for start in range(0, len(rows), _BLOCK_ROWS // 8))


def _decided(points: np.ndarray, centroids: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """The nearest of each point's candidates, bool (points, clusters), of equally near ones the first."""
    row, number = np.nonzero(candidates)
    distances = np.concatenate(
        [
            squared_distances(points[row[some]], centroids[number[some]])
            for some in (slice(start, start + _PAIRS) for start in range(0, len(row), _PAIRS))
        ]
    )
    order = np.lexsort((number, distances, row))
    found: np.ndarray = number[order[np.searchsorted(row, np.arange(len(points)))]]
    return found


def train(
    points: np.ndarray, weights: np.ndarray, num_clusters: int, num_iterations: int, pool: ThreadPoolExecutor
) -> Training:
    """Lloyd's algorithm, from the first points as centroids; it ends early when no point changes its cluster.

    Args:
        points: float32, (n, dimensions), distinct, at least as many as clusters. Their order belongs to the result.
        weights: float64, (n,), how often each counts.
        num_clusters: K.
        num_iterations: At most; at least 1.
        pool: Its threads share the work.
    """
    centroids = points[:num_clusters].copy()
    sums = np.zeros((num_clusters, points.shape[1]))
    total = _total_of_squares(points, weights, pool)
    before = np.full(len(points), -1, np.int32)  # as an index the last cluster, whose sum is then made for nothing
    objectives: list[float] = []
    for _ in range(num_iterations):
        found, start = np.empty(len(points), np.int32), 0
        for numbers in pool.map(_assignment(centroids), _in_pieces(points)):
            found[start : start + len(numbers)] = numbers
            start += len(numbers)
        changed = found != before
        # A cluster that no point entered or left keeps its sum to the last bit.
        stale = np.zeros(num_clusters, bool)
        for numbers in (found, before):
            stale[numbers[changed]] = True
        _sum_up(points, weights, found, np.flatnonzero(stale), sums, pool)
        sizes = np.bincount(found, weights, num_clusters)
        objectives.append(max(0.0, total + _spread(sums, sizes, centroids)))
        if not changed.any():
            break
        empty = sizes == 0
        if empty.any():
            farthest = _farthest(points, centroids[found], int(empty.sum()))
        np.divide(sums, sizes[:, None], out=centroids, where=~empty[:, None], casting="same_kind")
        if empty.any():
            logger.info("k-means: %d empty clusters moved to the points farthest from theirs", len(farthest))
            centroids[empty] = points[farthest]
        before = found
    return Training(centroids, objectives)


def _total_of_squares(points: np.ndarray, weights: np.ndarray, pool: ThreadPoolExecutor) -> float:
    """Weighted sum of the points' squared lengths."""

    def of_each_dimension(start: int) -> np.ndarray:
        some = slice(start, start + _SUMMED_ROWS)
        squares = np.square(points[some], dtype=np.float64)
        squares *= weights[some, None]
        sums: np.ndarray = np.add.reduce(squares, axis=0)
        return sums

    total = np.zeros((1, points.shape[1]))
    for sums in pool.map(of_each_dimension, range(0, len(points), _SUMMED_ROWS)):
        total += sums
    return float(_row_sums(total)[0])


def _sum_up(
    points: np.ndarray,
    weights: np.ndarray,
    found: np.ndarray,
    clusters: np.ndarray,
    sums: np.ndarray,
    pool: ThreadPoolExecutor,
) -> None:
    """Put the weighted sums of some clusters' points into `sums`, each cluster's in the order of the points."""
    order = np.argsort(found, kind="stable")
    starts = np.append(0, np.cumsum(np.bincount(found, minlength=len(sums))))

    def sum_up(cluster: int) -> None:
        rows = order[starts[cluster] : starts[cluster + 1]]
        sums[cluster] = 0
        for start in range(0, len(rows), _SUMMED_ROWS):
            some = rows[start : start + _SUMMED_ROWS]
            values, weight = points[some], weights[some]
            if (weight != 1).any():
                sums[cluster] += np.add.reduce(values * weight[:, None], axis=0)
            else:
                sums[cluster] += np.add.reduce(values, axis=0, dtype=np.float64)

    list(pool.map(sum_up, clusters.tolist()))


def _spread(sums: np.ndarray, sizes: np.ndarray, centroids: np.ndarray) -> float:
    """Sum of |x - c|^2 - |x|^2 over all points."""
    spread = np.empty(len(sums))
    for start in range(0, len(sums), _BLOCK_ROWS // 8):
        some = slice(start, start + _BLOCK_ROWS // 8)
        terms = np.square(centroids[some], dtype=np.float64) * sizes[some, None]
        terms -= 2 * sums[some] * centroids[some]
        spread[some] = _row_sums(terms)
    return float(np.add.reduce(spread))


def _farthest(points: np.ndarray, own: np.ndarray, count: int) -> np.ndarray:
    """Rows of the points that are farthest from their centroids, of equally far ones the first."""
    distances = np.concatenate(
        [
            squared_distances(points[start : start + _BLOCK_ROWS], own[start : start + _BLOCK_ROWS])
            for start in range(0, len(points), _BLOCK_ROWS)
        ]
    )
    return np.argsort(-distances, kind="stable")[:count]
