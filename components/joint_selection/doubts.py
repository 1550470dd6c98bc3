"""What makes a finished selection doubtful: refused, or said first in everything that the stage writes."""

from collections.abc import Iterator, Mapping

import numpy as np

from components.joint_selection.config import DrawSettings
from components.joint_selection.inputs import Inputs, counted, port_of
from components.joint_selection.rejected import Verdict
from components.joint_selection.selection import Candidates, Selection
from free2ds_common import outcomes
from free2ds_common.errors import StageError

# Less than this share of the records with a picture has an IoU: worth a warning. At the default ratio of 0.2, a tenth
# of the records can be half of the selection.
FEWEST_WITH_IOU = 0.9
# The two models' shares of one outcome are further apart than this: worth a warning. Both saw the same pictures and
# questions, so that a tenth more failures of one of them is its own doing.
LARGEST_DIFFERENCE = 0.1
# Of the records outside the ranges of kmeans_uri, where all of them count alike: as of messages beyond the largest
# distance.
LARGEST_SHARE_OUTSIDE = 0.01
_NAMED_PICTURES = 5


def refuse_text_alone(inputs: Inputs, verdict: Verdict) -> None:
    """Stop where pictures were to be compared and none was: that would be a selection by text alone.

    A data set without any picture is selected by its text; there the user knows.

    Args:
        inputs: Outcomes of both models.
        verdict: Which records cannot be used.

    Raises:
        StageError: Records have a picture, and none of them has an IoU.
    """
    pictured = inputs.records.has_picture
    if not pictured.any() or (inputs.compared & ~verdict.rejected).any():
        return
    rejected = f"; rejected: {_listed(verdict.reasons)}" if verdict.rejected.any() else ""
    raise StageError(
        f"none of the {np.count_nonzero(pictured)} records with a picture has an IoU, which needs a map of both "
        f"models: {_outcomes_of(inputs, pictured)}{rejected}. Mend the model without maps or the data set, and score "
        "again; to select by text alone, leave the pictures out of the data set."
    )


def doubts(settings: DrawSettings, inputs: Inputs, candidates: Candidates, selection: Selection) -> tuple[str, ...]:
    """What is doubtful about a selection, a sentence each.

    Args:
        settings: Of the draw.
        inputs: Outcomes of both models.
        candidates: What was drawn from.
        selection: What was drawn.
    """
    return (
        *inputs.text.manifest.get("warnings", ()),
        *_outside_old_ranges(candidates, selection),
        *_few_compared(settings, inputs, candidates),
        *_different_models(inputs),
        *_pictures_of_one_colour(inputs),
        *small_strata(settings, candidates, selection),
    )


def _outside_old_ranges(candidates: Candidates, selection: Selection) -> Iterator[str]:
    """Other attention models or another top_percent than those of kmeans_uri, for instance."""
    for name, values in (("iou", candidates.iou), ("text_similarity", candidates.text_similarity)):
        if not (bounds := candidates.normalization.get(name)):
            continue
        low, high = bounds
        known = values[selection.in_pool & ~np.isnan(values)]
        outside = np.count_nonzero((known < low) | (known > high))
        if outside > LARGEST_SHARE_OUTSIDE * len(known):
            share = f"{outside:,} of {len(known):,} records ({outside / len(known):.1%})"
            yield (
                f"{share} lie outside the range of {name} in kmeans_uri, {low:.4g} to {high:.4g}, and count as its "
                "ends. Train anew: leave out kmeans_uri."
            )


def _few_compared(settings: DrawSettings, inputs: Inputs, candidates: Candidates) -> Iterator[str]:
    usable = inputs.records.has_picture & ~candidates.rejected
    wanted, found = np.count_nonzero(usable), np.count_nonzero(usable & inputs.compared)
    if found < FEWEST_WITH_IOU * wanted:
        yield (
            f"Only {found:,} of {wanted:,} records with a picture ({found / wanted:.1%}) have an IoU, less than "
            f"{FEWEST_WITH_IOU:.0%}; the others are ranked as missing_iou={settings.missing_iou} says. "
            f"Outcomes: {_outcomes_of(inputs, usable)}."
        )


def _different_models(inputs: Inputs) -> Iterator[str]:
    pictured = inputs.records.has_picture
    total = np.count_nonzero(pictured)
    first, second = (counted(side.outcome[pictured]) for side in inputs.sides)
    apart = [
        f"{word} {first.get(word, 0) / total:.1%} and {second.get(word, 0) / total:.1%}"
        for word in outcomes.ALL
        if abs(first.get(word, 0) - second.get(word, 0)) > LARGEST_DIFFERENCE * total
    ]
    if apart:
        ports = " and ".join(port_of(side.name) for side in inputs.sides)
        yield (
            f"{ports} differ by more than {LARGEST_DIFFERENCE:.0%} of the records with a picture: {'; '.join(apart)}. "
            "Something may be wrong with one of the models."
        )


def _pictures_of_one_colour(inputs: Inputs) -> Iterator[str]:
    """What ingest saw while it decoded them: a model looks at nothing there."""
    manifest = inputs.dataset.manifest
    if count := manifest.get("pictures_of_one_colour", 0):
        names = ", ".join(manifest.get("names_of_pictures_of_one_colour", [])[:_NAMED_PICTURES])
        yield f"{count:,} pictures are of one colour, so there is nothing to look at (the first: {names})."


def small_strata(settings: DrawSettings, candidates: Candidates, selection: Selection) -> tuple[str, ...]:
    """A sentence about sources that are too small to be sure of a draw, or none.

    Args:
        settings: Of the draw.
        candidates: Sources of the records.
        selection: What was drawn.
    """
    if settings.stratify != "source":
        return ()
    sizes = np.bincount(candidates.source.indices.to_numpy()[selection.in_pool])
    pool, wanted = int(sizes.sum()), int(selection.selected.sum())
    small = sizes[(sizes > 0) & (sizes * wanted < pool)]
    if not len(small):
        return ()
    decides = (
        "the score of their best record" if settings.sampler == "top" else "chance, in proportion to their sizes only"
    )
    return (
        f"stratify=source: {len(small):,} of {np.count_nonzero(sizes):,} sources have fewer than "
        f"{-(-pool // wanted):,} records and so less than one draw, {small.sum():,} of {pool:,} records together; "
        f"which of these sources give a record is up to {decides}.",
    )


def _outcomes_of(inputs: Inputs, rows: np.ndarray) -> str:
    """Each model's outcomes of some records."""
    return "; ".join(f"{port_of(side.name)} {_listed(counted(side.outcome[rows]))}" for side in inputs.sides)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{word} {count:,}" for word, count in counts.items())
