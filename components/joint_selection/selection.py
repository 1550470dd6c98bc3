"""From IoU and text similarity of every record to the draw: the method's section 5 in one place."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.joint_selection.config import DrawSettings
from components.joint_selection.draw import draw, take_top
from components.joint_selection.scoring import combine, image_score, text_score, tilt
from free2ds_common import outcomes
from free2ds_common.errors import StageError


@dataclass(frozen=True)
class Candidates:
    """What is drawn from, in input order.

    Attributes:
        iou: float64, (N,); NaN where a map is missing.
        text_similarity: float64, (N,), in [0, 1]; NaN only where `rejected`.
        rejected: bool, (N,): cannot be used.
        source: Arrow strings, dictionary-encoded, (N,).
        noise: uint64, (N, 3), of `draw.record_noise`.
    """

    iou: np.ndarray
    text_similarity: np.ndarray
    rejected: np.ndarray
    source: pa.DictionaryArray
    noise: np.ndarray


@dataclass(frozen=True)
class Selection:
    """Every record's scores and whether it was drawn, in input order; NaN where there is no score.

    Attributes:
        image_score: float64, (N,), in [0, 1].
        text_score: float64, (N,), in [0, 1].
        combined: float64, (N,); NaN outside the pool.
        probability: float64, (N,); 0 outside the pool.
        in_pool: bool, (N,): may be drawn.
        selected: bool, (N,).
        control: bool, (N,): the random control.
        edge: float64, (N,); the score at which the "top" sampler would stop in the record's stratum.
        tilt: How far the draw leans, see `scoring.tilt`.
    """

    image_score: np.ndarray
    text_score: np.ndarray
    combined: np.ndarray
    probability: np.ndarray
    in_pool: np.ndarray
    selected: np.ndarray
    control: np.ndarray
    edge: np.ndarray
    tilt: dict[str, float]


def select(settings: DrawSettings, records: Candidates) -> Selection:
    """Score and draw.

    Args:
        settings: Checked.
        records: What is drawn from.

    Raises:
        StageError: More records wanted than the pool has, or none at all.

    Source:
        method.md section 5; section 6 for what differs from the reference.
    """
    count = len(records.iou)
    in_pool = ~records.rejected
    if settings.missing_iou == "exclude":
        in_pool &= ~np.isnan(records.iou)
    pool = np.flatnonzero(in_pool)
    if not len(pool):
        reason = "no record has an IoU, and missing_iou is exclude" if (~records.rejected).any() else "all are rejected"
        raise StageError(f"none of the {count} records can be drawn: {reason}.")
    wanted = settings.num_samples or int(len(pool) * settings.ratio)
    if wanted > len(pool):
        raise StageError(f"num_samples: got {wanted}, but only {len(pool)} records can be drawn. Ask for fewer.")
    if wanted == 0:
        raise StageError(
            f"ratio: {settings.ratio:g} of {len(pool)} records is no record at all. Raise ratio or num_samples."
        )
    image, text, combined = (np.full(count, np.nan) for _ in range(3))
    image[pool] = image_score(records.iou[pool], settings.missing_iou)
    text[pool] = text_score(records.text_similarity[pool], settings.text_normalization)
    combined[pool] = scores = combine(image[pool], text[pool], settings.alpha)
    noise = records.noise[pool]
    strata = np.zeros(len(pool), np.int64)
    if settings.stratify == "source":
        # Numbered by name, not by first appearance: the input's order shall play no part.
        by_name = pc.rank(records.source.dictionary).to_numpy().astype(np.int64) - 1
        strata = by_name[records.source.indices.to_numpy()[pool]]
    chosen, p = draw(scores, settings.temperature, wanted, settings.sampler, noise, strata, settings.seed)
    probability = np.zeros(count)
    probability[pool] = p
    selected, control = np.zeros(count, bool), np.zeros(count, bool)
    selected[pool[chosen]] = True
    control[pool[take_top(noise[:, 1].astype(np.float64), noise[:, 2], wanted)]] = True
    best, _ = draw(scores, settings.temperature, wanted, "top", noise, strata, settings.seed)
    # Each stratum's probabilities sum to 1; weighted by its share of the pool they are one distribution.
    leaning = tilt(scores, p * np.bincount(strata)[strata] / len(pool), chosen, best)
    lowest = np.full(strata.max() + 1, np.inf)
    np.minimum.at(lowest, strata[best], scores[best])
    edge = np.full(count, np.nan)
    edge[pool] = lowest[strata]
    return Selection(image, text, combined, probability, in_pool, selected, control, edge, leaning)


def unusable(outcome_codes: Sequence[np.ndarray], text_similarity: np.ndarray) -> np.ndarray:
    """Records that cannot be ranked, bool, (N,): a model could not read the picture, or there is no text score.

    Args:
        outcome_codes: Of each model, uint8, (N,), index into `outcomes.ALL`.
        text_similarity: float64, (N,); NaN where there is none.
    """
    failures = [outcomes.ALL.index(word) for word in outcomes.IMAGE_FAILURES]
    return np.isin(outcome_codes, failures).any(axis=0) | np.isnan(text_similarity)


def by_source(source: pa.DictionaryArray, **columns: np.ndarray) -> dict[str, dict[str, int]]:
    """Records per source in several sets, the largest source of the first set first.

    Args:
        source: Dictionary-encoded strings, (N,).
        **columns: bool, (N,), by name.
    """
    codes, names = source.indices.to_numpy(), source.dictionary.to_pylist()
    sizes = {name: np.bincount(codes[mask], minlength=len(names)) for name, mask in columns.items()}
    order = np.argsort(-next(iter(sizes.values())), kind="stable")
    return {names[code]: {name: int(size[code]) for name, size in sizes.items()} for code in order}
