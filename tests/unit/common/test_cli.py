"""What every stage's command line does: help, exit codes, one line of counts."""

import json

import pytest

from free2ds_common.cli import run_stage, stage_parser
from free2ds_common.errors import StageError
from free2ds_common.result import Counts, StageResult


def test_help_shows_defaults_where_there_are_any():
    parser = stage_parser("split", "Divide the records.")
    parser.add_argument("--records", required=True, help="input folder")
    parser.add_argument("--num-shards", type=int, default=4, help="how many, 100 %% of them")
    text = parser.format_help()
    assert "python -m components.split" in text and "Divide the records." in text
    assert "how many, 100 % of them (default: 4)" in " ".join(text.split()) and "None" not in text


def test_options_may_not_be_shortened(capsys):
    parser = stage_parser("split", "Divide the records.")
    parser.add_argument("--num-shards", type=int, default=4, help="how many")
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(["--num", "3"])
    assert stopped.value.code == 2 and "unrecognized arguments: --num 3" in capsys.readouterr().err


def test_counts_are_one_json_line(capsys):
    assert run_stage(lambda: StageResult(Counts(read=3, written=2, rejected=1), {"tilt": 0.5})) == 0
    assert json.loads(capsys.readouterr().out) == {"read": 3, "written": 2, "dropped": 0, "rejected": 1, "tilt": 0.5}
    assert run_stage(lambda: None) == 0
    assert capsys.readouterr().out == ""


def test_wrong_set_up(capsys):
    def work():
        raise StageError("ratio: got 2, wanted a number in (0, 1].")

    assert run_stage(work) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: ratio: got 2, wanted a number in (0, 1].\n" and captured.out == ""


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_stage(lambda: 1 / 0)
