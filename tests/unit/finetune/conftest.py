"""A training on a tiny LLaVA."""

from functools import partial

import pytest

from components.finetune.stage import run
from tests.support.training import losses, small_llava, training, write_records


@pytest.fixture(scope="session")
def llava(tmp_path_factory):
    return small_llava(tmp_path_factory.mktemp("models") / "llava")


@pytest.fixture
def config(tmp_path, llava):
    """Makes settings."""
    write_records(tmp_path)
    return partial(training, tmp_path, llava)


@pytest.fixture
def finetune(config, tmp_path):
    """Train; returns the stage's result and the loss of each step."""

    def start(out="out", **changes):
        result = run(config(out, **changes))
        return result, losses(tmp_path, out)

    return start
