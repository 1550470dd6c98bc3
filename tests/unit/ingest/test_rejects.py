"""Rejected records: counted, kept, published even when the stage fails."""

import json

import pytest

from components.ingest.rejects import RejectLog


def test_lines_and_reasons(tmp_path):
    path = tmp_path / "out" / "rejects.jsonl"
    with RejectLog(path) as rejects:
        rejects.add(3, "image_missing", "no file", {"id": "\ud800", "text": "ü\n"})
        rejects.add(5, "not_json", "detail", "a line")
        rejects.add(6, "image_missing", "no file", None)
        assert not path.exists()
    assert rejects.reasons == {"image_missing": 2, "not_json": 1}
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"index": 3, "reason": "image_missing", "detail": "no file", "record": {"id": "\ud800", "text": "ü\n"}},
        {"index": 5, "reason": "not_json", "detail": "detail", "record": "a line"},
        {"index": 6, "reason": "image_missing", "detail": "no file", "record": None},
    ]


def test_the_first_ones_are_kept_in_words(tmp_path):
    with RejectLog(tmp_path / "rejects.jsonl") as rejects:
        for number in range(7):
            rejects.add(number, "image_missing", "x" * (119 + number), {"text": "not this"})
    assert rejects.first == [
        f"record 0 image_missing ({'x' * 119})",
        f"record 1 image_missing ({'x' * 120})",
        *(f"record {number} image_missing ({'x' * 119}…)" for number in (2, 3, 4)),
    ]


def test_no_rejects_is_an_empty_file(tmp_path):
    with RejectLog(tmp_path / "rejects.jsonl"):
        pass
    assert (tmp_path / "rejects.jsonl").read_text() == ""


def test_published_after_an_error(tmp_path):
    def break_off():
        with RejectLog(tmp_path / "rejects.jsonl") as rejects:
            rejects.add(0, "reason", "detail", {})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()
    assert len((tmp_path / "rejects.jsonl").read_text().splitlines()) == 1
