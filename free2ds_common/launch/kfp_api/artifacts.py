"""Where a run's outputs are in its store, and how they are read from this machine."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kfp_server_api import V2beta1Run

from free2ds_common.errors import StageError
from free2ds_common.launch.kfp_api.backend import Backend
from free2ds_common.launch.kfp_api.kube import Kube
from free2ds_common.launch.kfp_api.metadata import output_uris
from free2ds_common.launch.kfp_api.steps import StepName, step_names
from free2ds_common.retry import retried
from free2ds_common.storage import filesystem

# Of an installation that sets none.
DEFAULT_ROOT = "minio://mlpipeline/v2/artifacts"
LOG = "executor-logs"
# What stores call the time of a file's last change.
_CHANGED = ("LastModified", "last_modified", "updated", "mtime", "created")


@dataclass(frozen=True)
class Output:
    """An output of a pipeline.

    Attributes:
        step: The step that makes it.
        port: What the step calls it.
    """

    step: StepName
    port: str


def outputs_of(spec: Mapping[str, Any]) -> dict[str, Output]:
    """The outputs of a pipeline by name, followed into the nested pipelines that make them."""
    names = {name.key: name for name in step_names(spec)}

    def producer(dag: Mapping[str, Any], output: str) -> Output:
        selector = dag["outputs"]["artifacts"][output]["artifactSelectors"][0]
        task, port = selector["producerSubtask"], selector["outputArtifactKey"]
        component = spec["components"][dag["tasks"][task]["componentRef"]["name"]]
        return producer(component["dag"], port) if "dag" in component else Output(names[task], port)

    root = spec["root"]["dag"]
    return {name: producer(root, name) for name in root.get("outputs", {}).get("artifacts", {})}


@dataclass(frozen=True)
class RunStore:
    """The folder of a run in its store.

    Attributes:
        root: Its URI, as `readable` makes it: a folder for each step lies in it, and in that one for each execution.
    """

    root: str

    @classmethod
    def of(cls, run: V2beta1Run, spec: Mapping[str, Any], pipeline_root: str, kube: Kube | None) -> "RunStore":
        """The folder of a run.

        Args:
            run: V2beta1Run.
            spec: Its pipeline.
            pipeline_root: Where the installation keeps artifacts; empty takes what the run, its pipeline or the
                launcher's settings say, else what Kubeflow's own manifests set.
            kube: Knows the launcher's settings; None for nobody.
        """
        of_run = (run.runtime_config.pipeline_root if run.runtime_config else "") or ""
        root = pipeline_root or of_run or spec.get("defaultPipelineRoot", "") or (kube.pipeline_root() if kube else "")
        root = readable(root or DEFAULT_ROOT).rstrip("/")
        return cls(f"{root}/{spec['pipelineInfo']['name']}/{run.run_id}")

    def newest(self, step: StepName, port: str) -> str:
        """The URI of a step's output; empty where the run's folder has none.

        Raises:
            StageError: The store refuses.
            StoreError: It does not answer.
        """
        found = self._executions(step, port)
        return found[-1] if found else ""

    def logs(self, step: StepName) -> Iterator[str]:
        """What a step's executions have printed, the last one first.

        Raises:
            StageError: The store refuses.
            StoreError: It does not answer.
        """
        for uri in reversed(self._executions(step, LOG)):
            yield read_text(uri)

    def _executions(self, step: StepName, port: str) -> list[str]:
        """The URI of an output in every execution of a step that has it, in the order of time."""
        return self._in_folder(step.title, port) or self._in_folder(step.key, port)

    def _in_folder(self, folder: str, port: str) -> list[str]:
        uri = f"{self.root}/{folder}"
        fs, path = filesystem(uri)
        try:
            files: Mapping[str, Mapping[str, Any]] = retried(uri, lambda: fs.find(path, detail=True))
        except FileNotFoundError:
            return []
        newest: dict[str, str] = {}
        for name, info in files.items():
            execution, _, rest = name.removeprefix(path.rstrip("/")).lstrip("/").partition("/")
            if rest == port or rest.startswith(f"{port}/"):
                changed = next((str(info[entry]) for entry in _CHANGED if info.get(entry) is not None), "")
                newest[execution] = max(newest.get(execution, ""), changed)
        return [f"{uri}/{execution}/{port}" for execution in sorted(newest, key=lambda name: (newest[name], name))]


def readable(uri: str) -> str:
    """A URI of Kubeflow's own as one that this machine can read: its store speaks S3; what follows a ? is for pods."""
    plain = uri.partition("?")[0]
    return f"s3://{plain.removeprefix('minio://')}" if plain.startswith("minio://") else plain


def read_text(uri: str) -> str:
    """A whole text file of a store.

    Raises:
        FileNotFoundError: It is not there.
        StageError: The store refuses.
        StoreError: It does not answer.
    """
    fs, path = filesystem(uri)
    return retried(uri, lambda: bytes(fs.cat_file(path))).decode("utf-8", "replace")


def find_outputs(backend: Backend, run: V2beta1Run, spec: Mapping[str, Any], store: RunStore) -> dict[str, str]:
    """Where all outputs of a run are, by name.

    Args:
        backend: Where it ran.
        run: V2beta1Run.
        spec: Its pipeline.
        store: Its folder.

    Raises:
        StageError: One cannot be found, or store or backend refuse.
    """
    wanted = outputs_of(spec)
    found = {name: store.newest(output.step, output.port) for name, output in wanted.items()}
    for step in {wanted[name].step for name, uri in found.items() if not uri}:
        # Taken from the cache, so that it lies in an earlier run's folder.
        missing = {output.port: name for name, output in wanted.items() if output.step == step and not found[name]}
        for port, uri in output_uris(backend, run.run_id, step, list(missing)).items():
            found[missing[port]] = readable(uri)
    lacking = sorted(name for name, uri in found.items() if not uri)
    if lacking:
        raise StageError(
            f"run {run.run_id}: nothing of {', '.join(lacking)} lies in {store.root}, and the metadata store of "
            f"{backend.ui_host} knows no other place. Give --ui-host for steps that came from the cache, or "
            "--pipeline-root."
        )
    return found
