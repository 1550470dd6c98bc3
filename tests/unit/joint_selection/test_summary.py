"""The run in numbers: summary.json, and what the stage returns."""

from collections import Counter

import pytest

from components.joint_selection.stage import run
from free2ds_common import __version__
from tests.support.selection import change_manifest, chosen_ids, read_json

pytestmark = pytest.mark.usefixtures("without_report")


@pytest.fixture
def result_and_json(make_inputs):
    inputs = make_inputs()
    inputs.outcomes[0][9] = "image_missing"
    inputs.records_manifest = {
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
        "reasons",
        "unknown_ids",
        "ingest",
        "pool",
        "without_iou",
        "all_scores_equal",
        "tilt",
        "outcomes",
        "sources",
        "parameters",
        "grids",
        "models",
        "code_version",
    ]


def test_its_values(result_and_json):
    """Of 40 records one is rejected; four of the others (and it) have no IoU."""
    _, summary, _ = result_and_json
    wanted = {
        "counts": {"read": 40, "written": 9, "dropped": 30, "rejected": 1},
        "reasons": {"image_missing": 1},
        "unknown_ids": {"llava_attention": 0, "mgm_attention": 0, "text_scores": 0},
        "ingest": {
            "dataset_uri": "gs://b/d.json",
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


@pytest.mark.parametrize("output", ["selected", "random"])
def test_its_sources_are_those_of_the_files(result_and_json, output):
    _, summary, config = result_and_json
    sources = Counter("xyz"[int(number) % 3] for number in chosen_ids(config, output))
    assert {name: row[output] for name, row in summary["sources"].items()} == {name: sources[name] for name in "xyz"}


def test_its_parameters_are_settings_and_single_inputs(result_and_json):
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
        "max_reject_fraction",
        "image_root_uri",
        "records",
        "text_scores",
        "kmeans",
    }
    assert summary["parameters"] == {name: getattr(config, name) for name in names}


def test_the_result_has_scalars_as_metrics_and_everything_else_as_metadata(result_and_json):
    result, summary, _ = result_and_json
    assert vars(result.counts) == summary["counts"]
    assert result.metrics == {**summary["tilt"], "pool": 39, "without_iou": 4}
    assert result.metadata == {name: value for name, value in summary.items() if name not in ("counts", "tilt")}
