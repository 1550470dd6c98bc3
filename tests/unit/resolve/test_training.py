"""What the loop reads after its selection: wrong is one sentence before any work, and what is right has a version."""

import dataclasses
import json
import os

import fsspec
import pytest

import pipeline
from components.evaluate.benchmark import read_benchmark
from components.resolve.config import ResolveConfig, ResolveSettings
from components.resolve.stage import look, resolve, run
from components.resolve.training import look_at_training
from examples.benchmarks import make_benchmarks
from free2ds_common.errors import SettingError, StageError
from free2ds_common.launch.package import Package
from free2ds_common.launch.preflight import check_inputs
from free2ds_common.versions import folder_version

RECORD = {"id": "a", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}
LLAVA = {"architectures": ["LlavaForConditionalGeneration"], "vision_config": {}}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return make_benchmarks(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture
def values(tmp_path, drawn):
    """A loop whose inputs are all there."""
    (tmp_path / "d.json").write_text(json.dumps([RECORD]))
    for name, config in (("llava", LLAVA), ("mgm", {}), ("bert", {}), ("start", LLAVA)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    return {
        "dataset_uri": str(tmp_path / "d.json"),
        "image_root_uri": "",
        "llava_model": str(tmp_path / "llava"),
        "mgm_model": str(tmp_path / "mgm"),
        "bert_model": str(tmp_path / "bert"),
        "arms": ["selected:1", "random:1"],
        "train_model": str(tmp_path / "start"),
        "benchmark_uris": ",".join(map(str, drawn)),
    }


def seen(values, *, only_local=False, **given):
    return look(ResolveSettings(**{**values, **given}), only_local=only_local)


@pytest.fixture
def broken(tmp_path, drawn):
    """A copy of a benchmark that lacks a file, or has entries of its own."""

    def make(*, without="", **entries):
        folder = tmp_path / "broken"
        fsspec.filesystem("file").copy(str(drawn[0]) + "/", str(folder), recursive=True)
        described = json.loads((folder / "benchmark.json").read_text()) | entries
        (folder / "benchmark.json").write_text(json.dumps(described))
        if without:
            (folder / without).unlink()
        return str(folder)

    return make


@pytest.fixture
def stored(drawn):
    """A benchmark in a store; its place."""
    store = fsspec.filesystem("memory")
    store.put(f"{drawn[0]}/", "/training/colours", recursive=True)
    yield "memory://training/colours"
    store.rm("/training", recursive=True)


class TestModel:
    def test_is_looked_at(self, values):
        assert list(seen(values)) == ["llava_attention", "mgm_attention", "bert_features", "finetune"]

    @pytest.mark.parametrize(
        ("config", "options", "sentence"),
        [
            ({"architectures": ["LlavaLlamaForCausalLM"]}, "", r"is LlavaLlamaForCausalLM, wanted LlavaForConditional"),
            ({}, "", r"is of a kind that it does not say, wanted LlavaForConditionalGeneration"),
            ({"architectures": ["BertModel"]}, "model_type=auto", r"is BertModel, which reads no pictures"),
        ],
    )
    def test_of_another_kind(self, values, config, options, sentence):
        with open(f"{values['train_model']}/config.json", "w") as handle:
            json.dump(config, handle)
        with pytest.raises(SettingError, match=rf"^train_model: .*/start {sentence}"):
            seen(values, train_options=options)

    def test_of_another_kind_that_is_asked_for(self, values):
        with open(f"{values['train_model']}/config.json", "w") as handle:
            json.dump({"architectures": ["Qwen2VL"], "vision_config": {}}, handle)
        seen(values, train_options="model_type=auto")

    def test_that_is_not_there(self, values):
        with pytest.raises(SettingError, match=r"^train_model: /nope is no folder\."):
            seen(values, train_model="/nope")

    def test_that_only_containers_reach_is_left_to_them(self, values):
        for place in ("gs://b/m", "owner/gone"):
            assert "finetune" not in seen(values, only_local=True, train_model=place)

    def test_a_revision_is_of_the_training(self, values, monkeypatch):
        monkeypatch.setattr("components.resolve.training.look_at", lambda *given: given)
        monkeypatch.setattr("components.resolve.training._require_kind", lambda *_: None)
        every = dataclasses.asdict(ResolveSettings(**values)) | {"train_options": "revision=v2"}
        assert look_at_training(every) == ("train_model", values["train_model"], "v2")


class TestBenchmarks:
    def test_that_is_none(self, values, tmp_path):
        with pytest.raises(
            SettingError, match=r"^benchmark_uris: .*/llava: no benchmark\.json, wanted a benchmark fol"
        ):
            seen(values, benchmark_uris=str(tmp_path / "llava"))

    def test_without_its_questions(self, values, broken):
        with pytest.raises(SettingError, match=r"^benchmark_uris: .*/broken/questions\.json: no such file, though"):
            seen(values, benchmark_uris=broken(without="questions.json"))

    def test_without_its_pictures(self, values, broken, drawn):
        first = read_benchmark(drawn[0]).questions[0].image
        with pytest.raises(
            SettingError, match=rf"^benchmark_uris: .*/broken: its first picture, {first}, is not there"
        ):
            seen(values, benchmark_uris=broken(without=f"images/{first}"))

    def test_two_of_one_name(self, values, drawn, broken):
        with pytest.raises(StageError, match=r"^benchmarks: two are called colours\."):
            seen(values, benchmark_uris=f"{drawn[0]},{broken()}")

    def test_of_a_store_without_its_pictures_being_copied(self, values, stored, monkeypatch):
        seen(values, benchmark_uris=stored)
        fsspec.filesystem("memory").rm("/training/colours/images/0000.png")
        with pytest.raises(SettingError, match=r"^benchmark_uris: memory://training/colours: its first picture, 0000"):
            seen(values, benchmark_uris=stored)

    def test_of_a_store_that_is_none(self, values, stored):
        with pytest.raises(SettingError, match=r"^benchmark_uris: memory://training: no benchmark\.json, wanted a ben"):
            seen(values, benchmark_uris="memory://training")

    def test_of_a_store_whose_questions_are_elsewhere(self, values, stored):
        described = json.dumps({"questions": "../../secret.json"}).encode()
        fsspec.filesystem("memory").pipe("/training/colours/benchmark.json", described)
        with pytest.raises(
            SettingError, match=r"^benchmark_uris: memory://training/colours: its questions are not bel"
        ):
            seen(values, benchmark_uris=stored)

    def test_of_a_store_without_its_questions(self, values, stored):
        fsspec.filesystem("memory").rm("/training/colours/questions.json")
        with pytest.raises(
            SettingError, match=r"^benchmark_uris: memory://training/colours/questions\.json: no such f"
        ):
            seen(values, benchmark_uris=stored)

    def test_that_only_containers_reach_are_left_to_them(self, values):
        seen(values, only_local=True, benchmark_uris="gs://b/nowhere")


class TestSettings:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"arms": ["selected:1"]}, r"^arms: got selected:1, wanted random among them"),
            ({"arms": []}, r"^arms: got none, wanted selected"),
            ({"train_model": ""}, r"^train_model: is empty"),
            ({"benchmark_uris": ""}, r"^benchmark_uris: is empty"),
            ({"train_options": "lora_rank=0"}, r"^train_options: lora_rank: got 0, wanted a number of at least 1"),
            ({"evaluate_options": "prompt=v2"}, r"^evaluate_options: prompt: got 'v2'"),
            ({"resamples": 0}, r"^resamples: got 0"),
        ],
    )
    def test_of_every_stage_are_checked(self, values, given, message):
        with pytest.raises(SettingError, match=message):
            seen(values, **given)

    def test_a_loop_looks_before_it_starts(self, values, tmp_path):
        package = Package.compile(pipeline.free2ds_loop)
        check_inputs(package, values)
        with pytest.raises(SettingError, match=r"^benchmark_uris: .*/mgm: no benchmark\.json"):
            check_inputs(package, {**values, "benchmark_uris": str(tmp_path / "mgm")})


class TestVersions:
    @pytest.fixture
    def resolved(self, values):
        def of(**given):
            settings = ResolveSettings(**{**values, **given})
            return resolve(settings, look(settings))

        return of

    def test_of_model_and_benchmarks(self, resolved, values, drawn):
        found = resolved()
        assert found.train_revision == folder_version(values["train_model"])
        assert found.benchmark_versions == f"{folder_version(str(drawn[0]))}, {folder_version(str(drawn[1]))}"

    def test_are_kept_with_their_places(self, values, tmp_path):
        run(ResolveConfig(**values, resolved=str(tmp_path / "resolved.json")))
        found = json.loads((tmp_path / "resolved.json").read_text())
        assert {name: found[name] for name in ("train_model", "benchmark_uris")} == {
            name: values[name] for name in ("train_model", "benchmark_uris")
        }
        assert found["train_revision"] == folder_version(values["train_model"])

    def test_a_selection_has_none(self, resolved):
        found = resolved(arms=[], train_model="", benchmark_uris="")
        assert (found.train_revision, found.benchmark_versions) == ("", "")

    def test_other_bytes_are_another_version_of_that_alone(self, resolved, values, broken):
        folder = broken()
        before = dataclasses.asdict(resolved(benchmark_uris=folder))
        os.utime(f"{folder}/images/0000.png", (1, 1))
        after = dataclasses.asdict(resolved(benchmark_uris=folder))
        assert {name for name in before if before[name] != after[name]} == {"benchmark_versions"}
        with open(f"{values['train_model']}/config.json", "a") as handle:
            handle.write(" ")
        changed = dataclasses.asdict(resolved(benchmark_uris=folder))
        assert {name for name in after if after[name] != changed[name]} == {"train_revision"}
