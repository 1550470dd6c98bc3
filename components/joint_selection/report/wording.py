"""The report's words: what the numbers mean, and long texts in little room."""

from collections.abc import Mapping
from typing import NamedTuple

from components.joint_selection import changes
from components.joint_selection.chance import Expectation
from components.joint_selection.inputs import LLAVA, MGM
from components.joint_selection.summary import Summary
from free2ds_common import outcomes

MODEL_NAMES = {LLAVA: "LLaVA", MGM: "MGM"}
OUTCOME_WORDS = {
    outcomes.OK: "has a map",
    outcomes.TEXT_ONLY: "has no picture",
    outcomes.EOS_ONLY: "the model answered nothing, so the method defines no map",
    outcomes.NO_QUESTION: "no human turn is followed by an answer",
    outcomes.PROMPT_TOO_LONG: "the prompt does not fit the model",
    outcomes.NON_FINITE: "the attention was not a number",
    outcomes.NOT_SCORED: "missing in the attention parts",
    "image_missing": "the picture was gone",
    "image_unreadable": "the picture could not be read",
    "image_too_large": "the picture is too large",
    "image_outside_root": "the picture's path leaves the image root",
}
MISSING_IOU_WORDS = {
    "calibrated": "by their text score among themselves, with the combined scores of the records that have an IoU",
    "text": "by their text score alone",
    "reference": "as if the models had looked at entirely different places, which is the best image score",
    "exclude": "not at all: they cannot be drawn",
}


CHANGE_WORDS = {
    changes.NEW: "new in the data set",
    changes.REMOVED: "no longer in the data set",
    changes.USABLE: "could not be drawn before",
    changes.UNUSABLE: "can no longer be drawn",
    changes.RANK: "its score ranks otherwise among the records of both runs",
    changes.MORE: "more records are drawn",
    changes.FEWER: "fewer records are drawn",
    changes.DRAW: "the draw fell otherwise",
}


class Step(NamedTuple):
    """What became of some records.

    Attributes:
        name: What happened.
        records: To how many.
        reasons: Why, or empty.
    """

    name: str
    records: int
    reasons: str


class OutcomeShares(NamedTuple):
    """Records of one outcome, both models' taken together.

    Attributes:
        name: The outcome.
        records: How many could be drawn.
        pool: Their share of the pool, as text.
        selected: Their share of the selection.
        top: Their share of what the "top" sampler would have drawn.
    """

    name: str
    records: int
    pool: str
    selected: str
    top: str


def changes_in_words(summary: Summary) -> list[str]:
    """What came in and dropped out since the earlier selection; nothing where none is named."""
    found = summary.changes
    if found is None:
        return []
    lines = [f"Since the earlier selection {found.stayed:,} records stayed."]
    for name, reasons in (("came in", found.came_in), ("dropped out", found.dropped_out)):
        why = "; ".join(f"{count:,} {CHANGE_WORDS[reason]}" for reason, count in reasons.items())
        lines.append(f"{sum(reasons.values()):,} {name}{f': {why}' if why else ''}.")
    if found.settings:
        lines.append(f"Settings that differ: {', '.join(found.settings)}.")
    return lines


def reuse_in_words(summary: Summary) -> str:
    """How much the models computed for this run; empty where nothing says so."""
    names = {**MODEL_NAMES, "text": "text model"}
    parts = [
        f"{names[name]} {reuse.computed:,} computed, {reuse.reused:,} from the results store"
        for name, reuse in summary.reuse.items()
    ]
    return f"Results: {'; '.join(parts)}." if parts else ""


def tilt_in_words(summary: Summary) -> list[str]:
    """What the tilt means: sentences for log and report."""
    tilt, written = summary.tilt, summary.counts.written
    lines = [
        f"Selected {written} of {summary.pool} records that could be drawn.",
        f"Mean combined score: {tilt.mean_combined_selected:.4f} selected, {tilt.mean_combined_pool:.4f} in the pool.",
        _overlap_in_words(summary),
    ]
    if summary.all_scores_equal:
        lines.append("All scores are equal: the draw is uniform.")
    elif summary.parameters.sampler == "top":
        lines.append("Nothing was drawn at random: the highest scores were taken.")
    else:
        lines.append(
            f"The most probable record is {tilt.weight_ratio:.3g} times as likely as the least probable one; "
            f"the effective sample size is {tilt.effective_sample_size:.0f} of {summary.pool}."
        )
        lines += _temperature_in_words(summary)
    return lines


def missing_in_words(summary: Summary) -> str:
    """How records without an IoU are ranked, to follow "are ranked"."""
    if summary.parameters.missing_iou == "calibrated" and summary.without_iou == summary.pool:
        return "by their text score alone, since no record has an IoU to calibrate with"
    return MISSING_IOU_WORDS[summary.parameters.missing_iou]


def shares_by_outcome(summary: Summary) -> list[OutcomeShares]:
    """What part of the pool, of the selection and of the top n each outcome has."""
    rows = summary.by_outcome
    selected, top = sum(row.selected for row in rows.values()), sum(row.top for row in rows.values())
    return [
        OutcomeShares(
            "with an IoU" if word == outcomes.OK else word,
            row.pool,
            f"{row.pool / summary.pool:.1%}",
            f"{row.selected / selected:.1%}",
            f"{row.top / top:.1%}",
        )
        for word, row in rows.items()
    ]


def _overlap_in_words(summary: Summary) -> str:
    """What this draw has of the top n, what its settings have on average, and what a random draw has."""
    chance, parameters = summary.chance, summary.parameters
    parts = [f"{chance.overlap_drawn:.1%} of the selection is in the deterministic top {summary.counts.written}"]
    if parameters.sampler != "top":
        parts.append(f"this setting expects {in_words(chance.overlap)}")
    parts.append(f"a purely random draw expects {in_words(chance.overlap_random)}")
    return "; ".join(parts) + "."


def _temperature_in_words(summary: Summary) -> list[str]:
    """The setting that would have the wanted overlap, to be pasted; nothing where none would."""
    chance = summary.chance
    if chance.wanted_temperature is None:
        return []
    return [
        f"For {chance.wanted_overlap:.0%} of the top {summary.counts.written} on average: "
        f"--param temperature={chance.wanted_temperature:g} (now {summary.parameters.temperature:g})."
    ]


def in_words(share: Expectation) -> str:
    """A share with its interval."""
    interval = f" (95% of draws: {share.low:.1%} to {share.high:.1%})" if share.spread else ""
    return f"{share.expected:.1%}{interval}"


def plus_minus(share: Expectation) -> str:
    """A share with its interval, in percent, where there is little room."""
    spread = 100 * share.spread
    digits = 0 if spread >= 1 or not spread else 1
    return f"{100 * share.expected:.{digits}f}" + (f" ± {max(spread, 0.1):.{digits}f}" if spread else "") + " %"


def counted_steps(summary: Summary) -> list[Step]:
    """What became of the data set's records, from read to selected."""
    counts, ingest, reasons = summary.counts, summary.ingest, dict(summary.reasons)
    steps = []
    if ingest.counts:
        steps.append(Step("read from the data set", ingest.counts["read"], ""))
        steps.append(Step("rejected by ingest", ingest.counts["rejected"], _listed(ingest.reject_reasons)))
    steps.append(Step("usable", counts.read, ""))
    if missing := reasons.pop(outcomes.NOT_SCORED, 0):
        steps.append(Step("of these without a row in the attention parts", missing, ""))
    steps.append(Step("rejected later", counts.rejected, _listed(reasons)))
    if excluded := counts.read - counts.rejected - summary.pool:
        steps.append(Step("left out", excluded, "no IoU, and missing_iou is exclude"))
    steps.append(Step("could be drawn", summary.pool, ""))
    steps.append(Step("of these without an IoU", summary.without_iou, ""))
    steps.append(Step("selected", counts.written, ""))
    return steps


def shortened(text: str, max_length: int) -> str:
    """The beginning of a text."""
    return text if len(text) <= max_length else text[: max_length - 1] + "…"


def shortened_in_the_middle(text: str, max_length: int) -> str:
    """Beginning and end of a text: names that begin alike stay apart."""
    if len(text) <= max_length:
        return text
    tail = (max_length - 1) // 2
    return text[: max_length - 1 - tail] + "…" + text[-tail:]


def _listed(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items()))
