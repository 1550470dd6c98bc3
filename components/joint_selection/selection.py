"""From IoU and text similarity of every record to the draw: docs/method.md, section 5, in one place."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from components.joint_selection.config import DrawSettings
from components.joint_selection.draw import CONTROL, ORDER_OF_STRATA, TIES, draw, name_noise, take_top
from components.joint_selection.scoring import Bounds, Tilt, combine, image_score, range_of, text_score, tilt
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
        normalization: Smallest and largest "iou" and "text_similarity" of an earlier run, in place of the pool's own.
    """

    iou: np.ndarray
    text_similarity: np.ndarray
    rejected: np.ndarray
    source: pa.DictionaryArray
    noise: np.ndarray
    normalization: Mapping[str, Bounds | None] = field(default_factory=dict)


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
        best: bool, (N,): what the "top" sampler would have drawn.
        stratum: int64, (N,); each is drawn from on its own; -1 outside the pool.
        edge: float64, (N,); the score at which the "top" sampler would stop in the record's stratum.
        tilt: How far the draw leans.
        normalization: Smallest and largest "iou" and "text_similarity" that the scores were scaled by.
    """

    image_score: np.ndarray
    text_score: np.ndarray
    combined: np.ndarray
    probability: np.ndarray
    in_pool: np.ndarray
    selected: np.ndarray
    control: np.ndarray
    best: np.ndarray
    stratum: np.ndarray
    edge: np.ndarray
    tilt: Tilt
    normalization: Mapping[str, Bounds | None]


def select(settings: DrawSettings, candidates: Candidates) -> Selection:
    """Score and draw.

    Args:
        settings: Checked.
        candidates: What is drawn from.

    Raises:
        StageError: More records wanted than the pool has, or none at all.

    Source:
        docs/method.md, section 5; section 6 for what differs from the reference.
    """
    count = len(candidates.iou)
    in_pool = _may_be_drawn(settings, candidates)
    pool = np.flatnonzero(in_pool)
    wanted = _how_many(settings, len(pool))
    image, text, combined = (np.full(count, np.nan) for _ in range(3))
    scale = _normalization(settings, candidates, pool)
    image[pool] = image_score(candidates.iou[pool], settings.missing_iou, scale["iou"])
    text[pool] = text_score(candidates.text_similarity[pool], settings.text_normalization, scale["text_similarity"])
    combined[pool] = scores = combine(image[pool], text[pool], settings.alpha, settings.missing_iou)
    noise = candidates.noise[pool]
    strata = _strata(settings, candidates.source, pool)
    chosen, p = draw(scores, settings.temperature, wanted, settings.sampler, noise, strata, settings.seed)
    best, _ = draw(scores, settings.temperature, wanted, "top", noise, strata, settings.seed)
    control = take_top(noise[:, CONTROL].astype(np.float64), noise[:, TIES], wanted)
    probability = np.zeros(count)
    probability[pool] = p
    lowest = np.full(strata.max() + 1, np.inf)
    np.minimum.at(lowest, strata[best], scores[best])
    edge = np.full(count, np.nan)
    edge[pool] = lowest[strata]
    stratum = np.full(count, -1)
    stratum[pool] = strata
    return Selection(
        image_score=image,
        text_score=text,
        combined=combined,
        probability=probability,
        in_pool=in_pool,
        selected=_mask(count, pool[chosen]),
        control=_mask(count, pool[control]),
        best=_mask(count, pool[best]),
        stratum=stratum,
        edge=edge,
        # Each stratum's probabilities sum to 1; weighted by its share of the pool they are one distribution.
        tilt=tilt(scores, p * np.bincount(strata)[strata] / len(pool), chosen, best),
        normalization=scale,
    )


def _normalization(settings: DrawSettings, candidates: Candidates, pool: np.ndarray) -> dict[str, Bounds | None]:
    iou = candidates.iou[pool]
    if settings.missing_iou == "reference":
        iou = np.nan_to_num(iou, nan=0.0)
    given = candidates.normalization
    return {
        "iou": given.get("iou") or range_of(iou),
        "text_similarity": given.get("text_similarity") or range_of(candidates.text_similarity[pool]),
    }


def _may_be_drawn(settings: DrawSettings, candidates: Candidates) -> np.ndarray:
    """The pool, bool, (N,); at least one record."""
    usable = ~candidates.rejected
    in_pool = usable & ~np.isnan(candidates.iou) if settings.missing_iou == "exclude" else usable
    if not in_pool.any():
        reason = "no record has an IoU, and missing_iou is exclude" if usable.any() else "all are rejected"
        raise StageError(f"none of the {len(usable)} records can be drawn: {reason}.")
    return in_pool


def _how_many(settings: DrawSettings, pool: int) -> int:
    """How many records of a pool of this size to draw, 1 .. pool."""
    wanted = settings.num_samples or int(pool * settings.ratio)
    if wanted > pool:
        raise StageError(f"num_samples: got {wanted}, but only {pool} records can be drawn. Ask for fewer.")
    if wanted == 0:
        raise StageError(
            f"ratio: {settings.ratio:g} of {pool} records is no record at all. Raise ratio or num_samples."
        )
    return wanted


def _strata(settings: DrawSettings, source: pa.DictionaryArray, pool: np.ndarray) -> np.ndarray:
    """The stratum of each record of the pool, int64, (pool,), from 0."""
    if settings.stratify != "source":
        return np.zeros(len(pool), np.int64)
    # Numbered by keyed noise: neither the order of the input nor the alphabet may decide between sources.
    names = source.dictionary.to_pylist()
    order = sorted(
        range(len(names)), key=lambda code: (name_noise(names[code], settings.seed, ORDER_OF_STRATA), names[code])
    )
    number = np.empty(len(names), np.int64)
    number[order] = np.arange(len(names))
    strata: np.ndarray = number[source.indices.to_numpy()[pool]]
    return strata


def _mask(count: int, rows: np.ndarray) -> np.ndarray:
    mask = np.zeros(count, bool)
    mask[rows] = True
    return mask


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
