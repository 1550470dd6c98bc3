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
from collections.abc import Callable

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


def simulated(correlation: float, missing: float) -> Candidates:
    """Signals of skewed, unlike distributions; the IoU is missing at random.

    Args:
        correlation: One of CORRELATIONS.
        missing: Share of the records without an IoU.
    """
    rng = np.random.default_rng(3)
    normal = rng.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], RECORDS)
    iou = 1 / (1 + np.exp(1.5 - normal[:, 0]))
    similarity = np.clip(1 - np.exp(normal[:, 1] / 2 - 2), 0, 1)
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


def share_of_top(candidates: Candidates, settings: DrawSettings) -> float:
    """The share of the top n that has no IoU."""
    return float(np.isnan(candidates.iou[select(settings, candidates).top]).mean())


def table(
    title: str, pool: float, share: Callable[[DrawSettings], float], normalizations: tuple[str, ...]
) -> dict[str, list[float]]:
    """Print a share for all settings, a row for each alpha; returns the shares by policy."""
    print(f"\n{title}: {pool:.1%} of the pool; of the top n:", flush=True)
    found: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    for normalization, alpha in itertools.product(normalizations, ALPHAS):
        cells = []
        for ratio, policy in itertools.product(RATIOS, POLICIES):
            settings = DrawSettings(alpha=alpha, ratio=ratio, missing_iou=policy, text_normalization=normalization)
            found[policy].append(share(settings))
            cells.append(f"{policy} at {ratio:.0%} {found[policy][-1]:6.1%}")
        print(f"  {normalization:9} alpha {alpha}: " + ", ".join(cells), flush=True)
    return found


def simulation(bounds: Bounds) -> None:
    """Shares where the IoU is missing at random."""
    for correlation, missing in itertools.product(CORRELATIONS, MISSING):
        candidates = simulated(correlation, missing)
        pool = float(np.isnan(candidates.iou).mean())
        title = f"simulated, correlation {correlation:g}"
        found = table(title, pool, lambda settings, made=candidates: share_of_top(made, settings), ("reference",))
        apart = {policy: max(abs(share - pool) for share in shares) for policy, shares in found.items()}
        print(f"  largest difference: text {apart['text']:.3f}")
        bounds.at_most(f"{title}, {missing:.0%} missing: difference with calibrated", apart["calibrated"], TOLERANCE)


def real(bounds: Bounds, folder: str) -> None:
    """The same with the signals of a run: with IoUs hidden at random, and as they are."""
    iou, similarity, combined = (
        open_dataset(folder, SCORES).table([name]).column(0).to_numpy()
        for name in ("iou", "text_similarity", "combined")
    )
    iou, similarity = iou[~np.isnan(combined)], similarity[~np.isnan(combined)]
    known = np.flatnonzero(~np.isnan(iou))
    rng = np.random.default_rng(5)
    hidings = []
    for _ in range(HIDINGS):
        kept = iou[known].copy()
        kept[rng.permutation(len(known))[: int(HIDDEN * len(known))]] = np.nan
        hidings.append(of_signals(kept, similarity[known]))
    pool = int(HIDDEN * len(known)) / len(known)
    found = table(
        f"{len(known)} records with an IoU, hidden at random {HIDINGS} times",
        pool,
        lambda settings: float(np.mean([share_of_top(one, settings) for one in hidings])),
        TEXT_NORMALIZATION,
    )
    apart = {policy: max(abs(share - pool) for share in shares) for policy, shares in found.items()}
    print(f"  largest difference: text {apart['text']:.3f}")
    bounds.at_most("real signals, IoU hidden at random: difference with calibrated", apart["calibrated"], TOLERANCE)
    whole = of_signals(iou, similarity)
    missing = np.isnan(iou)
    above = np.mean(similarity[missing] < np.quantile(similarity[known], 0.2))
    table(f"all {len(iou)} records", missing.mean(), lambda settings: share_of_top(whole, settings), TEXT_NORMALIZATION)
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
