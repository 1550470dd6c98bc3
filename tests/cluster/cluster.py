"""What the suite asks the API of Kubeflow Pipelines and Kubernetes' itself, past the project's own commands."""

import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import kfp
import kubernetes
from kfp_server_api import V2beta1RecurringRun, V2beta1Run

import pipeline
from free2ds_common.launch.kfp_api.steps import step_names
from free2ds_common.launch.package import Package
from tests.cluster.settings import REPOSITORY, Settings

Found = TypeVar("Found")

FINISHED = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED", "ERROR"}
# Of a selection: those that train and measure are the loop's.
STAGES = {path.parent.name.replace("_", "-") for path in (REPOSITORY / "images").glob("*/Dockerfile")} - {
    "finetune",
    "evaluate",
    "verdict",
}
WITH_MODELS = {"llava-attention", "mgm-attention", "bert-features"}
# Never taken from the cache: it looks whether anything has changed.
NEVER_CACHED = {"resolve"}
# A node bears the spec's name of its step, or the one for people.
_NAMES = step_names(Package.compile(pipeline.free2ds).spec)
_STAGE_OF = {text: name.key for name in _NAMES for text in (name.key, name.title)}
_IMAGE = re.compile(r"(?:^|/)free2ds-([a-z-]+)[:@]")


class Backend:
    """The API."""

    def __init__(self, settings: Settings) -> None:
        """Connect."""
        self._settings = settings
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.client = kfp.Client(host=settings.host, namespace=settings.namespace)

    def run(self, run_id: str) -> V2beta1Run:
        """A run as it is now."""
        return self.client.get_run(run_id)

    def finished(self, run_id: str) -> V2beta1Run:
        """A run when it has ended."""

        def look() -> V2beta1Run | None:
            run = self.run(run_id)
            return run if run.state in FINISHED else None

        return self.until(f"run {run_id} has ended", look, self._settings.run_timeout_s)

    def until(self, what: str, look: Callable[[], Found | None], timeout_s: float) -> Found:
        """Look again and again until there is something."""
        end = time.monotonic() + timeout_s
        while (found := look()) is None:
            assert time.monotonic() < end, f"after {timeout_s:.0f} s it is not so that {what}"
            time.sleep(self._settings.poll_s)
        return found

    def runs_of(self, schedule_id: str, experiment: str) -> list[V2beta1Run]:
        """The runs that a schedule has started, the first one first."""
        experiments = self.client.list_experiments(page_size=100).experiments
        experiment_id = next(one.experiment_id for one in experiments if one.display_name == experiment)
        page = self.client.list_runs(experiment_id=experiment_id, page_size=100, sort_by="created_at desc")
        return [run for run in reversed(page.runs or []) if run.recurring_run_id == schedule_id]

    def schedules(self) -> list[V2beta1RecurringRun]:
        """Every schedule."""
        return self.client.list_recurring_runs(page_size=100).recurring_runs or []


def steps(run: V2beta1Run) -> dict[str, list[str]]:
    """The states of a run's steps by stage, one for each turn of the loop."""
    found: dict[str, list[str]] = {}
    for task in run.run_details.task_details or []:
        # A step that was tried again has a node for each try below its own.
        if stage := _STAGE_OF.get(task.display_name):
            found.setdefault(stage, []).append(task.state)
    return found


def done(run: V2beta1Run, stage: str) -> int:
    """How many of a stage's steps did their work, and were not taken from the cache."""
    return steps(run).get(stage, []).count("SUCCEEDED")


def seconds(started: datetime, ended: datetime) -> float:
    """Between two times of a run."""
    return (ended - started).total_seconds()


@dataclass(frozen=True)
class Pod:
    """The pod of a step.

    Attributes:
        stage: Which.
        name: Its own.
        raw: V1Pod.
    """

    stage: str
    name: str
    raw: Any

    @property
    def main(self) -> Any:
        """The container that does the work."""
        return next(container for container in self.raw.spec.containers if container.name == "main")

    @property
    def gpus(self) -> str:
        """How many GPUs it has; "0" for none."""
        limits = self.main.resources.limits or {}
        return next((count for name, count in limits.items() if name.endswith("/gpu")), "0")


class Kubernetes:
    """Kubernetes' own API."""

    def __init__(self, namespace: str) -> None:
        """Connect as kubectl does."""
        self._api = kubernetes.client.CoreV1Api(kubernetes.config.new_client_from_config())
        self._namespace = namespace

    @staticmethod
    def is_there() -> bool:
        """Whether kubectl is set up on this machine."""
        default = os.path.expanduser("~/.kube/config")
        return os.path.exists((os.environ.get("KUBECONFIG") or default).partition(os.pathsep)[0])

    def pods(self, run_id: str) -> list[Pod]:
        """The pods of a run's steps."""
        return list(self._pods(run_id))

    def _pods(self, run_id: str) -> Iterator[Pod]:
        for pod in self._api.list_namespaced_pod(self._namespace, label_selector=f"pipeline/runid={run_id}").items:
            for container in pod.spec.containers:
                if container.name == "main" and (found := _IMAGE.search(container.image)) and found[1] in STAGES:
                    yield Pod(found[1], pod.metadata.name, pod)

    def labels_of(self, node: str) -> dict[str, str]:
        """The labels of a node."""
        return self._api.read_node(node).metadata.labels or {}

    def delete(self, pod: Pod) -> None:
        """Take a pod away at once, as a lost node does."""
        self._api.delete_namespaced_pod(pod.name, self._namespace, grace_period_seconds=0)
