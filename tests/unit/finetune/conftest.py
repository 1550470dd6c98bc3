"""A training on a tiny LLaVA."""

from functools import partial

import pytest

from components.finetune import train_job
from components.finetune.stage import run
from tests.support.trainer_stub import OWN_POD, TrainerStub
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


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A Kubernetes with Kubeflow Trainer, in which this process is a step."""
    monkeypatch.setattr(train_job, "POLL_S", 0.01)
    monkeypatch.setattr(train_job, "PATIENCE_S", 0.2)
    monkeypatch.setenv("KFP_POD_NAME", OWN_POD)
    with TrainerStub() as stub:
        monkeypatch.setenv("KUBECONFIG", stub.kubeconfig(tmp_path / "kubeconfig"))
        yield stub
