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

# The run parameter of every setting, by stage, or resolve's output. Written by hand: it is what the form promises.
ATTENTION = {"image_root_uri": "image_root_uri", "cache_uri": "cache_uri"}
SETTINGS = {
    "resolve": {
        name: name
        for name in (
            *("dataset_uri", "image_root_uri", "max_reject_fraction", "num_shards", "records_per_shard"),
            *("llava_model", "llava_options", "mgm_model", "mgm_options", "bert_model", "text_options"),
            *("num_clusters", "ratio", "num_samples", "alpha", "select_options", "seed"),
            *("kmeans_uri", "previous_selected_uri", "cache_uri"),
        )
    },
    "ingest": {
        "dataset_uri": "dataset_uri",
        "image_root_uri": "image_root_uri",
        "max_reject_fraction": "max_reject_fraction",
    },
    "reuse": {
        **ATTENTION,
        "llava_model": "llava_model",
        "llava_revision": "resolve.llava_revision",
        "llava_options": "resolve.llava_options",
        "mgm_model": "mgm_model",
        "mgm_revision": "resolve.mgm_revision",
        "mgm_options": "resolve.mgm_options",
        "on_gpu": "resolve.on_gpu",
    },
    "split": {"num_shards": "num_shards", "records_per_shard": "records_per_shard"},
    "llava_attention": {"model": "llava_model", "revision": "resolve.llava_revision", **ATTENTION},
    "mgm_attention": {"model": "mgm_model", "revision": "resolve.mgm_revision", **ATTENTION},
    "bert_features": {"model": "bert_model", "revision": "resolve.bert_revision", "cache_uri": "cache_uri"},
    "cluster_scoring": {name: name for name in ("num_clusters", "kmeans_uri", "seed")},
    "joint_selection": {
        name: name
        for name in (
            *("ratio", "num_samples", "alpha", "previous_selected_uri"),
            *("max_reject_fraction", "seed", "image_root_uri"),
        )
    },
}
# Settings that come as one text, each with a value that is not its default.
OPTIONS = {
    "llava_attention": (
        "resolve.llava_options",
        "batch_size=3 dtype=float32 max_new_tokens=7 model_type=auto prompt=chat vision_tower='a b'",
        {
            "batch_size": 3,
            "dtype": "float32",
            "max_new_tokens": 7,
            "model_type": "auto",
            "prompt": "chat",
            "vision_tower": "a b",
        },
    ),
    "mgm_attention": (
        "resolve.mgm_options",
        "vision_tower_aux=gs://b/c batch_size=2",
        {"vision_tower_aux": "gs://b/c", "batch_size": 2},
    ),
    "bert_features": (
        "resolve.bert_options",
        "batch_tokens=64 dtype=float16",
        {"batch_tokens": 64, "dtype": "float16"},
    ),
    "cluster_scoring": (
        "resolve.cluster_options",
        "num_iterations=9 order=reference",
        {"num_iterations": 9, "order": "reference"},
    ),
    "joint_selection": (
        "resolve.select_options",
        "missing_iou=text sampler=top stratify=source temperature=0.5 text_normalization=rank top_percent=12.5",
        {
            "missing_iou": "text",
            "sampler": "top",
            "stratify": "source",
            "temperature": 0.5,
            "text_normalization": "rank",
            "top_percent": 12.5,
        },
    ),
}
# The versions that each stage's artifacts carry, apart from its image.
VERSIONS = {
    "resolve": {},
    "ingest": {
        "dataset_version": "resolve.dataset_version",
        "image_root_version": "resolve.image_root_version",
    },
    "reuse": {"image_root_version": "resolve.image_root_version"},
    "split": {},
    "llava_attention": {"image_root_version": "resolve.image_root_version"},
    "mgm_attention": {"image_root_version": "resolve.image_root_version"},
    "bert_features": {},
    "cluster_scoring": {"kmeans_version": "resolve.kmeans_version"},
    "joint_selection": {
        "image_root_version": "resolve.image_root_version",
        "previous_selected_version": "resolve.previous_selected_version",
    },
}
# Of resolve, what the loop alone asks for and takes: tests/compile/test_loop.py.
LOOP_OUTPUTS = {"train_revision", "benchmark_versions"}
# Where steps with a GPU run, and who may read from a store or the hub.
GPU_STEP = {
    "type": "gpu_type",
    "count": "gpu_count",
    "selector": "gpu_node_selector",
    "tolerations": "gpu_tolerations",
}
# Of an attention step: as many as its model demands. Selector and tolerations are its graph's, which gets those that
# the model demands (test_spec).
DEMANDED = {
    model: {
        "type": "gpu_type",
        "count": f"demand.{model}_gpu_count",
        "selector": "gpu_node_selector",
        "tolerations": "gpu_tolerations",
    }
    for model in ("llava", "mgm")
}
ACCESS = {"secret": "store_secret", "config_map": "store_config_map"}
RESOURCES = {
    "resolve": ACCESS,
    "ingest": ACCESS,
    "reuse": ACCESS,
    "split": {},
    "llava_attention": {**DEMANDED["llava"], **ACCESS},
    "mgm_attention": {**DEMANDED["mgm"], **ACCESS},
    "bert_features": {**GPU_STEP, **ACCESS},
    "cluster_scoring": ACCESS,
    "joint_selection": ACCESS,
}


# Of the outputs.
NO_ARTIFACTS = {"Output", *(source.removeprefix("resolve.") for source, _, _ in OPTIONS.values())}
NO_ARTIFACTS |= {"on_gpu", "llava_new", "mgm_new"}
NO_ARTIFACTS |= LOOP_OUTPUTS
NO_ARTIFACTS |= {f"{model}_revision" for model in ("llava", "mgm", "bert")}
NO_ARTIFACTS |= {f"{name}_version" for name in ("dataset", "image_root", "kmeans", "previous_selected")}


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
    } | {
        f"{stage}.{name}": "" if name.endswith("_options") else f"made {name}"
        for stage in ("resolve", "demand")
        for name in package.spec["components"][f"comp-{stage}"]["outputDefinitions"]["parameters"]
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

        fake = SimpleNamespace(run=work, outputs=lambda result: {})
        monkeypatch.setitem(sys.modules, f"components.{stage}.stage", fake)
        task = getattr(component, stage)
        spec = task.component_spec
        artifacts = {
            port: Artifact(tmp_path / port)
            for port in (*(spec.inputs or {}), *(spec.outputs or {}))
            if port not in parameters and port not in NO_ARTIFACTS
        }
        lists = {port for port, kind in (spec.inputs or {}).items() if getattr(kind, "is_artifact_list", False)}
        given = {port: [artifact] if port in lists else artifact for port, artifact in artifacts.items()}
        task.python_func(**parameters, **given)
        return seen[0], artifacts

    return run


def handed_over(task, values):
    """What the graph hands to a task's component, resources apart; a GPU step is told how many GPUs it has."""
    names = {*SETTINGS[task.stage], *VERSIONS[task.stage]}
    names |= set(task.constants)
    names |= {"options"} if task.stage in OPTIONS else set()
    names |= {"gpu_count"} if "type" in RESOURCES[task.stage] or task.stage == "resolve" else set()
    sources = {name: values[source] for name, source in task.sources.items()}
    made = {name: values[source] for name, source in task.made.items()}
    return {name: value for name, value in {**task.constants, **sources, **made}.items() if name in names}


def test_the_tables_name_every_run_parameter(package):
    named = {source for table in (*SETTINGS.values(), *RESOURCES.values()) for source in table.values()}
    assert {name for name in named if "." not in name} == set(package.parameters)


def test_the_tables_name_every_output_of_resolve(package):
    named = {source for table in (*SETTINGS.values(), *VERSIONS.values()) for source in table.values()}
    named |= {source for source, _, _ in OPTIONS.values()}
    outputs = package.spec["components"]["comp-resolve"]["outputDefinitions"]["parameters"]
    assert {name.removeprefix("resolve.") for name in named if name.startswith("resolve.")} == {*outputs} - LOOP_OUTPUTS


@pytest.mark.parametrize("stage", SETTINGS)
def test_parameters_reach_the_settings(stage, tasks, values, run_component):
    config, _ = run_component(stage, handed_over(tasks[stage], values))
    found = {name: getattr(config, name) for name in SETTINGS[stage]}
    assert found == {name: values[source] for name, source in SETTINGS[stage].items()}


@pytest.mark.parametrize("stage", OPTIONS)
def test_options_reach_the_settings(stage, tasks, values, run_component):
    source, text, wanted = OPTIONS[stage]
    config, _ = run_component(stage, handed_over(tasks[stage], {**values, source: text}))
    assert {name: getattr(config, name) for name in wanted} == wanted


@pytest.mark.parametrize("stage", OPTIONS)
def test_every_option_is_tried(stage, tasks):
    """MGM's are LLaVA's and one more."""
    tried = set(OPTIONS[stage][2]) | (set(OPTIONS["llava_attention"][2]) if stage == "mgm_attention" else set())
    assert tried | {"revision"} == {*tasks[stage].settings_class().OPTIONS, "revision"}


@pytest.mark.parametrize("stage", ["llava_attention", "mgm_attention", "bert_features"])
@pytest.mark.parametrize(("gpu_count", "required"), [("1", True), ("2", True), ("0", False)])
def test_a_step_that_was_given_gpus_must_find_one(stage, gpu_count, required, tasks, values, run_component):
    source = RESOURCES[stage]["count"]
    config, _ = run_component(stage, handed_over(tasks[stage], {**values, source: gpu_count}))
    assert config.require_gpu is required


@pytest.mark.parametrize(("gpu_count", "on_gpu"), [("1", True), ("0", False)])
def test_resolve_says_whether_there_are_gpus(gpu_count, on_gpu, tasks, values, run_component):
    config, _ = run_component("resolve", handed_over(tasks["resolve"], {**values, "gpu_count": gpu_count}))
    assert config.on_gpu is on_gpu


@pytest.mark.parametrize("stage", SETTINGS)
def test_paths_reach_the_ports(stage, tasks, values, run_component, tmp_path):
    config, artifacts = run_component(stage, handed_over(tasks[stage], values))
    for port in artifacts:
        path = str(tmp_path / port)
        # What is finished joins the shards' list.
        name = port.replace("_finished", "_attention") if stage == "joint_selection" else port
        assert getattr(config, name) == path or path in getattr(config, name), port


@pytest.mark.parametrize("stage", VERSIONS)
def test_versions_are_kept_with_every_output(stage, tasks, values, run_component):
    _, artifacts = run_component(stage, handed_over(tasks[stage], values))
    described = [artifact.metadata for artifact in artifacts.values() if artifact.metadata]
    assert described
    wanted = {name: values[source] for name, source in VERSIONS[stage].items()}
    for metadata in described:
        assert {name: metadata[name] for name in wanted} == wanted


@pytest.mark.parametrize("stage", RESOURCES)
def test_steps_ask_for_what_the_run_says(stage, package, tasks):
    executor = f"exec-{stage.replace('_', '-')}"
    asked = package.spec["deploymentSpec"]["executors"][executor]["container"]["resources"]
    sources = {**tasks[stage].sources, **tasks[stage].made}
    inputs = {f"{{{{$.inputs.parameters['{name}']}}}}": source for name, source in sources.items()}
    platform = package.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][executor]
    named = {}
    for kind, entry, field in (
        ("secret", "secretAsEnv", "secretNameParameter"),
        ("config_map", "configMapAsEnv", "configMapNameParameter"),
        ("selector", "nodeSelector", "nodeSelectorJson"),
        ("tolerations", "tolerations", "tolerationJson"),
    ):
        given = platform.get(entry, [])
        for one in given if isinstance(given, list) else [given]:
            named[kind] = one[field]["componentInputParameter"]
    found = {kind: sources.get(name, name) for kind, name in named.items()}
    if "accelerator" in asked:
        found["type"] = inputs[asked["accelerator"]["resourceType"]]
        found["count"] = inputs[asked["accelerator"]["resourceCount"]]
    assert found == RESOURCES[stage]
