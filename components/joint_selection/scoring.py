"""From IoU and text similarity to one score and one probability per record (docs/method.md, section 5)."""

import sys
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tilt:
    """How far a draw leans towards high scores.

    Attributes:
        mean_combined_pool: Mean combined score of the pool.
        mean_combined_selected: Mean combined score of the selection.
        overlap_with_top: Share of the selection that the deterministic sampler would have taken too.
        overlap_by_chance: The same of a uniform draw: selected / pool.
        weight_ratio: Largest to smallest probability, no more than the largest float.
        effective_sample_size: 1 / sum of squared probabilities: the pool's size when all are equal.
    """

    mean_combined_pool: float
    mean_combined_selected: float
    overlap_with_top: float
    overlap_by_chance: float
    weight_ratio: float
    effective_sample_size: float


Bounds = tuple[float, float]


def range_of(values: np.ndarray) -> Bounds | None:
    """Smallest and largest value, NaN left out; None where there is none."""
    known = values[~np.isnan(values)]
    return (float(known.min()), float(known.max())) if len(known) else None


def inverted_minmax(values: np.ndarray, bounds: Bounds | None = None) -> np.ndarray:
    """1 - (value - min) / (max - min); all zeros when every value is the same.

    Args:
        values: float64, (n,), finite.
        bounds: Minimum and maximum of an earlier run instead of the values' own; what lies outside counts as them.

    Returns:
        float64, (n,), in [0, 1]; 1 for the smallest value.

    Source:
        docs/method.md, section 5; its "all zeros" is read as the result, not as what is subtracted from 1.
    """
    low, high = bounds or range_of(values) or (0.0, 0.0)
    if low == high:
        return np.zeros(len(values))
    scaled: np.ndarray = (np.clip(values, low, high) - low) / (high - low)
    return 1.0 - scaled


def inverted_ranks(values: np.ndarray) -> np.ndarray:
    """Like `inverted_minmax` of the ranks from 0; equal values share their average rank.

    One far outlier then cannot press all other values together.
    """
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    average = np.cumsum(sizes) - (sizes + 1) / 2
    return inverted_minmax(average[group])


def text_score(text_similarity: np.ndarray, text_normalization: str, bounds: Bounds | None = None) -> np.ndarray:
    """The inverted, normalised text side, float64 in [0, 1]: 1 is the least typical record. Ranks have no bounds."""
    if text_normalization == "rank":
        return inverted_ranks(text_similarity)
    return inverted_minmax(text_similarity, bounds)


def image_score(iou: np.ndarray, missing_iou: str, bounds: Bounds | None = None) -> np.ndarray:
    """The inverted, normalised IoU.

    Args:
        iou: float64, (n,), NaN where a map is missing.
        missing_iou: "reference" counts a missing IoU as 0 (and so as the best score); otherwise NaN stays NaN.
        bounds: As of `inverted_minmax`.

    Returns:
        float64, (n,), in [0, 1] or NaN: 1 is the smallest IoU.
    """
    if missing_iou == "reference":
        return inverted_minmax(np.where(np.isnan(iou), 0.0, iou), bounds)
    score = np.full(len(iou), np.nan)
    known = ~np.isnan(iou)
    score[known] = inverted_minmax(iou[known], bounds)
    return score


def combine(image: np.ndarray, text: np.ndarray, alpha: float, missing_iou: str) -> np.ndarray:
    """(1 - alpha) * image + alpha * text; by the text side where the image side is NaN.

    Args:
        image: float64, (n,), in [0, 1] or NaN.
        text: float64, (n,), in [0, 1].
        alpha: Weight of the text side, in [0, 1].
        missing_iou: "calibrated" puts a record without an image score where `at_text_quantile` says, as long as any
            record has one; otherwise its score is that of the text side.

    Returns:
        float64, (n,), in [0, 1].
    """
    missing = np.isnan(image)
    combined = np.where(missing, text, (1 - alpha) * image + alpha * text)
    if missing_iou == "calibrated" and not missing.all():
        combined[missing] = at_text_quantile(text[missing], combined[~missing])
    return combined


def at_text_quantile(text: np.ndarray, known_combined: np.ndarray) -> np.ndarray:
    """The combined scores that stand among `known_combined` where each text score stands among `text`.

    The mean of two signals spreads less than one of them, and other records say other things: side by side, records
    with the text score alone crowd the top or are missing there. By quantiles both kinds have the same scores.

    Args:
        text: float64, (m,), of the records without an image score.
        known_combined: float64, (k,), at least one, of those with one; in any order.

    Returns:
        float64, (m,), rising with `text`. Equal text scores stand at their mean rank; between two combined scores it
        goes in a straight line.

    Source:
        docs/method.md, section 5.
    """
    _, group, sizes = np.unique(text, return_inverse=True, return_counts=True)
    quantile = (np.cumsum(sizes) - sizes / 2) / len(text)
    places = np.arange(len(known_combined)) + 0.5
    found: np.ndarray = np.interp(quantile * len(known_combined), places, np.sort(known_combined))[group]
    return found


def softmax(combined: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities proportional to exp(combined / temperature).

    Args:
        combined: float64, (n,), finite.
        temperature: Above 0.

    Returns:
        float64, (n,), sum 1. Scores far below the largest may underflow to 0.
    """
    with np.errstate(over="ignore"):
        weights: np.ndarray = np.exp((combined - combined.max()) / temperature)
    return weights / float(weights.sum())


def tilt(combined: np.ndarray, probability: np.ndarray, selected: np.ndarray, best: np.ndarray) -> Tilt:
    """How far a draw leans towards high scores.

    Args:
        combined: float64, (pool,).
        probability: float64, (pool,), sum 1.
        selected: int, (n,), positions in the pool.
        best: int, (n,), what the deterministic sampler would have taken.
    """
    with np.errstate(divide="ignore", over="ignore"):
        ratio = float(probability.max() / probability.min())
    return Tilt(
        mean_combined_pool=float(combined.mean()),
        mean_combined_selected=float(combined[selected].mean()),
        overlap_with_top=len(np.intersect1d(selected, best)) / len(selected),
        overlap_by_chance=len(selected) / len(combined),
        weight_ratio=min(ratio, sys.float_info.max),
        effective_sample_size=float(1 / np.square(probability).sum()),
    )
