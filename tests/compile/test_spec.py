"""What the compiled pipeline says to a backend."""

import argparse
import importlib

import pytest

import pipeline

GPU_TASKS = ["llava-attention", "mgm-attention", "bert-features"]
CPU_TASKS = ["ingest", "split", "cluster-scoring", "joint-selection"]
VERSIONS = {"dataset_version", "image_root_version", "code_version"}
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
    assert inputs["gpu_count"]["defaultValue"] == 1
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
    assert inputs["llava_attention"]["isArtifactList"] and inputs["mgm_attention"]["isArtifactList"]


def test_the_pipeline_hands_out_its_results(compiled):
    outputs = compiled.spec["root"]["dag"]["outputs"]["artifacts"]
    assert {name: output["artifactSelectors"][0]["producerSubtask"] for name, output in outputs.items()} == {
        "selected": "joint-selection",
        "scores": "joint-selection",
        "report": "joint-selection",
        "summary": "joint-selection",
        "random": "joint-selection",
        "rejects": "ingest",
    }


def test_every_step_may_use_the_cache_and_knows_the_versions_of_what_it_reads(compiled):
    for name in GPU_TASKS + CPU_TASKS:
        assert task_of(compiled, name)["cachingOptions"] == {"enableCache": True}
        parameters = compiled.component(name)["inputDefinitions"]["parameters"]
        assert "code_version" in parameters
        assert ("dataset_uri" in parameters) == ("dataset_version" in parameters)
        assert ("image_root_uri" in parameters) == ("image_root_version" in parameters)


class Captured(Exception):
    """Carries a stage's parser out of its main."""


def options_of(stage, monkeypatch) -> dict[str, argparse.Action]:
    def capture(parser, *_):
        raise Captured(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", capture)
    with pytest.raises(Captured) as caught:
        importlib.import_module(f"components.{stage}.__main__").main([])
    return {action.dest: action for action in caught.value.args[0]._actions if action.dest != "help"}


# LLaVA has one picture encoder, and the graph has one BERT step; from a shell both may be wanted.
SHELL_ONLY = {"llava_attention": {"vision_tower_aux"}, "bert_features": {"part"}}
STAGES = [name.replace("-", "_") for name in GPU_TASKS + CPU_TASKS]


@pytest.mark.parametrize("stage", STAGES)
def test_ports_and_parameters_are_the_options_of_the_command_line(compiled, stage, monkeypatch):
    component = compiled.component(stage.replace("_", "-"))
    inputs, outputs = component["inputDefinitions"], component["outputDefinitions"]
    parameters = {name for name in inputs["parameters"] if not name.startswith(RESOURCE_INPUTS)} - VERSIONS
    names = parameters | set(inputs.get("artifacts", {})) | set(outputs["artifacts"])
    options = set(options_of(stage, monkeypatch))
    assert names == options - SHELL_ONLY.get(stage, set())


@pytest.mark.parametrize("stage", STAGES)
def test_the_command_line_has_the_pipelines_defaults(compiled, stage, monkeypatch):
    tasks, inputs = {**compiled.tasks("root"), **compiled.tasks("score-shard")}, pipeline.free2ds.component_spec.inputs
    options = options_of(stage, monkeypatch)
    compared = set()
    for name, source in tasks[stage.replace("_", "-")]["inputs"]["parameters"].items():
        if name in options and not options[name].required:
            value = inputs[source["componentInputParameter"]]
            # A location that a user of the pipeline must give may be left out where it only adorns the report.
            assert options[name].default == (value.default if value.optional else ""), name
            compared.add(name)
    outputs = set(compiled.component(stage.replace("_", "-"))["outputDefinitions"]["artifacts"])
    with_default = {name for name, option in options.items() if not option.required}
    ports = outputs | set(compiled.component(stage.replace("_", "-"))["inputDefinitions"].get("artifacts", {}))
    assert compared == with_default - ports - SHELL_ONLY.get(stage, set())
