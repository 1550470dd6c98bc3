"""Whether a run fits into Kubernetes: the largest input of a step and the Workflow object, before any GPU has worked.

Both grow with the number of shards and are refused at the very end of a run, by the kernel and by Argo. The estimates
follow what Kubeflow Pipelines 2.17 was seen to write on a backend, and are made for long names of buckets.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from free2ds_common.errors import SettingError
from free2ds_common.launch.package import Package

# As many as the split stage makes.
MAX_SHARDS = 64
# Of one argument of a process: Linux starts none with a longer one.
MAX_INPUT_BYTES = 128 << 10
# Argo's, of the compressed nodes.
MAX_WORKFLOW_BYTES = 1 << 20
# What a step's input is meant to stay below.
WANTED_INPUT_BYTES = 100 << 10
# Of an artifact that is collected from a loop, or goes with those; `kfp_task` keeps to it.
COLLECTED_METADATA_BYTES = 150
_AS_COLLECTED = {"llava_finished", "mgm_finished"}
# Of any other artifact that a later step takes in.
METADATA_BYTES = 2_000
# Bytes of an artifact in an input beside its URI and metadata: its name, its type, what the launcher adds about the
# store. So that 64 shards of 130 bytes of metadata come out at the 85,032 bytes that they were.
_ARTIFACT_BYTES = 320
# Of a value that only a run makes, such as a version.
_UNKNOWN_VALUE = "0" * 100
_ROOT = f"s3://{'b' * 63}/v2/artifacts"
# The one finished run of 64 shards whose Workflow is known (1,102,402 bytes) to what `_Graph` makes of its pipeline.
_NODES_FACTOR = 2.815
# Beside a task's own values: how often it runs, and the loops of its graph with their iterations.
_ITERATIONS, _LOOPS = "{{iterations}}", "{{loops}}"
_UUID = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True)
class Sizes:
    """What a run would need.

    Attributes:
        task: The step with the largest input.
        input_bytes: Of that input.
        workflow_bytes: Of the Workflow's nodes, compressed as Argo does.
    """

    task: str
    input_bytes: int
    workflow_bytes: int


def sizes(package: Package, values: Mapping[str, Any], shards: int) -> Sizes:
    """Estimate what a run needs.

    Args:
        package: The pipeline, with the images that are to run.
        values: The run parameters that are not left at their defaults.
        shards: Iterations of the loop.
    """
    graph = _Graph(package, values, shards)
    task, input_bytes = max(graph.inputs(), key=lambda found: found[1])
    return Sizes(task, input_bytes, graph.workflow_bytes())


def require_fits(package: Package, values: Mapping[str, Any]) -> None:
    """Refuse a run that would fail at its last step for its size alone.

    Args:
        package: The pipeline, with the images that are to run.
        values: The run parameters that are not left at their defaults.

    Raises:
        SettingError: An input or the Workflow would be too large.
    """
    # Without a number: as many as there may be.
    shards = package.with_defaults(values)["num_shards"] or MAX_SHARDS
    found = sizes(package, values, shards)
    if found.input_bytes > MAX_INPUT_BYTES:
        raise SettingError(
            "num_shards",
            f"got {shards}, with which the input of {found.task} would have {found.input_bytes} bytes; no process "
            f"starts with more than {MAX_INPUT_BYTES}. Take fewer shards.",
        )
    if found.workflow_bytes > MAX_WORKFLOW_BYTES:
        raise SettingError(
            "num_shards",
            f"got {shards}, with which the Workflow would have {found.workflow_bytes} bytes; Argo takes "
            f"{MAX_WORKFLOW_BYTES}. Take fewer shards or shorter values.",
        )


class _Graph:
    """The steps of a run, and what Kubeflow writes about each."""

    def __init__(self, package: Package, values: Mapping[str, Any], shards: int) -> None:
        self._spec, self._platform, self._shards = package.spec, package.platform, shards
        self._values = package.with_defaults(values)

    def inputs(self) -> Iterator[tuple[str, int]]:
        """Every container step with the bytes of its input."""
        for name, task, inside in self._tasks(self._spec["root"]["dag"], self._values):
            if "container" in self._executor(task):
                yield name, len(self._executor_input(name, task, inside))

    def workflow_bytes(self) -> int:
        """Bytes of the nodes of a finished Workflow, as Argo compresses them: gzip, then base64."""
        nodes: dict[str, Any] = {}
        for name, task, known in self._tasks(self._spec["root"]["dag"], self._values):
            for iteration in range(known.get(_ITERATIONS, 1)):
                for kind, parameters in self._nodes(name, task, known):
                    digest = hashlib.sha256(f"{name}.{iteration}.{kind}".encode()).hexdigest()
                    nodes[f"free2ds-{digest[:10]}"] = _node(digest, f"{name}.{iteration}.{kind}", parameters)
        # By name, as Go does: neighbours are of different tasks, and what is alike lies too far apart to be compressed.
        found = base64.b64encode(gzip.compress(json.dumps(nodes, sort_keys=True).encode()))
        return int(_NODES_FACTOR * len(found))

    def _tasks(
        self, dag: Mapping[str, Any], known: Mapping[str, Any]
    ) -> Iterator[tuple[str, Mapping[str, Any], dict[str, Any]]]:
        """Every task, graphs too, with its values; those in a loop have `_ITERATIONS`."""
        loops = {name: self._count(task, known) for name, task in dag["tasks"].items() if "parameterIterator" in task}
        for name, task in dag["tasks"].items():
            given: dict[str, Any] = {_LOOPS: loops}
            if name in loops or _ITERATIONS in known:
                given[_ITERATIONS] = loops.get(name) or known[_ITERATIONS]
            for parameter, source in task.get("inputs", {}).get("parameters", {}).items():
                if "runtimeValue" in source:
                    given[parameter] = source["runtimeValue"]["constant"]
                else:
                    given[parameter] = known.get(source.get("componentInputParameter"), _UNKNOWN_VALUE)
            yield name, task, given
            component = self._spec["components"][task["componentRef"]["name"]]
            if "dag" in component:
                yield from self._tasks(component["dag"], given)

    def _count(self, task: Mapping[str, Any], known: Mapping[str, Any]) -> int:
        """Iterations of a loop: of a run parameter its length, and else it is that over the shards."""
        items = task["parameterIterator"]["items"]
        source = task["inputs"]["parameters"].get(items.get("inputParameter"), {}).get("componentInputParameter")
        listed = known.get(source)
        return len(listed) if isinstance(listed, list) else self._shards

    def _component(self, task: Mapping[str, Any]) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._spec["components"][task["componentRef"]["name"]]
        return found

    def _executor(self, task: Mapping[str, Any]) -> Mapping[str, Any]:
        executors = self._spec["deploymentSpec"]["executors"]
        found: Mapping[str, Any] = executors.get(self._component(task).get("executorLabel"), {})
        return found

    def _executor_input(self, name: str, task: Mapping[str, Any], known: Mapping[str, Any]) -> str:
        component = self._component(task)
        artifacts = {}
        for port, definition in component.get("inputDefinitions", {}).get("artifacts", {}).items():
            collected = definition.get("isArtifactList", False)
            source = task.get("inputs", {}).get("artifacts", {}).get(port, {}).get("taskOutputArtifact", {})
            count = known[_LOOPS].get(source.get("producerTask"), self._shards) if collected else 1
            metadata = COLLECTED_METADATA_BYTES if collected or port in _AS_COLLECTED else METADATA_BYTES
            artifacts[port] = [_artifact("llava-attention", "attention", metadata)] * count
        outputs = component.get("outputDefinitions", {})
        return json.dumps(
            {
                "inputs": {
                    "parameterValues": {key: value for key, value in known.items() if key[0] != "{"},
                    "artifacts": {port: {"artifacts": found} for port, found in artifacts.items()},
                },
                "outputs": {
                    "artifacts": {
                        port: {"artifacts": [_artifact(name, port, 0)]} for port in outputs.get("artifacts", {})
                    },
                    "parameters": {
                        port: {"outputFile": f"/tmp/kfp/outputs/{port}"} for port in outputs.get("parameters", {})
                    },
                    "outputFile": "/tmp/kfp_outputs/output_metadata.json",
                },
            }
        )

    def _nodes(
        self, name: str, task: Mapping[str, Any], known: Mapping[str, Any]
    ) -> Iterator[tuple[str, dict[str, str]]]:
        """The nodes of one task, each with its parameters: Argo repeats them from driver to pod."""
        executor = self._executor(task)
        described = {"component": json.dumps(self._component(task)), "task": json.dumps(task), "parent-dag-id": "1234"}
        if "container" not in executor:
            yield "driver", {**described, "execution-id": "12345", "condition": "true"}
            yield "dag", described
            return
        container = executor["container"]
        kubernetes = self._platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {})
        own = kubernetes.get("executors", {}).get(self._component(task)["executorLabel"], {})
        patch = json.dumps({"input": self._executor_input(name, task, known), **container})
        yield "driver", {**described, "container": json.dumps(container), "kubernetes-config": json.dumps(own)}
        for kind in ("driver-output", "executor", "pod"):
            yield kind, {"pod-spec-patch": patch, "cached-decision": "false"}


def _artifact(task: str, port: str, metadata_bytes: int) -> dict[str, str]:
    uri = f"{_ROOT}/free2ds/{_UUID}/{task}/{_UUID}/{port}"
    return {"uri": uri, "": "0" * (_ARTIFACT_BYTES + metadata_bytes)}


def _node(digest: str, name: str, parameters: Mapping[str, str]) -> dict[str, Any]:
    """A node as Argo keeps it; ids differ from node to node, which is what does not compress."""
    return {
        "id": f"free2ds-{digest[:10]}",
        "name": name,
        "displayName": name,
        "type": "Pod",
        "templateScope": "local/entrypoint",
        "phase": "Succeeded",
        "boundaryID": digest[10:20],
        "startedAt": "2026-01-01T00:00:00Z",
        "finishedAt": "2026-01-01T00:00:00Z",
        "resourcesDuration": {"cpu": 1, "memory": 1},
        "inputs": {
            "parameters": [{"name": key, "value": value.replace(_UUID, digest)} for key, value in parameters.items()]
        },
        "children": [digest[20:30]],
        "hostNodeName": "node-1",
    }
