"""What the compiled pipeline says to a backend."""

import dataclasses
import importlib
import json
import re

import pytest

import pipeline
from free2ds_common.launch.package import Package, descriptions
from free2ds_common.launch.resources import ResourceSettings
from free2ds_common.settings import Versions as VersionSettings

GPU_TASKS = ["llava-attention", "mgm-attention", "bert-features"]
CPU_TASKS = ["ingest", "split", "cluster-scoring", "joint-selection"]
VERSIONS = {field.name for field in dataclasses.fields(VersionSettings)}
RESOURCES = {field.name for field in dataclasses.fields(ResourceSettings)}
# What the compiler itself adds to a task whose resources are run parameters.
RESOURCE_INPUTS = ("pipelinechannel--", "cpu_request", "memory_request", "accelerator_")


def task_of(compiled, name):
    return (compiled.tasks("score-shard") if name in ("llava-attention", "mgm-attention") else compiled.tasks("root"))[
        name
    ]


def resource(parameter):
    return "{{$.inputs.parameters['pipelinechannel--" + parameter + "']}}"


@pytest.mark.parametrize("name", GPU_TASKS)
def test_gpu_steps_ask_for_an_accelerator_by_run_parameters(compiled, name):
    assert compiled.container(name)["resources"] == {
        "accelerator": {"resourceType": resource("gpu_type"), "resourceCount": resource("gpu_count")},
        "resourceCpuRequest": resource("gpu_step_cpu"),
        "resourceMemoryRequest": resource("gpu_step_memory"),
    }
    parameters = task_of(compiled, name)["inputs"]["parameters"]
    for parameter in ("gpu_type", "gpu_count", "gpu_step_cpu", "gpu_step_memory"):
        assert parameters[f"pipelinechannel--{parameter}"] == {"componentInputParameter": parameter}


@pytest.mark.parametrize("name", GPU_TASKS)
def test_gpu_steps_carry_selector_tolerations_and_shared_memory(compiled, name):
    assert compiled.kubernetes(name) == {
        "nodeSelector": {"nodeSelectorJson": {"componentInputParameter": "node_selector"}},
        "tolerations": [{"tolerationJson": {"componentInputParameter": "tolerations"}}],
        "emptyDirMounts": [{"volumeName": "shm", "mountPath": "/dev/shm", "medium": "Memory", "sizeLimit": "8Gi"}],
    }


@pytest.mark.parametrize("name", CPU_TASKS)
def test_other_steps_ask_for_cpu_and_memory_and_for_no_accelerator(compiled, name):
    assert compiled.container(name)["resources"] == {
        "resourceCpuRequest": resource("cpu_step_cpu"),
        "resourceMemoryRequest": resource("cpu_step_memory"),
    }
    assert compiled.kubernetes(name) == {}


@pytest.mark.parametrize("name", GPU_TASKS + CPU_TASKS)
def test_every_step_is_tried_again(compiled, name):
    assert task_of(compiled, name)["retryPolicy"] == {
        "maxRetryCount": 2,
        "backoffDuration": "60s",
        "backoffFactor": 2.0,
        "backoffMaxDuration": "600s",
    }


@pytest.mark.parametrize("name", GPU_TASKS + CPU_TASKS)
def test_every_step_runs_in_its_own_image_and_installs_nothing(compiled, name):
    container = compiled.container(name)
    assert container["image"] == f"free2ds-{name}:dev"
    assert "pip" not in " ".join(container["command"][:3])


def test_there_is_nothing_but_the_seven_stages_and_the_importer(compiled):
    executors = set(compiled.spec["deploymentSpec"]["executors"])
    assert executors == {f"exec-{name}" for name in [*GPU_TASKS, *CPU_TASKS, "importer"]}


def test_gpu_defaults_of_the_pipeline(compiled):
    inputs = compiled.spec["root"]["inputDefinitions"]["parameters"]
    assert inputs["gpu_type"]["defaultValue"] == "nvidia.com/gpu"
    assert inputs["gpu_count"]["defaultValue"] == "1"
    assert inputs["node_selector"]["defaultValue"] == {"nvidia.com/gpu.present": "true"}
    assert inputs["tolerations"]["defaultValue"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]


def test_only_the_two_locations_must_be_given_and_every_parameter_is_described(compiled):
    inputs = compiled.spec["root"]["inputDefinitions"]["parameters"]
    assert {name for name, definition in inputs.items() if not definition.get("isOptional")} == {
        "dataset_uri",
        "image_root_uri",
    }
    assert all(definition["description"] for definition in inputs.values())


def test_the_loop_runs_one_nested_pipeline_per_shard(compiled):
    loop = compiled.tasks("root")["for-loop-1"]
    assert loop["parameterIterator"]["items"] == {"inputParameter": "pipelinechannel--split-Output"}
    assert loop["iteratorPolicy"] == {"parallelismLimit": 8}
    assert list(compiled.tasks("for-loop-1")) == ["score-shard"]
    assert set(compiled.tasks("score-shard")) == {"importer", "llava-attention", "mgm-attention"}


def test_each_shard_is_imported_by_its_uri_and_handed_to_both_models(compiled):
    tasks = compiled.tasks("score-shard")
    assert tasks["importer"]["inputs"]["parameters"]["uri"] == {"componentInputParameter": "shard_uri"}
    importer = compiled.spec["deploymentSpec"]["executors"]["exec-importer"]["importer"]
    assert importer["typeSchema"]["schemaTitle"] == "system.Dataset"
    assert importer["metadata"] == {"display_name": "shard"}
    assert "reimport" not in importer
    for name in ("llava-attention", "mgm-attention"):
        assert tasks[name]["inputs"]["artifacts"]["shard"]["taskOutputArtifact"]["producerTask"] == "importer"


def test_the_selection_collects_the_maps_of_all_shards(compiled):
    artifacts = compiled.tasks("root")["joint-selection"]["inputs"]["artifacts"]
    producers = {
        port: (source["taskOutputArtifact"]["producerTask"], source["taskOutputArtifact"]["outputArtifactKey"])
        for port, source in artifacts.items()
    }
    assert producers == {
        "records": ("ingest", "records"),
        "llava_attention": ("for-loop-1", "pipelinechannel--score-shard-llava"),
        "mgm_attention": ("for-loop-1", "pipelinechannel--score-shard-mgm"),
        "text_scores": ("cluster-scoring", "scores"),
        "kmeans": ("cluster-scoring", "kmeans"),
    }
    inputs = compiled.component("joint-selection")["inputDefinitions"]["artifacts"]
    assert inputs["llava_attention"]["isArtifactList"]
    assert inputs["mgm_attention"]["isArtifactList"]


def test_the_pipeline_hands_out_its_results(compiled):
    outputs = compiled.spec["root"]["dag"]["outputs"]["artifacts"]
    assert {name: output["artifactSelectors"][0]["producerSubtask"] for name, output in outputs.items()} == {
        "selected": "joint-selection",
        "scores": "joint-selection",
        "report": "joint-selection",
        "summary": "joint-selection",
        "random": "joint-selection",
        "baseline": "joint-selection",
        "rejects": "ingest",
    }


def test_every_step_may_use_the_cache_and_knows_the_versions_of_what_it_reads(compiled):
    for name in GPU_TASKS + CPU_TASKS:
        assert task_of(compiled, name)["cachingOptions"] == {"enableCache": True}
        parameters = compiled.component(name)["inputDefinitions"]["parameters"]
        assert "code_version" in parameters
        assert ("dataset_uri" in parameters) == ("dataset_version" in parameters)
        assert ("image_root_uri" in parameters) == ("image_root_version" in parameters)
        assert ("kmeans_uri" in parameters) == ("kmeans_version" in parameters)


def class_of(stage, kind):
    name = "".join(word.capitalize() for word in stage.split("_")) + kind
    return getattr(importlib.import_module(f"components.{stage}.config"), name)


def fields_of(stage, kind):
    return {field.name: field for field in dataclasses.fields(class_of(stage, kind))}


# The graph has one BERT step; from a shell several may share the work.
SHELL_ONLY = {"bert_features": {"part"}}
STAGES = [name.replace("-", "_") for name in GPU_TASKS + CPU_TASKS]
TYPES = {"STRING": str, "NUMBER_INTEGER": int, "NUMBER_DOUBLE": float, "BOOLEAN": bool}
# Beside settings and versions: whether a step was given a GPU decides whether it must have one.
GPU_ECHO = {"gpu_count"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_components_signature_is_its_config(compiled, stage):
    """Parameters are the settings and the versions, artifacts the ports; nothing is left out or there twice."""
    component = compiled.component(stage.replace("_", "-"))
    inputs, outputs = component["inputDefinitions"], component["outputDefinitions"]
    settings = fields_of(stage, "Settings")
    parameters = {
        name: TYPES[definition["parameterType"]]
        for name, definition in inputs["parameters"].items()
        if not name.startswith(RESOURCE_INPUTS) and name not in VERSIONS | GPU_ECHO
    }
    assert parameters == {name: field.type for name, field in settings.items()}
    ports = set(inputs.get("artifacts", {})) | set(outputs["artifacts"])
    assert ports == set(fields_of(stage, "Config")) - set(settings) - SHELL_ONLY.get(stage, set())


@pytest.mark.parametrize("stage", STAGES)
def test_every_parameter_and_port_of_a_step_is_described_by_its_config(compiled, stage):
    component = compiled.component(stage.replace("_", "-"))
    known = descriptions(ResourceSettings) | descriptions(class_of(stage, "Config")) | descriptions(VersionSettings)
    for definitions in (component["inputDefinitions"], component["outputDefinitions"]):
        for name, definition in {**definitions.get("parameters", {}), **definitions.get("artifacts", {})}.items():
            if name.startswith(RESOURCE_INPUTS) or name == "Output":
                continue
            assert definition["description"] == known[name], name


@pytest.mark.parametrize("stage", STAGES)
def test_a_component_says_what_its_config_says(stage):
    """One sentence for the folder, the command line and the graph."""
    component = getattr(importlib.import_module(f"components.{stage}.component"), stage)
    sentence = component.component_spec.description or component.python_func.__doc__
    assert sentence == class_of(stage, "Config").__doc__.partition("\n")[0]


def test_the_pipelines_defaults_are_the_settings():
    """Each run parameter has the default of every setting that it becomes; resources and versions likewise."""
    package = Package.compile(pipeline.free2ds)
    wanted = {}
    for task in package.stage_tasks:
        defaults = {**fields_of(task.stage, "Settings"), **{f.name: f for f in dataclasses.fields(VersionSettings)}}
        for name, source in task.sources.items():
            if name in defaults and source not in RESOURCES:
                wanted.setdefault(source, set()).add(defaults[name].default)
    for field in dataclasses.fields(ResourceSettings()):
        wanted.setdefault(field.name, set()).add(json.dumps(getattr(ResourceSettings(), field.name), sort_keys=True))
    assert set(wanted) == set(package.parameters)
    # Only the report's pictures need it in joint_selection, so a shell may leave it out.
    wanted["image_root_uri"].discard("")
    for name, parameter in package.parameters.items():
        (default,) = wanted[name]
        given = json.dumps(parameter.default, sort_keys=True) if name in RESOURCES else parameter.default
        assert (dataclasses.MISSING if parameter.required else given) == default, name


def test_every_setting_of_every_step_comes_from_a_run_parameter():
    for task in Package.compile(pipeline.free2ds).stage_tasks:
        assert set(fields_of(task.stage, "Settings")) <= set(task.sources), task.stage


def resource_fields(executor):
    """The run-time references in a container's resources, whatever the field."""
    return re.findall(r"inputs\.parameters\['([^']+)'\]", json.dumps(executor["container"]["resources"]))


def test_no_resource_refers_to_a_parameter_that_is_not_text(compiled):
    """The driver reads accelerator counts as text only: a number becomes "", and the limit is left out."""
    inputs = compiled.spec["root"]["inputDefinitions"]["parameters"]
    seen = set()
    for name in GPU_TASKS + CPU_TASKS:
        executor = compiled.spec["deploymentSpec"]["executors"][f"exec-{name}"]
        for reference in resource_fields(executor):
            parameter = reference.removeprefix("pipelinechannel--")
            assert inputs[parameter]["parameterType"] == "STRING", parameter
            assert task_of(compiled, name)["inputs"]["parameters"][reference] == {"componentInputParameter": parameter}
            seen.add(parameter)
    assert seen == {"gpu_type", "gpu_count", "gpu_step_cpu", "gpu_step_memory", "cpu_step_cpu", "cpu_step_memory"}
    nested = compiled.component("score-shard")["inputDefinitions"]["parameters"]
    assert {nested[name]["parameterType"] for name in seen & set(nested)} == {"STRING"}


def test_the_pipelines_page_has_one_sentence(compiled):
    """KFP would take the whole docstring, which is for who reads the code."""
    assert compiled.spec["pipelineInfo"] == {
        "name": "free2ds",
        "description": "Select the records of a LLaVA data set that are worth training on.",
    }
