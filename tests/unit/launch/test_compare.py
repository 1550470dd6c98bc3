"""compare: which settings differ, and which records came in or dropped out, and why; on tables made by hand."""

import json

import pytest

import pipeline
from free2ds_common.datasets import DatasetWriter
from free2ds_common.launch.compare import compare, differing
from free2ds_common.launch.results import Results
from free2ds_common.schemas import SCORES

EMPTY = {field.name: None for field in SCORES.arrow}


def put(folder, records, **summary):
    """A run's results.

    Args:
        folder: Where to.
        records: Key, whether it is selected, its combined score (None outside the pool) and LLaVA's outcome, each.
        summary: What summary.json says.
    """
    rows = [
        EMPTY
        | {
            "unique_id": number,
            "record_key": key,
            "source": "s",
            "probability": 0.1,
            "llava_outcome": outcome,
            "mgm_outcome": "ok",
            "selected": selected,
            "combined": combined,
            "id": f"id-{key}",
            "position": number,
        }
        for number, (key, selected, combined, outcome) in enumerate(records)
    ]
    with DatasetWriter(folder / "scores", SCORES) as writer:
        writer.write(rows)
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "selected.json").write_text("[]")
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    first = put(
        tmp_path / "first",
        [
            ("stays", True, 0.5, "ok"),
            ("better", False, 0.2, "ok"),
            ("luck", False, 0.3, "ok"),
            ("broken", False, None, "image_missing"),
            ("gone", True, 0.4, "ok"),
            ("worse", True, 0.6, "ok"),
            ("twice", True, 0.1, "ok"),
            ("twice", False, 0.1, "ok"),
        ],
        parameters={"ratio": 0.5, "seed": 1},
        models={"llava": {"revision": "a", "model": "m"}},
        run={"started": "yesterday"},
    )
    second = put(
        tmp_path / "second",
        [
            ("twice", True, 0.1, "ok"),
            ("new", True, 0.9, "ok"),
            ("broken", True, 0.7, "ok"),
            ("luck", True, 0.3, "ok"),
            ("better", True, 0.8, "ok"),
            ("worse", False, 0.5, "ok"),
            ("stays", True, 0.5, "ok"),
        ],
        parameters={"ratio": 0.5, "seed": 2},
        models={"llava": {"revision": "b", "model": "m"}},
        run={"started": "today"},
    )
    return first, second


def test_two_runs(runs, capsys):
    assert pipeline.main(["compare", *runs]) == 0
    assert (
        capsys.readouterr().out
        == f"""\
first: {runs[0]}
second: {runs[1]}

parameters.seed: 1 -> 2
models.llava.revision: a -> b

selected: 4 -> 6, 2 in both (25.0% of all that either selected)
records that both had: 6
came in: 4
  1 could not be used in the first run: image_missing, ok
  1 not among the records of the first run
  1 not drawn in the first run, where its score was lower
  1 not drawn in the first run, where its score was the same
dropped out: 2
  1 not among the records of the second run
  1 not drawn in the second run, where its score was lower
"""
    )


def test_every_record_goes_to_a_file(runs, tmp_path, capsys):
    pipeline.main(["compare", *runs, "--records", str(tmp_path / "changes.jsonl"), "--json"])
    found = [json.loads(line) for line in (tmp_path / "changes.jsonl").read_text().splitlines()]
    assert [(one["change"], one["record_key"], one["id"]) for one in found] == [
        ("came in", "new", "id-new"),
        ("came in", "broken", "id-broken"),
        ("came in", "luck", "id-luck"),
        ("came in", "better", "id-better"),
        ("dropped out", "gone", "id-gone"),
        ("dropped out", "worse", "id-worse"),
    ]
    printed = json.loads(capsys.readouterr().out)
    assert printed["selected_in_both"] == 2
    assert printed["differences"] == {"parameters.seed": [1, 2], "models.llava.revision": ["a", "b"]}


def test_a_run_and_itself(runs, capsys):
    pipeline.main(["compare", runs[0], runs[0]])
    out = capsys.readouterr().out
    assert "inputs and parameters: the same\n" in out
    assert "selected: 4 -> 4, 4 in both (100.0% of all that either selected)\n" in out
    assert "came in: 0\ndropped out: 0\n" in out


def test_a_record_that_is_there_twice_is_two_records(tmp_path):
    """Of two equal records the first run draws the second one, the other run both."""
    first = put(tmp_path / "1", [("k", False, 0.1, "ok"), ("k", True, 0.1, "ok")])
    second = put(tmp_path / "2", [("k", True, 0.1, "ok"), ("k", True, 0.1, "ok"), ("k", True, 0.1, "ok")])
    found = compare(Results.at(first), Results.at(second))
    assert (found.common, found.in_both) == (2, 1)
    assert [change.reason for change in found.came_in] == [
        "not drawn in the first run, where its score was the same",
        "not among the records of the first run",
    ]


def test_nothing_selected_at_all(tmp_path):
    empty = put(tmp_path / "1", [("k", False, 0.1, "ok")])
    assert pipeline.main(["compare", empty, empty]) == 0


def test_what_only_one_of_two_says():
    assert list(differing({"a": {"b": 1}, "c": 2}, {"a": {"b": 1, "d": 3}})) == [
        ("a.d", ("(nothing)", 3)),
        ("c", (2, "(nothing)")),
    ]


def test_an_altered_table_is_refused(runs, tmp_path, capsys):
    (tmp_path / "first/scores/part-00000.parquet").write_bytes(b"x")
    assert pipeline.main(["compare", *runs]) == 2
    assert "part-00000.parquet is not the file that was written" in capsys.readouterr().err
