"""Counts add up; the limit on rejects."""

import pytest

from free2ds_common.errors import StageError
from free2ds_common.result import Counts, StageResult, check_reject_fraction


def test_counts_add_up():
    assert vars(Counts(read=6, written=3, dropped=2, rejected=1)) == {
        "read": 6,
        "written": 3,
        "dropped": 2,
        "rejected": 1,
    }
    with pytest.raises(RuntimeError, match=r"counts do not add up: .*read=6, written=3, dropped=2, rejected=0"):
        Counts(read=6, written=3, dropped=2)


REASONS = {"image_missing": 1, "image_list": 1}


def test_too_many_rejects_stop_the_run_with_a_sentence_and_the_counts():
    with pytest.raises(StageError) as caught:
        check_reject_fraction(Counts(read=20, written=17, dropped=1, rejected=2), 0.09, REASONS, "data.json")
    assert str(caught.value) == (
        "data.json: 2 of 20 records rejected (image_list 1, image_missing 1), "
        "more than max_reject_fraction 0.09 allows. Mend the input or raise max_reject_fraction."
    )
    assert caught.value.counts == {"read": 20, "written": 17, "dropped": 1, "rejected": 2}


# 0.29 * 100 is below 29 in floating point, and 0.07 * 100 above 7.
@pytest.mark.parametrize(("rejected", "read", "fraction"), [(2, 20, 0.1), (29, 100, 0.29), (7, 100, 0.07)])
def test_exactly_the_limit_passes_and_one_more_does_not(rejected, read, fraction):
    check_reject_fraction(Counts(read, read - rejected, rejected=rejected), fraction, REASONS, "data.json")
    with pytest.raises(StageError, match=f"{rejected + 1} of {read} records rejected"):
        check_reject_fraction(Counts(read, read - rejected - 1, rejected=rejected + 1), fraction, {}, "data.json")


def test_no_rejects_and_no_records_always_pass():
    check_reject_fraction(Counts(read=0, written=0), 0.0, {}, "data.json")
    check_reject_fraction(Counts(read=5, written=5), 0.0, {}, "data.json")


def test_a_limit_of_1_lets_everything_be_rejected():
    check_reject_fraction(Counts(read=5, written=0, rejected=5), 1.0, {}, "data.json")


def test_metadata_has_no_credentials():
    metadata = {"dataset_uri": "http://user:hunter2@host/x", "models": [{"model": "https://host/m?token=hunter3"}]}
    assert StageResult(Counts(read=0, written=0), metadata=metadata).metadata == {
        "dataset_uri": "http://***@host/x",
        "models": [{"model": "https://host/m?token=***"}],
    }
