"""What came in and dropped out since an earlier selection, and why."""

import json
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from components.joint_selection.changes import Comparison, Run
from components.joint_selection.stage import run
from free2ds_common.errors import StageError
from tests.support.selection import read_json

PARAMETERS = {"seed": 42, "sampler": "gumbel", "temperature": 1.0, "stratify": "", "ratio": 0.5, "alpha": 0.5}


def made(scores, selected, **parameters):
    """A run of records named by letters: their combined scores, None outside the pool, and those selected."""
    names = list(scores)
    return Run(
        pa.array([name[0] for name in names]),
        np.arange(1, len(names) + 1),
        np.array([np.nan if scores[name] is None else scores[name] for name in names], float),
        np.array([name in selected for name in names]),
        {**PARAMETERS, **parameters},
    )


def reasons(before, now):
    lines = list(Comparison(before, now).lines())
    return {(line["change"], line["record_key"]): line["reason"] for line in lines}


def test_each_reason():
    before = made({"a": 0.9, "b": 0.5, "c": 0.4, "d": None, "e": 0.6, "f": 0.3, "g": 0.2}, {"a", "b", "e"})
    now = made({"b": None, "c": 0.8, "d": 0.7, "e": 0.1, "f": 0.3, "g": 0.2, "h": 0.9}, {"c", "d", "h"})
    assert reasons(before, now) == {
        ("in", "c"): "score_rank",
        ("in", "d"): "now_usable",
        ("in", "h"): "new_record",
        ("out", "a"): "removed",
        ("out", "b"): "no_longer_usable",
        ("out", "e"): "score_rank",
    }


def test_the_draw_itself():
    """No record ranks otherwise, and as many are drawn."""
    before = made({"a": 0.9, "b": 0.5, "c": 0.4}, {"a"})
    now = made({"a": 0.8, "b": 0.4, "c": 0.3}, {"b"})
    assert reasons(before, now) == {("in", "b"): "another_draw", ("out", "a"): "another_draw"}


@pytest.mark.parametrize("setting", [{"seed": 1}, {"sampler": "top"}, {"temperature": 0.1}, {"stratify": "source"}])
def test_settings_of_the_draw_explain_what_ranks_would(setting):
    before = made({"a": 0.9, "b": 0.5}, {"a"})
    now = made({"a": 0.5, "b": 0.9}, {"b"}, **setting)
    assert reasons(before, now) == {("in", "b"): "another_draw", ("out", "a"): "another_draw"}
    assert Comparison(before, now).changes.settings == tuple(setting)


def test_another_weight_of_the_text_shows_in_the_ranks():
    before = made({"a": 0.9, "b": 0.5}, {"a"})
    now = made({"a": 0.5, "b": 0.9}, {"b"}, alpha=0.9)
    assert reasons(before, now) == {("in", "b"): "score_rank", ("out", "a"): "score_rank"}
    assert Comparison(before, now).changes.settings == ("alpha",)


def test_how_many_are_drawn():
    few, many = made({"a": 0.9, "b": 0.5}, {"a"}), made({"a": 0.9, "b": 0.5}, {"a", "b"})
    assert reasons(few, many) == {("in", "b"): "more_are_drawn"}
    assert reasons(many, few) == {("out", "b"): "fewer_are_drawn"}


def test_ranks_are_among_the_records_of_both_runs():
    """A record that is new above another does not move it."""
    before = made({"a": 0.9, "b": 0.5}, {"a", "b"})
    now = made({"x": 1.0, "a": 0.9, "b": 0.5}, {"x", "a"})
    assert reasons(before, now) == {("in", "x"): "new_record", ("out", "b"): "another_draw"}


def test_equal_records_are_counted_one_by_one():
    """Three of the same before, two now: one is gone."""
    before = made({"a1": 0.5, "a2": 0.5, "a3": 0.5, "b": 0.1}, {"a1", "a2", "a3"})
    now = made({"b": 0.1, "a1": 0.5, "a2": 0.5}, {"a1", "a2"})
    compared = Comparison(before, now)
    assert (compared.changes.stayed, compared.changes.dropped_out) == (2, {"removed": 1})


def test_lines_know_both_numbers():
    before = made({"a": 0.9, "b": 0.5, "c": 0.1}, {"a", "b"})
    now = made({"c": 0.9, "b": 0.5, "d": 0.1}, {"c", "d"})
    assert list(Comparison(before, now).lines()) == [
        line("in", "score_rank", "c", 1, 3),
        line("in", "new_record", "d", 3, None),
        line("out", "removed", "a", None, 1),
        line("out", "score_rank", "b", 2, 2),
    ]


def line(change, reason, key, number, previous):
    return {
        "change": change,
        "reason": reason,
        "record_key": key,
        "unique_id": number,
        "previous_unique_id": previous,
    }


@pytest.fixture
def earlier(make_inputs, without_report):
    """An earlier run, and a later one of the same records in another order without ten of them and with other seed."""
    first = make_inputs()
    first.write()
    run(first.config())
    return first


def lines_of(config):
    path = Path(config.scores) / "changes.jsonl"
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_the_same_run_again_changes_nothing(earlier):
    config = earlier.config(previous_selected_uri=str(earlier.folder / "selected.json"))
    result = run(config)
    assert lines_of(config) == []
    assert read_json(config.summary)["changes"] == {"stayed": 10, "came_in": {}, "dropped_out": {}, "settings": []}
    assert {name: result.metrics[name] for name in ("stayed", "came_in", "dropped_out")} == {
        "stayed": 10,
        "came_in": 0,
        "dropped_out": 0,
    }


@pytest.mark.parametrize("place", ["path", "file", "memory"])
def test_another_order_and_seed(earlier, make_inputs, place):
    inputs = make_inputs(order=[*range(39, -1, -1)])
    inputs.write()
    uri = str(earlier.folder / "selected.json")
    if place == "memory":
        fsspec.filesystem("memory").put(str(earlier.folder / "scores"), "/earlier/scores", recursive=True)
        uri = "memory://earlier/selected"
    config = inputs.config(seed=7, previous_selected_uri=f"file://{uri}" if place == "file" else uri)
    run(config)
    before = {record["id"] for record in read_json(earlier.config().selected)}
    now = {record["id"] for record in read_json(config.selected)}
    found = lines_of(config)
    assert {int(line["record_key"], 16) for line in found if line["change"] == "in"} == {int(i) for i in now - before}
    assert {int(line["record_key"], 16) for line in found if line["change"] == "out"} == {int(i) for i in before - now}
    for one in found:
        assert one["unique_id"] == 41 - one["previous_unique_id"]
    summary = read_json(config.summary)["changes"]
    assert summary["stayed"] == len(before & now)
    assert summary["came_in"] == {"another_draw": len(now - before)}
    assert summary["settings"] == ["seed"]


def test_without_an_earlier_selection_nothing_is_said(earlier):
    config = earlier.config(previous_selected_uri=str(earlier.folder / "selected.json"))
    run(config)
    result = run(earlier.config())
    assert not (Path(config.scores) / "changes.jsonl").exists()
    assert read_json(config.summary)["changes"] is None
    assert "changes" not in result.metadata
    assert "stayed" not in result.metrics


@pytest.mark.parametrize("place", ["nowhere", "memory"])
def test_a_selection_without_scores_is_refused(earlier, tmp_path, place):
    uri = f"{tmp_path}/selected.json" if place == "nowhere" else "memory://no-such-run/selected.json"
    with pytest.raises(
        StageError, match=r"previous_selected_uri: .* has no usable scores beside it .*Give the selected"
    ):
        run(earlier.config(previous_selected_uri=uri))


def test_altered_scores_are_refused(earlier, tmp_path):
    shutil.copytree(earlier.folder / "scores", tmp_path / "old/scores")
    (part,) = (tmp_path / "old/scores").glob("part-*")
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(StageError, match="checksum differs"):
        run(earlier.config(previous_selected_uri=f"{tmp_path}/old/selected.json"))
