"""The one place that decides which records cannot be used or were not scored, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from free2ds_common import outcomes
from free2ds_common.errors import StageError
from free2ds_common.result import Counts, check_reject_fraction

# cluster_scoring has no score for the record.
NO_TEXT_SCORE = "no_text_score"
# Why a record cannot be ranked: a model could not read its picture, or there is no text score.
REJECTING = (*outcomes.IMAGE_FAILURES, NO_TEXT_SCORE)
# The first one that applies is the record's. Last, and no rejection: no part had a row for it, so that it has no IoU.
REASONS = (*REJECTING, outcomes.NOT_SCORED)


@dataclass(frozen=True)
class Verdict:
    """What is wrong with each record.

    Attributes:
        reason: uint8, (N,), index into `REASONS`; their number where nothing is wrong.
    """

    reason: np.ndarray

    @property
    def rejected(self) -> np.ndarray:
        """bool, (N,): cannot be used."""
        rejected: np.ndarray = self.reason < len(REJECTING)
        return rejected

    @property
    def reasons(self) -> dict[str, int]:
        """Records by reason; reasons of no record are left out."""
        counts = np.bincount(self.reason, minlength=len(REASONS)).tolist()
        return {word: count for word, count in zip(REASONS, counts, strict=False) if count}


def judge(outcome_codes: Sequence[np.ndarray], text_similarity: np.ndarray) -> Verdict:
    """Decide over every record.

    Args:
        outcome_codes: Of each model, uint8, (N,), index into `outcomes.ALL`.
        text_similarity: float64, (N,); NaN where there is none.
    """
    reason = np.full(len(text_similarity), len(REASONS), np.uint8)
    # Backwards, so that the first reason is the one that stays.
    for number in reversed(range(len(REASONS))):
        word = REASONS[number]
        if word == NO_TEXT_SCORE:
            reason[np.isnan(text_similarity)] = number
        else:
            for codes in outcome_codes:
                reason[codes == outcomes.ALL.index(word)] = number
    return Verdict(reason)


def check_limits(verdict: Verdict, unknown_ids: Mapping[str, int], max_reject_fraction: float) -> None:
    """Stop where too much is missing.

    Args:
        verdict: Over every record; one that was not scored counts too.
        unknown_ids: Ids that are in no record, by input port.
        max_reject_fraction: Largest accepted share of either, of the records.

    Raises:
        StageError: There are more.
    """
    reasons, read = verdict.reasons, len(verdict.reason)
    bad = sum(reasons.values())
    counts = Counts(read=read, written=read - bad, rejected=bad)
    check_reject_fraction(counts, max_reject_fraction, reasons, "attention and text scores")
    for port, unknown in unknown_ids.items():
        if unknown / read > max_reject_fraction:
            raise StageError(
                f"{port}: {unknown} ids that are not in records, {read} that are; more than max_reject_fraction "
                f"{max_reject_fraction:g} allows. Use the folders of one run."
            )
