"""What the compiled loop says to a backend."""

import pytest

import pipeline
from components.evaluate.config import EvaluateSettings
from components.finetune.config import FinetuneSettings
from components.verdict.config import VerdictSettings
from free2ds_common.errors import SettingError
from free2ds_common.launch.lint import problems
from free2ds_common.launch.package import Package
from free2ds_common.launch.parameters import check_parameters

GPU_STEPS = {"finetune": "train_gpu_count", "evaluate": "gpu_count", "evaluate-2": "gpu_count"}
REQUIRED = {"dataset_uri": "gs://b/d.json", "image_root_uri": "gs://b/i", "benchmark_uris": "gs://b/x,gs://b/y"}


@pytest.fixture(scope="module")
def loop(compile_pipeline):
    return compile_pipeline("--pipeline", "loop", "--registry", "registry.example/team", "--tag", "1.2.3")


@pytest.fixture(scope="module")
def package():
    return Package.compile(pipeline.free2ds_loop)


def test_has_the_images_of_every_stage(loop):
    executors = loop.spec["deploymentSpec"]["executors"].values()
    images = {executor["container"]["image"] for executor in executors if "container" in executor}
    stages = ("bert-features", "cluster-scoring", "evaluate", "finetune", "ingest", "joint-selection")
    stages += ("llava-attention", "mgm-attention", "resolve", "reuse", "split", "verdict")
    assert images == {f"registry.example/team/free2ds-{stage}:1.2.3" for stage in stages}


def test_the_selection_is_the_one_without_a_loop(loop, compiled):
    own = {"train-and-measure"}
    assert set(loop.tasks("root")) - own == set(compiled.tasks("root"))
    assert loop.tasks("score-and-select").keys() == compiled.tasks("score-and-select").keys()


@pytest.mark.parametrize(("step", "count"), GPU_STEPS.items())
def test_steps_with_models_ask_for_gpus(loop, step, count):
    asked = loop.container(step)["resources"]
    inputs = "{{$.inputs.parameters['pipelinechannel--%s']}}"
    assert asked["accelerator"] == {"resourceType": inputs % "gpu_type", "resourceCount": inputs % count}
    kubernetes = loop.kubernetes(step)
    assert [one["nodeSelectorJson"]["componentInputParameter"] for one in [kubernetes["nodeSelector"]]] == [
        "gpu_node_selector"
    ]
    assert kubernetes["tolerations"][0]["tolerationJson"]["componentInputParameter"] == "gpu_tolerations"
    assert kubernetes["secretAsEnv"][0]["secretNameParameter"]["componentInputParameter"] == "store_secret"


@pytest.mark.parametrize(
    ("step", "cpu", "memory"), [("finetune", "8", "64Gi"), ("evaluate", "4", "32Gi"), ("verdict", "1", "4Gi")]
)
def test_steps_ask_for_what_they_need(loop, step, cpu, memory):
    asked = loop.container(step)["resources"]
    assert (asked["resourceCpuRequest"], asked["resourceMemoryRequest"]) == (cpu, memory)


def test_the_verdict_asks_for_no_gpu(loop):
    assert "accelerator" not in loop.container("verdict")["resources"]


@pytest.mark.parametrize(
    ("graph", "step"),
    [
        ("one-arm", "finetune"),
        ("one-arm", "evaluate"),
        ("train-and-measure", "evaluate"),
        ("train-and-measure", "verdict"),
    ],
)
def test_every_step_after_the_selection_may_use_the_cache(loop, graph, step):
    assert loop.tasks(graph)[step]["cachingOptions"] == {"enableCache": True}


def test_a_cached_step_knows_the_versions_of_what_it_reads(package):
    """Found out by resolve, from the root through the nested graphs."""
    made = [(task.stage, dict(task.made)) for task in package.stage_tasks if task.stage in ("finetune", "evaluate")]
    model = {"revision": "resolve.train_revision"}
    measured = ("evaluate", {**model, "benchmark_versions": "resolve.benchmark_versions"})
    trained = ("finetune", {**model, "image_root_version": "resolve.image_root_version"})
    assert sorted(made, key=str) == [measured, measured, trained]


def test_the_first_step_is_told_of_the_whole_loop(package):
    (task,) = [task for task in package.stage_tasks if task.stage == "resolve"]
    own = ("arms", "train_model", "train_options", "benchmark_uris", "evaluate_options", "resamples")
    assert {name: task.sources[name] for name in own} == {name: name for name in own}


def test_a_selection_tells_its_first_step_of_no_loop():
    package = Package.compile(pipeline.free2ds)
    (task,) = [task for task in package.stage_tasks if task.stage == "resolve"]
    nothing = {"arms": [], "train_model": "", "train_options": "", "benchmark_uris": "", "evaluate_options": ""}
    assert task.constants == {**nothing, "resamples": VerdictSettings.resamples}


def test_a_training_has_all_it_may_learn_from(loop):
    artifacts = loop.tasks("one-arm")["finetune"]["inputs"]["artifacts"]
    assert {port: source["componentInputArtifact"] for port, source in artifacts.items()} == {
        name: name for name in ("selected", "random", "everything")
    }
    handed = loop.tasks("root")["train-and-measure"]["inputs"]["artifacts"]
    made = {
        port: (source["taskOutputArtifact"]["producerTask"], source["taskOutputArtifact"]["outputArtifactKey"])
        for port, source in handed.items()
    }
    assert made == {
        "selected": ("score-and-select", "selected"),
        "random": ("score-and-select", "random"),
        "everything": ("ingest", "records"),
        "summary": ("score-and-select", "summary"),
    }


def test_the_loop_is_over_the_arms(loop):
    (name,) = [name for name in loop.tasks("train-and-measure") if name.startswith("for-loop")]
    iterator = loop.tasks("train-and-measure")[name]["parameterIterator"]
    assert iterator["items"] == {"inputParameter": "pipelinechannel--arms"}


def test_the_verdict_gets_every_evaluation(loop):
    artifacts = loop.tasks("train-and-measure")["verdict"]["inputs"]["artifacts"]
    assert artifacts["untuned"]["taskOutputArtifact"]["producerTask"] == "evaluate"
    assert artifacts["evaluations"]["taskOutputArtifact"]["producerTask"].startswith("for-loop")


def test_nothing_is_wrong_with_it(package):
    assert problems(package) == []


def test_its_parameters_are_the_selections_and_its_own(package):
    selection = Package.compile(pipeline.free2ds).parameters
    own = {name: parameter.default for name, parameter in package.parameters.items() if name not in selection}
    assert own == {
        "benchmark_uris": None,
        "arms": ["selected:42", "random:42"],
        "train_model": FinetuneSettings.model,
        "train_options": "",
        "train_gpu_count": "1",
        "evaluate_options": "",
        "resamples": VerdictSettings.resamples,
    }
    assert EvaluateSettings.resamples == VerdictSettings.resamples
    assert EvaluateSettings.model == FinetuneSettings.model
    shared = {name: parameter for name, parameter in package.parameters.items() if name in selection}
    assert {name: one.default for name, one in shared.items()} == {name: one.default for name, one in selection.items()}


def test_every_parameter_is_described(package):
    assert [name for name, parameter in package.parameters.items() if not parameter.description] == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"arms": ["selected:1"]}, "arms: got selected:1, wanted random among them"),
        ({"train_options": "lora_rank=0"}, "train_options: lora_rank: got 0, wanted a number of at least 1"),
        ({"train_options": "rank=1"}, "train_options: got 'rank', wanted one of batch_size, "),
        (
            {"train_options": "nodes=2", "cache_uri": "s3://b/c"},
            "train_options: nodes: got 2 and an accelerator for the step itself",
        ),
        ({"train_options": "nodes=2", "train_gpu_count": "0"}, "cache_uri: got nothing, wanted an object store"),
        (
            {"arms": ["selected:1", f"random:{2**31}"]},
            "arms: got 'random:2147483648', wanted a seed of at most 2147483647",
        ),
        ({"evaluate_options": "revision=v2"}, "evaluate_options: got 'revision', wanted one of batch_size, "),
        ({"evaluate_options": "prompt=v2"}, "evaluate_options: prompt: got 'v2'"),
        ({"benchmark_uris": " "}, "benchmark_uris: is empty"),
        ({"train_gpu_count": "many"}, "train_gpu_count: got 'many'"),
        ({"resamples": 0}, "resamples: got 0, wanted a number of at least 1"),
    ],
)
def test_a_wrong_setting_is_one_sentence(package, given, message):
    with pytest.raises(SettingError, match=message):
        check_parameters(package, {**REQUIRED, **given})


def test_another_pipeline_is_not_known(capsys):
    with pytest.raises(SystemExit):
        pipeline.main(["compile", "--pipeline", "circle"])
    assert "argument --pipeline: invalid choice: 'circle'" in capsys.readouterr().err
