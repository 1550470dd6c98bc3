"""What is written of a record: all that it had, a number, and strict JSON."""

import json

import numpy as np
import pytest

from components.joint_selection.outputs import write_records
from free2ds_common.datasets import DatasetWriter, open_dataset
from free2ds_common.schemas import RECORDS
from tests.support.records import record_row


@pytest.fixture
def write(tmp_path):
    """Write records as they came in and read what a selection of all of them holds."""

    def written(*records):
        with DatasetWriter(tmp_path / "records", RECORDS) as writer:
            writer.write([record_row(number, raw=json.dumps(record)) for number, record in enumerate(records, start=1)])
        dataset = open_dataset(tmp_path / "records", RECORDS)
        write_records(str(tmp_path / "selected.json"), dataset, np.ones(len(records), bool))
        return json.loads((tmp_path / "selected.json").read_text(encoding="utf-8"))

    return written


def test_a_record_gets_its_number(write):
    assert write({"id": "a"}, {"id": "b"}) == [{"id": "a", "unique_id": 1}, {"id": "b", "unique_id": 2}]


def test_a_number_of_its_own_is_kept(write):
    assert write({"unique_id": "mine"}) == [{"unique_id": 1, "original_unique_id": "mine"}]


def test_the_same_number_is_not_kept_twice(write):
    assert write({"unique_id": 1, "id": "a"}) == [{"unique_id": 1, "id": "a"}]


def test_however_often_a_record_was_selected_nothing_is_lost(write):
    assert write({"unique_id": 7, "original_unique_id": "first"}) == [
        {"unique_id": 1, "original_unique_id": "first", "original_original_unique_id": 7}
    ]


def test_what_is_no_json_is_never_written(write):
    """ingest rejects it; a record that came in another way must not make the file unreadable."""
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        write({"score": float("inf")})
