"""Every run parameter, with a value of its own, ends up in the setting that it is for, and in no other.

The graph is followed from the root through the nested pipelines, and each component's own body is run with what the
graph hands to it; only the stage's work is taken away.
"""

import importlib
import sys
from types import SimpleNamespace

import pytest

import pipeline
from free2ds_common.launch.package import Package
from free2ds_common.result import Counts, StageResult

# The run parameter of every setting, by stage. Written by hand: it is what the README and the form promise.
ATTENTION = ("max_new_tokens", "dtype", "image_root_uri", "cache_uri", "require_gpu")
SETTINGS = {
    "ingest": {
        "dataset_uri": "dataset_uri",
        "image_root_uri": "image_root_uri",
        "max_reject_fraction": "max_reject_fraction",
    },
    "split": {"num_shards": "num_shards"},
    "llava_attention": {
        **{name: name for name in ATTENTION},
        "batch_size": "attention_batch_size",
        "model": "llava_model",
        "revision": "llava_revision",
        "model_type": "llava_model_type",
        "prompt": "llava_prompt",
        "vision_tower": "llava_vision_tower",
    },
    "mgm_attention": {
        **{name: name for name in ATTENTION},
        "batch_size": "attention_batch_size",
        "model": "mgm_model",
        "revision": "mgm_revision",
        "model_type": "mgm_model_type",
        "prompt": "mgm_prompt",
        "vision_tower": "mgm_vision_tower",
        "vision_tower_aux": "mgm_vision_tower_aux",
    },
    "bert_features": {
        "model": "bert_model",
        "revision": "bert_revision",
        "batch_tokens": "bert_batch_tokens",
        "dtype": "dtype",
        "cache_uri": "cache_uri",
        "require_gpu": "require_gpu",
    },
    "cluster_scoring": {name: name for name in ("num_clusters", "num_iterations", "order", "kmeans_uri", "seed")},
    "joint_selection": {
        name: name
        for name in (
            "ratio",
            "num_samples",
            "alpha",
            "temperature",
            "sampler",
            "missing_iou",
            "text_normalization",
            "top_percent",
            "stratify",
            "previous_selected_uri",
            "max_reject_fraction",
            "seed",
            "image_root_uri",
        )
    },
}
# The version parameters that each stage's artifacts carry.
VERSIONS = {
    "ingest": ("dataset_version", "image_root_version", "code_version"),
    "split": ("code_version",),
    "llava_attention": ("image_root_version", "code_version"),
    "mgm_attention": ("image_root_version", "code_version"),
    "bert_features": ("code_version",),
    "cluster_scoring": ("kmeans_version", "code_version"),
    "joint_selection": ("image_root_version", "code_version"),
}
# What a step asks of the cluster: task, then its resource to the run parameter.
GPU_STEP = {
    "cpu": "gpu_step_cpu",
    "memory": "gpu_step_memory",
    "type": "gpu_type",
    "count": "gpu_count",
    "selector": "node_selector",
    "tolerations": "tolerations",
}
CPU_STEP = {"cpu": "cpu_step_cpu", "memory": "cpu_step_memory"}
RESOURCES = {
    "ingest": CPU_STEP,
    "split": CPU_STEP,
    "llava_attention": GPU_STEP,
    "mgm_attention": GPU_STEP,
    "bert_features": GPU_STEP,
    "cluster_scoring": CPU_STEP,
    "joint_selection": CPU_STEP,
}


@pytest.fixture(scope="module")
def package():
    return Package.compile(pipeline.free2ds)


@pytest.fixture(scope="module")
def tasks(package):
    return {task.stage: task for task in package.stage_tasks}


@pytest.fixture(scope="module")
def values(package):
    """A value of its own for each run parameter, of the right type; what it means plays no part."""
    make = {
        bool: lambda *_: True,
        str: lambda n, name: f"{name} {n}",
        int: lambda n, _: 1000 + n,
        float: lambda n, _: n + 0.5,
    }
    return {
        name: make[parameter.kind](number, name) if parameter.kind in make else {"its": name}
        for number, (name, parameter) in enumerate(package.parameters.items())
    }


class Artifact:
    """A KFP artifact as far as components use it."""

    def __init__(self, path):
        self.path = self.uri = str(path)
        self.metadata = {}


@pytest.fixture
def run_component(monkeypatch, tmp_path):
    """Run a component's body; returns the stage's config and the component's artifacts."""

    def run(stage, parameters):
        component = importlib.import_module(f"components.{stage}.component")
        seen = []

        def work(config):
            seen.append(config)
            return StageResult(Counts(read=0, written=0), metadata={"shards": []})

        monkeypatch.setitem(sys.modules, f"components.{stage}.stage", SimpleNamespace(run=work))
        task = getattr(component, stage)
        spec = task.component_spec
        artifacts = {
            port: Artifact(tmp_path / port)
            for port in (*(spec.inputs or {}), *(spec.outputs or {}))
            if port not in parameters and port != "Output"
        }
        lists = {port for port, kind in (spec.inputs or {}).items() if getattr(kind, "is_artifact_list", False)}
        given = {port: [artifact] if port in lists else artifact for port, artifact in artifacts.items()}
        task.python_func(**parameters, **given)
        return seen[0], artifacts

    return run


def handed_over(task, values):
    """What the graph hands to a task's component, resources apart; a GPU step is told how many GPUs it has."""
    names = set(SETTINGS[task.stage]) | set(VERSIONS[task.stage])
    if "require_gpu" in names:
        names.add("gpu_count")
    return {name: values[source] for name, source in task.sources.items() if name in names}


def test_the_tables_name_every_run_parameter(package):
    named = {source for table in SETTINGS.values() for source in table.values()}
    named |= {version for versions in VERSIONS.values() for version in versions}
    named |= {source for table in RESOURCES.values() for source in table.values()}
    assert named == set(package.parameters)


@pytest.mark.parametrize("stage", SETTINGS)
def test_parameters_reach_the_settings(stage, tasks, values, run_component):
    config, _ = run_component(stage, handed_over(tasks[stage], values))
    found = {name: getattr(config, name) for name in SETTINGS[stage]}
    assert found == {name: values[source] for name, source in SETTINGS[stage].items()}


@pytest.mark.parametrize("stage", ["llava_attention", "mgm_attention", "bert_features"])
@pytest.mark.parametrize(
    ("require_gpu", "gpu_count", "required"), [(True, "1", True), (True, "0", False), (False, "1", False)]
)
def test_a_step_that_was_given_gpus_must_find_one(
    stage, require_gpu, gpu_count, required, tasks, values, run_component
):
    given = {**values, "require_gpu": require_gpu, "gpu_count": gpu_count}
    config, _ = run_component(stage, handed_over(tasks[stage], given))
    assert config.require_gpu is required


@pytest.mark.parametrize("stage", SETTINGS)
def test_paths_reach_the_ports(stage, tasks, values, run_component, tmp_path):
    config, artifacts = run_component(stage, handed_over(tasks[stage], values))
    for port in artifacts:
        path = str(tmp_path / port)
        assert getattr(config, port) in (path, [path]), port


@pytest.mark.parametrize("stage", VERSIONS)
def test_versions_are_kept_with_every_output(stage, tasks, values, run_component):
    _, artifacts = run_component(stage, handed_over(tasks[stage], values))
    described = [artifact.metadata for artifact in artifacts.values() if artifact.metadata]
    assert described
    for metadata in described:
        assert {name: metadata[name] for name in VERSIONS[stage]} == {name: values[name] for name in VERSIONS[stage]}


@pytest.mark.parametrize("stage", RESOURCES)
def test_steps_ask_for_what_the_run_says(stage, package, tasks):
    executor = f"exec-{stage.replace('_', '-')}"
    asked = package.spec["deploymentSpec"]["executors"][executor]["container"]["resources"]
    inputs = {f"{{{{$.inputs.parameters['{name}']}}}}": source for name, source in tasks[stage].sources.items()}
    found = {"cpu": inputs[asked["resourceCpuRequest"]], "memory": inputs[asked["resourceMemoryRequest"]]}
    if "accelerator" in asked:
        found["type"] = inputs[asked["accelerator"]["resourceType"]]
        found["count"] = inputs[asked["accelerator"]["resourceCount"]]
        platform = package.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][executor]
        selector = platform["nodeSelector"]["nodeSelectorJson"]["componentInputParameter"]
        (toleration,) = platform["tolerations"]
        found["selector"] = tasks[stage].sources.get(selector, selector)
        tolerations = toleration["tolerationJson"]["componentInputParameter"]
        found["tolerations"] = tasks[stage].sources.get(tolerations, tolerations)
    assert found == RESOURCES[stage]
