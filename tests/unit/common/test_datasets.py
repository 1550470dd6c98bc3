"""Sealed folders: what is written comes back, and every kind of damage is refused."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from free2ds_common.datasets import MANIFEST, DatasetWriter, open_dataset, sha256_of_file
from free2ds_common.errors import StageError
from free2ds_common.schemas import RECORDS, TEXT_SCORES, Schema, attention_schema

ROWS = [
    {"unique_id": number, "record_key": f"k{number}", "num_turns": number, "text_similarity": number / 8}
    for number in range(1, 8)
]


@pytest.fixture
def folder(tmp_path):
    with DatasetWriter(tmp_path / "scores", TEXT_SCORES, rows_per_part=3) as writer:
        writer.write(ROWS[:2])
        writer.write(ROWS[2:])
        writer.manifest["seed"] = 42
    return tmp_path / "scores"


def change_manifest(folder, change):
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_round_trip(folder):
    dataset = open_dataset(folder, TEXT_SCORES)
    assert dataset.num_rows == 7
    assert list(dataset.rows()) == ROWS
    assert dataset.table().to_pylist() == ROWS
    assert [path.name for path in dataset.paths()] == [f"part-0000{part}.parquet" for part in range(3)]
    assert [part["rows"] for part in dataset.manifest["parts"]] == [3, 3, 1]
    assert dataset.manifest["seed"] == 42
    assert dataset.manifest["schema"] == "text_scores/1"
    assert list(dataset.rows(["num_turns"])) == [{"num_turns": number} for number in range(1, 8)]
    assert [batch.num_rows for batch in dataset.batches(batch_rows=2)] == [2, 1, 2, 1, 1]


def test_tables_lists_of_text_and_nulls(tmp_path):
    full = {"record_key": "k", "image": "a", "source": "s", "question": "q", "messages": ["m"], "raw": "{}"}
    rows = [{"unique_id": 1, **full}, {"unique_id": 2, **full, "image": None, "question": None, "messages": []}]
    with DatasetWriter(tmp_path, RECORDS) as writer:
        writer.write(pa.Table.from_pylist(rows[:1], schema=RECORDS.arrow))
        writer.write(rows[1:])
    assert open_dataset(tmp_path, RECORDS).table().to_pylist() == rows


def test_maps_of_another_grid_are_the_same_schema(tmp_path):
    row = {"unique_id": 1, "record_key": "k", "num_steps": 2, "outcome": "ok", "map": [0.25] * 4}
    with DatasetWriter(tmp_path, attention_schema(4)) as writer:
        writer.write([row, {**row, "unique_id": 2, "outcome": "eos_only", "map": None}])
    assert [found["map"] for found in open_dataset(tmp_path, attention_schema()).rows()] == [[0.25] * 4, None]


def test_empty(tmp_path):
    with DatasetWriter(tmp_path, TEXT_SCORES):
        pass
    dataset = open_dataset(tmp_path, TEXT_SCORES)
    assert dataset.num_rows == 0
    assert list(dataset.rows()) == []
    assert dataset.table().num_rows == 0


def test_null_or_wrong_type_is_refused(tmp_path):
    with pytest.raises(pa.ArrowInvalid, match="text_scores/1: null in column num_turns"):
        with DatasetWriter(tmp_path, TEXT_SCORES) as writer:
            writer.write([{**ROWS[0], "num_turns": None}])
    with pytest.raises(pa.ArrowInvalid), DatasetWriter(tmp_path, TEXT_SCORES) as writer:
        writer.write([{**ROWS[0], "num_turns": "many"}])
    with pytest.raises(StageError, match=r"no _manifest\.json, wanted a finished text_scores/1 folder"):
        open_dataset(tmp_path, TEXT_SCORES)


def test_an_earlier_run_in_the_folder_goes(folder):
    with DatasetWriter(folder, TEXT_SCORES) as writer:
        assert list(folder.iterdir()) == []
        writer.write(ROWS[:1])
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, "part-00000.parquet"]


def test_own_entries_cannot_replace_the_seal(tmp_path):
    with DatasetWriter(tmp_path, TEXT_SCORES) as writer:
        writer.write(ROWS)
        writer.manifest.update({"rows": 0, "schema": "other/1", "parts": []})
    assert open_dataset(tmp_path, TEXT_SCORES).num_rows == 7


def test_folder_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StageError, match="is or lies below a file, wanted a folder to write to"):
            DatasetWriter(path, TEXT_SCORES)
    with pytest.raises(StageError, match=r"_manifest\.json cannot be read"):
        open_dataset(tmp_path / "file", TEXT_SCORES)


def test_no_manifest(folder):
    (folder / MANIFEST).unlink()
    with pytest.raises(
        StageError, match=r"no _manifest\.json, wanted a finished text_scores/1 folder\. Rerun the stage"
    ):
        open_dataset(folder, TEXT_SCORES)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "1", "{}", '{"schema": "text_scores/1", "rows": 1}',
     '{"schema": "text_scores/1", "rows": 1, "parts": 5}',
     '{"schema": "text_scores/1", "rows": 1, "parts": [{"file": "part-00000.parquet"}]}'],
)  # fmt: skip
def test_manifest_that_cannot_be_read(folder, text):
    (folder / MANIFEST).write_text(text)
    with pytest.raises(StageError, match=r"_manifest\.json cannot be read\. Rerun"):
        open_dataset(folder, TEXT_SCORES)


def test_another_schema(folder):
    with pytest.raises(StageError, match=r"holds text_scores/1, wanted records/1\. Give the folder of another stage"):
        open_dataset(folder, RECORDS)


def test_missing_and_altered_parts(folder):
    part = folder / "part-00001.parquet"
    content = part.read_bytes()
    part.write_bytes(content[:-1] + b"x")
    with pytest.raises(StageError, match=r"part-00001.parquet is not the file that was written \(checksum differs\)"):
        open_dataset(folder, TEXT_SCORES)
    part.unlink()
    with pytest.raises(StageError, match=r"part-00001\.parquet is missing"):
        open_dataset(folder, TEXT_SCORES)


def test_row_counts(folder):
    change_manifest(folder, lambda manifest: manifest.update(rows=8))
    with pytest.raises(StageError, match=r"_manifest\.json says 8 rows, its parts hold 7"):
        open_dataset(folder, TEXT_SCORES)
    change_manifest(folder, lambda manifest: manifest["parts"][2].update(rows=2))
    with pytest.raises(StageError, match=r"part-00002\.parquet has 1 rows, _manifest\.json says 2"):
        open_dataset(folder, TEXT_SCORES)


def test_other_columns_in_any_part(folder):
    path = folder / "part-00001.parquet"
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns("num_turns"), path)
    change_manifest(folder, lambda manifest: manifest["parts"][1].update(sha256=sha256_of_file(path)))
    with pytest.raises(StageError, match=r"columns of part-00001\.parquet differ from text_scores/1"):
        open_dataset(folder, TEXT_SCORES)


def test_a_manifest_cannot_point_outside_its_folder(folder, tmp_path):
    (folder / "part-00000.parquet").rename(tmp_path / "part-00000.parquet")
    change_manifest(folder, lambda manifest: manifest["parts"][0].update(file="../part-00000.parquet"))
    with pytest.raises(StageError, match=r"part-00000\.parquet is missing"):
        open_dataset(folder, TEXT_SCORES)


def test_take_reads_rows_across_parts(tmp_path):
    schema = Schema("t/1", pa.schema([pa.field("n", pa.int64(), nullable=False)]))
    with DatasetWriter(tmp_path, schema, rows_per_part=3) as writer:
        writer.write([{"n": 10 * number} for number in range(8)])
    dataset = open_dataset(tmp_path, schema)
    assert dataset.take([0, 2, 3, 7], ["n"]).column(0).to_pylist() == [0, 20, 30, 70]
    assert dataset.take([], ["n"]).num_rows == 0
