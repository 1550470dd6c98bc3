"""A compiled pipeline as one object: what a backend reads, its images, its parameters and how they reach the stages."""

import copy
import importlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import docstring_parser
import yaml
from kfp import compiler, dsl

from free2ds_common.launch.resources import LoopSettings, ResourceSettings
from free2ds_common.run_facts import IMAGE
from free2ds_common.settings import Settings, Versions
from free2ds_common.storage import atomic_writer

# The compiler's name of a parameter's type to Python's.
PARAMETER_TYPES: dict[str, type] = {
    "STRING": str,
    "NUMBER_INTEGER": int,
    "NUMBER_DOUBLE": float,
    "BOOLEAN": bool,
    "STRUCT": dict,
    "LIST": list,
}


@dataclass(frozen=True)
class Parameter:
    """A run parameter.

    Attributes:
        kind: One of the types in `PARAMETER_TYPES`.
        required: It has no default.
        default: None where it is required.
        description: What it is.
    """

    kind: type
    required: bool
    default: Any
    description: str

    @classmethod
    def of(cls, definition: Mapping[str, Any]) -> "Parameter":
        """Read an entry of `inputDefinitions`."""
        kind = PARAMETER_TYPES[definition["parameterType"]]
        required = not definition.get("isOptional", False)
        # The spec holds whole numbers as floats.
        default = None if required else kind(definition["defaultValue"])
        return cls(kind, required, default, definition.get("description", ""))


# Steps without a folder of their own in components/, with that of the stage whose image they run in.
_FOLDERS = {"demand": "reuse"}


@dataclass(frozen=True, kw_only=True)
class _Origin:
    """Where a task's parameter comes from: a run parameter, a constant, or a task's output; one of them."""

    source: str = ""
    constant: Any = None
    made: str = ""


@dataclass(frozen=True)
class StageTask:
    """A step of the graph, wherever it is nested.

    Attributes:
        stage: Name of the function, and of its folder in components/ if it has one of its own.
        component: Its entry in the spec's `components`.
        sources: The stage's parameter to the run parameter that it comes from, where it comes from one.
        constants: The stage's parameter to the value that the graph gives it, where that is fixed.
        made: The stage's parameter to the task of the root and its output that it comes from, where a task makes it.
    """

    stage: str
    component: str
    sources: Mapping[str, str]
    constants: Mapping[str, Any]
    made: Mapping[str, str]

    def settings_class(self) -> type[Settings]:
        """`<Stage>Settings` of the stage's config.py."""
        return self._config("Settings")

    def config_class(self) -> type[Settings]:
        """`<Stage>Config` of the stage's config.py: the settings and the ports."""
        return self._config("Config")

    def _config(self, suffix: str) -> type[Settings]:
        folder = _FOLDERS.get(self.stage, self.stage)
        name = "".join(word.capitalize() for word in self.stage.split("_")) + suffix
        found: type[Settings] = getattr(importlib.import_module(f"components.{folder}.config"), name)
        return found


@dataclass(frozen=True)
class Package:
    """A compiled pipeline.

    Attributes:
        spec: The pipeline spec.
        platform: The platform spec: what only Kubernetes reads; empty where there is none.
    """

    spec: Mapping[str, Any]
    platform: Mapping[str, Any]

    @classmethod
    def compile(cls, pipeline: dsl.base_component.BaseComponent) -> "Package":
        """Compile a pipeline and describe its parameters and ports by the stages' own settings.

        Args:
            pipeline: A function under `@dsl.pipeline`.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pipeline.yaml"
            compiler.Compiler().compile(pipeline, str(path))
            spec, *platforms = yaml.safe_load_all(path.read_text(encoding="utf-8"))
        # As the function lists them; the compiler sorts them by name.
        definitions = spec["root"]["inputDefinitions"]
        definitions["parameters"] = {name: definitions["parameters"][name] for name in pipeline.component_spec.inputs}
        package = cls(spec, platforms[0] if platforms else {})
        package._describe()
        return package

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The run parameters by name."""
        definitions = self.spec["root"]["inputDefinitions"]["parameters"]
        return {name: Parameter.of(definition) for name, definition in definitions.items()}

    def with_defaults(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Every run parameter's value: the given one, else its default, which is None where it is required."""
        return {name: parameter.default for name, parameter in self.parameters.items()} | dict(values)

    @property
    def images(self) -> list[str]:
        """The images of all steps."""
        return sorted({container["image"] for container in self._containers()})

    @property
    def stage_tasks(self) -> list[StageTask]:
        """Every step that runs a stage."""
        inputs = {name: _Origin(source=name) for name in self.spec["root"]["inputDefinitions"]["parameters"]}
        return list(self._walk(self.spec["root"]["dag"], inputs))

    def with_images(self, name: Callable[[str], str]) -> "Package":
        """The same pipeline with its images named otherwise.

        Args:
            name: Image of the source tree to the image that is to run.
        """
        changed = copy.deepcopy(self)
        for container in changed._containers():
            container["image"] = name(container["image"])
            # For the manifests of what it makes: a process cannot ask which image it runs in.
            container["env"] = [{"name": IMAGE, "value": container["image"]}]
        return changed

    def without_retries(self) -> "Package":
        """The same pipeline with every task tried once."""
        changed = copy.deepcopy(self)
        for component in (changed.spec["root"], *changed.spec["components"].values()):
            for task in component.get("dag", {}).get("tasks", {}).values():
                task.pop("retryPolicy", None)
        return changed

    def write(self, path: Path) -> None:
        """Write the file that a backend takes, as the KFP compiler does: a YAML document of each."""
        with atomic_writer(path, "w") as handle:
            yaml.safe_dump_all([dict(document) for document in (self.spec, self.platform) if document], handle)

    def _containers(self) -> Iterator[dict[str, Any]]:
        for executor in self.spec["deploymentSpec"]["executors"].values():
            if "container" in executor:
                yield executor["container"]

    def _walk(self, dag: Mapping[str, Any], inputs: Mapping[str, "_Origin"]) -> Iterator[StageTask]:
        """The stages of a graph and of the graphs in it.

        Args:
            dag: The graph.
            inputs: Where the graph's inputs come from; those of a loop's own making are left out.
        """
        for task in dag["tasks"].values():
            name = task["componentRef"]["name"]
            component = self.spec["components"][name]
            # The compiler gives a task more inputs than its component defines, for its resources.
            defined = component.get("inputDefinitions", {}).get("parameters", {})
            known: dict[str, _Origin] = {}
            for parameter, given in task.get("inputs", {}).get("parameters", {}).items():
                if given.get("componentInputParameter") in inputs:
                    known[parameter] = inputs[given["componentInputParameter"]]
                elif "runtimeValue" in given and parameter in defined:
                    # The spec holds whole numbers as floats.
                    kind = PARAMETER_TYPES[defined[parameter]["parameterType"]]
                    known[parameter] = _Origin(constant=kind(given["runtimeValue"]["constant"]))
                elif "taskOutputParameter" in given:
                    output = given["taskOutputParameter"]
                    known[parameter] = _Origin(made=f"{output['producerTask']}.{output['outputParameterKey']}")
            if "dag" in component:
                yield from self._walk(component["dag"], known)
                continue
            executor = self.spec["deploymentSpec"]["executors"][component["executorLabel"]]
            if "container" in executor:
                arguments = executor["container"]["args"]
                stage = arguments[arguments.index("--function_to_execute") + 1]
                yield StageTask(
                    stage,
                    name,
                    sources={parameter: origin.source for parameter, origin in known.items() if origin.source},
                    constants={
                        parameter: origin.constant for parameter, origin in known.items() if origin.constant is not None
                    },
                    made={parameter: origin.made for parameter, origin in known.items() if origin.made},
                )

    def _describe(self) -> None:
        """Write the settings' descriptions to the run parameters; KFP knows those of docstrings only.

        Not to the steps: no page shows them there, and a Workflow repeats them in the nodes of every shard.
        """
        resources = descriptions(ResourceSettings) | descriptions(LoopSettings)
        of_run: dict[str, list[str]] = {name: [text] for name, text in resources.items()}
        for task in self.stage_tasks:
            texts = descriptions(Versions) | resources | descriptions(task.config_class())
            for parameter, source in task.sources.items():
                words = of_run.setdefault(source, [])
                # The run's own words go before a stage's.
                if parameter in texts and source not in resources and texts[parameter] not in words:
                    words.append(texts[parameter])
        for name, definition in self.spec["root"]["inputDefinitions"]["parameters"].items():
            if name in of_run:
                definition["description"] = " ".join(of_run[name])


def descriptions(settings: type) -> dict[str, str]:
    """The one-line description of each field, from the `Attributes` of a dataclass and of what it inherits from."""
    found: dict[str, str] = {}
    for cls in reversed(settings.__mro__):
        for attribute in docstring_parser.parse(cls.__doc__ or "", docstring_parser.DocstringStyle.GOOGLE).params:
            found[attribute.arg_name] = " ".join((attribute.description or "").split())
    return {field.name: found[field.name] for field in fields(settings) if field.name in found}
