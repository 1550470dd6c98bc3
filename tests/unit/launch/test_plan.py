"""plan: what a run would do, told by the code of its first step, with nothing started."""

import json

import fsspec
import pytest

import pipeline
from components.resolve import models
from examples.benchmarks import make_benchmarks
from free2ds_common.versions import file_version, folder_version

RECORD = {"id": "a", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Info:
    sha = COMMIT


class Hub:
    def model_info(self, hub_id, *, revision, timeout):
        assert (hub_id, revision) == ("owner/llava", "v2")
        return Info


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """Parameters of a run whose inputs are all there, LLaVA on the hub."""
    monkeypatch.setattr(models, "HfApi", Hub)
    monkeypatch.setattr(models, "try_to_load_from_cache", lambda hub_id, name, revision: None)
    configs = {
        "hub": {"architectures": ["Gemma3ForConditionalGeneration"], "vision_config": {}},
        "mgm": {"architectures": ["MGMLlamaForCausalLM"]},
        "bert": {"model_type": "bert"},
    }
    for name, config in configs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(models, "hf_hub_download", lambda *_, revision: str(tmp_path / "hub/config.json"))
    (tmp_path / "d.json").write_text(json.dumps([RECORD] * 11))
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_text("a")
    return {
        "dataset_uri": str(tmp_path / "d.json"),
        "image_root_uri": str(tmp_path / "images"),
        "llava_model": "owner/llava",
        "llava_revision": "v2",
        "mgm_model": str(tmp_path / "mgm"),
        "bert_model": str(tmp_path / "bert"),
    }


@pytest.fixture
def plan(inputs, capsys):
    def run(*options, **given):
        assignments = [f"{name}={value}" for name, value in {**inputs, **given}.items()]
        code = pipeline.main(["plan", *options, *(part for text in assignments for part in ("--param", text))])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def planned(plan, *options, **given):
    code, out, err = plan("--json", *options, **given)
    assert (code, err) == (0, "")
    return json.loads(out)


def test_versions_are_those_that_a_run_would_pin(plan, inputs):
    assert planned(plan)["versions"] == {
        "dataset_version": file_version(inputs["dataset_uri"]),
        "image_root_version": folder_version(inputs["image_root_uri"]),
        "llava_revision": COMMIT,
        "mgm_revision": folder_version(inputs["mgm_model"]),
        "bert_revision": folder_version(inputs["bert_model"]),
        "kmeans_version": "",
        "previous_selected_version": "",
        "train_revision": "",
        "benchmark_versions": "",
    }


def test_models_say_how_they_would_be_loaded(plan, inputs):
    found = planned(plan)["models"]
    assert [(model["parameter"], model["model_type"], model["architecture"]) for model in found] == [
        ("llava_model", "auto", "Gemma3ForConditionalGeneration"),
        ("mgm_model", "mgm", "MGMLlamaForCausalLM"),
        ("bert_model", "bert", ""),
    ]
    assert (found[0]["place"], found[0]["version"]) == ("owner/llava", COMMIT)


def test_records_and_the_most_that_are_selected(plan):
    # A fifth of 11, rounded down.
    assert [planned(plan)[name] for name in ("records", "selected")] == [11, 2]
    assert planned(plan, num_samples=3)["selected"] == 3


def test_a_data_set_in_a_store_is_counted_on_demand(plan):
    fsspec.filesystem("memory").pipe("/plan/d.json", json.dumps([RECORD] * 5).encode())
    found = planned(plan, dataset_uri="memory://plan/d.json")
    assert (found["records"], found["selected"]) == (None, None)
    assert found["unknown"][0] == "The records were not counted: --count-records reads the data set to its end."
    counted = planned(plan, "--count-records", dataset_uri="memory://plan/d.json")
    assert (counted["records"], counted["selected"]) == (5, 1)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "Without a results store every usable record is computed."),
        (
            {"cache_uri": "memory://plan/results"},
            "How many of them are in the results store, and so are not computed again, is known after ingest.",
        ),
    ],
)
def test_what_cannot_be_told_is_said(plan, given, sentence):
    assert sentence in planned(plan, **given)["unknown"]


def test_steps_ask_for_what_the_options_say(plan):
    options = ["--resource", "llava_attention.memory=64Gi", "--registry", "registry.example", "--tag", "1"]
    steps = {step["stage"]: step for step in planned(plan, *options, gpu_count=2)["steps"]}
    assert list(steps) == [
        *("resolve", "ingest", "reuse", "demand", "split", "llava_attention", "mgm_attention", "bert_features"),
        *("cluster_scoring", "joint_selection"),
    ]
    assert steps["llava_attention"] == {
        "stage": "llava_attention",
        "image": "registry.example/free2ds-llava-attention:1",
        "cpu": "4",
        "memory": "64Gi",
        "gpu_type": "nvidia.com/gpu",
        "gpu_count": 2,
        "node_selector": {"nvidia.com/gpu.present": "true"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    }
    assert (steps["ingest"]["gpu_type"], steps["ingest"]["node_selector"], steps["ingest"]["cpu"]) == ("", {}, "4")


def test_text_for_people(plan, inputs):
    code, out, _ = plan(seed=3)
    assert code == 0
    for line in (
        f"llava_model     {'owner/llava':<{max(map(len, inputs.values()))}}  {COMMIT}",
        "llava_model  auto       Gemma3ForConditionalGeneration",
        "bert_model   bert       (nothing)",
        "records: 11, unusable ones too",
        "selected: at most 2",
        "shards of each model: one for 10,000 records that are not in the results store, at most 64",
        "resolve          1    2Gi                       any                          no     free2ds-resolve:dev",
    ):
        assert f"\n{line}\n" in out
    assert "kmeans_uri" not in out


def test_credentials_are_not_printed(plan):
    uri = "memory://plan/results?X-Amz-Signature=secret"
    assert "=secret" not in plan("--json", cache_uri=uri)[1] + plan(cache_uri=uri)[1]


def test_a_wrong_set_up_is_one_sentence(plan):
    assert plan(ratio=2) == (2, "", "error: ratio: got 2, wanted a number in (0, 1].\n")
    assert plan(mgm_model="/nope") == (
        2,
        "",
        "error: mgm_model: /nope is no folder. Give an existing folder, a URI or a hub id.\n",
    )


def test_the_loop_has_its_steps_and_versions_too(plan, tmp_path):
    drawn = make_benchmarks(tmp_path / "benchmarks")
    (tmp_path / "start").mkdir()
    config = {"architectures": ["LlavaForConditionalGeneration"], "vision_config": {}}
    (tmp_path / "start/config.json").write_text(json.dumps(config))
    given = {"benchmark_uris": ",".join(map(str, drawn)), "train_model": f"{tmp_path}/start", "train_gpu_count": 4}
    found = planned(plan, "--pipeline", "loop", **given)
    assert found["versions"]["benchmark_versions"] == ", ".join(folder_version(str(folder)) for folder in drawn)
    assert found["models"][-1] == {
        "parameter": "train_model",
        "place": f"{tmp_path}/start",
        "version": folder_version(f"{tmp_path}/start"),
        "model_type": "llava",
        "architecture": "LlavaForConditionalGeneration",
    }
    for folder in drawn:
        assert folder_version(str(folder)) in plan("--pipeline", "loop", **given)[1]
    assert {step["stage"]: step["gpu_count"] for step in found["steps"]}["finetune"] == 4
    assert found["pipeline"] == "free2ds-loop"
