"""What every stage's command line does: help, exit codes, one line of counts."""

import json
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from free2ds_common.cli import parse, stage_main
from free2ds_common.errors import StageError
from free2ds_common.result import Counts, StageResult


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings.

    Attributes:
        num_shards: How many, 100 % of them.
    """

    num_shards: int = 4


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Divide the records.

    Attributes:
        records: Input folder.
    """

    records: str


@pytest.fixture
def stage(monkeypatch):
    """A stage whose work a test gives."""

    def install(run):
        monkeypatch.setitem(sys.modules, "components.invented.stage", SimpleNamespace(run=run))
        return lambda *argv: stage_main("invented", Config, argv)

    return install


def test_help_shows_descriptions_and_defaults_inherited_ones_too(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(Config, ["--help"], "python -m components.split")
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert text.startswith("usage: python -m components.split [-h]")
    assert "Divide the records." in text
    assert "How many, 100 % of them. (default: 4)" in text
    assert "Input folder. (required)" in text


def test_options_may_not_be_shortened(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(Config, ["--records", "r", "--num", "3"], "c")
    assert stopped.value.code == 2
    assert "Unrecognized options: --num" in capsys.readouterr().err


def test_counts_are_one_json_line(stage, capsys):
    main = stage(lambda config: StageResult(Counts(read=3, written=2, rejected=1), {"tilt": 0.5}))
    assert main("--records", "r") == 0
    assert json.loads(capsys.readouterr().out) == {"read": 3, "written": 2, "dropped": 0, "rejected": 1, "tilt": 0.5}


def test_the_stage_gets_what_was_given(stage):
    seen = []
    main = stage(lambda config: (seen.append(config), StageResult(Counts(read=0, written=0)))[1])
    main("--records", "r", "--num-shards", "7")
    assert seen == [Config(records="r", num_shards=7)]


def test_wrong_set_up(stage, capsys):
    def run(config):
        raise StageError("ratio: got 2, wanted a number in (0, 1].")

    assert stage(run)("--records", "r") == 2
    captured = capsys.readouterr()
    assert captured.err == "error: ratio: got 2, wanted a number in (0, 1].\n"
    assert captured.out == ""


def test_other_errors_keep_their_traceback(stage):
    with pytest.raises(ZeroDivisionError):
        stage(lambda config: 1 / 0)("--records", "r")
