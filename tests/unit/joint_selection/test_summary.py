"""The run in numbers: summary.json, and what the stage returns."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from components.joint_selection.stage import run
from components.joint_selection.summary import SourceCounts
from free2ds_common import __version__
from free2ds_common.datasets import open_dataset, sha256_of_file
from free2ds_common.schemas import RECORDS, SCORES
from tests.support.selection import change_manifest, chosen_ids, read_json

pytestmark = pytest.mark.usefixtures("without_report")


@pytest.fixture
def result_and_json(make_inputs):
    inputs = make_inputs()
    inputs.outcomes[0][9] = "image_missing"
    inputs.records_manifest = {
        "dataset_sha256": "abc",
        "dataset_uri": "gs://b/d.json",
        "counts": {"read": 43, "written": 40, "dropped": 0, "rejected": 3},
        "reject_reasons": {"not_json": 3},
    }
    inputs.write()
    for shard in range(2):
        change_manifest(inputs.folder / f"mgm{shard}", model="other", capture_version=2)
    change_manifest(inputs.folder / "text", model="bert", num_clusters=5, num_iterations=20)
    config = inputs.config()
    return run(config), read_json(config.summary), config


def test_its_entries(result_and_json):
    _, summary, _ = result_and_json
    assert list(summary) == [
        "counts",
        "warnings",
        "reasons",
        "unknown_ids",
        "ingest",
        "pool",
        "without_iou",
        "all_scores_equal",
        "tilt",
        "chance",
        "outcomes",
        "by_outcome",
        "sources",
        "parameters",
        "grids",
        "models",
        "reuse",
        "device_seconds",
        "changes",
        "code_version",
        "run",
        "lineage",
    ]


def test_its_values(result_and_json):
    """Of 40 records one is rejected; four of the others (and it) have no IoU."""
    _, summary, _ = result_and_json
    wanted = {
        "counts": {"read": 40, "written": 9, "dropped": 30, "rejected": 1},
        "warnings": [],
        "reasons": {"image_missing": 1},
        "unknown_ids": {"llava_attention": 0, "mgm_attention": 0, "text_scores": 0},
        "ingest": {
            "dataset_uri": "gs://b/d.json",
            "dataset_sha256": "abc",
            "counts": {"read": 43, "written": 40, "dropped": 0, "rejected": 3},
            "reject_reasons": {"not_json": 3},
        },
        "pool": 39,
        "without_iou": 4,
        "all_scores_equal": False,
        "outcomes": {
            "llava": {"ok": 35, "text_only": 3, "eos_only": 1, "image_missing": 1},
            "mgm": {"ok": 37, "text_only": 3},
        },
        "grids": {"llava": 24, "mgm": 24, "compared_on": 24},
        "models": {
            "llava": {"model": "m", "model_fingerprint": "f", "dtype": "float32", "grid": 24},
            "mgm": {
                "model": "other",
                "model_fingerprint": "f",
                "dtype": "float32",
                "grid": 24,
                "capture_version": 2,
            },
            "text": {"model": "bert", "num_clusters": 5},
        },
        "code_version": __version__,
    }
    assert {name: summary[name] for name in wanted} == wanted


def test_its_tilt(result_and_json):
    _, summary, _ = result_and_json
    assert list(summary["tilt"]) == [
        "mean_combined_pool",
        "mean_combined_selected",
        "overlap_with_top",
        "overlap_by_chance",
        "weight_ratio",
        "effective_sample_size",
    ]
    assert summary["tilt"]["overlap_by_chance"] == 9 / 39


def test_its_sources_are_those_of_the_pool(result_and_json):
    """Of 14, 13 and 13 records one of the first source is rejected."""
    _, summary, _ = result_and_json
    assert {name: row["pool"] for name, row in summary["sources"].items()} == {"x": 13, "y": 13, "z": 13}


@pytest.fixture
def mixed(make_inputs):
    """Every kind of pair of outcomes, and one record that cannot be used."""
    inputs = make_inputs()
    pairs = {8: ("ok", "non_finite"), 9: ("image_missing", "eos_only"), 10: ("non_finite", "eos_only")}
    pairs |= {11: ("eos_only", "non_finite"), 12: ("not_scored", "prompt_too_long")}
    for record, pair in pairs.items():
        for side, outcome in enumerate(pair):
            inputs.outcomes[side][record] = outcome
    return inputs.write()


def test_a_record_has_one_outcome_whichever_models_it_is(mixed):
    """Records 7, 10 and 11 are eos_only, 8 is non_finite, 12 prompt_too_long; 9 is in no pool."""
    config = mixed.config(ratio=1.0, missing_iou="text")
    run(config)
    assert read_json(config.summary)["by_outcome"] == {
        "ok": {"pool": 31, "selected": 31, "top": 31},
        "text_only": {"pool": 3, "selected": 3, "top": 3},
        "eos_only": {"pool": 3, "selected": 3, "top": 3},
        "prompt_too_long": {"pool": 1, "selected": 1, "top": 1},
        "non_finite": {"pool": 1, "selected": 1, "top": 1},
    }


def test_outcomes_of_selection_and_top_n(make_inputs):
    """Text alone counts: of the ten least typical records three have no picture and one an empty answer."""
    inputs = make_inputs()
    inputs.similarity = 0.5 + np.arange(40) / 100
    inputs.similarity[[3, 4, 5, 7]] = [0.1, 0.2, 0.3, 0.4]
    config = inputs.write().config(alpha=1.0, seed=3, missing_iou="text")
    run(config)
    chosen = {int(number) for number in chosen_ids(config)}
    selected = {"text_only": len(chosen & {3, 4, 5}), "eos_only": len(chosen & {7})}
    assert read_json(config.summary)["by_outcome"] == {
        "ok": {"pool": 36, "selected": 10 - sum(selected.values()), "top": 6},
        "text_only": {"pool": 3, "selected": selected["text_only"], "top": 3},
        "eos_only": {"pool": 1, "selected": selected["eos_only"], "top": 1},
    }


def test_excluded_records_are_in_no_row(mixed):
    config = mixed.config(missing_iou="exclude")
    run(config)
    assert list(read_json(config.summary)["by_outcome"]) == ["ok"]


@pytest.mark.parametrize("output", ["selected", "random"])
def test_its_sources_are_those_of_the_files(result_and_json, output):
    _, summary, config = result_and_json
    sources = Counter("xyz"[int(number) % 3] for number in chosen_ids(config, output))
    assert {name: row[output] for name, row in summary["sources"].items()} == {name: sources[name] for name in "xyz"}


def test_its_parameters_are_settings_and_no_ports(result_and_json):
    _, summary, config = result_and_json
    names = {
        "seed",
        "ratio",
        "num_samples",
        "stratify",
        "alpha",
        "temperature",
        "sampler",
        "missing_iou",
        "text_normalization",
        "top_percent",
        "previous_selected_uri",
        "max_reject_fraction",
        "image_root_uri",
    }
    assert summary["parameters"] == {name: getattr(config, name) for name in names}


def test_its_lineage_is_of_the_files_beside_it(result_and_json):
    _, summary, config = result_and_json
    told = summary["lineage"]
    assert told["outputs"] == {
        "selected": sha256_of_file(config.selected),
        "random": sha256_of_file(config.random),
        "scores": open_dataset(config.scores, SCORES).sha256,
    }
    assert list(told["made_from"]) == ["records", "llava_attention", "mgm_attention", "text_scores"]
    assert told["made_from"]["records"]["sha256"] == open_dataset(config.records, RECORDS).sha256
    assert told["made_from"]["records"]["facts"]["dataset_sha256"] == "abc"


def test_the_result_has_scalars_as_metrics_and_everything_else_as_metadata(result_and_json):
    result, summary, _ = result_and_json
    assert vars(result.counts) == summary["counts"]
    chance = {name: value for name, value in result.metrics.items() if name not in summary["tilt"]}
    assert {name for name in chance if "overlap" not in name} == {"pool", "without_iou"}
    assert result.metrics == {**summary["tilt"], **chance, "pool": 39, "without_iou": 4}
    elsewhere = ("counts", "tilt", "chance", "run", "lineage", "reuse", "device_seconds", "changes")
    metadata = {name: value for name, value in summary.items() if name not in elsewhere}
    assert metadata.items() <= result.metadata.items()
    assert set(result.metadata) - set(metadata) == {"dataset_sha256", "made_from"}


def test_lineage_in_the_metadata_is_short(result_and_json):
    result, _, config = result_and_json
    assert result.metadata["dataset_sha256"] == "abc"
    made_from = result.metadata["made_from"]
    assert list(made_from) == ["records", "llava_attention", "mgm_attention", "text_scores"]
    assert made_from["records"] == open_dataset(config.records, RECORDS).sha256
    assert {len(digest) for digest in made_from.values()} == {64}


def test_runs_compare_by_a_dozen_numbers_the_important_ones_first(result_and_json):
    result, summary, _ = result_and_json
    shown = result.highlights
    assert list(shown) == sorted(shown)
    assert [name[3:] for name in shown] == [
        *("selected", "usable", "rejected", "without_iou", "computed", "reused"),
        *("overlap_with_top", "overlap_expected", "overlap_by_chance"),
        *("effective_sample_size", "mean_combined_selected", "warnings"),
    ]
    counts = summary["counts"]
    assert shown["01_selected"] == counts["written"]
    assert shown["02_usable"] == 39
    # Ingest's three too.
    assert shown["03_rejected"] == counts["rejected"] + 3
    assert shown["04_without_iou"] == 4
    assert shown["05_computed"] == sum(reuse["computed"] for reuse in summary["reuse"].values())
    assert shown["06_reused"] == sum(reuse["reused"] for reuse in summary["reuse"].values())
    assert shown["07_overlap_with_top"] == summary["tilt"]["overlap_with_top"]
    assert shown["08_overlap_expected"] == summary["chance"]["overlap"]["expected"]
    assert shown["12_warnings"] == len(summary["warnings"])
    assert {type(value) for value in shown.values()} == {float}


@pytest.fixture
def summary_of_sources(inputs, monkeypatch):
    """The summary of a run, as if its sources were others."""
    kept = []
    monkeypatch.setattr("components.joint_selection.stage.write_summary", lambda _, summary, __: kept.append(summary))
    run(inputs.config())
    return lambda sources: dataclasses.replace(kept[0], sources=sources)


def test_the_largest_sources_are_in_the_metadata_and_the_others_are_summed(summary_of_sources):
    sources = {f"s{number}": SourceCounts(1000 - number, 10, 20) for number in range(103)}
    metadata = summary_of_sources(sources).as_result().metadata
    assert list(metadata["sources"]) == [f"s{number}" for number in range(100)]
    assert metadata["sources"]["s99"] == {"pool": 901, "selected": 10, "random": 20}
    assert metadata["other_sources"] == {"sources": 3, "pool": 900 + 899 + 898, "selected": 30, "random": 60}


def test_a_hundred_sources_have_no_others(summary_of_sources):
    metadata = summary_of_sources({f"s{number}": SourceCounts(1, 0, 0) for number in range(100)}).as_result().metadata
    assert len(metadata["sources"]) == 100
    assert "other_sources" not in metadata


def test_the_metadata_do_not_grow_with_the_data_set(summary_of_sources):
    """Neither with the sources nor with the length of their names."""
    sources = {"folder/" * 10_000 + f"{number}": SourceCounts(10**9, 10**9, 10**9) for number in range(300)}
    metadata = summary_of_sources(sources).as_result().metadata
    assert len(json.dumps(metadata)) < 30_000
    assert len(metadata["sources"]) == 100


def test_long_names_in_the_metadata_begin_as_they_do(summary_of_sources):
    names = ["n" * 80, "n" * 81]
    found = list(summary_of_sources({name: SourceCounts(1, 0, 0) for name in names}).as_result().metadata["sources"])
    assert found[0] == names[0]
    assert found[1].startswith("n" * 80 + "… (")
    assert len(found[1]) == 96


def test_all_sources_are_in_the_file(make_inputs):
    inputs = make_inputs()
    inputs.sources = ["long/" * 20 + f"{number}" for number in range(40)]
    config = inputs.write().config()
    run(config)
    assert set(read_json(config.summary)["sources"]) == set(inputs.sources)


def test_the_time_of_devices_is_summed_over_the_shards(make_inputs):
    inputs = make_inputs()
    inputs.manifest.update(device_seconds=1.5)
    inputs.text_manifest = {"device_seconds": 4.0}
    config = inputs.write().config()
    result = run(config)
    assert read_json(config.summary)["device_seconds"] == {"llava": 3.0, "mgm": 3.0, "text": 4.0}
    # Another in each run: what is the same has to look the same.
    assert "device_seconds" not in result.metadata


def test_the_time_of_devices_that_nothing_tells_is_left_out(make_inputs):
    inputs = make_inputs()
    inputs.text_manifest = {"device_seconds": 4.0}
    config = inputs.write().config()
    run(config)
    assert read_json(config.summary)["device_seconds"] == {"text": 4.0}


def test_how_much_was_computed_is_summed_over_the_shards(make_inputs):
    inputs = make_inputs()
    inputs.manifest.update(reused=3, computed=4)
    inputs.text_manifest = {"reused": 10, "computed": 0}
    config = inputs.write().config()
    result = run(config)
    assert read_json(config.summary)["reuse"] == {
        "llava": {"reused": 6, "computed": 8},
        "mgm": {"reused": 6, "computed": 8},
        "text": {"reused": 10, "computed": 0},
    }
    numbers = {name: value for name, value in result.metrics.items() if name.endswith(("_reused", "_computed"))}
    assert numbers == {
        **{"llava_reused": 6, "llava_computed": 8, "mgm_reused": 6, "mgm_computed": 8},
        **{"text_reused": 10, "text_computed": 0},
    }
