"""What is looked at before a local run: each thing that is missing is one sentence, named as the run's parameter."""

import json

import fsspec
import pytest

import pipeline
from free2ds_common.checkpoints import fingerprint
from free2ds_common.datasets import DatasetWriter
from free2ds_common.errors import StageError
from free2ds_common.launch import preflight
from free2ds_common.launch.package import Package
from free2ds_common.launch.preflight import check_inputs
from free2ds_common.schemas import TEXT_TURNS, kmeans_schema
from tests.support.selection import change_manifest

RECORD = {"id": "a", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}


@pytest.fixture(scope="module")
def package():
    return Package.compile(pipeline.free2ds)


class Hub:
    """A hub that has one model."""

    def model_info(self, hub_id, *, revision, timeout):
        if (hub_id, revision) != ("owner/there", "main"):
            raise ConnectionError("the network is down\nin two lines")


@pytest.fixture
def values(tmp_path, monkeypatch):
    """A run whose inputs are all there."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(preflight, "HfApi", Hub)
    monkeypatch.setattr(preflight, "try_to_load_from_cache", lambda hub_id, name, revision: None)
    (tmp_path / "d.json").write_text(json.dumps([RECORD] * 3))
    (tmp_path / "images").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    return {
        "dataset_uri": str(tmp_path / "d.json"),
        "image_root_uri": str(tmp_path / "images"),
        "llava_model": str(tmp_path / "model"),
        "mgm_model": "owner/there",
        "bert_model": f"file://{tmp_path}/model",
    }


def test_everything_is_there(package, values):
    check_inputs(package, values)
    check_inputs(package, {**values, "num_samples": 3, "image_root_uri": ""})


@pytest.mark.parametrize("name", ["llava_model", "mgm_model", "bert_model", "mgm_vision_tower_aux"])
def test_a_folder_that_is_not_there(package, values, name):
    with pytest.raises(StageError, match=rf"^{name}: /nope is no folder\. Give an existing folder, a URI or a hub id"):
        check_inputs(package, {**values, name: "/nope"})


def test_a_folder_that_is_no_model(package, values, tmp_path):
    with pytest.raises(StageError, match=r"^bert_model: .*/images has no config\.json\. Give a model folder"):
        check_inputs(package, {**values, "bert_model": str(tmp_path / "images")})
    with pytest.raises(StageError, match=r"^bert_model: file:.*/images has no config\.json\. Give the URI of a model"):
        check_inputs(package, {**values, "bert_model": f"file://{tmp_path}/images"})


def test_a_store_that_does_not_answer(package, values, monkeypatch):
    class Store:
        def info(self, path):
            assert path == "b/config.json"
            raise PermissionError("403 Forbidden")

    real = preflight.filesystem
    monkeypatch.setattr(preflight, "filesystem", lambda uri: (Store(), "b") if "gs:" in uri else real(uri))
    with pytest.raises(StageError, match=r"^gs://b/m: may not be read"):
        check_inputs(package, {**values, "llava_model": "gs://b/m"})


@pytest.mark.parametrize(("model", "revision"), [("owner/gone", "main"), ("owner/there", "v9")])
def test_a_hub_that_does_not_have_it_or_does_not_answer(package, values, model, revision):
    sentence = rf"^mgm_model: {model} at revision {revision} is no folder here .* \(the network is down\)\.$"
    with pytest.raises(StageError, match=sentence):
        check_inputs(package, {**values, "mgm_model": model, "mgm_revision": revision})


def test_a_model_that_was_downloaded_before_needs_no_hub(package, values, monkeypatch):
    monkeypatch.setattr(preflight, "try_to_load_from_cache", lambda hub_id, name, revision: "/cache/config.json")
    check_inputs(package, {**values, "mgm_model": "owner/gone"})


def test_the_data_set_is_opened(package, values, tmp_path):
    with pytest.raises(StageError, match=r"none\.json: nothing there"):
        check_inputs(package, {**values, "dataset_uri": str(tmp_path / "none.json")})
    with pytest.raises(StageError, match="image_root_uri: /nope is not a folder"):
        check_inputs(package, {**values, "image_root_uri": "/nope"})


def test_more_records_wanted_than_there_are(package, values):
    with pytest.raises(StageError, match=r"^num_samples: got 4, but .*/d\.json has only 3 records\. Ask for fewer\."):
        check_inputs(package, {**values, "num_samples": 4})


def test_a_run_looks_before_it_starts(values, tmp_path, capsys):
    options = [option for name, value in values.items() for option in ("--param", f"{name}={value}")]
    assert pipeline.main(["run", "--output-dir", str(tmp_path / "out"), *options, "--param", "bert_model=/nope"]) == 2
    assert capsys.readouterr().err.startswith("error: bert_model: /nope is no folder.")
    assert not (tmp_path / "out").exists()


def test_what_only_containers_reach_is_left_to_them(package, values, monkeypatch):
    monkeypatch.setattr(preflight, "filesystem", None)
    far = {"dataset_uri": "gs://b/d.json", "mgm_model": "owner/gone", "bert_model": "s3://b/m", "num_samples": 9}
    check_inputs(package, {**values, **far}, only_local=True)
    with pytest.raises(StageError, match=r"^bert_model: /nope is no folder"):
        check_inputs(package, {**values, **far, "bert_model": "/nope"}, only_local=True)
    with pytest.raises(StageError, match=r"none\.json: nothing there"):
        check_inputs(package, {**values, "dataset_uri": "/none.json"}, only_local=True)


@pytest.fixture
def kmeans(tmp_path):
    """Clusters of an earlier run with the same text model."""
    with DatasetWriter(tmp_path / "kmeans", kmeans_schema(2)) as writer:
        writer.write([{"cluster": 0, "num_turns": 1, "typical_message": "", "centroid": [0.0, 1.0]}])
        writer.manifest.update(
            largest_squared_distance=1.0,
            mean_squared_distance=0.5,
            objective=[1.0],
            order="key",
            model_fingerprint=fingerprint(tmp_path / "model"),
            dtype="float32",
            max_tokens=512,
        )
    return tmp_path / "kmeans"


def test_clusters_of_an_earlier_run_that_fit(package, values, kmeans, tmp_path):
    for model in (values["bert_model"], str(tmp_path / "model")):
        for dtype in ("auto", "float32"):
            check_inputs(package, {**values, "bert_model": model, "dtype": dtype, "kmeans_uri": str(kmeans)})


def test_clusters_that_are_not_there_or_something_else(package, values, tmp_path):
    with pytest.raises(
        StageError, match=r"^kmeans_uri: /nope: no folder there\. .* Wanted the kmeans folder of a fini"
    ):
        check_inputs(package, {**values, "kmeans_uri": "/nope"})
    with pytest.raises(StageError, match=r"^kmeans_uri: .*/images: no _manifest\.json, wanted a finished kmeans/1"):
        check_inputs(package, {**values, "kmeans_uri": str(tmp_path / "images")})
    with DatasetWriter(tmp_path / "turns", TEXT_TURNS):
        pass
    with pytest.raises(StageError, match=r"^kmeans_uri: .*/turns: holds text_turns/1, wanted kmeans/1\."):
        check_inputs(package, {**values, "kmeans_uri": str(tmp_path / "turns")})


@pytest.mark.parametrize("place", ["folder", "URI", "hub"])
def test_clusters_of_another_text_model(package, values, kmeans, tmp_path, monkeypatch, place):
    cached = tmp_path / "snapshots" / ("a" * 40)
    cached.mkdir(parents=True)
    (tmp_path / "model/config.json").write_text('{"other": 1}')
    monkeypatch.setattr(preflight, "try_to_load_from_cache", lambda hub_id, name, revision: str(cached / name))
    model = {"folder": str(tmp_path / "model"), "URI": f"file://{tmp_path}/model", "hub": "hf://owner/bert"}[place]
    found = f"commit {'a' * 40}" if place == "hub" else fingerprint(tmp_path / "model")
    sentence = (
        rf"^kmeans_uri: .*/kmeans was trained with model_fingerprint 'sha256 .*', but .* '{found}'\. Use the same"
    )
    with pytest.raises(StageError, match=sentence):
        check_inputs(package, {**values, "bert_model": model, "kmeans_uri": str(kmeans)})


def test_clusters_of_another_number_format(package, values, kmeans):
    with pytest.raises(StageError, match=r"^kmeans_uri: .* was trained with dtype 'float32', but .* 'bfloat16'"):
        check_inputs(package, {**values, "dtype": "bfloat16", "kmeans_uri": str(kmeans)})


def test_clusters_of_a_store(package, values, kmeans):
    store = fsspec.filesystem("memory")
    store.put(str(kmeans), "/preflight/kmeans", recursive=True)
    check_inputs(package, {**values, "kmeans_uri": "memory://preflight/kmeans"})
    change_manifest(kmeans, order="reference")
    store.put(str(kmeans), "/preflight/reference", recursive=True)
    with pytest.raises(StageError, match=r"^kmeans_uri: memory://preflight/reference was trained with order=reference"):
        check_inputs(package, {**values, "kmeans_uri": "memory://preflight/reference"})
    with pytest.raises(StageError, match=r"^kmeans_uri: memory://preflight/no: no folder with files there"):
        check_inputs(package, {**values, "kmeans_uri": "memory://preflight/no"})


def test_clusters_that_only_containers_reach_are_left_to_them(package, values):
    check_inputs(package, {**values, "kmeans_uri": "memory://preflight/no"}, only_local=True)
    with pytest.raises(StageError, match=r"^kmeans_uri: /nope: no folder there\."):
        check_inputs(package, {**values, "kmeans_uri": "/nope"}, only_local=True)
