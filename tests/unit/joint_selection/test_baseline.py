"""The ranges that scores are scaled by: kept for later runs, and used by them."""

import dataclasses

import numpy as np
import pytest

from components.joint_selection.config import SweepConfig
from components.joint_selection.scoring import inverted_minmax
from components.joint_selection.stage import run
from components.joint_selection.sweep import run as run_sweep
from free2ds_common.datasets import open_dataset
from free2ds_common.errors import StageError
from free2ds_common.schemas import kmeans_schema
from tests.support.selection import change_manifest, read_json, rows_of

pytestmark = pytest.mark.usefixtures("without_report")


def with_baseline(inputs, **changes):
    config = inputs.config(kmeans=inputs.write_kmeans([3, 2]), baseline=str(inputs.folder / "baseline"), **changes)
    run(config)
    return config, open_dataset(config.baseline, kmeans_schema(2))


def test_the_baseline_is_the_k_means_with_the_ranges(inputs):
    config, baseline = with_baseline(inputs)
    rows = rows_of(config)
    ious = [row["iou"] for row in rows if row["iou"] is not None]
    texts = [row["text_similarity"] for row in rows]
    assert baseline.manifest["normalization"] == {
        "iou": [min(ious), max(ious)],
        "text_similarity": [min(texts), max(texts)],
    }
    assert [row["num_turns"] for row in baseline.rows()] == [3, 2]


def test_a_missing_iou_that_counts_as_zero_is_in_the_range(inputs):
    _, baseline = with_baseline(inputs, missing_iou="reference")
    assert baseline.manifest["normalization"]["iou"][0] == 0


def test_without_any_iou_there_is_no_range(make_inputs):
    inputs = make_inputs()
    inputs.text_only(*range(40))
    _, baseline = with_baseline(inputs.write())
    assert baseline.manifest["normalization"]["iou"] is None


def test_a_baseline_needs_the_clusters(inputs):
    with pytest.raises(StageError, match="baseline: needs kmeans, of which it is made"):
        run(inputs.config(baseline="/tmp/b"))


def test_old_records_keep_their_combined_score_beside_an_outlier(inputs):
    """The same records, one of which has become an outlier: the others' scores stay to the last bit."""
    config, baseline = with_baseline(inputs)
    before = rows_of(config)
    inner = next(row for row in before if 0.2 < row["text_similarity"] < 0.8 and row["iou"] is not None)
    extreme = min(before, key=lambda row: row["text_similarity"])["text_similarity"]
    assert extreme > 0
    number = int(inner["id"])
    inputs.similarity[number] = 0.0
    inputs.write()
    change_manifest(inputs.folder / "text", normalization=baseline.manifest["normalization"])
    again = dataclasses.replace(config, kmeans="", baseline="")
    run(again)
    known = {row["id"]: row for row in before if row["iou"] is not None and row is not inner}
    after = {row["id"]: row for row in rows_of(again)}
    assert {key: after[key]["combined"] for key in known} == {key: row["combined"] for key, row in known.items()}
    assert after[str(number)]["text_score"] == 1
    # The sweep scales by the same ranges.
    tilt = run_sweep(SweepConfig(scores=again.scores, ratio=0.25)).tilt[0]
    assert tilt.mean_combined_pool == pytest.approx(np.mean([row["combined"] for row in after.values()]), rel=1e-12)
    change_manifest(inputs.folder / "text", normalization={})
    run(again)
    moved = {row["id"]: row["combined"] for row in rows_of(again)}
    assert all(moved[key] != row["combined"] for key, row in known.items() if row["text_score"])


def test_ious_are_scaled_by_the_range_that_was_handed_on(inputs):
    change_manifest(inputs.folder / "text", normalization={"iou": [0.0, 1.0], "text_similarity": None})
    config = inputs.config()
    run(config)
    known = [row for row in rows_of(config) if row["iou"] is not None]
    assert [row["image_score"] for row in known] == [1 - row["iou"] for row in known]


def test_what_lies_outside_the_bounds_counts_as_them():
    values = np.array([0.0, 0.25, 0.5, 0.9])
    assert inverted_minmax(values, (0.25, 0.75)).tolist() == [1, 1, 0.5, 0]
    assert inverted_minmax(values, (0.5, 0.5)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(("name", "low", "high"), [("iou", 0.19, 0.2), ("text_similarity", 0.25, 0.75)])
def test_more_than_one_in_a_hundred_outside_the_ranges_is_a_warning(inputs, name, low, high):
    first = inputs.config()
    run(first)
    known = [row[name] for row in rows_of(first) if row[name] is not None]
    outside = sum(not low <= value <= high for value in known)
    assert 0 < outside < len(known)
    share = f"{outside} of {len(known)} records ({outside / len(known):.1%})"
    sentence = f"{share} lie outside the range of {name} in kmeans_uri, {low} to {high}, and count as its ends. Train"
    for bounds, warned in (([low, high], True), ([min(known), max(known)], False)):
        change_manifest(inputs.folder / "text", normalization={name: bounds})
        run(first)
        assert any(text.startswith(sentence) for text in read_json(first.summary)["warnings"]) is warned
        assert any("outside the range" in text for text in read_json(first.summary)["warnings"]) is warned
