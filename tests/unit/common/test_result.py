"""Counts add up; the limit on rejects."""

import pytest

from free2ds_common.errors import StageError
from free2ds_common.result import Counts, check_reject_fraction


def test_counts_add_up():
    assert vars(Counts(read=6, written=3, dropped=2, rejected=1)) == {
        "read": 6, "written": 3, "dropped": 2, "rejected": 1,
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=r"counts do not add up: .*read=6, written=3, dropped=2, rejected=0"):
        Counts(read=6, written=3, dropped=2)


def test_reject_fraction():
    counts = Counts(read=20, written=18, rejected=2)
    reasons = {"image_missing": 1, "image_list": 1}
    check_reject_fraction(counts, 0.1, reasons, "data.json")
    with pytest.raises(StageError) as caught:
        check_reject_fraction(counts, 0.09, reasons, "data.json")
    assert str(caught.value) == (
        "data.json: 2 of 20 records rejected (image_list 1, image_missing 1), "
        "more than max_reject_fraction 0.09 allows. Mend the input or raise max_reject_fraction."
    )
    check_reject_fraction(Counts(read=0, written=0), 0.0, {}, "data.json")
    check_reject_fraction(Counts(read=5, written=5), 0.0, {}, "data.json")
    check_reject_fraction(Counts(read=5, written=0, rejected=5), 1.0, {}, "data.json")
