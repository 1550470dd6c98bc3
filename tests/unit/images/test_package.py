"""What `pip install` of the project gives, told from pyproject.toml."""

from importlib.metadata import EntryPoint

import pipeline
from free2ds_common import __version__
from images import build
from tests.support.images import REPOSITORY, read_pyproject


def test_a_wheel_has_the_files_that_are_not_python():
    """Setuptools puts only Python into a wheel, and what its package data name."""
    packages = read_pyproject()["tool"]["setuptools"]["package-data"]
    named = {
        path
        for package, patterns in packages.items()
        for pattern in patterns
        for path in (REPOSITORY / package.replace(".", "/")).glob(pattern)
    }
    folders = [REPOSITORY / "components", REPOSITORY / "free2ds_common"]
    others = {path for folder in folders for path in folder.rglob("*") if path.is_file()}
    assert named == {path for path in others if path.suffix not in {".py", ".pyc", ".md"}}


def test_the_command_is_the_pipelines():
    target = read_pyproject()["project"]["scripts"]["free2ds"]
    assert EntryPoint("free2ds", target, "console_scripts").load() is pipeline.main


def test_the_version_is_written_once():
    pyproject = read_pyproject()
    assert pyproject["project"]["dynamic"] == ["version"]
    assert pyproject["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "free2ds_common.__version__"}
    assert build.version() == __version__
