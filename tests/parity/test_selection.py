"""The stage on ../shared/parity/selection: synthetic maps, the reference's arithmetic and draw."""

import json

import numpy as np
import pytest

from components.joint_selection.config import JointSelectionConfig
from components.joint_selection.overlap import intersection_over_union, top_bits
from components.joint_selection.stage import run
from free2ds_common.datasets import DatasetWriter, open_dataset
from free2ds_common.inference.asked import CAPTURE_VERSION
from free2ds_common.schemas import RECORDS, SCORES, TEXT_SCORES, attention_schema
from tests.support.selection import read_json

REFERENCE = {"sampler": "reference", "missing_iou": "reference", "text_normalization": "reference"}


@pytest.fixture(scope="session")
def inputs(shared, tmp_path_factory):
    """The parity set as the stage's input folders."""
    folder = tmp_path_factory.mktemp("selection")
    records = json.loads((shared / "parity/text/records.json").read_text())
    maps = np.load(shared / "parity/selection/maps.npz")
    scores = json.loads((shared / "parity/text/text_similarity_50.json").read_text())
    keys = {record["unique_id"]: f"{record['unique_id']:064d}" for record in records}
    with DatasetWriter(folder / "records", RECORDS) as writer:
        writer.write(
            [
                {
                    "unique_id": record["unique_id"],
                    "record_key": keys[record["unique_id"]],
                    "position": record["unique_id"] - 1,
                    "image": record.get("image"),
                    "source": "parity",
                    "question": None,
                    "messages": ["q"],
                    "raw": json.dumps(record),
                }
                for record in records
            ]
        )
    for side in ("llava", "mgm"):
        found = dict(zip(maps[f"{side}_id"].tolist(), maps[f"{side}_map"], strict=True))
        with DatasetWriter(folder / side, attention_schema()) as writer:
            writer.write(
                [
                    {
                        "unique_id": number,
                        "record_key": key,
                        "num_steps": 2,
                        "outcome": "ok" if number in found else "eos_only",
                        "map": found.get(number),
                    }
                    for number, key in keys.items()
                ]
            )
            writer.manifest.update(grid=24, capture_version=CAPTURE_VERSION)
    with DatasetWriter(folder / "text", TEXT_SCORES) as writer:
        writer.write(
            [
                {
                    "unique_id": number,
                    "record_key": key,
                    "num_turns": 1,
                    "text_similarity": scores[str(number)],
                    "cluster": 0,
                }
                for number, key in keys.items()
            ]
        )
    return folder


@pytest.fixture(scope="session")
def config(inputs, tmp_path_factory):
    """The stage, with the reference's choices, run on the parity set."""
    out = tmp_path_factory.mktemp("out")
    config = JointSelectionConfig(
        records=str(inputs / "records"),
        llava_attention=[str(inputs / "llava")],
        mgm_attention=[str(inputs / "mgm")],
        text_scores=str(inputs / "text"),
        selected=str(out / "selected.json"),
        random=str(out / "random.json"),
        scores=str(out / "scores"),
        report=str(out / "report.html"),
        summary=str(out / "summary.json"),
        seed=42,
        ratio=0.2,
        alpha=0.5,
        temperature=1.0,
        top_percent=30,
        **REFERENCE,
    )
    run(config)
    return config


@pytest.fixture
def table(config):
    return open_dataset(config.scores, SCORES).table()


@pytest.fixture
def selected(config):
    return read_json(config.selected)


@pytest.fixture(scope="session")
def expected(shared):
    return np.load(shared / "parity/selection/expected_50.npz")


def test_iou_of_the_models_maps(shared):
    given = np.load(shared / "parity/iou.npz")
    bits = [top_bits(given[name], 172) for name in ("map_llava", "map_mgm")]
    np.testing.assert_array_equal(intersection_over_union(*bits, 172), given["iou"])


def test_ious_equal_the_reference(table, expected):
    assert table["unique_id"].to_pylist() == expected["unique_id"].tolist()
    iou = table["iou"].to_numpy(zero_copy_only=False)
    np.testing.assert_array_equal(~np.isnan(iou), expected["has_iou"])
    np.testing.assert_array_equal(np.nan_to_num(iou), expected["iou"])


def test_text_scores_are_those_given(table, expected):
    np.testing.assert_array_equal(table["text_similarity"].to_numpy(), expected["bert"])


@pytest.mark.parametrize(("column", "wanted"), [("combined", "combined"), ("probability", "prob")])
def test_scores_equal_the_reference(table, expected, column, wanted):
    np.testing.assert_allclose(table[column].to_numpy(), expected[wanted], rtol=1e-14)


def test_selected_ids_are_the_references(table, selected, shared):
    wanted = json.loads((shared / "parity/selection/selected_ids_50.json").read_text())
    assert len(wanted) == 185
    assert [record["unique_id"] for record in selected] == sorted(wanted)
    assert table["unique_id"].filter(table["selected"]).to_pylist() == sorted(wanted)


def test_records_are_untouched(selected, shared):
    records = {record["unique_id"]: record for record in read_json(shared / "parity/text/records.json")}
    assert selected == [records[record["unique_id"]] for record in selected]
