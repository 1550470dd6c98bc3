"""Reading: what does not belong together, is there twice, or is no number, is refused by name."""

import re

import numpy as np
import pytest

from components.joint_selection.inputs import SAME_CLUSTERING, SAME_IN_ALL_PARTS, read_inputs
from free2ds_common.datasets import open_dataset
from free2ds_common.errors import StageError
from free2ds_common.schemas import TEXT_SCORES, attention_schema
from tests.support.selection import change_manifest, change_rows

# By hand: a name that is dropped from the tuple is still tested.
OF_ALL_PARTS = {
    "model_fingerprint",
    "dtype",
    "prompt",
    "preprocessing",
    "max_new_tokens",
    "grid",
    "capture_version",
}
OF_ONE_CLUSTERING = {
    "records_sha256",
    "model_fingerprint",
    "dtype",
    "max_tokens",
    "num_clusters",
    "num_iterations",
    "order",
    "seed",
}


@pytest.mark.parametrize("side", ["llava", "mgm"])
@pytest.mark.parametrize("name", sorted(OF_ALL_PARTS.union(SAME_IN_ALL_PARTS)))
def test_parts_of_different_runs_are_refused(inputs, name, side):
    change_manifest(inputs.folder / f"{side}1", **{name: "another"})
    message = rf"^{side}_attention: parts of different runs, {name} .* in .*/{side}0 but 'another' in .*/{side}1\."
    with pytest.raises(StageError, match=message):
        read_inputs(inputs.config())


def test_the_two_sides_may_be_of_different_models(inputs):
    for shard in range(2):
        change_manifest(inputs.folder / f"mgm{shard}", **dict.fromkeys(OF_ALL_PARTS - {"grid"}, "another"))
    read_inputs(inputs.config())


@pytest.mark.parametrize("name", sorted(OF_ONE_CLUSTERING.union(SAME_CLUSTERING)))
def test_kmeans_of_another_run_is_refused(inputs, name):
    change_manifest(inputs.folder / "text", **dict.fromkeys(OF_ONE_CLUSTERING, "theirs"))
    kmeans = inputs.write_kmeans([40], **{**dict.fromkeys(OF_ONE_CLUSTERING, "theirs"), name: "another"})
    message = rf"^kmeans: .*/kmeans is not of the text scores' run, {name} 'another' but theirs is 'theirs'\."
    with pytest.raises(StageError, match=message):
        read_inputs(inputs.config(kmeans=kmeans))


def test_kmeans_of_the_same_run_is_read(inputs):
    change_manifest(inputs.folder / "text", **dict.fromkeys(OF_ONE_CLUSTERING, "theirs"))
    kmeans = inputs.write_kmeans([40], **dict.fromkeys(OF_ONE_CLUSTERING, "theirs"))
    assert read_inputs(inputs.config(kmeans=kmeans)).kmeans.num_rows == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["llava", "mgm"])
def test_a_map_that_is_not_finite_is_refused(inputs, side, value):
    def spoil(number, row):
        return {**row, "map": [value, *row["map"][1:]]} if number == 0 else row

    change_rows(inputs.folder / f"{side}0", attention_schema(), spoil)
    with pytest.raises(StageError, match=rf"^{side}_attention: .*/{side}0: a map is not finite\. Score that shard"):
        read_inputs(inputs.config())


@pytest.mark.parametrize("value", [np.nextafter(0, -1), np.nextafter(1, 2), -1.0, np.nan, np.inf])
def test_text_scores_outside_0_to_1_are_refused(inputs, value):
    change_rows(
        inputs.folder / "text",
        TEXT_SCORES,
        lambda number, row: {**row, "text_similarity": value} if number == 16 else row,
    )
    message = r"^text_scores: .*/text: 1 records \(first ids: 17\) outside \[0, 1\]\. Rerun cluster_scoring\."
    with pytest.raises(StageError, match=message):
        read_inputs(inputs.config())


def test_text_scores_of_0_and_1_are_accepted(inputs):
    change_rows(inputs.folder / "text", TEXT_SCORES, lambda number, row: {**row, "text_similarity": float(number % 2)})
    assert read_inputs(inputs.config()).text.similarity.tolist() == [0.0, 1.0] * 20


def test_the_same_shard_twice(inputs):
    part = str(inputs.folder / "mgm0")
    message = r"^mgm_attention: .*/mgm0: 20 records \(first ids: 2, 4, 6, 8, 10\) there twice\. Give every shard once\."
    with pytest.raises(StageError, match=message):
        read_inputs(inputs.config(mgm_attention=[part, part]))


@pytest.mark.parametrize(("port", "schema"), [("text", TEXT_SCORES), ("mgm0", attention_schema())])
def test_a_row_twice_in_one_folder(inputs, port, schema):
    third = list(open_dataset(inputs.folder / port, schema).rows())[2]
    change_rows(inputs.folder / port, schema, lambda number, row: third if number == 9 else row)
    with pytest.raises(StageError, match=rf"1 records \(first ids: {third['unique_id']}\) there twice"):
        read_inputs(inputs.config())


@pytest.mark.parametrize("port", ["llava_attention", "mgm_attention", "text_scores"])
def test_scores_of_other_records(inputs, make_inputs, port):
    other = make_inputs(order=reversed(range(40))).write().config()
    message = rf"^{port}: .*records \(first ids: .*\) scored for other records\. Use one run's folders\."
    with pytest.raises(StageError, match=message):
        read_inputs(inputs.config(**{port: getattr(other, port)}))


@pytest.mark.parametrize("change", [{"map": None}, {"outcome": "eos_only"}])
def test_a_map_without_its_outcome_is_refused(inputs, change):
    change_rows(
        inputs.folder / "mgm0", attention_schema(), lambda number, row: {**row, **change} if number == 0 else row
    )
    message = (
        r"^mgm_attention: .*1 records \(first ids: 2\) with outcome ok and no map, or a map and another outcome\. "
        r"Score that shard again\."
    )
    with pytest.raises(StageError, match=message):
        read_inputs(inputs.config())


def test_no_records(make_inputs):
    inputs = make_inputs(order=[]).write()
    with pytest.raises(StageError, match=r"records holds no records\. Check what ingest rejected\."):
        read_inputs(inputs.config())


def test_a_part_without_rows_is_fine(make_inputs):
    """split leaves a shard empty where there are few pictures."""
    inputs = make_inputs(order=range(3), shards=4).write()
    assert not (read_inputs(inputs.config()).llava.part < 0).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"records": "/nowhere"}, r"/nowhere: no _manifest\.json"),
        ({"text_scores": "/nowhere"}, r"/nowhere: no _manifest\.json"),
        ({"llava_attention": []}, "llava_attention: no attention/1 folder given"),
        ({"mgm_attention": []}, "mgm_attention: no attention/1 folder given"),
        ({"kmeans": "/nowhere"}, r"/nowhere: no _manifest\.json"),
    ],
)
def test_missing_folders(inputs, changes, message):
    with pytest.raises(StageError, match=message):
        read_inputs(inputs.config(**changes))


def test_records_without_attention_rows_are_named(inputs, caplog):
    change_rows(inputs.folder / "llava0", attention_schema(), lambda number, row: row)
    found = read_inputs(inputs.config(llava_attention=[str(inputs.folder / "llava1")]))
    assert np.count_nonzero(found.llava.part < 0) == 20
    assert "llava_attention: no row for 20 records (first ids: 2, 4, 6, 8, 10)" in caplog.text
    assert found.unknown_ids == {"llava_attention": 0, "mgm_attention": 0, "text_scores": 0}


@pytest.mark.parametrize("port", ["text_scores", "llava_attention", "mgm_attention"])
def test_ids_in_no_record_are_counted_and_named(inputs, make_inputs, caplog, port):
    few = make_inputs(order=range(30)).write()
    found = read_inputs(few.config(**{port: getattr(inputs.config(), port)}))
    assert found.unknown_ids == {**dict.fromkeys(("llava_attention", "mgm_attention", "text_scores"), 0), port: 10}
    assert re.search(rf"{port}: 10 ids that are not in records \(first: 3\d, 3\d", caplog.text)


def coarse(values):
    """A map of 24 x 24 on 12 x 12."""
    return None if values is None else np.asarray(values).reshape(12, 2, 12, 2).sum(axis=(1, 3)).ravel()


@pytest.mark.parametrize(("finer", "coarser"), [("llava", "mgm"), ("mgm", "llava")])
def test_maps_on_another_grid_are_compared_on_the_coarser_one(make_inputs, finer, coarser):
    """Both models look at the same places, one of them on half the grid: every IoU is 1."""
    inputs = make_inputs()
    inputs.maps[:] = inputs.maps[0]
    inputs.write()
    for shard in range(2):
        folder = inputs.folder / f"{coarser}{shard}"
        change_rows(
            folder, attention_schema(), lambda _, row: {**row, "map": coarse(row["map"])}, attention_schema(144)
        )
        change_manifest(folder, grid=12)
    found = read_inputs(inputs.config())
    assert dict(zip(("llava", "mgm"), found.comparison.grids, strict=True)) == {finer: 24, coarser: 12}
    assert (found.comparison.grid, found.comparison.k) == (12, 43)
    iou = found.iou()
    assert np.count_nonzero(np.isnan(iou)) == 4
    assert np.nanmin(iou) == 1
