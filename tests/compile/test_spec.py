"""What the compiled pipeline says to a backend."""

import dataclasses
import importlib
import json
import re

import pytest

import pipeline
from components.resolve.wiring import LOOP, WIRING
from free2ds_common.launch.kfp_api.artifacts import outputs_of
from free2ds_common.launch.package import Package
from free2ds_common.launch.resources import ResourceSettings
from free2ds_common.settings import Versions as VersionSettings

GPU_TASKS = ["llava-attention", "mgm-attention", "bert-features"]
CPU_TASKS = ["resolve", "ingest", "reuse", "split", "cluster-scoring", "joint-selection"]
TASKS = [*GPU_TASKS, *CPU_TASKS]
# In which graph each step is.
GRAPHS = {"llava-attention": "score-llava", "mgm-attention": "score-mgm", "joint-selection": "score-and-select"}
VERSIONS = {field.name for field in dataclasses.fields(VersionSettings)}
RESOURCES = {field.name for field in dataclasses.fields(ResourceSettings)}
# What the compiler itself adds to a task whose resources are run parameters.
RESOURCE_INPUTS = ("pipelinechannel--", "cpu_request", "memory_request", "accelerator_")


def task_of(compiled, name):
    return compiled.tasks(GRAPHS.get(name, "root"))[name]


def resource(parameter):
    return "{{$.inputs.parameters['pipelinechannel--" + parameter + "']}}"


# Cores, memory, whether that is the limit too, and hours until the pod is ended.
NEEDS = {
    "resolve": ("1", "2Gi", False, 1),
    "ingest": ("4", "4Gi", True, 12),
    "reuse": ("4", "4Gi", True, 12),
    "split": ("1", "2Gi", True, 2),
    "llava-attention": ("4", "32Gi", False, 168),
    "mgm-attention": ("4", "32Gi", False, 168),
    "bert-features": ("4", "8Gi", False, 24),
    "cluster-scoring": ("4", "8Gi", True, 24),
    "joint-selection": ("2", "6Gi", True, 12),
}


@pytest.mark.parametrize("name", TASKS)
def test_what_a_step_needs_is_written_into_the_file(compiled, name):
    """As run parameters they would be a part of the step's inputs, and another value would lose what is finished."""
    cpu, memory, limited, hours = NEEDS[name]
    asked = compiled.container(name)["resources"]
    assert (asked["resourceCpuRequest"], asked["resourceMemoryRequest"]) == (cpu, memory)
    assert asked.get("resourceMemoryLimit") == (memory if limited else None)
    assert "resourceCpuLimit" not in asked
    assert compiled.kubernetes(name)["activeDeadlineSeconds"] == str(hours * 3600)


@pytest.mark.parametrize("name", GPU_TASKS)
def test_gpu_steps_ask_for_an_accelerator_by_run_parameters(compiled, name):
    assert compiled.container(name)["resources"]["accelerator"] == {
        "resourceType": resource("gpu_type"),
        "resourceCount": resource("gpu_count"),
    }
    parameters = task_of(compiled, name)["inputs"]["parameters"]
    for parameter in ("gpu_type", "gpu_count"):
        assert parameters[f"pipelinechannel--{parameter}"] == {"componentInputParameter": parameter}


@pytest.mark.parametrize("name", CPU_TASKS)
def test_other_steps_ask_for_no_accelerator(compiled, name):
    assert "accelerator" not in compiled.container(name)["resources"]


# What a step that reads from a store or the hub may be given, and as whom every step runs.
ACCESS = {
    "secretAsEnv": [
        {
            "secretNameParameter": {"componentInputParameter": "store_secret"},
            "keyToEnv": [
                {"secretKey": key, "envVar": key}
                for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "FSSPEC_GS", "HF_TOKEN")
            ],
            "optional": True,
        }
    ],
    "configMapAsEnv": [
        {
            "configMapNameParameter": {"componentInputParameter": "store_config_map"},
            "keyToEnv": [
                {"configMapKey": key, "envVar": key}
                for key in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "HF_ENDPOINT")
            ],
            "optional": True,
        }
    ],
}
RESTRICTED = {"securityContext": {"runAsUser": "10001", "runAsNonRoot": True}}


@pytest.mark.parametrize("name", TASKS)
def test_what_only_kubernetes_reads(compiled, name):
    found = dict(compiled.kubernetes(name))
    del found["activeDeadlineSeconds"]
    access = {} if name == "split" else ACCESS
    gpu = {
        "nodeSelector": {"nodeSelectorJson": {"componentInputParameter": "gpu_node_selector"}},
        "tolerations": [{"tolerationJson": {"componentInputParameter": "gpu_tolerations"}}],
        "emptyDirMounts": [{"volumeName": "shm", "mountPath": "/dev/shm", "medium": "Memory", "sizeLimit": "8Gi"}],
    }
    assert found == {**access, **RESTRICTED, **(gpu if name in GPU_TASKS else {})}


@pytest.mark.parametrize("name", TASKS)
def test_a_lost_pod_is_tried_again_but_not_the_check_of_the_set_up(compiled, name):
    wanted = {
        "maxRetryCount": 2,
        "backoffDuration": "60s",
        "backoffFactor": 2.0,
        "backoffMaxDuration": "600s",
    }
    assert task_of(compiled, name).get("retryPolicy") == (None if name == "resolve" else wanted)


DISPLAY_NAMES = {
    "resolve": "check-and-pin-versions",
    "ingest": "read-data-set",
    "reuse": "take-finished-results",
    "split": "split-for-LLaVA",
    "llava-attention": "LLaVA-attention",
    "mgm-attention": "MGM-attention",
    "bert-features": "text-features",
    "cluster-scoring": "text-scores",
    "joint-selection": "select-and-report",
}


@pytest.mark.parametrize("name", TASKS)
def test_steps_have_names_for_people(compiled, name):
    shown = task_of(compiled, name)["taskInfo"]["name"]
    assert shown == DISPLAY_NAMES[name]
    # The backend makes folders of them.
    assert re.fullmatch(r"[A-Za-z-]+", shown)


def test_graphs_have_names_for_people(compiled):
    assert compiled.tasks("root")["score-and-select"]["taskInfo"]["name"] == "Score all shards and select"
    for number, model, name in ((1, "llava", "LLaVA"), (2, "mgm", "MGM")):
        assert compiled.tasks("score-and-select")[f"for-loop-{number}"]["taskInfo"]["name"] == f"{model}-shards"
        assert compiled.tasks(f"for-loop-{number}")[f"score-{model}"]["taskInfo"]["name"] == f"One shard, {name}"
        assert compiled.tasks(f"score-{model}")["importer"]["taskInfo"]["name"] == "Shard"
    assert compiled.tasks("root")["split-2"]["taskInfo"]["name"] == "split-for-MGM"
    assert compiled.tasks("root")["demand"]["taskInfo"]["name"] == "say-which-GPUs-are-needed"


@pytest.mark.parametrize("name", TASKS)
def test_every_step_runs_in_its_own_image_and_installs_nothing(compiled, name):
    container = compiled.container(name)
    assert container["image"] == f"free2ds-{name}:dev"
    assert "pip" not in " ".join(container["command"][:3])


def test_there_is_nothing_but_the_stages_and_the_importers(compiled):
    executors = set(compiled.spec["deploymentSpec"]["executors"])
    assert executors == {f"exec-{name}" for name in [*TASKS, "split-2", "demand", "importer", "importer-2"]}


def test_what_says_which_gpus_are_needed(compiled):
    """In the image of reuse, for its two answers; it reads nothing else."""
    assert compiled.container("demand")["image"] == "free2ds-reuse:dev"
    parameters = compiled.tasks("root")["demand"]["inputs"]["parameters"]
    assert parameters == {
        **{name: {"componentInputParameter": name} for name in ("gpu_count", "gpu_node_selector", "gpu_tolerations")},
        **{
            name: {"taskOutputParameter": {"outputParameterKey": name, "producerTask": "reuse"}}
            for name in ("llava_new", "mgm_new")
        },
    }
    assert compiled.kubernetes("demand") == {"activeDeadlineSeconds": "3600", **RESTRICTED}


def test_each_model_has_its_own_shards(compiled):
    for task, model in (("split", "llava"), ("split-2", "mgm")):
        inputs = compiled.tasks("root")[task]["inputs"]
        assert inputs["artifacts"]["records"]["taskOutputArtifact"] == {
            "outputArtifactKey": f"{model}_missing",
            "producerTask": "reuse",
        }
        assert inputs["parameters"] == {
            name: {"componentInputParameter": name} for name in ("num_shards", "records_per_shard")
        }


def test_gpu_defaults_of_the_pipeline(compiled):
    inputs = compiled.spec["root"]["inputDefinitions"]["parameters"]
    assert inputs["gpu_type"]["defaultValue"] == "nvidia.com/gpu"
    assert inputs["gpu_count"]["defaultValue"] == "1"
    assert inputs["gpu_node_selector"]["defaultValue"] == {"nvidia.com/gpu.present": "true"}
    assert inputs["gpu_tolerations"]["defaultValue"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]


def test_only_the_two_locations_must_be_given_and_every_parameter_is_described(compiled):
    inputs = compiled.spec["root"]["inputDefinitions"]["parameters"]
    assert {name for name, definition in inputs.items() if not definition.get("isOptional")} == {
        "dataset_uri",
        "image_root_uri",
    }
    assert all(definition["description"] for definition in inputs.values())


MODELS = pytest.mark.parametrize(("loop", "model"), [("for-loop-1", "llava"), ("for-loop-2", "mgm")])


@MODELS
def test_the_loop_runs_one_nested_pipeline_per_shard(compiled, loop, model):
    task = compiled.tasks("score-and-select")[loop]
    channel = f"pipelinechannel--{model}_shards"
    assert task["parameterIterator"]["items"] == {"inputParameter": channel}
    assert task["inputs"]["parameters"][channel] == {"componentInputParameter": f"{model}_shards"}
    assert task["iteratorPolicy"] == {"parallelismLimit": 8}
    assert list(compiled.tasks(loop)) == [f"score-{model}"]
    assert set(compiled.tasks(f"score-{model}")) == {"importer", f"{model}-attention"}


def test_the_loops_graph_is_given_all_that_it_needs(compiled):
    """In a loop of the root, the shard would replace what a task of the root makes (locally)."""
    given = compiled.tasks("root")["score-and-select"]["inputs"]["parameters"]
    made = {name: source["taskOutputParameter"] for name, source in given.items() if "taskOutputParameter" in source}
    assert made == {
        "llava_shards": {"outputParameterKey": "Output", "producerTask": "split"},
        "mgm_shards": {"outputParameterKey": "Output", "producerTask": "split-2"},
        **{
            name: {"outputParameterKey": name, "producerTask": "resolve"}
            for name in (
                *("image_root_version", "llava_revision", "llava_options"),
                *("mgm_revision", "mgm_options", "select_options", "previous_selected_version"),
            )
        },
        **{
            name: {"outputParameterKey": name, "producerTask": "demand"}
            for model in ("llava", "mgm")
            for name in (f"{model}_gpu_count", f"{model}_gpu_node_selector", f"{model}_gpu_tolerations")
        },
    }


@MODELS
@pytest.mark.parametrize("name", ["store_secret", "store_config_map", "gpu_type"])
def test_what_only_kubernetes_reads_goes_through_the_loop_as_it_is(compiled, name, loop, model):
    root = compiled.tasks("root")["score-and-select"]["inputs"]["parameters"]
    outer = compiled.tasks("score-and-select")[loop]["inputs"]["parameters"]
    inner = compiled.tasks(loop)[f"score-{model}"]["inputs"]["parameters"]
    assert root[name] == {"componentInputParameter": name}
    assert outer[f"pipelinechannel--{name}"] == {"componentInputParameter": name}
    assert inner[name] == {"componentInputParameter": f"pipelinechannel--{name}"}


@MODELS
@pytest.mark.parametrize("name", ["gpu_count", "gpu_node_selector", "gpu_tolerations"])
def test_each_loop_is_given_what_its_model_demands(compiled, name, loop, model):
    outer = compiled.tasks("score-and-select")[loop]["inputs"]["parameters"]
    inner = compiled.tasks(loop)[f"score-{model}"]["inputs"]["parameters"]
    assert outer[f"pipelinechannel--{model}_{name}"] == {"componentInputParameter": f"{model}_{name}"}
    assert inner[name] == {"componentInputParameter": f"pipelinechannel--{model}_{name}"}


@MODELS
def test_each_shard_is_imported_by_its_uri_and_handed_to_the_model(compiled, loop, model):
    tasks = compiled.tasks(f"score-{model}")
    assert tasks["importer"]["inputs"]["parameters"]["uri"] == {"componentInputParameter": "shard_uri"}
    label = "exec-importer" if model == "llava" else "exec-importer-2"
    importer = compiled.spec["deploymentSpec"]["executors"][label]["importer"]
    assert importer["typeSchema"]["schemaTitle"] == "system.Dataset"
    assert importer["metadata"] == {"display_name": "shard"}
    assert "reimport" not in importer
    source = tasks[f"{model}-attention"]["inputs"]["artifacts"]["shard"]["taskOutputArtifact"]
    assert source["producerTask"] == "importer"


def test_the_selection_collects_the_maps_of_all_shards_and_takes_the_finished_ones(compiled):
    artifacts = compiled.tasks("score-and-select")["joint-selection"]["inputs"]["artifacts"]
    finished = ("llava_finished", "mgm_finished")
    assert artifacts == {
        **{
            f"{model}_attention": {
                "taskOutputArtifact": {
                    "producerTask": loop,
                    "outputArtifactKey": f"pipelinechannel--score-{model}-Output",
                }
            }
            for loop, model in (("for-loop-1", "llava"), ("for-loop-2", "mgm"))
        },
        **{name: {"componentInputArtifact": name} for name in ("records", "text_scores", "kmeans", *finished)},
    }
    outer = compiled.tasks("root")["score-and-select"]["inputs"]["artifacts"]
    producers = {port: tuple(source["taskOutputArtifact"].values()) for port, source in outer.items()}
    assert producers == {
        "records": ("records", "ingest"),
        "text_scores": ("scores", "cluster-scoring"),
        "kmeans": ("kmeans", "cluster-scoring"),
        **{name: (name, "reuse") for name in finished},
    }
    inputs = compiled.component("joint-selection")["inputDefinitions"]["artifacts"]
    assert inputs["llava_attention"]["isArtifactList"]
    assert inputs["mgm_attention"]["isArtifactList"]


def test_the_pipeline_hands_out_its_results(compiled):
    found = {name: (output.step.key, output.port) for name, output in outputs_of(compiled.spec).items()}
    assert found == {
        **{
            name: ("joint-selection", name)
            for name in ("selected", "scores", "report", "summary", "random", "baseline")
        },
        "rejects": ("ingest", "rejects"),
    }


def test_every_step_but_the_first_may_use_the_cache(compiled):
    cached = {name for name in TASKS if task_of(compiled, name)["cachingOptions"] == {"enableCache": True}}
    assert cached == {*TASKS} - {"resolve"}
    assert task_of(compiled, "resolve")["cachingOptions"] == {}


def test_a_cached_step_knows_the_versions_of_what_it_reads(compiled):
    for name in {*TASKS} - {"resolve"}:
        parameters = compiled.component(name)["inputDefinitions"]["parameters"]
        assert ("dataset_uri" in parameters) == ("dataset_version" in parameters)
        assert ("image_root_uri" in parameters) == ("image_root_version" in parameters)
        assert ("model" in parameters) == ("revision" in parameters)
        assert ("kmeans_uri" in parameters) == ("kmeans_version" in parameters)
        assert ("previous_selected_uri" in parameters) == ("previous_selected_version" in parameters)


def test_no_cached_step_takes_an_artifact_of_the_uncached_one(compiled):
    """The key of a cache has the ids of artifacts, which are new every time."""
    for name in TASKS:
        for source in task_of(compiled, name).get("inputs", {}).get("artifacts", {}).values():
            assert source.get("taskOutputArtifact", {}).get("producerTask") != "resolve", name


def test_a_step_is_told_its_own_image(compile_pipeline):
    compiled = compile_pipeline("--registry", "registry.example/team", "--tag", "1.2.3")
    for name in TASKS:
        image = f"registry.example/team/free2ds-{name}:1.2.3"
        assert compiled.container(name)["env"] == [{"name": "FREE2DS_IMAGE", "value": image}]


def test_the_form_is_short(compiled):
    assert len(compiled.spec["root"]["inputDefinitions"]["parameters"]) <= 26


def class_of(stage, kind):
    name = "".join(word.capitalize() for word in stage.split("_")) + kind
    folder = "reuse" if stage == "demand" else stage
    return getattr(importlib.import_module(f"components.{folder}.config"), name)


def fields_of(stage, kind):
    return {field.name: field for field in dataclasses.fields(class_of(stage, kind))}


# The graph has one BERT step; from a shell several may share the work.
SHELL_ONLY = {"bert_features": {"part"}, "resolve": {"on_gpu"}}
# Ports that become a part of another's list.
LISTED = {"joint_selection": {"llava_finished", "mgm_finished"}}
STAGES = [name.replace("-", "_") for name in TASKS]
TYPES = {"STRING": str, "NUMBER_INTEGER": int, "NUMBER_DOUBLE": float, "BOOLEAN": bool, "LIST": list[str]}
# Beside settings and versions: whether a step was given a GPU decides whether it must have one.
GPU_ECHO = {"gpu_count"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_components_signature_is_its_config(compiled, stage):
    """Parameters are the settings and the versions, artifacts the ports; nothing is left out or there twice."""
    component = compiled.component(stage.replace("_", "-"))
    inputs, outputs = component["inputDefinitions"], component["outputDefinitions"]
    settings = fields_of(stage, "Settings")
    options = set(class_of(stage, "Settings").OPTIONS) - {"revision"}
    assert ("options" in inputs["parameters"]) == bool(options)
    parameters = {
        name: TYPES[definition["parameterType"]]
        for name, definition in inputs["parameters"].items()
        if not name.startswith(RESOURCE_INPUTS) and name not in VERSIONS | GPU_ECHO | {"options"}
    }
    assert parameters == {name: field.type for name, field in settings.items() if name not in options | {"require_gpu"}}
    ports = (set(inputs.get("artifacts", {})) | set(outputs["artifacts"])) - LISTED.get(stage, set())
    assert ports == set(fields_of(stage, "Config")) - set(settings) - SHELL_ONLY.get(stage, set())


def test_steps_describe_no_parameter(compiled):
    """A Workflow repeats what a component says in the nodes of every shard, and no page shows it."""
    definitions = [
        definition
        for component in compiled.spec["components"].values()
        for side in ("inputDefinitions", "outputDefinitions")
        for kind in component.get(side, {}).values()
        for definition in kind.values()
    ]
    assert not any("description" in definition for definition in definitions)


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
    # Of two models, reuse has no default of its own.
    for name in ("llava_model", "mgm_model"):
        wanted[name].discard(dataclasses.MISSING)
    for name, parameter in package.parameters.items():
        (default,) = wanted[name]
        given = json.dumps(parameter.default, sort_keys=True) if name in RESOURCES else parameter.default
        assert (dataclasses.MISSING if parameter.required else given) == default, name


def test_every_setting_of_every_step_comes_from_a_run_parameter_or_a_version():
    for task in Package.compile(pipeline.free2ds).stage_tasks:
        apart = {*task.settings_class().OPTIONS, "require_gpu"}
        # What is constant is the loop's, which a selection has not.
        constant = {*task.constants} if task.stage == "resolve" else set()
        assert set(fields_of(task.stage, "Settings")) - apart <= {*task.sources, *task.made} | constant, task.stage


def test_resolve_checks_what_the_graph_hands_over():
    """The table that resolve checks settings by is the graph's wiring."""
    for task in Package.compile(pipeline.free2ds).stage_tasks:
        # What reuse is given is checked as the attention stages'.
        if task.stage not in ("resolve", "reuse", "demand"):
            given = {name: source for name, source in task.sources.items() if name in fields_of(task.stage, "Settings")}
            assert WIRING[task.stage].sources == given, task.stage
            assert bool(WIRING[task.stage].text) == ("options" in task.made), task.stage


def resource_fields(executor):
    """The run-time references in a container's resources, whatever the field."""
    return re.findall(r"inputs\.parameters\['([^']+)'\]", json.dumps(executor["container"]["resources"]))


def test_no_resource_refers_to_a_parameter_that_is_not_text(compiled):
    """The driver reads accelerator counts as text only: a number becomes "", and the limit is left out."""
    inputs = compiled.spec["root"]["inputDefinitions"]["parameters"]
    seen = set()
    for name in TASKS:
        executor = compiled.spec["deploymentSpec"]["executors"][f"exec-{name}"]
        for reference in resource_fields(executor):
            parameter = reference.removeprefix("pipelinechannel--")
            assert inputs[parameter]["parameterType"] == "STRING", parameter
            assert task_of(compiled, name)["inputs"]["parameters"][reference] == {"componentInputParameter": parameter}
            seen.add(parameter)
    assert seen == {"gpu_type", "gpu_count"}
    for model in ("llava", "mgm"):
        nested = compiled.component(f"score-{model}")["inputDefinitions"]["parameters"]
        assert {nested[name]["parameterType"] for name in seen} == {"STRING"}


def test_the_pipelines_page_has_one_sentence(compiled):
    """KFP would take the whole docstring, which is for who reads the code."""
    assert compiled.spec["pipelineInfo"] == {
        "name": "free2ds",
        "description": "Select the records of a LLaVA data set that are worth training on.",
    }


def test_resolve_checks_what_the_loop_hands_over():
    for task in Package.compile(pipeline.free2ds_loop).stage_tasks:
        if task.stage in LOOP:
            given = {name: source for name, source in task.sources.items() if name in fields_of(task.stage, "Settings")}
            assert LOOP[task.stage].sources == given, task.stage
            assert LOOP[task.stage].text == task.sources.get("options", ""), task.stage
