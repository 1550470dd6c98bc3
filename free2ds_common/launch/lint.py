"""Looks at a compiled pipeline for what Kubeflow Pipelines 2.17 accepts and then does wrong.

Each rule is a trap that was met on a backend or with `kfp.local`: most of them are no error anywhere, but a value that
is another, an artifact of many, or a step without its GPU.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from free2ds_common.errors import StageError
from free2ds_common.launch.limits import (
    MAX_INPUT_BYTES,
    MAX_SHARDS,
    MAX_WORKFLOW_BYTES,
    WANTED_INPUT_BYTES,
    Sizes,
    sizes,
)
from free2ds_common.launch.package import Package

# Of the compiled file.
MAX_SPEC_BYTES = 300_000
_REFERENCE = re.compile(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}")
# The only output of a component that returns one value.
_SINGLE = "Output"
_FOLDER = re.compile(r"[\w-]+")
_LONG = {"dataset_uri": f"s3://{'b' * 63}/data/dataset.json", "image_root_uri": f"s3://{'b' * 63}/data/images"}


@dataclass(frozen=True)
class _Task:
    """A task of the graph.

    Attributes:
        name: Its name.
        spec: What the compiler wrote of it.
        component: What it runs.
        executor: Of a container or an importer; empty for a graph.
        dag: The graph that it is in.
        of_loop: Whether that graph is the body of a loop.
        parameters: What the graph around it is given: the type of each parameter.
    """

    name: str
    spec: Mapping[str, Any]
    component: Mapping[str, Any]
    executor: Mapping[str, Any]
    dag: Mapping[str, Any]
    of_loop: bool
    parameters: Mapping[str, str]

    @property
    def inputs(self) -> Mapping[str, Mapping[str, Any]]:
        """Where its parameters come from."""
        found: Mapping[str, Mapping[str, Any]] = self.spec.get("inputs", {}).get("parameters", {})
        return found

    @property
    def artifacts(self) -> Mapping[str, Mapping[str, Any]]:
        """Where its artifacts come from."""
        found: Mapping[str, Mapping[str, Any]] = self.spec.get("inputs", {}).get("artifacts", {})
        return found

    def defined(self, kind: str) -> Mapping[str, Any]:
        """The component's inputs: "parameters" or "artifacts"."""
        found: Mapping[str, Any] = self.component.get("inputDefinitions", {}).get(kind, {})
        return found

    @property
    def resources(self) -> Mapping[str, Any]:
        """What a container asks for."""
        found: Mapping[str, Any] = self.executor.get("container", {}).get("resources", {})
        return found


def require_sound(package: Package) -> None:
    """Refuse a pipeline in which `problems` finds any.

    Raises:
        StageError: One sentence for all of them.
    """
    if found := problems(package):
        raise StageError(f"the pipeline would not do what it says: {' '.join(found)}")


def problems(package: Package) -> list[str]:
    """What is wrong with a compiled pipeline, a sentence each."""
    found = []
    for task in _tasks(package):
        for rule in (_inputs, _loop, _lists, _importer, _resources, _cache, _text):
            found += [f"{task.name}: {sentence}" for sentence in rule(task)]
    return [*found, *_outputs(package), *_platform(package), *_defaults(package), *_too_large(package)]


def largest(package: Package) -> Sizes:
    """The sizes of the largest run: most shards, long names of buckets."""
    return sizes(package, {name: text for name, text in _LONG.items() if name in package.parameters}, MAX_SHARDS)


def _tasks(package: Package) -> Iterator[_Task]:
    """Every task, of nested graphs too."""

    def walk(component: Mapping[str, Any], of_loop: bool) -> Iterator[_Task]:
        definitions = component.get("inputDefinitions", {}).get("parameters", {})
        types = {name: definition["parameterType"] for name, definition in definitions.items()}
        dag = component["dag"]
        for name, task in dag["tasks"].items():
            runs = package.spec["components"][task["componentRef"]["name"]]
            executor = package.spec["deploymentSpec"]["executors"].get(runs.get("executorLabel"), {})
            yield _Task(name, task, runs, executor, dag, of_loop, types)
            if "dag" in runs:
                yield from walk(runs, "parameterIterator" in task)

    yield from walk(package.spec["root"], False)


def _inputs(task: _Task) -> Iterator[str]:
    """Everything a task needs is there, and comes from where something is."""
    for kind, given in (("parameters", task.inputs), ("artifacts", task.artifacts)):
        for name, definition in task.defined(kind).items():
            if name not in given and not definition.get("isOptional", False):
                # What a loop makes for its body.
                if "parameterIterator" in task.spec and name == task.spec["parameterIterator"]["itemInput"]:
                    continue
                yield f"input {name} is given by nobody."
    for name, source in task.inputs.items():
        if "componentInputParameter" in source and source["componentInputParameter"] not in task.parameters:
            yield f"input {name} comes from {source['componentInputParameter']}, which its graph is not given."
    for name, source in (*task.inputs.items(), *task.artifacts.items()):
        for reference in ("taskOutputParameter", "taskOutputArtifact"):
            if reference in source and source[reference]["producerTask"] not in task.dag["tasks"]:
                yield f"input {name} comes from {source[reference]['producerTask']}, which is not in its graph."


def _loop(task: _Task) -> Iterator[str]:
    """What `kfp.local` replaces by the loop's item, and what no loop may hold."""
    if task.of_loop:
        if "dag" not in task.component:
            yield "stands in a loop's own body; a loop's body is one nested pipeline."
        if "parameterIterator" in task.spec:
            yield "is a loop in a loop's own body, whose item replaces the outer one's."
        for name, source in task.inputs.items():
            if "taskOutputParameter" in source:
                yield f"input {name} is made in the loop, where the item replaces it (locally)."
    if "parameterIterator" not in task.spec:
        return
    if "inputParameter" not in task.spec["parameterIterator"]["items"]:
        yield "loops over a constant."
    for name, source in task.inputs.items():
        output = source.get("taskOutputParameter")
        if output and name != task.spec["parameterIterator"]["items"].get("inputParameter"):
            yield f"{name} is made by {output['producerTask']}, and the loop's item replaces it (locally)."
        if output and output["outputParameterKey"] != _SINGLE:
            yield f"loops over {output['outputParameterKey']}, one of several outputs; only a single one works."


def _lists(task: _Task) -> Iterator[str]:
    """Collected artifacts go to a step at the loop's own level, and are no importer's."""
    for name, definition in task.defined("artifacts").items():
        if definition.get("isArtifactList") and "dag" in task.component:
            yield f"{name} is a list of artifacts for a nested graph, which gets one of them."
    for name, source in task.artifacts.items():
        output = source.get("taskOutputArtifact", {})
        producer = task.dag["tasks"].get(output.get("producerTask"), {})
        if "parameterIterator" in producer and not task.defined("artifacts")[name].get("isArtifactList"):
            yield f"{name} is of a loop, and not taken as a list."


def _importer(task: _Task) -> Iterator[str]:
    """An importer's URI is an input as it stands, and its artifact has a name."""
    importer = task.executor.get("importer")
    if importer is None:
        return
    uri = importer["artifactUri"]
    if "constant" in uri and "{{" in str(uri["constant"]):
        yield "the URI is put together from parameters, which the backend takes literally."
    if importer.get("reimport"):
        yield "imports anew each time, so that nothing after it is taken from the cache."
    if not importer.get("metadata", {}).get("display_name"):
        yield "its artifact has no display_name."


def _resources(task: _Task) -> Iterator[str]:
    """The driver reads text alone, and fails at resources of a loop's own body."""
    references = _REFERENCE.findall(json.dumps(task.resources))
    if references and task.of_loop:
        yield "its resources are parameters in a loop's own body, where the driver fails."
    for reference in references:
        source = task.inputs.get(reference, {}).get("componentInputParameter")
        kind = task.parameters.get(str(source), "")
        if kind != "STRING":
            yield f"its resource {source} is a {kind or 'missing parameter'}; the driver passes over what is no text."


def _cache(task: _Task) -> Iterator[str]:
    """What an uncached step makes has a new id each time."""
    if not task.spec.get("cachingOptions", {}).get("enableCache"):
        return
    for name, source in task.artifacts.items():
        producer = task.dag["tasks"].get(source.get("taskOutputArtifact", {}).get("producerTask"), {})
        made_by_step = "iterator" not in json.dumps(producer) and producer.get("componentRef")
        if made_by_step and not producer.get("cachingOptions", {}).get("enableCache") and "dag" not in task.component:
            yield f"may be cached, but {name} comes from a step that is not, and is another each time."


def _text(task: _Task) -> Iterator[str]:
    """Names that become folders, and nothing installed when a pod starts."""
    container = task.executor.get("container")
    if container is None:
        return
    shown = task.spec["taskInfo"]["name"]
    if not _FOLDER.fullmatch(shown):
        yield f"is shown as {shown!r}; the backend makes folders of it, so letters, digits and dashes are safe."
    if re.search(r"pip3? install", json.dumps([container.get("command", []), container.get("args", [])])):
        yield "installs packages when its pod starts."
    if "condition" in task.spec.get("triggerPolicy", {}):
        yield "runs under a condition, which is false without a word where its value is a named output (locally)."
    for definition in (*task.defined("parameters").values(), *task.defined("artifacts").values()):
        if "description" in definition:
            yield "describes its inputs, which the Workflow repeats for every shard and no page shows."
            return


def _outputs(package: Package) -> Iterator[str]:
    """No output is one of several."""
    for name, component in {"root": package.spec["root"], **package.spec["components"]}.items():
        for output, definition in component.get("dag", {}).get("outputs", {}).get("artifacts", {}).items():
            if len(definition.get("artifactSelectors", [])) != 1:
                yield f"{name}: output {output} is one of several artifacts."


def _platform(package: Package) -> Iterator[str]:
    """What only Kubernetes reads: no volume without a name, and credentials that may be missing."""
    platform = package.platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {})
    for name, pod in platform.get("executors", {}).items():
        for mount in pod.get("pvcMount", []):
            given = mount.get("pvcNameParameter", {}).get("runtimeValue", {}).get("constant")
            if not (given or mount.get("constant")):
                yield f"{name}: a volume whose name is a parameter; the driver fails where it is empty."
        for kind in ("secretAsEnv", "configMapAsEnv"):
            if not all(one.get("optional") for one in pod.get(kind, [])):
                yield f"{name}: {kind} is not optional, so that the step needs it to exist."


def _defaults(package: Package) -> Iterator[str]:
    """Numbers inside dictionaries and lists arrive as floats."""
    for name, parameter in package.parameters.items():
        if parameter.kind in (dict, list) and _holds_number(parameter.default):
            yield f"{name}: its default holds a number, which arrives as a float."


def _holds_number(value: object) -> bool:
    if isinstance(value, dict | list):
        return any(_holds_number(inner) for inner in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def _too_large(package: Package) -> Iterator[str]:
    """The largest run fits, and so does the file."""
    written = len(yaml.safe_dump_all([dict(package.spec), dict(package.platform)]).encode())
    if written > MAX_SPEC_BYTES:
        yield f"the file has {written} bytes, more than {MAX_SPEC_BYTES}."
    found = largest(package)
    if found.input_bytes > WANTED_INPUT_BYTES:
        yield (
            f"{found.task}: its input would have {found.input_bytes} bytes with {MAX_SHARDS} shards, more than "
            f"{WANTED_INPUT_BYTES}; {MAX_INPUT_BYTES} start no process."
        )
    if found.workflow_bytes > MAX_WORKFLOW_BYTES:
        yield (
            f"the Workflow would have {found.workflow_bytes} bytes with {MAX_SHARDS} shards, more than "
            f"{MAX_WORKFLOW_BYTES}."
        )
