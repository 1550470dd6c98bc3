"""The report in a few lines, and cells that stay cells."""

from pathlib import Path

import numpy as np
import pytest

from components.joint_selection.chance import Expectation
from components.joint_selection.report.markdown import cell, row
from components.joint_selection.report.wording import plus_minus, shortened, shortened_in_the_middle
from components.joint_selection.stage import run

pytestmark = pytest.mark.usefixtures("without_report")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("plain_name-1.json", "plain_name-1.json"),
        ("a|b", r"a\|b"),
        # Its own backslash must not undo ours.
        (r"a\|b", r"a\\\|b"),
        ("two\nlines \t apart", "two lines apart"),
        ("<b>bold</b>", r"\<b>bold\</b>"),
        ("[x](http://y)", r"\[x](http://y)"),
        ("![x](y)", r"!\[x](y)"),
        ("*bold* `code`", r"\*bold\* \`code\`"),
        ("0123456789abcdefghijkl", "0123456789…defghijkl"),
    ],
)
def test_cell(text, wanted):
    assert cell(text, 20) == wanted


def test_row():
    assert row(["a", "b", "c"]) == "| a | b | c |"


@pytest.mark.parametrize(("max_length", "wanted"), [(5, "abcde"), (4, "abc…"), (1, "…")])
def test_shortened(max_length, wanted):
    assert shortened("abcde", max_length) == wanted


@pytest.mark.parametrize(("max_length", "wanted"), [(8, "abcdefgh"), (7, "abc…fgh"), (6, "abc…gh"), (3, "a…h")])
def test_shortened_in_the_middle(max_length, wanted):
    assert shortened_in_the_middle("abcdefgh", max_length) == wanted


def overview_of(inputs, **changes):
    config = inputs.config(overview=str(inputs.folder / "overview.md"), **changes)
    run(config)
    return Path(config.overview).read_text()


def test_steps_from_read_to_selected(make_inputs):
    inputs = make_inputs()
    inputs.outcomes[0][9] = "image_missing"
    inputs.outcomes[0][10] = "not_scored"
    inputs.records_manifest = {
        "counts": {"read": 1043, "written": 40, "dropped": 0, "rejected": 1003},
        "reject_reasons": {"not_json": 1, "image_missing": 1002},
    }
    lines = overview_of(inputs.write(), missing_iou="exclude").splitlines()
    table = lines[lines.index("| step | records | reasons |") :]
    assert table[: table.index("")] == [
        "| step | records | reasons |",
        "| --- | ---: | --- |",
        "| read from the data set | 1,043 |  |",
        "| rejected by ingest | 1,003 | image_missing 1,002, not_json 1 |",
        "| usable | 40 |  |",
        "| of these without a row in the attention parts | 1 |  |",
        "| rejected later | 1 | image_missing 1 |",
        "| left out | 5 | no IoU, and missing_iou is exclude |",
        "| could be drawn | 34 |  |",
        "| of these without an IoU | 0 |  |",
        "| selected | 8 |  |",
    ]


def test_steps_when_nothing_was_rejected_and_ingest_said_nothing(inputs):
    lines = overview_of(inputs).splitlines()
    table = lines[lines.index("| step | records | reasons |") :]
    assert table[2 : table.index("")] == [
        "| usable | 40 |  |",
        "| rejected later | 0 |  |",
        "| could be drawn | 40 |  |",
        "| of these without an IoU | 4 |  |",
        "| selected | 10 |  |",
    ]


def test_shares_by_outcome(make_inputs):
    """The top 10 by text alone are the four without an IoU and six others; the draw of all 40 is everything."""
    inputs = make_inputs()
    inputs.similarity = 0.5 + np.arange(40) / 100
    inputs.similarity[[3, 4, 5, 7]] = 0.1
    lines = overview_of(inputs.write(), alpha=1.0, sampler="top", missing_iou="text").splitlines()
    start = lines.index("| outcome of both models | could be drawn | of the pool | of the selection | of the top 10 |")
    assert lines[start + 1 : start + 7] == [
        "| --- | ---: | ---: | ---: | ---: |",
        "| with an IoU | 36 | 90.0% | 60.0% | 60.0% |",
        "| text_only | 3 | 7.5% | 30.0% | 30.0% |",
        "| eos_only | 1 | 2.5% | 10.0% | 10.0% |",
        "",
        "Records without an IoU are ranked by their text score alone.",
    ]


def test_where_all_have_an_iou_nothing_is_said_of_those_without(inputs):
    assert "Records without an IoU" not in overview_of(inputs, missing_iou="exclude")


def test_sources_are_cells(make_inputs):
    inputs = make_inputs()
    inputs.sources = ["a|b", "<b>c</b>", "d\ne"]
    lines = overview_of(inputs.write(), ratio=1.0).splitlines()
    head = "| source | pool | selected | random control | lift | lift of 95% of draws |"
    assert lines[lines.index(head) :] == [
        head,
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        r"| a\|b | 14 | 14 | 14 | 1.00 | 1.00 to 1.00 |",
        r"| \<b>c\</b> | 13 | 13 | 13 | 1.00 | 1.00 to 1.00 |",
        "| d e | 13 | 13 | 13 | 1.00 | 1.00 to 1.00 |",
    ]


def test_a_source_outside_the_pool_has_no_lift(make_inputs):
    inputs = make_inputs()
    inputs.sources = ["no map", *["x"] * 39]
    inputs.outcomes[0][0] = "eos_only"
    assert overview_of(inputs.write(), missing_iou="exclude").endswith("| no map | 0 | 0 | 0 |  |  |\n")


def test_many_sources_are_cut(make_inputs, monkeypatch):
    monkeypatch.setattr("components.joint_selection.report.markdown._SOURCES_SHOWN", 1)
    assert overview_of(make_inputs().write()).endswith("| 2 more | | | | | |\n")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "- Selected 10 of 40 records that could be drawn."),
        # 10 of 40: 2.5 of the top 10, deviation sqrt(10 1/4 3/4 30/39) = 1.2, so 0 to 5.
        ({}, "; a purely random draw expects 25.0% (95% of draws: 0.0% to 50.0%)."),
        ({}, "% of the selection is in the deterministic top 10; this setting expects "),
        ({}, "- For 50% of the top 10 on average: --param temperature=0."),
        ({}, " (now 1).\n"),
        ({"temperature": 1e9}, "; this setting expects 25.0% (95% of draws: 0.0% to 50.0%); a purely"),
        ({"sampler": "top"}, "- Nothing was drawn at random: the highest scores were taken."),
        ({"sampler": "top"}, "- 100.0% of the selection is in the deterministic top 10; a purely random draw"),
        ({"ratio": 1.0}, "top 40; this setting expects 100.0%; a purely random draw expects 100.0%.\n"),
        ({"ratio": 1.0}, "- The most probable record is "),
    ],
)
def test_sentences(inputs, changes, sentence):
    assert sentence in overview_of(inputs, **changes)


def test_top_is_not_called_a_draw(inputs):
    text = overview_of(inputs, sampler="top")
    assert [words for words in ("times as likely", "this setting", "temperature=") if words in text] == []


def test_no_temperature_is_named_where_none_gives_half(inputs):
    assert "temperature=" not in overview_of(inputs, ratio=0.75)


@pytest.mark.parametrize(
    ("share", "wanted"),
    [
        ((0.25, 0.2, 0.3), "25 ± 5 %"),
        ((0.2512, 0.2503, 0.2521), "25.1 ± 0.1 %"),
        ((0.2, 0.19996, 0.20004), "20.0 ± 0.1 %"),
        ((1.0, 1.0, 1.0), "100 %"),
    ],
)
def test_plus_minus(share, wanted):
    """Never without its interval, however narrow that is."""
    assert plus_minus(Expectation(*share)) == wanted


@pytest.mark.parametrize("sampler", ["gumbel", "top"])
def test_equal_scores_are_called_a_uniform_draw(make_inputs, sampler):
    inputs = make_inputs()
    inputs.maps[:] = inputs.maps[0, 0]
    inputs.similarity[:] = 0.5
    text = overview_of(inputs.write(), sampler=sampler)
    assert "- All scores are equal: the draw is uniform." in text
    assert "the highest scores were taken" not in text
