"""Small inputs for the stage, and a way to run it without its slowest part."""

from pathlib import Path

import pytest

from tests.support.selection import Inputs


@pytest.fixture
def inputs(tmp_path):
    return Inputs(tmp_path).write()


@pytest.fixture
def make_inputs(tmp_path_factory):
    """Inputs that a test changes before it writes them."""
    return lambda **options: Inputs(tmp_path_factory.mktemp("inputs"), **options)


@pytest.fixture
def without_report(monkeypatch):
    """The report takes ten times as long as everything else; test_report.py makes it."""
    monkeypatch.setattr(
        "components.joint_selection.stage.write_report", lambda path, *_: Path(path).write_text("no report")
    )
