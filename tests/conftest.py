"""Fixtures every test may use."""

from pathlib import Path

import pytest

from tests.support.requirements import missing

pytest_plugins = ["tests.support.fixtures"]

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of development data beside the repository; users of the project do not have it."""
    if not SHARED.is_dir():
        missing("needs ../shared (development data that is not shipped)")
    return SHARED
