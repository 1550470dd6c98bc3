"""Doubtful selections: by text alone where pictures were to be compared, few IoUs, unlike models, tiny strata."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from components.joint_selection.config import SweepConfig
from components.joint_selection.records import read_records
from components.joint_selection.stage import run
from components.joint_selection.sweep import run as run_sweep
from free2ds_common.errors import StageError
from tests.support.selection import Inputs, page_of, read_json

LLAVA, MGM = 0, 1


def with_outcomes(inputs, side, outcome, records):
    for record in records:
        inputs.outcomes[side][record] = outcome
    return inputs


@pytest.fixture
def all_pictures(make_inputs):
    """40 records with a picture and a map of each model."""
    inputs = make_inputs()
    inputs.text_only()
    return with_outcomes(inputs, LLAVA, "ok", [7])


def warnings_of(inputs, **changes):
    config = inputs.write().config(**changes)
    run(config)
    return read_json(config.summary)["warnings"]


without_report = pytest.mark.usefixtures("without_report")


@without_report
@pytest.mark.parametrize("outcome", ["non_finite", "eos_only", "prompt_too_long"])
@pytest.mark.parametrize(("side", "other"), [("llava", "mgm"), ("mgm", "llava")])
def test_no_map_of_one_model_is_refused(all_pictures, side, other, outcome):
    inputs = with_outcomes(all_pictures, ("llava", "mgm").index(side), outcome, range(40))
    sentences = {side: f"{side}_attention {outcome} 40", other: f"{other}_attention ok 40"}
    message = (
        "none of the 40 records with a picture has an IoU, which needs a map of both models: "
        f"{sentences['llava']}; {sentences['mgm']}. Mend the model without maps or the data set, and score again; "
        "to select by text alone, leave the pictures out of the data set."
    )
    with pytest.raises(StageError) as error:
        run(inputs.write().config())
    assert str(error.value) == message


@without_report
def test_maps_of_each_model_but_of_no_record_by_both_are_refused(all_pictures):
    with_outcomes(all_pictures, LLAVA, "eos_only", range(25))
    with_outcomes(all_pictures, MGM, "non_finite", range(25, 40))
    with pytest.raises(StageError, match="llava_attention ok 15, eos_only 25; mgm_attention ok 25, non_finite 15"):
        run(all_pictures.write().config())


@without_report
def test_captions_without_a_question_are_refused(all_pictures):
    for side in (LLAVA, MGM):
        with_outcomes(all_pictures, side, "no_question", range(40))
    with pytest.raises(StageError, match="llava_attention no_question 40; mgm_attention no_question 40"):
        run(all_pictures.write().config())


@without_report
@pytest.mark.parametrize("missing_iou", ["text", "reference", "exclude"])
def test_records_without_a_picture_do_not_make_up_for_those_with_one(make_inputs, missing_iou):
    inputs = make_inputs()
    inputs.text_only(*range(39))
    with_outcomes(inputs, MGM, "eos_only", [39])
    with pytest.raises(StageError, match=r"^none of the 1 records with a picture has an IoU"):
        run(inputs.write().config(missing_iou=missing_iou))


@without_report
def test_pictures_that_were_all_rejected_are_refused(make_inputs):
    inputs = make_inputs()
    inputs.text_only(*range(20))
    with_outcomes(inputs, MGM, "image_missing", range(20, 40))
    with pytest.raises(StageError, match=r"mgm_attention image_missing 20; rejected: image_missing 20\. Mend"):
        run(inputs.write().config(max_reject_fraction=1.0))


@without_report
def test_maps_of_records_that_were_all_rejected_are_refused(make_inputs):
    """Those with a picture have no text score."""
    inputs = make_inputs()
    inputs.text_only(*range(20))
    few = make_inputs(order=range(20)).write()
    config = inputs.write().config(text_scores=few.config().text_scores, max_reject_fraction=1.0)
    with pytest.raises(StageError, match=r"mgm_attention ok 20; rejected: no_text_score 20\. Mend"):
        run(config)


@without_report
def test_a_data_set_without_pictures_is_selected_by_its_text(make_inputs):
    inputs = make_inputs()
    inputs.text_only(*range(40))
    assert warnings_of(inputs) == []
    assert len(read_json(inputs.config().selected)) == 10


@without_report
def test_one_compared_picture_is_enough(make_inputs):
    inputs = make_inputs()
    inputs.text_only(*range(39))
    assert warnings_of(inputs) == []


@without_report
@pytest.mark.parametrize("side", [LLAVA, MGM])
def test_as_few_ious_as_are_accepted(all_pictures, side):
    assert warnings_of(with_outcomes(all_pictures, side, "eos_only", range(4))) == []


@without_report
def test_fewer_ious_are_a_warning(all_pictures):
    """Three records less on one side, two others on the other: 35 of 40."""
    with_outcomes(all_pictures, LLAVA, "eos_only", range(3))
    with_outcomes(all_pictures, MGM, "non_finite", (3, 4))
    assert warnings_of(all_pictures, missing_iou="reference") == [
        "Only 35 of 40 records with a picture (87.5%) have an IoU, less than 90%; the others are ranked as "
        "missing_iou=reference says. Outcomes: llava_attention ok 37, eos_only 3; mgm_attention ok 38, non_finite 2."
    ]


@without_report
def test_records_without_a_picture_are_none_without_an_iou(make_inputs):
    """Half of the data set is text."""
    inputs = with_outcomes(make_inputs(), LLAVA, "ok", [7])
    inputs.text_only(*range(20))
    assert warnings_of(inputs) == []


@without_report
def test_rejected_records_are_none_without_an_iou(all_pictures):
    """Neither model could read them: they are not ranked at all."""
    for side in (LLAVA, MGM):
        with_outcomes(all_pictures, side, "image_missing", range(8))
    assert warnings_of(all_pictures, max_reject_fraction=0.5) == []


@without_report
@pytest.mark.parametrize("outcome", ["eos_only", "non_finite", "prompt_too_long", "image_unreadable"])
@pytest.mark.parametrize(("side", "shares"), [(LLAVA, ("{1}", "{0}")), (MGM, ("{0}", "{1}"))])
def test_models_that_fare_differently_are_a_warning(all_pictures, side, shares, outcome):
    warnings = warnings_of(with_outcomes(all_pictures, side, outcome, range(5)), max_reject_fraction=0.5)
    ok, other = (" and ".join(shares).format(*pair) for pair in (("100.0%", "87.5%"), ("0.0%", "12.5%")))
    assert warnings[-1] == (
        "llava_attention and mgm_attention differ by more than 10% of the records with a picture: "
        f"ok {ok}; {outcome} {other}. Something may be wrong with one of the models."
    )


@without_report
def test_models_that_fail_as_often_but_otherwise_are_a_warning(all_pictures):
    with_outcomes(all_pictures, LLAVA, "eos_only", range(8))
    with_outcomes(all_pictures, MGM, "prompt_too_long", range(8))
    assert "eos_only 20.0% and 0.0%; prompt_too_long 0.0% and 20.0%. Something" in warnings_of(all_pictures)[-1]


@without_report
def test_parts_that_were_left_out_on_one_side_are_a_warning(all_pictures):
    config = all_pictures.write().config(max_reject_fraction=0.5)
    warnings = warnings_of(all_pictures, max_reject_fraction=0.5, mgm_attention=config.mgm_attention[:1])
    assert "ok 100.0% and 50.0%; not_scored 0.0% and 50.0%. Something" in warnings[-1]


@without_report
def test_models_that_fail_alike_do_not_differ(all_pictures):
    for side in (LLAVA, MGM):
        with_outcomes(all_pictures, side, "eos_only", range(20))
    (warning,) = warnings_of(all_pictures)
    assert warning.startswith("Only 20 of 40 records")


def of_sizes(inputs, *sizes):
    """Sources of these many records."""
    inputs.sources = [str(number) for number, size in enumerate(sizes) for _ in range(size)]
    return inputs


@without_report
@pytest.mark.parametrize(
    ("sampler", "decides"),
    [
        ("gumbel", "chance, in proportion to their sizes only"),
        ("reference", "chance, in proportion to their sizes only"),
        ("top", "the score of their best record"),
    ],
)
def test_sources_below_one_draw_are_a_warning(make_inputs, sampler, decides):
    """12 of 40: a draw needs 3.33 records."""
    inputs = of_sizes(make_inputs(), 24, 4, 4, 3, 3, 2)
    assert warnings_of(inputs, num_samples=12, stratify="source", sampler=sampler) == [
        "stratify=source: 3 of 6 sources have fewer than 4 records and so less than one draw, 8 of 40 records "
        f"together; which of these sources give a record is up to {decides}."
    ]


@without_report
def test_sources_of_one_draw_each_are_fine(make_inputs):
    assert warnings_of(of_sizes(make_inputs(), *[4] * 10), num_samples=10, stratify="source") == []


@without_report
def test_one_record_less_is_not(make_inputs):
    inputs = of_sizes(make_inputs(), *[4] * 8, 5, 3)
    assert warnings_of(inputs, num_samples=10, stratify="source")[0].startswith(
        "stratify=source: 1 of 10 sources have fewer than 4 records and so less than one draw, 3 of 40 records together"
    )


@without_report
def test_without_strata_sources_may_be_of_any_size(make_inputs):
    assert warnings_of(of_sizes(make_inputs(), *[1] * 40)) == []


@without_report
def test_sources_that_cannot_be_drawn_from_are_not_counted(make_inputs):
    inputs = of_sizes(make_inputs(), 1, 19, 20)
    for side in (LLAVA, MGM):
        with_outcomes(inputs, side, "image_missing", [0])
    assert warnings_of(inputs, stratify="source") == []


@without_report
def test_a_sweep_warns_of_small_sources_once(make_inputs, caplog):
    config = of_sizes(make_inputs(), *[1] * 40).write().config()
    run(config)
    caplog.clear()
    run_sweep(SweepConfig(scores=config.scores, stratify="source", alpha="0,1"))
    assert [(record.levelname, record.message.partition(" sources")[0]) for record in caplog.records] == [
        ("WARNING", "stratify=source: 40 of 40")
    ]


@pytest.fixture(scope="module")
def doubtful(tmp_path_factory):
    """Everything that a run with two warnings writes and says."""
    inputs = with_outcomes(Inputs(tmp_path_factory.mktemp("doubtful")), MGM, "eos_only", range(20, 30))
    config = inputs.write().config(overview=str(inputs.folder / "overview.md"))
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger("components.joint_selection").addHandler(handler)
    result = run(config)
    logging.getLogger("components.joint_selection").removeHandler(handler)
    said = [record.getMessage() for record in records if record.levelname == "WARNING"]
    return config, result, said, read_json(config.summary)["warnings"]


def test_warnings_are_in_the_log(doubtful):
    _, _, said, warnings = doubtful
    assert len(warnings) == 2
    assert said == warnings


def test_warnings_are_in_the_metadata(doubtful):
    _, result, _, warnings = doubtful
    assert result.metadata["warnings"] == warnings


def test_warnings_are_first_in_the_overview(doubtful):
    config, _, _, warnings = doubtful
    lines = Path(config.overview).read_text().splitlines()
    assert lines[:4] == ["# Free2DS selection", "", *(f"- **Warning:** {sentence}" for sentence in warnings)]
    assert lines[4].startswith("- Selected ")


def test_warnings_are_above_everything_else_in_the_report(doubtful):
    config, _, _, warnings = doubtful
    page = page_of(config)
    head = page[page.index("<header>") : page.index("</header>")]
    for sentence in warnings:
        assert f'<p class="warning"><b>Warning:</b> {sentence}</p>' in head


def test_a_run_without_doubts_has_no_warnings(inputs, caplog):
    config = inputs.config(overview=str(inputs.folder / "overview.md"))
    run(config)
    assert "Warning" not in page_of(config)
    assert "Warning" not in Path(config.overview).read_text()
    assert json.loads(Path(config.summary).read_text())["warnings"] == []
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


@without_report
@pytest.mark.parametrize("rows", [7, 1000])
def test_pictures_are_found_whatever_the_batches(inputs, monkeypatch, rows):
    monkeypatch.setattr("components.joint_selection.records._IMAGE_BATCH_ROWS", rows)
    _, records = read_records(inputs.config().records)
    assert np.flatnonzero(~records.has_picture).tolist() == [3, 4, 5]


@without_report
def test_pictures_of_one_colour_are_a_warning(all_pictures):
    names = [f"{number}.png" for number in range(6)]
    all_pictures.records_manifest = {"pictures_of_one_colour": 1234, "names_of_pictures_of_one_colour": names}
    assert warnings_of(all_pictures) == [
        "1,234 pictures are of one colour, so there is nothing to look at "
        "(the first: 0.png, 1.png, 2.png, 3.png, 4.png)."
    ]
    all_pictures.records_manifest = {"pictures_of_one_colour": 0, "names_of_pictures_of_one_colour": []}
    assert warnings_of(all_pictures) == []


@without_report
def test_what_cluster_scoring_doubts_is_said_first(make_inputs):
    inputs = make_inputs()
    inputs.text_manifest = {"warnings": ["5 clusters are too many."]}
    assert warnings_of(inputs)[0] == "5 clusters are too many."
