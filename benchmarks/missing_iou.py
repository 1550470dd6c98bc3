"""Records without an IoU: their share of the top n beside their share of the pool, by `missing_iou`.

    python -m benchmarks.missing_iou [--scores out/scores]

First simulated signals whose IoUs are missing at random, so that the share of the top n should be that of the pool.
With --scores also the signals of an earlier run: with the IoU of records that have one hidden at random, and as they
are. Last the time at full size.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from benchmarks.bounds import Bounds
from components.joint_selection.config import TEXT_NORMALIZATION, DrawSettings
from components.joint_selection.draw import record_noise
from components.joint_selection.scoring import combine
from components.joint_selection.selection import Candidates, select
from free2ds_common.datasets import open_dataset
from free2ds_common.schemas import SCORES

POLICIES = ("text", "calibrated")
ALPHAS = (0.0, 0.3, 0.5, 0.7, 1.0)
RATIOS = (0.05, 0.2)
MISSING = (0.06, 0.2, 0.42)
# Of the normal variables that text similarity and IoU are made from.
CORRELATIONS = (0.0, 0.6, -0.6)
RECORDS, FULL_SIZE = 20_000, 665_298
HIDDEN, HIDINGS = 0.42, 100
# Four standard deviations of the share of a top 1,000 of 20,000 records: 4 * sqrt(0.25 / 1000) = 0.063.
TOLERANCE = 0.063


def even(normal: np.ndarray) -> np.ndarray:
    """Uniform in (0, 1), from a standard normal variable."""
    ranks: np.ndarray = np.argsort(np.argsort(normal)) + 0.5
    return ranks / len(normal)


def skewed(normal: np.ndarray) -> np.ndarray:
    """Most values near 1 and few far below, as text similarities are."""
    found: np.ndarray = np.clip(1 - np.exp(normal / 2 - 2), 0, 1)
    return found


def tied(normal: np.ndarray) -> np.ndarray:
    """Nineteen of twenty the same and most typical, as where there is a cluster for nearly every message."""
    found: np.ndarray = np.minimum(even(normal), 0.05)
    return found


SHAPES = {"both even": (even, even), "text skewed": (even, skewed), "text tied": (even, tied)}


def simulated(shape: str, correlation: float, missing: float) -> Candidates:
    """Signals of which the IoU is missing at random.

    Args:
        shape: One of SHAPES.
        correlation: One of CORRELATIONS.
        missing: Share of the records without an IoU.
    """
    rng = np.random.default_rng(3)
    normal = rng.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], RECORDS)
    iou, similarity = (make(side) for make, side in zip(SHAPES[shape], normal.T, strict=True))
    return of_signals(np.where(rng.random(RECORDS) < missing, np.nan, iou), similarity)


def of_signals(iou: np.ndarray, similarity: np.ndarray) -> Candidates:
    """Records with these signals, all usable and of one source."""
    return Candidates(
        iou=iou,
        text_similarity=similarity,
        rejected=np.zeros(len(iou), bool),
        source=pa.array(["one"] * len(iou)).dictionary_encode(),
        noise=record_noise(pa.array([f"{number:064x}" for number in range(len(iou))]), 0),
    )


def share_of_top(many: Sequence[Candidates], settings: DrawSettings) -> float:
    """The mean share of the top n that has no IoU."""
    return float(np.mean([np.isnan(one.iou[select(settings, one).best]).mean() for one in many]))


def table(title: str, many: Sequence[Candidates], normalizations: Sequence[str]) -> dict[str, float]:
    """Print the shares of the top n for all settings, a row for each alpha.

    Args:
        title: What the records are.
        many: Pools of the same number of records without an IoU; shares are their means.
        normalizations: Values of text_normalization.

    Returns:
        By policy: the largest difference from the share of the pool.
    """
    pool = float(np.mean([np.isnan(one.iou).mean() for one in many]))
    print(f"\n{title}: {pool:.1%} of the pool; of the top n:", flush=True)
    apart = dict.fromkeys(POLICIES, 0.0)
    for normalization, alpha in itertools.product(normalizations, ALPHAS):
        cells = []
        for ratio, policy in itertools.product(RATIOS, POLICIES):
            settings = DrawSettings(alpha=alpha, ratio=ratio, missing_iou=policy, text_normalization=normalization)
            share = share_of_top(many, settings)
            apart[policy] = max(apart[policy], abs(share - pool))
            cells.append(f"{policy} at {ratio:.0%} {share:6.1%}")
        print(f"  {normalization:9} alpha {alpha}: " + ", ".join(cells), flush=True)
    print("  largest difference: " + ", ".join(f"{policy} {size:.3f}" for policy, size in apart.items()))
    return apart


def simulation(bounds: Bounds) -> None:
    """Shares where the IoU is missing at random."""
    largest = dict.fromkeys(POLICIES, 0.0)
    for shape, correlation, missing in itertools.product(("both even", "text skewed"), CORRELATIONS, MISSING):
        many = [simulated(shape, correlation, missing)]
        apart = table(f"simulated, {shape}, correlation {correlation:g}", many, ("reference",))
        largest = {policy: max(largest[policy], apart[policy]) for policy in POLICIES}
    print(f"\nlargest difference of all: text {largest['text']:.3f}")
    bounds.at_most("simulated: top n from pool with calibrated, largest difference", largest["calibrated"], TOLERANCE)
    # No bound: equal texts have one score, with an image score or without, so that the images decide alone.
    table("simulated, text tied, correlation 0", [simulated("text tied", 0.0, HIDDEN)], ("reference",))


def real(bounds: Bounds, folder: str) -> None:
    """The same with the signals of a run: with IoUs hidden at random, and as they are."""
    dataset = open_dataset(folder, SCORES).table(["iou", "text_similarity", "combined"])
    iou, similarity, combined = (column.to_numpy() for column in dataset.columns)
    iou, similarity = iou[~np.isnan(combined)], similarity[~np.isnan(combined)]
    missing = np.isnan(iou)
    known = np.flatnonzero(~missing)
    rng = np.random.default_rng(5)
    hidings = []
    for _ in range(HIDINGS):
        kept = iou[known]
        kept[rng.permutation(len(known))[: int(HIDDEN * len(known))]] = np.nan
        hidings.append(of_signals(kept, similarity[known]))
    apart = table(f"{len(known)} records with an IoU, hidden at random {HIDINGS} times", hidings, TEXT_NORMALIZATION)
    bounds.at_most("hidden at random: top n from pool with calibrated", apart["calibrated"], TOLERANCE)
    apart = table(f"all {len(iou)} records as they are", [of_signals(iou, similarity)], TEXT_NORMALIZATION)
    bounds.at_most("as they are: top n from pool with calibrated", apart["calibrated"], TOLERANCE)
    above = np.mean(similarity[missing] < np.quantile(similarity[known], 0.2))
    print(f"  {above:.1%} of those without an IoU have less typical texts than four fifths of those with one")


def full_size(bounds: Bounds) -> None:
    """Seconds of scoring at full size, in the median of five."""
    rng = np.random.default_rng(0)
    image, text = rng.random(FULL_SIZE), rng.random(FULL_SIZE)
    image[rng.random(FULL_SIZE) < HIDDEN] = np.nan
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        combine(image, text, 0.5, "calibrated")
        seconds.append(time.perf_counter() - start)
    bounds.at_most(f"seconds to calibrate {FULL_SIZE:,} records", float(np.median(seconds)), 1)


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", help="scores/1 of an earlier run")
    options = parser.parse_args()
    bounds = Bounds()
    simulation(bounds)
    if options.scores:
        real(bounds, options.scores)
    full_size(bounds)
    return bounds.report()


if __name__ == "__main__":
    sys.exit(main())
