"""Who is drawn with which probability, when n records are drawn one after the other with weights exp(score / T)."""

import math
from dataclasses import dataclass

import numpy as np

# A stratum's scores on the grid: 1 / 8192 of their range apart, no more than 65536 in all, no fewer than 64.
_FINEST, _CELLS, _COARSEST = 8192, 65536, 64
# exp(40): a record that certain to be drawn, within the precision of a float.
_CERTAIN = 40.0
# The logarithm of the n-th arrival's time, measured at the n-th best score, is between these, whatever the scores.
_EARLIEST, _LATEST = -800.0, math.log(_CERTAIN)
_ROUNDS, _PRECISION = 100, 1e-7


@dataclass(frozen=True)
class Pool:
    """The pool, sorted by stratum and score: each entry a record, or several of nearly the same score.

    Attributes:
        score: float64, (entries,).
        records: float64, (entries,): how many an entry stands for.
        best: float64, (entries,): how many of them are in the deterministic top n.
        order: int64, (entries,): positions in the unsorted pool; empty where entries are several records.
        starts: int64, (strata,): each stratum's first entry.
        edge: int64, (strata,): the entry in which its last drawn record would be without noise.
        shares: float64, (strata,): records drawn from each on average.
        wanted: Records to draw.
    """

    score: np.ndarray
    records: np.ndarray
    best: np.ndarray
    order: np.ndarray
    starts: np.ndarray
    edge: np.ndarray
    shares: np.ndarray
    wanted: int

    @classmethod
    def of(cls, score: np.ndarray, stratum: np.ndarray, best: np.ndarray, wanted: int) -> "Pool":
        """Sort the records of a pool.

        Args:
            score: float64, (pool,).
            stratum: int, (pool,).
            best: bool, (pool,): the deterministic top n.
            wanted: 1 .. pool.
        """
        order = np.argsort(score)
        order = order[np.argsort(stratum[order], kind="stable")]
        starts = _changes(stratum[order])
        return cls._made(score[order], np.ones(len(score)), best[order].astype(float), order, starts, wanted)

    @classmethod
    def _made(
        cls,
        score: np.ndarray,
        records: np.ndarray,
        best: np.ndarray,
        order: np.ndarray,
        starts: np.ndarray,
        wanted: int,
    ) -> "Pool":
        sizes = np.add.reduceat(records, starts)
        shares = sizes * (wanted / sizes.sum())
        # Below the edge lie all records but the best ceil(share).
        below = np.cumsum(records)
        target = np.cumsum(sizes) - np.ceil(shares - _PRECISION) + 0.5
        edge = np.searchsorted(below, target)
        return cls(score, records, best, order, starts, edge, shares, wanted)

    @property
    def sizes(self) -> np.ndarray:
        """Records of each stratum, float64, (strata,)."""
        return np.add.reduceat(self.records, self.starts)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """A number of each stratum, to each of its entries."""
        return np.repeat(values, np.diff(self.starts, append=len(self.score)))

    def total(self, values: np.ndarray) -> np.ndarray:
        """The sum of a number of each entry's records, in each stratum."""
        return np.add.reduceat(values * self.records, self.starts)

    def probability(self, temperature: float) -> np.ndarray:
        """The softmax of each stratum, float64, (entries,), of one record of each entry."""
        with np.errstate(over="ignore"):
            weights = np.exp((self.score - self.spread(np.maximum.reduceat(self.score, self.starts))) / temperature)
        probability: np.ndarray = weights / self.spread(self.total(weights))
        return probability

    def effective_sample_size(self, temperature: float) -> float:
        """1 / sum of squared probabilities, each stratum weighted by its size."""
        sizes = self.sizes
        return float(1 / (self.total(np.square(self.probability(temperature))) @ np.square(sizes / sizes.sum())))


def grid(pool: Pool) -> Pool:
    """The pool with records of nearly the same score in one entry; small pools as they are."""
    low, high = pool.score.min(), pool.score.max()
    steps = max(_COARSEST, min(_FINEST, _CELLS // len(pool.starts)))
    if low == high or len(pool.score) <= steps:
        return pool
    place = ((pool.score - low) * (steps / (high - low))).astype(np.int64)
    strata = pool.spread(np.arange(len(pool.starts)))
    firsts = _changes(strata * (steps + 1) + place)
    records = np.add.reduceat(pool.records, firsts)
    score, best = (np.add.reduceat(values, firsts) for values in (pool.score, pool.best))
    return Pool._made(
        score / records, records, best, np.empty(0, np.int64), np.searchsorted(firsts, pool.starts), pool.wanted
    )


@dataclass(frozen=True)
class Race:
    """Probabilities to be drawn, and what they say of sums over a draw.

    Attributes:
        pool: Who takes part.
        inclusion: float64, (entries,): probability to be drawn.
        density: float64, (entries,): of an arrival just when the draw is full, but for a factor of the stratum.
        variance: float64, (entries,): what a record adds to the variance of a sum, per squared distance from the slope.
    """

    pool: Pool
    inclusion: np.ndarray
    density: np.ndarray
    variance: np.ndarray

    @classmethod
    def certain(cls, pool: Pool) -> "Race":
        """The deterministic top n."""
        nothing = np.zeros(len(pool.score))
        return cls(pool, pool.best / pool.records, nothing, nothing)

    @classmethod
    def at(cls, pool: Pool, temperature: float) -> "Race":
        """The draw at a temperature.

        A stratum that gives one record at most is exact. Elsewhere the time at which the draw is full is taken as
        fixed, which is right within a share of about 1 / n.

        Args:
            pool: Who takes part.
            temperature: Above 0.

        Source:
            Rosén 1997, On sampling with probability proportional to size (order sampling with exponential times).
        """
        with np.errstate(over="ignore"):
            relative = (pool.score - pool.spread(pool.score[pool.edge])) / temperature
        time = _full_at(pool, relative)
        rate = np.exp(np.minimum(relative + pool.spread(time), _CERTAIN))
        waiting = np.exp(-rate)
        inclusion, density = -np.expm1(-rate), rate * waiting
        # The factor makes it exact for equal weights (hypergeometric).
        variance = inclusion * waiting * pool.spread(pool.sizes / np.maximum(1, pool.sizes - 1))
        if (pool.shares <= 1).any():
            one = pool.spread(pool.shares) * pool.probability(temperature)
            few = pool.spread(pool.shares <= 1)
            inclusion, density, variance = (np.where(few, one, other) for other in (inclusion, density, variance))
        if (pool.shares >= pool.sizes - _PRECISION).any():
            everyone = pool.spread(pool.shares >= pool.sizes - _PRECISION)
            inclusion = np.where(everyone, 1.0, inclusion)
            density, variance = (np.where(everyone, 0.0, other) for other in (density, variance))
        return cls(pool, inclusion, density, variance)

    def best(self) -> tuple[float, float]:
        """Mean and standard deviation of how many of the deterministic top n are drawn."""
        pool = self.pool
        best = pool.best / pool.records
        slope = self._slope(best)
        inside = (1 - 2 * slope) * pool.total(self.variance * best) + np.square(slope) * pool.total(self.variance)
        variance = float(inside.sum()) + self._of_rounding(slope)
        return float(pool.total(self.inclusion * best).sum()), math.sqrt(max(0.0, variance))

    def counts(self, group: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of how many records of each group are drawn, both float64, (groups,).

        Args:
            group: int, (entries,), which are one record each. With several strata these are the groups.
            groups: How many there are.
        """
        pool = self.pool
        mean = np.bincount(group, self.inclusion, groups)
        if len(pool.starts) > 1:
            # Each gives its exact share, rounded down or up.
            return mean, np.zeros(groups)
        density = self.density.sum()
        slope = np.bincount(group, self.density, groups) / density if density > 0 else np.zeros(groups)
        own = np.bincount(group, self.variance, groups)
        return mean, np.sqrt(np.maximum(0.0, (1 - 2 * slope) * own + np.square(slope) * self.variance.sum()))

    def _slope(self, values: np.ndarray) -> np.ndarray:
        """How fast a sum over the draw grows with each record more, in each stratum."""
        density = self.pool.total(self.density)
        slope = np.zeros(len(density))
        np.divide(self.pool.total(self.density * values), density, out=slope, where=density > 0)
        return slope

    def _of_rounding(self, slope: np.ndarray) -> float:
        """Variance of a sum because shares that are no whole numbers are rounded at random, with a fixed total."""
        part = self.pool.shares % 1
        variance = part * (1 - part)
        if (total := float(variance.sum())) < _PRECISION:
            return 0.0
        rounded = int(np.count_nonzero(variance > _PRECISION))
        return float(variance @ np.square(slope - slope @ variance / total)) * rounded / max(1, rounded - 1)


def _full_at(pool: Pool, relative: np.ndarray) -> np.ndarray:
    """The logarithm of when as many records as each stratum gives are expected to have arrived.

    Newton's steps in the logarithm; halving where one would leave what is known to hold the answer.

    Args:
        pool: Who takes part.
        relative: float64, (entries,): logarithm of each rate over that of the stratum's edge.

    Returns:
        float64, (strata,).
    """
    time = np.zeros(len(pool.starts))
    low, high = np.full(len(time), _EARLIEST), np.full(len(time), _LATEST)
    for _ in range(_ROUNDS):
        rate = np.exp(np.minimum(relative + pool.spread(time), _CERTAIN))
        waiting = np.exp(-rate)
        excess = pool.total(1 - waiting) - pool.shares
        if (np.abs(excess) <= _PRECISION * pool.shares).all():
            break
        low, high = np.where(excess < 0, time, low), np.where(excess < 0, high, time)
        growth = pool.total(rate * waiting)
        step = np.full(len(time), math.inf)
        with np.errstate(over="ignore"):
            np.divide(excess, growth, out=step, where=growth > 0)
        newton = time - step
        time = np.where((newton > low) & (newton < high), newton, (low + high) / 2)
    return time


def _changes(values: np.ndarray) -> np.ndarray:
    """Where each run of equal values begins."""
    starts: np.ndarray = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    return starts
