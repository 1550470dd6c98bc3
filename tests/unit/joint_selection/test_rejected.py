"""Which records cannot be used or were not scored, and why."""

import math

import numpy as np
import pytest

from components.joint_selection.rejected import REASONS, check_limits, judge
from free2ds_common import outcomes
from free2ds_common.errors import StageError


def verdict_on(*records):
    """Over records given as LLaVA's outcome, MGM's outcome, text similarity."""
    llava, mgm, similarity = zip(*records, strict=True)
    codes = [np.array([outcomes.ALL.index(word) for word in words], np.uint8) for words in (llava, mgm)]
    return judge(codes, np.array(similarity, float))


@pytest.mark.parametrize("word", ["image_missing", "image_unreadable", "image_too_large", "image_outside_root"])
@pytest.mark.parametrize("side", [0, 1])
def test_a_picture_that_a_model_could_not_read_is_rejected(word, side):
    pair = ["ok", "ok"]
    pair[side] = word
    found = verdict_on((*pair, 0.5))
    assert found.rejected.tolist() == [True]
    assert found.reasons == {word: 1}


@pytest.mark.parametrize("word", ["ok", "text_only", "eos_only", "no_question", "prompt_too_long", "non_finite"])
def test_other_outcomes_are_no_reason(word):
    found = verdict_on((word, "ok", 0.5), ("ok", word, 0.5))
    assert found.rejected.tolist() == [False, False]
    assert found.reasons == {}


def test_a_record_without_a_text_score_is_rejected():
    found = verdict_on(("ok", "ok", math.nan), ("ok", "ok", 0.0))
    assert found.rejected.tolist() == [True, False]
    assert found.reasons == {"no_text_score": 1}


def test_a_record_that_was_not_scored_is_counted_but_not_rejected():
    found = verdict_on(("not_scored", "ok", 0.5), ("ok", "not_scored", 0.5), ("ok", "ok", 0.5))
    assert found.rejected.tolist() == [False, False, False]
    assert found.reasons == {"not_scored": 2}


def test_a_record_is_counted_once_for_its_first_reason():
    found = verdict_on(
        ("image_unreadable", "image_missing", math.nan),
        ("not_scored", "image_too_large", 0.5),
        ("not_scored", "ok", math.nan),
    )
    assert found.rejected.all()
    assert list(found.reasons.items()) == [("image_missing", 1), ("image_too_large", 1), ("no_text_score", 1)]


def test_every_outcome_is_a_map_or_a_reason_or_ranked_without_an_iou():
    """A new outcome in free2ds_common must be placed here too."""
    without_iou = {"text_only", "eos_only", "no_question", "prompt_too_long", "non_finite"}
    assert set(outcomes.ALL) == {"ok", *without_iou, *REASONS} - {"no_text_score"}


BAD = [("image_missing", "ok", 0.5), ("not_scored", "ok", 0.5)]
GOOD = [("ok", "ok", 0.5)] * 8


def test_as_many_as_the_limit_are_accepted():
    check_limits(verdict_on(*BAD, *GOOD), {"text_scores": 2}, 0.2)


def test_more_than_the_limit_are_refused():
    message = (
        r"attention and text scores: 2 of 10 records rejected \(image_missing 1, not_scored 1\), more than "
        r"max_reject_fraction 0\.19 allows"
    )
    with pytest.raises(StageError, match=message):
        check_limits(verdict_on(*BAD, *GOOD), {}, 0.19)


def test_more_unknown_ids_than_the_limit_are_refused():
    message = (
        r"mgm_attention: 3 ids that are not in records, 10 that are; more than max_reject_fraction 0\.2 allows\. "
        r"Use the folders of one run\."
    )
    with pytest.raises(StageError, match=message):
        check_limits(verdict_on(*BAD, *GOOD), {"llava_attention": 2, "mgm_attention": 3}, 0.2)
