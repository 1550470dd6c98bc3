"""A TrainJob of Kubeflow Trainer v2, by its SDK: made, followed, and removed."""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, TypeVar

from components.finetune.config import FinetuneSettings
from components.finetune.node_pods import Pod, ends, waits_for
from components.finetune.own_pod import OwnPod, pod_name
from free2ds_common.errors import StageError
from free2ds_common.failure import EXIT_WRONG_SETUP
from free2ds_common.stopping import Stopped

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

POLL_S = 5.0
# How long Kubernetes may fail to answer while nodes train.
PATIENCE_S = 600.0
_LOG_END_S = 10.0
# Of the SDK and of the runtimes that Kubeflow Trainer comes with: the job and the container that train.
_NODE = "node"
_OF_JOB = "jobset.sigs.k8s.io/jobset-name"
_COMPLETE, _FAILED = "Complete", "Failed"
# Statuses of HTTP: nothing is there; a refusal that means "later".
_MISSING, _LATER = 404, (408, 429)


class TrainJob:
    """One TrainJob.

    Attributes:
        name: In its namespace.
    """

    def __init__(self, name: str) -> None:
        """Reach Kubernetes.

        Args:
            name: Of the TrainJob, which need not exist yet.

        Raises:
            StageError: The SDK is not installed, or there is no cluster here.
        """
        self.name = name
        try:
            from kubeflow.trainer import KubernetesBackendConfig, TrainerClient
            from kubernetes.config import ConfigException
        except ImportError:
            raise StageError(
                "nodes: the package kubeflow is not installed here, which trains on several machines. Run the stage in "
                "its image, or install kubeflow."
            ) from None
        try:
            # Its own look at KUBECONFIG is at the time of its import.
            self._client = TrainerClient(KubernetesBackendConfig(config_file=os.environ.get("KUBECONFIG")))
        except ConfigException:
            raise StageError(
                "nodes: there is no Kubernetes here, which several machines need. Run the step in a cluster, or leave "
                "nodes at 1."
            ) from None
        self._backend = self._client.backend
        self._said: set[tuple[str, str]] = set()

    def exists(self) -> bool:
        """Whether it is there and has not failed, made by a run of the same training that was cut off.

        One that has failed is removed.
        """
        try:
            found = self._asked(lambda: self._client.get_job(self.name))
        except _GoneError:
            return False
        if found.status != _FAILED:
            return True
        self.delete()
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                self._asked(lambda: self._client.get_job(self.name))
            except _GoneError:
                return False
            time.sleep(POLL_S)
        raise StageError(f"TrainJob {self.name} has failed and does not go away. Remove it: kubectl delete trainjob.")

    def create(self, config: FinetuneSettings, command: Sequence[str]) -> None:
        """Make it, with what this step's own pod was given.

        Args:
            config: Settings.
            command: Of each node.

        Raises:
            StageError: There is no such runtime, Kubernetes refuses it, or this is no step of a run.
        """
        from kubeflow.trainer import CustomTrainerContainer, TrainerType
        from kubeflow.trainer import options as given

        own = self._own_pod()
        pod = given.PodSpecPatch(
            containers=[given.ContainerPatch(name=_NODE, **own.node_container())],
            **own.node_pod(),
        )
        template = given.JobTemplatePatch(spec=given.JobSpecPatch(template=given.PodTemplatePatch(spec=pod)))
        jobs = given.JobSetSpecPatch(replicated_jobs=[given.ReplicatedJobPatch(name=_NODE, template=template)])
        patch = given.TrainingRuntimeSpecPatch(template=given.JobSetTemplatePatch(spec=jobs))
        try:
            runtime = self._asked(lambda: self._client.get_runtime(config.runtime))
        except _GoneError:
            raise StageError(
                f"runtime: Kubernetes knows no TrainingRuntime {config.runtime} in namespace {self._backend.namespace} "
                "and no ClusterTrainingRuntime. Install Kubeflow Trainer 2 with its runtimes, or name another one."
            ) from None
        if runtime.trainer.trainer_type != TrainerType.CUSTOM_TRAINER:
            raise StageError(f"runtime: {config.runtime} trains by itself, wanted one that runs what it is given.")
        trainer = CustomTrainerContainer(
            image=own.image, num_nodes=config.nodes, resources_per_node=config.given_per_node or None
        )
        options = [
            given.Name(self.name),
            given.Labels({"app.kubernetes.io/part-of": "free2ds", **own.labels}),
            given.TrainerCommand(list(command)),
            given.RuntimePatch(training_runtime_spec=patch),
        ]
        self._asked(lambda: self._client.train(runtime=runtime, trainer=trainer, options=options))
        logger.info("TrainJob %s: %d nodes of runtime %s", self.name, config.nodes, config.runtime)

    def follow(self, stop_requested: Callable[[], bool]) -> None:
        """Wait for its end, and log what its first node says and what keeps pods waiting.

        Args:
            stop_requested: Whether to give up.

        Raises:
            StageError: A node has failed, somebody removed it, or Kubernetes has not answered for `PATIENCE_S`.
            Stopped: That was asked for.
        """
        logs = threading.Thread(target=self._log, daemon=True)
        logs.start()
        while True:
            try:
                status = self._asked(lambda: self._client.get_job(self.name)).status
            except _GoneError:
                raise StageError(f"TrainJob {self.name} was removed while it ran. Run again to go on.") from None
            if status == _COMPLETE:
                logs.join(_LOG_END_S)
                return
            pods = self._pods()
            if status == _FAILED:
                logs.join(_LOG_END_S)
                raise StageError(f"TrainJob {self.name} failed: {self._why(pods)}")
            if (first := next(iter(ends(pods)), None)) and first.exit_code == EXIT_WRONG_SETUP:
                # Kubernetes would start the node again and again, to no avail.
                raise StageError(f"TrainJob {self.name} cannot go on: {first.sentence}")
            self._tell(pods)
            if stop_requested():
                raise Stopped(f"stopped as asked to; TrainJob {self.name} is removed: run again to go on")
            time.sleep(POLL_S)

    def delete(self) -> None:
        """Remove it and its pods; where that fails, say so and go on: there is a better reason to end."""
        try:
            self._client.delete_job(self.name)
        except (RuntimeError, TimeoutError) as error:
            if _status_of(error) != _MISSING:
                logger.warning(
                    "TrainJob %s could not be removed (%s): kubectl delete trainjob %s", self.name, error, self.name
                )

    def _own_pod(self) -> OwnPod:
        """This step's pod.

        Raises:
            StageError: There is none.
        """
        name, namespace = pod_name(), self._backend.namespace
        try:
            found = self._asked(lambda: self._backend.core_api.read_namespaced_pod(name, namespace))
        except _GoneError:
            raise StageError(
                f"nodes: no pod {name} in namespace {namespace}, and so this is no step of a run: nodes get what the "
                "step's pod has. Run the step in a cluster, or leave nodes at 1."
            ) from None
        return OwnPod.of(self._backend.core_api.api_client.sanitize_for_serialization(found))

    def _pods(self) -> list[Pod]:
        """The nodes' pods."""

        def listed() -> list[Pod]:
            return list(
                self._backend.core_api.list_namespaced_pod(
                    self._backend.namespace, label_selector=f"{_OF_JOB}={self.name}"
                ).items
            )

        return self._asked(listed)

    def _asked(self, work: Callable[[], Result]) -> Result:
        """An answer of Kubernetes, which is asked again while it gives none.

        Raises:
            _GoneError: There is no such object.
            StageError: It refuses, or has not answered for `PATIENCE_S`.
        """
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        began = time.monotonic()
        while True:
            try:
                return work()
            # The SDK makes these of whatever befalls it.
            except (RuntimeError, ApiException, HTTPError, OSError) as error:
                status = _status_of(error)
                if status == _MISSING:
                    raise _GoneError from error
                if (400 <= status < 500 and status not in _LATER) or not (status or _is_of_network(error)):
                    _refused(status, error)
                if time.monotonic() - began > PATIENCE_S:
                    raise StageError(
                        f"Kubernetes has not answered for {PATIENCE_S:.0f} s ({_cause(error)})."
                    ) from error
                logger.warning("Kubernetes does not answer (%s); asking again", _cause(error))
            time.sleep(POLL_S)

    def _log(self) -> None:
        """Log what the first node says, from its first line to its last."""
        told, ended = 0, False
        while not ended:
            try:
                ended = self._client.get_job(self.name).status in (_COMPLETE, _FAILED)
                for number, line in enumerate(self._client.get_job_logs(self.name, follow=not ended)):
                    if number >= told:
                        logger.info("node 0: %s", line)
                        told += 1
            except Exception as error:  # what is logged decides nothing
                if _status_of(error) == _MISSING:
                    return
            time.sleep(POLL_S)

    def _tell(self, pods: Sequence[Pod]) -> None:
        """Log what pods wait for and which ended, each time that it changes."""
        for pod in pods:
            if (waits := waits_for(pod)) and (pod.metadata.name, waits) not in self._said:
                logger.warning("pod %s waits: %s", pod.metadata.name, waits)
                self._said.add((pod.metadata.name, waits))
        for end in ends(pods):
            if (end.pod, end.finished) not in self._said:
                logger.warning("%s; Kubernetes starts it again if the runtime says so", end.sentence)
                self._said.add((end.pod, end.finished))

    def _why(self, pods: Sequence[Pod]) -> str:
        """Why it failed: what the first node that ended said, or else Kubeflow Trainer."""
        if ended := ends(pods):
            return ended[0].sentence
        found = self._asked(
            lambda: self._backend.custom_api.get_namespaced_custom_object(
                "trainer.kubeflow.org", "v1alpha1", self._backend.namespace, "trainjobs", self.name
            )
        )
        conditions: list[Mapping[str, str]] = found.get("status", {}).get("conditions", [])
        said = [f"{one.get('reason', '')}: {one.get('message', '')}" for one in conditions if one["type"] == _FAILED]
        return said[0] if said else "Kubeflow Trainer does not say why."


class _GoneError(Exception):
    """Kubernetes has no such object."""


def _status_of(error: BaseException) -> int:
    """The HTTP status of an answer of Kubernetes, or of what caused an error of the SDK; 0 for none."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(status := getattr(link, "status", None), int):
            return status
        link = link.__cause__
    return 0


def _is_of_network(error: BaseException) -> bool:
    """Whether no answer came, which the SDK hides behind an error of its own."""
    from urllib3.exceptions import HTTPError

    link: BaseException | None = error
    while link is not None:
        if isinstance(link, HTTPError | OSError):
            return True
        link = link.__cause__
    return False


def _cause(error: BaseException) -> str:
    """What lies behind an error of the SDK, in a few words."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(getattr(error, "reason", "")) or str(error) or type(error).__name__).splitlines()[0]


def _refused(status: int, error: BaseException) -> NoReturn:
    """Say that Kubernetes refuses, and why."""
    link = error
    while link.__cause__ is not None:
        link = link.__cause__
    said = " ".join(str(getattr(link, "body", "") or link).split())
    if status in (401, 403):
        raise StageError(
            f"nodes: the step's account may not do what several machines need ({said}). Add the component "
            "manifests/components/trainer to your overlay."
        ) from error
    raise StageError(f"nodes: Kubernetes refuses the TrainJob ({said}).") from error
