"""A data set that grows: only what is new is scored, in shards in proportion, and the selection is a fresh run's."""

import json

import pytest

import pipeline
from examples.make import make
from tests.support.stages import grow

RECORDS, SHARDS = 20, 2


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    folder = tmp_path_factory.mktemp("example")
    make(folder, RECORDS, seed=7)
    extra = tmp_path_factory.mktemp("extra")
    make(extra, 4, seed=8)
    grow(folder, "dataset.json", "grown.json", extra)
    return folder


@pytest.fixture(scope="module")
def run(example, tmp_path_factory):
    """Run the pipeline on a data set with a results store; returns the folder of results."""

    def once(name, dataset, store):
        output_dir = tmp_path_factory.mktemp(name)
        values = {
            "dataset_uri": example / dataset,
            "image_root_uri": example / "images",
            **{f"{model}_model": example / "models" / model for model in ("llava", "mgm", "bert")},
            "cache_uri": example / store,
            "num_clusters": 5,
            "max_new_tokens": 8,
            "num_shards": SHARDS,
        }
        options = [option for key, value in values.items() for option in ("--param", f"{key}={value}")]
        assert pipeline.main(["run", "--output-dir", str(output_dir), "--keep-work", *options]) == 0
        return output_dir

    return once


@pytest.fixture(scope="module")
def runs(run):
    """A first run, one on the grown data set, that one again, and one on the grown data set without results."""
    return {
        "first": run("first", "dataset.json", "store"),
        "grown": run("grown", "grown.json", "store"),
        "again": run("again", "grown.json", "store"),
        "fresh": run("fresh", "grown.json", "empty"),
    }


def reuse_of(folder, model):
    return json.loads((folder / "summary.json").read_text())["reuse"][model]


def shards_of(folder, model):
    """The manifests of a model's shards."""
    paths = folder.glob(f"work-*/tasks/**/{model}-attention/attention/_manifest.json")
    return [json.loads(path.read_text()) for path in paths]


@pytest.mark.parametrize("model", ["llava", "mgm"])
class TestModel:
    def test_only_what_is_new_is_computed(self, runs, model):
        first, grown, again, fresh = (reuse_of(folder, model) for folder in runs.values())
        assert first["reused"] == fresh["reused"] == again["computed"] == 0
        assert grown == {"reused": first["computed"], "computed": fresh["computed"] - first["computed"]}
        assert again["reused"] == fresh["computed"] > first["computed"]

    def test_there_are_shards_in_proportion(self, runs, model):
        counts = {name: len(shards_of(folder, model)) for name, folder in runs.items()}
        assert counts == {"first": SHARDS, "grown": 1, "again": 1, "fresh": SHARDS}

    def test_no_model_is_loaded_for_nothing(self, runs, model):
        (again,) = shards_of(runs["again"], model)
        assert (again["device"], again["rows"]) == ("none, all results were there", 0)
        assert all(shard["device"] != again["device"] for shard in shards_of(runs["grown"], model))


def test_a_gpu_is_asked_for_where_there_is_something_new(runs):
    """Here none is, as the run has none: what demand was told is what counts."""
    told = {}
    for name in ("grown", "again"):
        (path,) = runs[name].glob("work-*/tasks/**/reuse/executor_output.json")
        told[name] = json.loads(path.read_text())["parameterValues"]
    assert told == {
        "grown": {"llava_new": "yes", "mgm_new": "yes"},
        "again": {"llava_new": "no", "mgm_new": "no"},
    }


def test_the_selection_is_that_of_a_fresh_run(runs):
    wanted = (runs["fresh"] / "selected.json").read_bytes()
    assert (runs["grown"] / "selected.json").read_bytes() == wanted
    assert (runs["again"] / "selected.json").read_bytes() == wanted


def test_lineage_of_finished_rows_leads_to_the_data_set_and_the_model(runs, example, capsys):
    assert pipeline.main(["lineage", str(runs["again"] / "selected.json"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["made_from"]["llava_attention"]
    assert found["facts"]["model"] == str(example / "models/llava")
    assert found["made_from"]["records"]["facts"]["dataset_uri"] == str(example / "grown.json")
