"""A backend over HTTP for every test, and none of this machine's own clusters."""

import kfp_server_api as api
import pytest

import pipeline
from free2ds_common.launch.kfp_api import backend, schedules, watch
from tests.support.kfp_stub import KfpStub
from tests.support.kube_stub import KubeStub


@pytest.fixture(autouse=True)
def _no_cluster_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "no-kubeconfig"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(backend, "BACKOFF_S", 0.0)
    monkeypatch.setattr(watch, "POLL_S", 0.0)
    monkeypatch.setattr(schedules, "POLL_S", 0.0)


@pytest.fixture
def stub():
    with KfpStub() as running:
        yield running


@pytest.fixture
def kube():
    with KubeStub() as running:
        yield running


@pytest.fixture
def free2ds(stub, capsys):
    """Runs a command against the stub; returns exit code, stdout and stderr."""

    def run(command, *arguments):
        code = pipeline.main([command, *arguments, "--host", stub.url])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


class Tasks:
    """The nodes that the API reports of a run, made by hand as Argo nests them."""

    def __init__(self):
        self.details = []

    def add(self, name, state, parent="", pod="", **fields):
        """One node; returns its id."""
        task_id = f"node-{len(self.details)}"
        detail = api.V2beta1PipelineTaskDetail(
            task_id=task_id,
            display_name=name,
            state=state,
            parent_task_id=parent or None,
            pod_name=pod or None,
            **fields,
        )
        self.details.append(detail)
        return task_id

    def step(self, name, state, parent="", pod=""):
        """A step: its driver, itself, and the pod below it."""
        self.add(f"{name}-driver", "SUCCEEDED", parent, f"{name}-driver-pod")
        step = self.add(name, state, parent)
        self.add("executor", state, step, pod or f"{name}-pod")
        return step

    @property
    def run_details(self):
        return api.V2beta1RunDetails(task_details=self.details)


@pytest.fixture
def tasks():
    return Tasks()
