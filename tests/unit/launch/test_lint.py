"""Each trap of Kubeflow Pipelines that the lint knows, put into the pipeline by hand."""

import copy
import re

import pytest
import yaml
from kfp import compiler, dsl

import pipeline
from free2ds_common.errors import StageError
from free2ds_common.launch import lint
from free2ds_common.launch.lint import largest, problems, require_sound
from free2ds_common.launch.package import Package


@pytest.fixture(scope="module")
def sound():
    return Package.compile(pipeline.free2ds)


@pytest.fixture
def package(sound, monkeypatch):
    """A copy to break. What is too large has tests of its own, and takes a while."""
    monkeypatch.setattr(lint, "_too_large", lambda package: [])
    return copy.deepcopy(sound)


def tasks(package, name="root"):
    component = package.spec["root"] if name == "root" else package.spec["components"][f"comp-{name}"]
    return component["dag"]["tasks"]


def container(package, name):
    return package.spec["deploymentSpec"]["executors"][f"exec-{name}"]["container"]


def pod(package, name):
    return package.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{name}"]


def found(package):
    (sentence,) = problems(package)
    return sentence


def test_the_pipeline_is_sound(sound):
    assert problems(sound) == []
    require_sound(sound)


def test_the_largest_run_fits(sound):
    sizes = largest(sound)
    assert sizes.input_bytes <= 100 * 1024
    assert sizes.workflow_bytes <= 1024 * 1024


def test_the_file_is_small(sound, tmp_path):
    sound.write(tmp_path / "free2ds.yaml")
    assert (tmp_path / "free2ds.yaml").stat().st_size <= 300_000


def test_a_pipeline_that_is_not_sound_is_refused(package):
    container(package, "split")["args"].append("pip install x")
    sentence = r"^the pipeline would not do what it says: split: installs packages when its pod starts\.$"
    with pytest.raises(StageError, match=sentence):
        require_sound(package)


def test_compile_refuses_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lint, "_too_large", lambda package: ["too large."])
    assert pipeline.main(["compile", "--output", str(tmp_path / "x.yaml")]) == 2
    assert capsys.readouterr().err == "error: the pipeline would not do what it says: too large.\n"
    assert not (tmp_path / "x.yaml").exists()


def test_lint_says_how_large_the_largest_run_is(capsys, sound):
    assert pipeline.main(["lint"]) == 0
    sizes = largest(sound)
    assert capsys.readouterr().out == (
        f"nothing is wrong; with 64 shards the input of {sizes.task} has {sizes.input_bytes} bytes (131072 are too "
        f"many), and the Workflow {sizes.workflow_bytes} (1048576)\n"
    )


class TestInputs:
    def test_a_missing_one(self, package):
        del tasks(package)["ingest"]["inputs"]["parameters"]["dataset_version"]
        assert found(package) == "ingest: input dataset_version is given by nobody."

    def test_a_missing_artifact(self, package):
        del tasks(package)["split"]["inputs"]["artifacts"]["records"]
        assert found(package) == "split: input records is given by nobody."

    def test_one_from_an_input_that_is_not_there(self, package):
        tasks(package)["split"]["inputs"]["parameters"]["num_shards"] = {"componentInputParameter": "shards"}
        assert found(package) == "split: input num_shards comes from shards, which its graph is not given."

    def test_one_from_a_task_that_is_not_there(self, package):
        source = tasks(package)["split"]["inputs"]["artifacts"]["records"]["taskOutputArtifact"]
        source["producerTask"] = "gone"
        assert found(package) == "split: input records comes from gone, which is not in its graph."


class TestLoop:
    def test_a_value_of_another_task_in_the_loop(self, package):
        loop = tasks(package, "score-and-select")["for-loop-1"]
        tasks(package, "score-and-select")["split"] = copy.deepcopy(tasks(package)["split"])
        del tasks(package, "score-and-select")["split"]["inputs"]
        loop["inputs"]["parameters"]["pipelinechannel--gpu_count"] = {
            "taskOutputParameter": {"producerTask": "split", "outputParameterKey": "Output"}
        }
        sentence = "for-loop-1: pipelinechannel--gpu_count is made by split, and the loop's item replaces it (locally)."
        assert sentence in problems(package)

    def test_over_one_of_several_outputs(self, package):
        loop = tasks(package, "score-and-select")["for-loop-1"]
        tasks(package, "score-and-select")["resolve"] = {**copy.deepcopy(tasks(package)["resolve"])}
        loop["inputs"]["parameters"]["pipelinechannel--shard_uris"] = {
            "taskOutputParameter": {"producerTask": "resolve", "outputParameterKey": "bert_options"}
        }
        wanted = "for-loop-1: loops over bert_options, one of several outputs; only a single one works."
        assert wanted in problems(package)

    def test_over_a_constant(self, package):
        iterator = tasks(package, "score-and-select")["for-loop-1"]["parameterIterator"]
        iterator["items"] = {"raw": '["a"]'}
        assert "for-loop-1: loops over a constant." in problems(package)

    def test_a_step_in_its_own_body(self, package):
        body = tasks(package, "for-loop-1")
        body["split"] = {**copy.deepcopy(tasks(package)["split"]), "inputs": {}}
        assert "split: stands in a loop's own body; a loop's body is one nested pipeline." in problems(package)

    def test_a_value_made_in_the_loop(self, package):
        body = tasks(package, "for-loop-1")
        body["score-llava"]["inputs"]["parameters"]["gpu_count"] = {
            "taskOutputParameter": {"producerTask": "score-llava", "outputParameterKey": "Output"}
        }
        wanted = "score-llava: input gpu_count is made in the loop, where the item replaces it (locally)."
        assert found(package) == wanted

    def test_a_loop_in_its_own_body(self, package):
        body = tasks(package, "for-loop-1")
        body["score-llava"]["parameterIterator"] = {"itemInput": "shard_uri", "items": {"inputParameter": "x"}}
        wanted = "score-llava: is a loop in a loop's own body, whose item replaces the outer one's."
        assert wanted in problems(package)


class TestArtifacts:
    def test_a_list_for_a_nested_graph(self, package):
        inputs = package.spec["components"]["comp-score-and-select"]["inputDefinitions"]["artifacts"]
        inputs["records"]["isArtifactList"] = True
        wanted = "score-and-select: records is a list of artifacts for a nested graph, which gets one of them."
        assert found(package) == wanted

    def test_a_loops_artifact_that_is_not_taken_as_a_list(self, package):
        inputs = package.spec["components"]["comp-joint-selection"]["inputDefinitions"]["artifacts"]
        del inputs["llava_attention"]["isArtifactList"]
        assert found(package) == "joint-selection: llava_attention is of a loop, and not taken as a list."

    def test_one_of_several(self, package):
        output = package.spec["root"]["dag"]["outputs"]["artifacts"]["selected"]
        output["artifactSelectors"] *= 2
        assert found(package) == "root: output selected is one of several artifacts."

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (
                {"artifactUri": {"constant": "{{$.inputs.parameters['shard_uri']}}/x"}},
                "the URI is put together from parameters, which the backend takes literally.",
            ),
            ({"reimport": True}, "imports anew each time, so that nothing after it is taken from the cache."),
            ({"metadata": {}}, "its artifact has no display_name."),
        ],
    )
    def test_an_importer(self, package, change, problem):
        package.spec["deploymentSpec"]["executors"]["exec-importer"]["importer"].update(change)
        assert found(package) == f"importer: {problem}"


class TestResources:
    def test_that_are_no_text(self, package):
        package.spec["components"]["comp-score-llava"]["inputDefinitions"]["parameters"]["gpu_count"][
            "parameterType"
        ] = "NUMBER_INTEGER"
        assert problems(package) == [
            "llava-attention: its resource gpu_count is a NUMBER_INTEGER; the driver passes over what is no text."
        ]

    def test_in_a_loops_own_body(self, package):
        body = tasks(package, "for-loop-1")
        body["llava-attention"] = copy.deepcopy(tasks(package, "score-llava")["llava-attention"])
        wanted = "llava-attention: its resources are parameters in a loop's own body, where the driver fails."
        assert wanted in problems(package)


class TestRest:
    def test_a_cached_step_behind_one_that_is_not(self, package):
        tasks(package)["ingest"]["cachingOptions"] = {}
        assert problems(package) == [
            f"{task}: may be cached, but records comes from a step that is not, and is another each time."
            for task in ("bert-features", "reuse")
        ]

    def test_a_name_that_is_no_folders(self, package):
        tasks(package)["ingest"]["taskInfo"]["name"] = "Read data"
        wanted = "ingest: is shown as 'Read data'; the backend makes folders of it, so letters, digits and dashes are"
        assert found(package).startswith(wanted)

    def test_a_condition(self, package):
        tasks(package)["ingest"]["triggerPolicy"] = {"condition": "x == 'y'"}
        assert found(package).startswith("ingest: runs under a condition, which is false without a word")

    def test_a_description(self, package):
        package.spec["components"]["comp-split"]["inputDefinitions"]["parameters"]["num_shards"]["description"] = "x"
        assert found(package).startswith("split: describes its inputs, which the Workflow repeats")

    def test_a_volume_without_a_name(self, package):
        pod(package, "split")["pvcMount"] = [{"pvcNameParameter": {"componentInputParameter": "claim"}}]
        wanted = "exec-split: a volume whose name is a parameter; the driver fails where it is empty."
        assert found(package) == wanted

    def test_credentials_that_must_exist(self, package):
        pod(package, "ingest")["secretAsEnv"][0]["optional"] = False
        assert found(package) == "exec-ingest: secretAsEnv is not optional, so that the step needs it to exist."

    def test_a_number_in_a_default(self, package):
        definitions = package.spec["root"]["inputDefinitions"]["parameters"]
        definitions["gpu_tolerations"]["defaultValue"] = [{"tolerationSeconds": 60}]
        assert found(package) == "gpu_tolerations: its default holds a number, which arrives as a float."

    def test_a_label_that_ends_in_a_number_is_none(self, package):
        definitions = package.spec["root"]["inputDefinitions"]["parameters"]
        definitions["gpu_node_selector"]["defaultValue"] = {"a": "l4:1"}
        assert problems(package) == []


class TestTooLarge:
    @pytest.mark.parametrize(
        ("limit", "value", "problem"),
        [
            ("MAX_SPEC_BYTES", 1000, r"^the file has \d+ bytes, more than 1000\.$"),
            (
                "WANTED_INPUT_BYTES",
                90_000,
                r"^joint-selection: its input would have 10\d{4} bytes with 64 shards, more than 90000; 131072 start",
            ),
            ("MAX_WORKFLOW_BYTES", 1000, r"^the Workflow would have \d{6} bytes with 64 shards, more than 1000\.$"),
        ],
    )
    def test_each_bound(self, sound, monkeypatch, limit, value, problem):
        monkeypatch.setattr(lint, limit, value)
        (sentence,) = problems(sound)
        assert re.match(problem, sentence)


@dsl.component(base_image="free2ds-split:dev", install_kfp_package=False)
def once(text: str) -> str:
    return text


@dsl.pipeline(name="other")
def other(texts: list[str]) -> None:
    made = once(text="a")
    with dsl.ParallelFor(texts) as text:
        once(text=text)
        once(text=made.output)


def test_a_pipeline_of_another_shape_is_read_too(tmp_path, monkeypatch):
    monkeypatch.setattr(lint, "_too_large", lambda package: [])
    compiler.Compiler().compile(other, str(tmp_path / "other.yaml"))
    found = problems(Package(yaml.safe_load((tmp_path / "other.yaml").read_text()), {}))
    assert "once-2: stands in a loop's own body; a loop's body is one nested pipeline." in found
    assert (
        "for-loop-1: pipelinechannel--once-Output is made by once, and the loop's item replaces it (locally)." in found
    )
