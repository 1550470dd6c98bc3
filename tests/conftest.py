"""Fixtures every test may use."""

import os
import signal
from pathlib import Path

import pytest

from tests.support.requirements import missing

pytest_plugins = ["tests.support.fixtures"]

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def cache_of_this_session(tmp_path_factory):
    """No test takes results from the user's cache, or leaves any there. Fonts are read as ever."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", os.environ.get("MPLCONFIGDIR", str(Path.home() / ".cache/matplotlib")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def signals_of_a_terminal():
    """Tests send signals that a shell makes a command in the background ignore, and nohup too."""
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGQUIT, signal.SIG_DFL),
    ):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of development data beside the repository; users of the project do not have it."""
    if not SHARED.is_dir():
        missing("needs ../shared (development data that is not shipped)")
    return SHARED
