"""Sweeps over stored scores select what the stage itself selects with the same settings."""

import json

import pytest

from components.joint_selection.__main__ import main
from components.joint_selection.config import SweepConfig
from components.joint_selection.stage import run
from components.joint_selection.sweep import as_markdown
from components.joint_selection.sweep import run as run_sweep
from free2ds_common.errors import StageError


@pytest.fixture
def scores(make_inputs):
    inputs = make_inputs()
    inputs.outcomes[1][10] = "image_unreadable"
    config = inputs.write().config()
    run(config)
    return inputs, config.scores


def sweep(scores, **changes):
    return run_sweep(SweepConfig(scores=scores, **{"ratio": 0.25, **changes}))


def test_every_combination_is_what_the_stage_selects(scores):
    inputs, folder = scores
    result = sweep(
        folder,
        alpha="0.0,1.0",
        temperature="1.0, 0.01",
        sampler="gumbel,top",
        missing_iou="text,exclude",
        text_normalization="reference,rank",
    )
    assert len(result["settings"]) == 32
    for settings, tilt, number in zip(result["settings"], result["tilt"], range(1, 33), strict=True):
        config = inputs.config(**settings, selected=str(inputs.folder / "one.json"))
        run(config)
        summary = json.loads(open(config.summary).read())
        assert tilt == summary["tilt"]
        assert {name: row[str(number)] for name, row in result["sources"].items()} == {
            name: row["selected"] for name, row in summary["sources"].items()
        }


def test_overlap(scores):
    result = sweep(scores[1], alpha="0.0,1.0", sampler="top")
    overlap = result["overlap"]
    assert overlap[0][0] == overlap[1][1] == 1 and overlap[0][1] == overlap[1][0]
    # 39 records can be drawn, 9 are: the share is in ninths.
    assert (overlap[0][1] * 9) == pytest.approx(round(overlap[0][1] * 9)) and overlap[0][1] < 1


def test_command_prints_tables_and_writes_all(scores, tmp_path, capsys):
    output = tmp_path / "sweep.json"
    options = ["--alpha", "0,0.5,1", "--temperature", "1, 0.01", "--ratio", "0.25", "--output", str(output)]
    assert main(["sweep", "--scores", scores[1], *options]) == 0
    printed = capsys.readouterr().out
    assert "| 6 | 1.0 | 0.01 |" in printed and "## Records by source" in printed
    result = json.loads(output.read_text())
    assert printed.strip() == as_markdown(result)
    assert [one["alpha"] for one in result["settings"]] == [0, 0, 0.5, 0.5, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--alpha", "0,2"], "error: alpha: got 2, wanted a number in [0, 1]."),
        (["--sampler", "best"], "error: sampler: got 'best'"),
        (["--num-samples", "40"], "error: num_samples: got 40, but only 39 records can be drawn."),
        (["--alpha", "0,x"], "error: alpha: got '0,x', wanted numbers separated by commas."),
    ],
)
def test_wrong_settings(scores, options, message, capsys):
    assert main(["sweep", "--scores", scores[1], *options]) == 2
    assert message in capsys.readouterr().err


def test_no_scores(tmp_path):
    with pytest.raises(StageError, match="no _manifest.json"):
        sweep(str(tmp_path))
