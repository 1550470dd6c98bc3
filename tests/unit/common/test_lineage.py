"""What a table was made from: whole ancestries in every manifest, parts put together, no folders of machines gone."""

import json

import pytest

from free2ds_common.datasets import MANIFEST, DatasetWriter, open_dataset
from free2ds_common.lineage import MADE_FROM, made_from, merged
from free2ds_common.schemas import TEXT_SCORES

ROW = {"unique_id": 1, "record_key": "k", "num_turns": 1, "text_similarity": 0.5, "cluster": 0}


def table(folder, rows=1, **manifest):
    """A sealed folder; its rows differ with their number."""
    with DatasetWriter(folder, TEXT_SCORES) as writer:
        writer.write([{**ROW, "unique_id": number} for number in range(rows)])
        writer.manifest.update(manifest)
    return str(folder)


def checksum(folder):
    return open_dataset(folder, TEXT_SCORES).sha256


def test_an_origin_says_what_was_read(tmp_path, monkeypatch):
    monkeypatch.setenv("FREE2DS_IMAGE", "r.example/free2ds-x@sha256:1")
    folder = table(tmp_path / "a", 3, model="m", counts={"read": 3}, records="/pod/records", long=[0] * 21, short=[0])
    assert made_from(scores=folder) == {
        "scores": {
            "schema": "text_scores/2",
            "rows": 3,
            "sha256": checksum(folder),
            "code_version": "0.1.0",
            "image": "r.example/free2ds-x@sha256:1",
            "facts": {"model": "m", "counts": {"read": 3}, "short": [0]},
            "made_from": {},
        }
    }


def test_an_ancestry_is_whole(tmp_path):
    first = table(tmp_path / "a", dataset_sha256="abc")
    second = table(tmp_path / "b", **{MADE_FROM: made_from(records=first)})
    third = made_from(shard=second)
    assert third["shard"][MADE_FROM]["records"]["facts"] == {"dataset_sha256": "abc"}


def test_no_image_where_none_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv("FREE2DS_IMAGE", raising=False)
    folder = table(tmp_path / "a")
    assert "image" not in json.loads((tmp_path / "a" / MANIFEST).read_text())
    assert made_from(x=folder)["x"]["image"] == ""


def test_the_parts_of_a_table_are_one_origin(tmp_path):
    """Two shards of the same records: rows add up, checksums are listed, what differs between shards is left out."""
    records = table(tmp_path / "records", 5)
    shards = [
        table(
            tmp_path / f"s{number}", number + 2, shard=number, num_shards=2, **{MADE_FROM: made_from(records=records)}
        )
        for number in range(2)
    ]
    parts = [
        table(tmp_path / f"p{number}", number + 7, model="m", **{MADE_FROM: made_from(shard=shard)})
        for number, shard in enumerate(shards)
    ]
    found = made_from(attention=parts)["attention"]
    assert (found["rows"], found["sha256"]) == (7 + 8, [checksum(part) for part in parts])
    assert found["facts"] == {"model": "m"}
    shard = found[MADE_FROM]["shard"]
    assert (shard["rows"], shard["sha256"]) == (2 + 3, [checksum(shard) for shard in shards])
    assert shard["facts"] == {"num_shards": 2}
    assert shard[MADE_FROM]["records"] == made_from(records=records)["records"]


def test_equal_parts_are_counted_once(tmp_path):
    folder = table(tmp_path / "a", 4)
    one = made_from(x=folder)["x"]
    assert merged([one, one]) == one


def test_parts_made_from_different_things(tmp_path):
    """Finished rows come from all records, new ones from a shard."""
    records, shard = table(tmp_path / "records", 5), table(tmp_path / "shard", 2)
    parts = [
        table(tmp_path / port, rows, made_from=made_from(**{port: folder}))
        for port, folder, rows in (("shard", shard, 2), ("records", records, 3))
    ]
    found = made_from(scores=parts)["scores"]
    assert found["rows"] == 5
    assert {port: one["rows"] for port, one in found["made_from"].items()} == {"shard": 2, "records": 5}


@pytest.mark.parametrize("content", ["", "{"])
def test_a_manifest_that_is_none(tmp_path, content):
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(ValueError, match="Expecting"):
        made_from(x=str(tmp_path))
