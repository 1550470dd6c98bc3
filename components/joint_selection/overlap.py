"""Where two models look, as bit sets: top-k positions of a map, and the IoU of two such sets."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Comparison:
    """On what the maps of two models are compared.

    Attributes:
        grids: Vision tokens per side of each model's own maps.
        grid: Of the maps that are compared: the smaller one.
        k: How many of their positions count as looked at.
    """

    grids: tuple[int, int]
    grid: int
    k: int

    @classmethod
    def of(cls, grids: tuple[int, int], top_percent: float) -> "Comparison":
        """The comparison of maps on these grids.

        Args:
            grids: Vision tokens per side of each model's maps.
            top_percent: Share of the positions that count as looked at.
        """
        grid = min(grids)
        return cls(grids, grid, top_k(grid * grid, top_percent))


def top_k(positions: int, top_percent: float) -> int:
    """How many positions of a map count as looked at (172 of 576 at 30 percent).

    Source:
        docs/method.md, section 3.
    """
    return max(1, int(positions * top_percent / 100))


def resample(maps: np.ndarray, own: int, wanted: int) -> np.ndarray:
    """Maps of one grid on a coarser one, by the area that the cells share.

    Args:
        maps: float32, (n, own * own), row by row.
        own: The maps' grid.
        wanted: The grid to get, at most `own`.

    Returns:
        float32, (n, wanted * wanted), each with the sum it had.
    """
    if own == wanted:
        return maps
    edges_own, edges_wanted = np.arange(own + 1) / own, np.arange(wanted + 1) / wanted
    low = np.maximum(edges_own[None, :-1], edges_wanted[:-1, None])
    high = np.minimum(edges_own[None, 1:], edges_wanted[1:, None])
    share = (np.clip(high - low, 0, None) * own).astype(np.float32)
    square = maps.reshape(-1, own, own)
    coarse: np.ndarray = np.einsum("ai,nij,bj->nab", share, square, share, optimize=True)
    return coarse.reshape(len(maps), -1)


def top_bits(maps: np.ndarray, k: int) -> np.ndarray:
    """The k largest positions of each map as a bit set.

    Args:
        maps: float32, (n, positions), finite.
        k: 1 .. positions.

    Returns:
        uint64, (n, ceil(positions / 64)), exactly k bits set in each row.

    Source:
        docs/method.md, section 3. It leaves open which of several equal values at the edge of the top k is in: here the
        one at the lower position.
    """
    threshold = np.partition(maps, maps.shape[1] - k, axis=1)[:, maps.shape[1] - k, None]
    chosen = maps >= threshold
    for row in np.flatnonzero(np.count_nonzero(chosen, axis=1) > k):
        at_edge = np.flatnonzero(maps[row] == threshold[row])
        above = k - np.count_nonzero(maps[row] > threshold[row])
        chosen[row, at_edge[above:]] = False
    packed = np.packbits(chosen, axis=1)
    padded = np.zeros((len(maps), -(-packed.shape[1] // 8) * 8), np.uint8)
    padded[:, : packed.shape[1]] = packed
    return padded.view(np.uint64)


def intersection_over_union(first: np.ndarray, second: np.ndarray, k: int) -> np.ndarray:
    """IoU of pairs of bit sets with k bits each.

    Args:
        first: uint64, (n, words), of `top_bits`.
        second: The same shape.
        k: Bits set in every row.

    Returns:
        float64, (n,), in [0, 1].
    """
    common = np.bitwise_count(first & second).sum(axis=1, dtype=np.int64)
    iou: np.ndarray = common / (2 * k - common)
    return iou
