"""Sweeps over stored scores select what the stage itself selects with the same settings."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from components.joint_selection.__main__ import main
from components.joint_selection.config import DrawSettings, SampleSettings, SweepConfig
from components.joint_selection.stage import run
from components.joint_selection.sweep import SWEPT, as_markdown, combinations
from components.joint_selection.sweep import run as run_sweep
from free2ds_common.errors import StageError
from tests.support.selection import Inputs, read_json

pytestmark = pytest.mark.usefixtures("without_report")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The stage's inputs, one record of which is rejected, and its scores."""
    inputs = Inputs(tmp_path_factory.mktemp("sweep"))
    inputs.outcomes[1][10] = "image_unreadable"
    inputs.sources = ["a|b", "y", "z"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("components.joint_selection.stage.write_report", lambda *_: None)
        run(inputs.write().config())
    return inputs


@pytest.fixture
def scores(written):
    return written.config().scores


def sweep(scores, **changes):
    return run_sweep(SweepConfig(scores=scores, **{"ratio": 0.25, **changes}))


def test_every_combination_is_what_the_stage_selects(written, scores):
    result = sweep(
        scores,
        alpha="0.0,1.0",
        temperature="1.0, 0.01",
        sampler="gumbel,top",
        missing_iou="text,exclude",
        text_normalization="reference,rank",
    )
    assert len({dataclasses.astuple(one) for one in result.settings}) == 32
    for number, settings, tilt in zip(result.numbers, result.settings, result.tilt, strict=True):
        config = written.config(**dataclasses.asdict(settings), scores=str(written.folder / "again"))
        run(config)
        summary = read_json(config.summary)
        assert dataclasses.asdict(tilt) == summary["tilt"]
        assert {name: row[number] for name, row in result.sources.items()} == {
            name: row["selected"] for name, row in summary["sources"].items()
        }


@pytest.mark.parametrize("changes", [{"num_samples": 7}, {"ratio": 0.5}, {"seed": 9}, {"stratify": "source"}])
def test_the_settings_that_all_combinations_share(written, scores, changes):
    result = sweep(scores, **changes)
    config = written.config(**changes, scores=str(written.folder / "again"))
    run(config)
    assert dataclasses.asdict(result.tilt[0]) == read_json(config.summary)["tilt"]


def test_every_setting_of_the_draw_is_swept_or_shared():
    """A new one must be added to the sweep."""
    shared = {field.name for field in dataclasses.fields(SampleSettings)}
    assert {field.name for field in dataclasses.fields(DrawSettings)} == {*SWEPT, *shared}
    assert {field.name for field in dataclasses.fields(SweepConfig)} == {*SWEPT, *shared, "scores", "output"}


def test_combinations_are_in_order_and_in_their_types():
    made = combinations(SweepConfig(scores="", alpha="0, 1", sampler="top , gumbel"))
    assert [(one.alpha, one.sampler) for one in made] == [(0.0, "top"), (0.0, "gumbel"), (1.0, "top"), (1.0, "gumbel")]
    assert {type(one.alpha) for one in made} == {float}


def test_overlap(scores):
    """39 records can be drawn, 9 are: the share is in ninths where nothing is left to chance."""
    overlap = sweep(scores, alpha="0.0,1.0", sampler="top").expected_overlap
    assert overlap[0][0] == overlap[1][1] == 1
    assert overlap[0][1] == overlap[1][0]
    assert overlap[0][1] < 1
    assert overlap[0][1] * 9 == pytest.approx(round(overlap[0][1] * 9))


def test_draws_of_one_setting_differ_too(scores):
    """A uniform draw of 9 of 39 shares 9/39 with another one, whatever the seed, and with the top."""
    result = sweep(scores, temperature="1e9", sampler="gumbel,top")
    assert result.expected_overlap[0] == pytest.approx([9 / 39, 9 / 39])
    assert result.expected_overlap[1] == pytest.approx([9 / 39, 1])


def test_expectations_do_not_depend_on_the_seed(scores):
    first, second = (sweep(scores, alpha="0,1", seed=seed) for seed in (1, 2))
    assert first.tilt != second.tilt
    assert (first.chance, first.expected_overlap) == (second.chance, second.expected_overlap)
    assert first.expected_sources == second.expected_sources
    assert as_markdown(first) == as_markdown(second), "nothing of one draw is printed"


def test_expectations_are_those_of_the_stage(written, scores):
    config = written.config(temperature=0.1, scores=str(written.folder / "again"))
    run(config)
    wanted = read_json(config.summary)["chance"]
    result = sweep(scores, temperature="1,0.1")
    assert dataclasses.asdict(result.chance[1]) == {name: wanted[name] for name in dataclasses.asdict(result.chance[1])}
    found = {name: dataclasses.asdict(row[1]) for name, row in result.expected_sources.items()}
    assert found == {name: row["selected"] for name, row in wanted["sources"].items()}


def test_the_command_prints_tables_and_writes_everything(scores, tmp_path, capsys):
    output = tmp_path / "sweep.json"
    options = ["--alpha", "0,0.5,1", "--temperature", "1, 0.01", "--ratio", "0.25", "--output", str(output)]
    assert main(["sweep", "--scores", scores, *options]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    result = sweep(scores, alpha="0,0.5,1", temperature="1,0.01")
    assert printed.out == as_markdown(result) + "\n"
    assert json.loads(output.read_text()) == json.loads(json.dumps(dataclasses.asdict(result)))
    assert list(json.loads(output.read_text())) == [
        "settings",
        "tilt",
        "chance",
        "expected_overlap",
        "sources",
        "expected_sources",
    ]


def test_tables(scores):
    """Columns for the settings that vary, rows for the combinations."""
    lines = as_markdown(sweep(scores, sampler="top", missing_iou="text,exclude")).splitlines()
    head = lines.index("## Tilt: what draws have on average, and 95% of them") + 2
    columns = "mean score, pool | mean score, selected | in top n | random draw | weight ratio | effective n"
    assert lines[head] == f"|  | missing_iou | {columns} |"
    assert [line.split(" | ")[:2] for line in lines[head + 2 : head + 4]] == [["| 1", "text"], ["| 2", "exclude"]]
    assert lines[head + 2].split(" | ")[4:6] == ["100.0%", "23.1% (0.0% to 55.6%)"]
    sources = lines[lines.index("## Records by source, expected") + 2 :]
    # Nine of 39 are drawn, eight of 35 with an IoU.
    assert sources[0] == "| source | pool | 1 | 2 |"
    assert sources[2].startswith(r"| a\|b | 14 | ")
    assert [sum(float(line.split(" | ")[column].split()[0]) for line in sources[2:]) for column in (1, 2, 3)] == [
        39,
        9,
        8,
    ]


def test_the_first_settings_are_shown_where_none_varies(scores):
    assert "|  | alpha | temperature | mean score, pool |" in as_markdown(sweep(scores))


def test_small_sources_are_counted(scores, monkeypatch):
    monkeypatch.setattr("components.joint_selection.sweep._SOURCES_SHOWN", 1)
    assert as_markdown(sweep(scores)).endswith("\n\n2 smaller sources are not shown; --output has them all.")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--alpha", "0,2"], "alpha: got 2, wanted a number in [0, 1]."),
        (["--temperature", "1,0"], "temperature: got 0, wanted a number above 0."),
        (["--sampler", "best"], "sampler: got 'best', wanted one of gumbel, reference, top."),
        (["--missing-iou", "text,"], "missing_iou: got '', wanted one of calibrated, exclude, reference, text."),
        (["--num-samples", "40"], "num_samples: got 40, but only 39 records can be drawn. Ask for fewer."),
        (["--alpha", "0,x"], "alpha: got '0,x', wanted numbers separated by commas."),
        (["--temperature", ""], "temperature: got '', wanted numbers separated by commas."),
        (["--seed", "-1"], "seed: got -1, wanted an integer from 0 to 4294967295."),
    ],
)
def test_wrong_settings_are_one_sentence_and_exit_2(scores, options, message, capsys):
    assert main(["sweep", "--scores", scores, *options]) == 2
    printed = capsys.readouterr()
    assert printed.err == f"error: {message}\n"
    assert printed.out == ""


def test_an_option_that_is_not_there_is_exit_2(capsys):
    with pytest.raises(SystemExit) as end:
        main(["sweep", "--scores", "x", "--top-percent", "30"])
    assert end.value.code == 2
    assert "top-percent" in capsys.readouterr().err


def test_no_scores(tmp_path):
    with pytest.raises(StageError, match=r"no _manifest\.json"):
        sweep(str(tmp_path))


def test_it_needs_no_matplotlib():
    code = "import sys, components.joint_selection.sweep; print({'matplotlib', 'jinja2', 'PIL'} & set(sys.modules))"
    repository = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
