"""What a run is checked for before anything works on it: each thing that is missing is one sentence, named as the run's
parameter; and what the other stages are given."""

import dataclasses
import json
import shutil

import fsspec
import pytest

import pipeline
from components.bert_features import encoder
from components.bert_features.config import BertFeaturesSettings
from components.resolve import models, stage
from components.resolve.config import ResolveConfig, ResolveSettings
from components.resolve.stage import Resolved, look, outputs, resolve, run
from free2ds_common.checkpoints import fingerprint
from free2ds_common.datasets import DatasetWriter
from free2ds_common.errors import StageError
from free2ds_common.launch.package import Package
from free2ds_common.launch.preflight import check_inputs
from free2ds_common.schemas import kmeans_schema
from free2ds_common.versions import file_version, folder_version

RECORD = {"id": "a", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Info:
    sha = COMMIT


class Hub:
    """A hub that has one model."""

    def model_info(self, hub_id, *, revision, timeout):
        if (hub_id, revision) not in (("owner/there", "main"), ("owner/there", "v2")):
            raise ValueError("no such model\nin two lines")
        return Info


@pytest.fixture
def values(tmp_path, monkeypatch):
    """A run whose inputs are all there."""
    monkeypatch.setattr(models, "HfApi", Hub)
    monkeypatch.setattr(models, "try_to_load_from_cache", lambda hub_id, name, revision: None)
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/config.json").write_text('{"architectures": ["MGMLlamaForCausalLM"]}')
    monkeypatch.setattr(models, "hf_hub_download", lambda *_, revision: str(tmp_path / "hub/config.json"))
    (tmp_path / "d.json").write_text(json.dumps([RECORD] * 3))
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_text("a")
    for name in ("llava", "bert"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    return {
        "dataset_uri": str(tmp_path / "d.json"),
        "image_root_uri": str(tmp_path / "images"),
        "llava_model": str(tmp_path / "llava"),
        "mgm_model": "owner/there",
        "bert_model": f"file://{tmp_path}/bert",
    }


@pytest.fixture
def resolved(values):
    def of(**given):
        settings = ResolveSettings(**{**values, **given})
        return resolve(settings, look(settings))

    return of


def seen(values, **given):
    return look(ResolveSettings(**{**values, **given}))


def write_config(values, name, **entries):
    with open(f"{values[name]}/config.json", "w") as handle:
        json.dump(entries, handle)


class TestLook:
    def test_everything_is_there(self, values):
        assert list(seen(values)) == ["llava_attention", "mgm_attention", "bert_features"]
        seen(values, num_samples=3, image_root_uri="")

    @pytest.mark.parametrize("name", ["llava_model", "mgm_model", "bert_model"])
    def test_a_folder_that_is_not_there(self, values, name):
        with pytest.raises(StageError, match=rf"^{name}: /nope is no folder\. Give an existing folder, a URI or a hub"):
            seen(values, **{name: "/nope"})

    def test_an_encoder_that_is_not_there(self, values):
        with pytest.raises(StageError, match=r"^mgm_options: vision_tower_aux: /nope is no folder\. Give an existing"):
            seen(values, mgm_options="vision_tower_aux=/nope")

    def test_an_encoder_that_is_no_place_is_left_to_its_stage(self, values):
        seen(values, mgm_options="vision_tower=clip vision_tower_aux=owner/gone")

    def test_a_folder_that_is_no_model(self, values, tmp_path):
        with pytest.raises(StageError, match=r"^bert_model: .*/images has no config\.json\. Give a model folder"):
            seen(values, bert_model=str(tmp_path / "images"))
        with pytest.raises(
            StageError, match=r"^bert_model: file:.*/images has no config\.json\. Give the URI of a mod"
        ):
            seen(values, bert_model=f"file://{tmp_path}/images")

    def test_a_config_that_is_broken(self, values, tmp_path):
        (tmp_path / "bert/config.json").write_text("[]")
        with pytest.raises(StageError, match=r"^bert_model: file:.*/bert: config\.json is no JSON object\."):
            seen(values)

    def test_a_store_that_refuses(self, values, monkeypatch):
        class Store:
            def open(self, path, mode):
                assert path == "b/config.json"
                raise PermissionError("403 Forbidden")

        real = models.filesystem
        monkeypatch.setattr(models, "filesystem", lambda uri: (Store(), "b") if "gs:" in uri else real(uri))
        with pytest.raises(StageError, match=r"^gs://b/m: may not be read"):
            seen(values, llava_model="gs://b/m")

    @pytest.mark.parametrize(("model", "revision"), [("owner/gone", "main"), ("owner/there", "v9")])
    def test_a_hub_that_does_not_have_it(self, values, model, revision):
        sentence = rf"^mgm_model: {model} at revision {revision} is no folder here .* \(no such model\)\.$"
        with pytest.raises(StageError, match=sentence):
            seen(values, mgm_model=model, mgm_options=f"revision={revision}")

    def test_a_model_that_was_downloaded_before_needs_no_hub(self, values, monkeypatch, tmp_path):
        kept = tmp_path / "snapshots" / COMMIT
        shutil.copytree(tmp_path / "hub", kept)
        monkeypatch.setattr(models, "try_to_load_from_cache", lambda *_, revision: str(kept / "config.json"))
        assert seen(values, mgm_model="owner/gone")["mgm_attention"].commit == COMMIT
        monkeypatch.setattr(models, "HfApi", None)
        assert seen(values, mgm_model="owner/gone", mgm_options=f"revision={COMMIT}")["mgm_attention"].commit == COMMIT

    def test_a_model_that_was_downloaded_before_is_the_hubs_newer_one(self, values, monkeypatch, tmp_path):
        kept = tmp_path / "snapshots" / COMMIT[::-1]
        shutil.copytree(tmp_path / "hub", kept)
        monkeypatch.setattr(models, "try_to_load_from_cache", lambda *_, revision: str(kept / "config.json"))
        assert seen(values)["mgm_attention"].commit == COMMIT

    def test_the_data_set_is_opened(self, values, tmp_path):
        with pytest.raises(StageError, match=r"none\.json: nothing there"):
            seen(values, dataset_uri=str(tmp_path / "none.json"))
        with pytest.raises(StageError, match="image_root_uri: /nope is not a folder"):
            seen(values, image_root_uri="/nope")

    def test_pictures_in_a_store_are_looked_for(self, values):
        with pytest.raises(StageError, match=r"^image_root_uri: memory://resolve/none: nothing is there\. Check the"):
            seen(values, image_root_uri="memory://resolve/none")
        look(ResolveSettings(**{**values, "image_root_uri": "memory://resolve/none"}), only_local=True)
        fsspec.filesystem("memory").pipe("/resolve/pictures/a.png", b"a")
        seen(values, image_root_uri="memory://resolve/pictures")

    def test_a_web_server_is_not_asked_for_a_folder(self, values):
        seen(values, image_root_uri="https://nowhere.example/images")

    def test_more_records_wanted_than_there_are(self, values):
        with pytest.raises(
            StageError, match=r"^num_samples: got 4, but .*/d\.json has only 3 records\. Ask for fewer\."
        ):
            seen(values, num_samples=4)

    def test_an_earlier_selection_is_looked_for(self, values, tmp_path):
        for place in (str(tmp_path / "none.json"), str(tmp_path), "memory://resolve/none.json"):
            with pytest.raises(StageError, match=rf"^previous_selected_uri: {place} is no file that can be read\."):
                seen(values, previous_selected_uri=place)
        seen(values, previous_selected_uri=str(tmp_path / "d.json"))
        look(ResolveSettings(**values, previous_selected_uri="memory://resolve/none.json"), only_local=True)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"num_shards": 65}, r"^num_shards: got 65, wanted 1 to 64, or 0"),
            ({"ratio": 0.0}, r"^ratio: got 0, wanted a number in \(0, 1\]\."),
            ({"seed": 2**31}, r"^seed: got 2147483648, wanted an integer from 0 to 2147483647\."),
            ({"mgm_model": ""}, r"^mgm_model: is empty"),
            ({"select_options": "sampler=best"}, r"^select_options: sampler: got 'best', wanted one of gumbel"),
            ({"text_options": "num_iterations=0"}, r"^text_options: num_iterations: got 0, wanted a number of at"),
            ({"text_options": "batch_tokens=0"}, r"^text_options: batch_tokens: got 0, wanted a number of at least 1"),
            ({"llava_options": "vision_tower_aux=x"}, r"^llava_options: got 'vision_tower_aux', wanted one of batch_s"),
        ],
    )
    def test_every_setting_is_checked(self, values, given, message):
        with pytest.raises(StageError, match=message):
            seen(values, **given)

    def test_a_model_that_reads_no_pictures(self, values):
        write_config(values, "llava_model", architectures=["BertModel"], hidden_size=8)
        with pytest.raises(StageError, match=r"^llava_model: .*/llava is BertModel, which reads no pictures"):
            seen(values)

    def test_a_text_model_of_another_kind(self, values):
        write_config(values | {"bert_model": values["bert_model"][7:]}, "bert_model", model_type="llava")
        with pytest.raises(StageError, match=r"^bert_model: .*/bert is of model type llava, wanted one of bert, dist"):
            seen(values)

    def test_the_text_models_are_those_that_the_stage_loads(self):
        assert set(BertFeaturesSettings.MODEL_TYPES) == set(encoder._ENCODERS)

    def test_what_only_containers_reach_is_left_to_them(self, values, monkeypatch):
        monkeypatch.setattr(models, "filesystem", None)
        far = {"dataset_uri": "gs://b/d.json", "mgm_model": "owner/gone", "bert_model": "s3://b/m", "num_samples": 9}
        settings = ResolveSettings(**{**values, **far})
        look(settings, only_local=True)
        with pytest.raises(StageError, match=r"^bert_model: /nope is no folder"):
            look(dataclasses.replace(settings, bert_model="/nope"), only_local=True)
        with pytest.raises(StageError, match=r"none\.json: nothing there"):
            look(dataclasses.replace(settings, dataset_uri="/none.json"), only_local=True)

    def test_a_run_looks_before_it_starts(self, values, tmp_path, capsys):
        options = [option for name, value in values.items() for option in ("--param", f"{name}={value}")]
        wrong = ["--param", "bert_model=/nope"]
        assert pipeline.main(["run", "--output-dir", str(tmp_path / "out"), *options, *wrong]) == 2
        assert capsys.readouterr().err.startswith("error: bert_model: /nope is no folder.")
        assert not (tmp_path / "out").exists()

    def test_a_runs_parameters_are_all_looked_at(self, values):
        package = Package.compile(pipeline.free2ds)
        check_inputs(package, values)
        with pytest.raises(StageError, match=r"^num_samples: got 4, but"):
            check_inputs(package, {**values, "num_samples": 4})


@pytest.fixture
def kmeans(tmp_path, values):
    """Clusters of an earlier run with the same text model."""
    with DatasetWriter(tmp_path / "kmeans", kmeans_schema(2)) as writer:
        writer.write([{"cluster": 0, "num_turns": 1, "typical_message": "", "centroid": [0.0, 1.0]}])
        writer.manifest.update(
            largest_squared_distance=1.0,
            mean_squared_distance=0.5,
            objective=[1.0],
            order="key",
            model_fingerprint=fingerprint(tmp_path / "bert"),
            dtype="float32",
            max_tokens=512,
        )
    return tmp_path / "kmeans"


class TestClusters:
    @pytest.mark.parametrize("options", ["", "dtype=float32"])
    def test_that_fit(self, values, kmeans, tmp_path, options):
        for model in (values["bert_model"], str(tmp_path / "bert")):
            seen(values, bert_model=model, text_options=options, kmeans_uri=str(kmeans))

    def test_that_are_not_there_or_something_else(self, values, tmp_path):
        with pytest.raises(StageError, match=r"^kmeans_uri: /nope: no folder there\. .* Wanted the kmeans folder of a"):
            seen(values, kmeans_uri="/nope")
        with pytest.raises(StageError, match=r"^kmeans_uri: .*/images: no _manifest\.json, wanted a finished kmeans/1"):
            seen(values, kmeans_uri=str(tmp_path / "images"))

    @pytest.mark.parametrize("place", ["folder", "hub"])
    def test_of_another_text_model(self, values, kmeans, tmp_path, place):
        (tmp_path / "bert/config.json").write_text('{"other": 1}')
        model = {"folder": str(tmp_path / "bert"), "hub": "owner/there"}[place]
        found = f"commit {COMMIT}" if place == "hub" else fingerprint(tmp_path / "bert")
        sentence = rf"^kmeans_uri: .* was trained with model_fingerprint 'sha256 .*', but .* '{found}'\. Use the same"
        with pytest.raises(StageError, match=sentence):
            seen(values, bert_model=model, kmeans_uri=str(kmeans))

    def test_of_another_number_format(self, values, kmeans):
        with pytest.raises(StageError, match=r"^kmeans_uri: .* was trained with dtype 'float32', but .* 'bfloat16'"):
            seen(values, text_options="dtype=bfloat16", kmeans_uri=str(kmeans))

    def test_of_a_store(self, values, kmeans):
        store = fsspec.filesystem("memory")
        store.put(str(kmeans), "/resolve/kmeans", recursive=True)
        seen(values, kmeans_uri="memory://resolve/kmeans")
        with pytest.raises(StageError, match=r"^kmeans_uri: memory://resolve/no: no folder with files there"):
            seen(values, kmeans_uri="memory://resolve/no")

    def test_that_only_containers_reach_are_left_to_them(self, values):
        settings = ResolveSettings(**values, kmeans_uri="memory://resolve/no")
        look(settings, only_local=True)
        with pytest.raises(StageError, match=r"^kmeans_uri: /nope: no folder there\."):
            look(dataclasses.replace(settings, kmeans_uri="/nope"), only_local=True)


class TestResultsStore:
    def test_need_not_be_there_yet(self, values, tmp_path):
        seen(values, cache_uri="memory://resolve/results")
        seen(values, cache_uri=str(tmp_path / "results"))

    def test_that_refuses(self, values, monkeypatch):
        class Store:
            def ls(self, path, detail):
                raise PermissionError("403 Forbidden")

        real = stage.filesystem
        monkeypatch.setattr(stage, "filesystem", lambda uri: (Store(), "b") if "gs:" in uri else real(uri))
        monkeypatch.setattr(stage, "is_local", lambda uri: "gs:" not in uri)
        with pytest.raises(StageError, match=r"^gs://b/results: may not be read"):
            seen(values, cache_uri="gs://b/results")
        look(ResolveSettings(**values, cache_uri="gs://b/results"), only_local=True)


class TestResolve:
    def test_versions_of_earlier_runs(self, resolved, kmeans, tmp_path):
        (tmp_path / "selected.json").write_text("[]")
        found = resolved(kmeans_uri=str(kmeans), previous_selected_uri=str(tmp_path / "selected.json"))
        assert found.kmeans_version == folder_version(str(kmeans))
        assert found.previous_selected_version == file_version(str(tmp_path / "selected.json"))
        none = resolved()
        assert (none.kmeans_version, none.previous_selected_version) == ("", "")

    def test_versions(self, resolved, values):
        found = resolved()
        assert found.dataset_version.startswith("sha256 ")
        assert found.image_root_version == folder_version(values["image_root_uri"])
        assert found.image_root_version.startswith("1 files ")
        assert found.llava_revision == folder_version(values["llava_model"])
        assert found.mgm_revision == COMMIT
        assert found.bert_revision == folder_version(values["bert_model"])

    def test_the_same_bytes_are_the_same_inputs(self, resolved):
        assert resolved() == resolved()

    @pytest.mark.parametrize(
        ("changed", "field"),
        [
            ("d.json", "dataset_version"),
            ("images/a.png", "image_root_version"),
            ("llava/config.json", "llava_revision"),
            ("bert/config.json", "bert_revision"),
        ],
    )
    def test_other_bytes_are_another_version_of_that_alone(self, resolved, tmp_path, changed, field):
        before = dataclasses.asdict(resolved())
        with open(tmp_path / changed, "a") as handle:
            handle.write(" ")
        after = dataclasses.asdict(resolved())
        assert {name for name in before if before[name] != after[name]} == {field}

    def test_no_pictures_have_no_version(self, resolved):
        assert resolved(image_root_uri="").image_root_version == ""

    def test_options_go_to_their_stages(self, resolved):
        found = resolved(
            llava_options="batch_size=3 prompt=method",
            mgm_options="revision=v2 vision_tower=clip",
            text_options="order=reference batch_tokens=64 num_iterations=100",
            select_options="top_percent=30.0 sampler=top",
        )
        assert found.llava_options == "batch_size=3"
        # The commit stands in its place.
        assert found.mgm_options == "vision_tower=clip"
        assert found.bert_options == "batch_tokens=64"
        assert found.cluster_options == "order=reference"
        assert found.select_options == "sampler=top"

    @pytest.mark.parametrize(
        ("config", "options"),
        [
            ({"architectures": ["LlavaForConditionalGeneration"]}, ""),
            ({"architectures": ["LlavaLlamaForCausalLM"]}, ""),
            ({}, ""),
            ({"architectures": ["Qwen2VL"], "vision_config": {}}, "model_type=auto"),
            # The other stage's.
            ({"architectures": ["MGMLlamaForCausalLM"], "mm_vision_tower": "clip"}, "model_type=auto"),
        ],
    )
    def test_a_models_type_is_its_own_configs(self, resolved, values, config, options):
        write_config(values, "llava_model", **config)
        assert resolved().llava_options == options

    def test_a_type_that_is_given_counts(self, resolved, values):
        write_config(values, "llava_model", architectures=["LlavaForConditionalGeneration"], vision_config={})
        assert resolved(llava_options="model_type=auto prompt=chat").llava_options == "model_type=auto prompt=chat"


class TestRun:
    def test_hands_on_what_it_found(self, values, tmp_path):
        result = run(ResolveConfig(**values, resolved=str(tmp_path / "resolved.json")))
        found = json.loads((tmp_path / "resolved.json").read_text())
        names = [*(field.name for field in dataclasses.fields(Resolved)), "on_gpu"]
        assert outputs(result) == {name: found[name] for name in names}
        assert found["mgm_revision"] == COMMIT
        assert found["mgm_model"] == "owner/there"

    def test_outputs_stand_in_the_order_of_the_component(self):
        spec = Package.compile(pipeline.free2ds).spec["components"]["comp-resolve"]["outputDefinitions"]["parameters"]
        assert set(spec) == {*(field.name for field in dataclasses.fields(Resolved)), "on_gpu"}

    def test_keeps_no_credentials(self, values, tmp_path):
        place = "https://user:secret@host/images"
        result = run(ResolveConfig(**{**values, "image_root_uri": place}, resolved=str(tmp_path / "resolved.json")))
        assert "secret" not in (tmp_path / "resolved.json").read_text()
        assert result.metadata["image_root_uri"] == "https://***@host/images"
