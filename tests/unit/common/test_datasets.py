"""Sealed folders: what is written comes back, and every kind of damage is refused."""

import errno
import hashlib
import json
import os
import tempfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from free2ds_common import datasets
from free2ds_common.datasets import MANIFEST, DatasetWriter, open_dataset, open_parts, sha256_of_file
from free2ds_common.errors import StageError
from free2ds_common.schemas import RECORDS, TEXT_SCORES, Schema, attention_schema
from tests.support.records import record_row, write_records

ROWS = [
    {"unique_id": number, "record_key": f"k{number}", "num_turns": number, "text_similarity": number / 8, "cluster": 0}
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
    manifest["sha256"] = datasets.sha256_of_manifest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_round_trip(folder):
    dataset = open_dataset(folder, TEXT_SCORES)
    assert dataset.num_rows == 7
    assert list(dataset.rows()) == ROWS
    assert dataset.table().to_pylist() == ROWS
    assert [path.name for path in dataset.paths()] == [f"part-0000{part}.parquet" for part in range(3)]
    assert [part["rows"] for part in dataset.manifest["parts"]] == [3, 3, 1]
    assert dataset.manifest["seed"] == 42
    assert dataset.manifest["schema"] == "text_scores/2"
    assert list(dataset.rows(["num_turns"])) == [{"num_turns": number} for number in range(1, 8)]
    assert [batch.num_rows for batch in dataset.batches(batch_rows=2)] == [2, 1, 2, 1, 1]


def test_tables_lists_of_text_and_nulls(tmp_path):
    full = {
        "record_key": "k",
        "position": 0,
        "id": "i",
        "image": "a",
        "source": "s",
        "question": "q",
        "messages": ["m"],
        "raw": "{}",
    }
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
    def write(rows):
        with DatasetWriter(tmp_path, TEXT_SCORES) as writer:
            writer.write(rows)

    with pytest.raises(pa.ArrowInvalid, match="text_scores/2: null in column num_turns"):
        write([{**ROWS[0], "num_turns": None}])
    with pytest.raises(pa.ArrowInvalid, match="Could not convert 'many'"):
        write([{**ROWS[0], "num_turns": "many"}])
    with pytest.raises(StageError, match=r"no _manifest\.json, wanted a finished text_scores/2 folder"):
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
        StageError, match=r"no _manifest\.json, wanted a finished text_scores/2 folder\. Rerun the stage"
    ):
        open_dataset(folder, TEXT_SCORES)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "1",
        "{}",
        '{"schema": "text_scores/2", "rows": 1}',
        '{"schema": "text_scores/2", "rows": 1, "parts": 5}',
        '{"schema": "text_scores/2", "rows": 1, "parts": [{"file": "part-00000.parquet"}]}',
    ],
)
def test_manifest_that_cannot_be_read(folder, text):
    (folder / MANIFEST).write_text(text)
    with pytest.raises(StageError, match=r"_manifest\.json cannot be read\. Rerun"):
        open_dataset(folder, TEXT_SCORES)


@pytest.mark.parametrize("altered", [('"seed": 42', '"seed": 43'), ('"sha256"', '"sha255"')], ids=str)
def test_an_altered_manifest(folder, altered):
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace(*altered))
    with pytest.raises(StageError, match=r"_manifest\.json (cannot be read|is not the file that was written)"):
        open_dataset(folder, TEXT_SCORES)


def test_another_schema(folder):
    with pytest.raises(StageError, match=r"holds text_scores/2, wanted records/2\. Give the folder of another stage"):
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


@pytest.mark.parametrize("change", [lambda digest: digest[:32], lambda digest: digest + "0", str.upper, lambda _: ""])
def test_a_digest_must_be_exactly_the_parts(folder, change):
    change_manifest(folder, lambda manifest: manifest["parts"][0].update(sha256=change(manifest["parts"][0]["sha256"])))
    with pytest.raises(StageError, match=r"part-00000\.parquet is not the file that was written"):
        open_dataset(folder, TEXT_SCORES)


def test_sha256_is_over_the_parts_in_order(folder):
    digests = [hashlib.sha256((folder / f"part-0000{part}.parquet").read_bytes()).hexdigest() for part in range(3)]
    assert open_dataset(folder, TEXT_SCORES).sha256 == hashlib.sha256(" ".join(digests).encode()).hexdigest()


def test_a_crash_while_the_manifest_is_written_leaves_none(tmp_path, monkeypatch):
    def break_off(manifest, handle, **options):
        handle.write('{"schema": ')
        raise ZeroDivisionError

    def write():
        with DatasetWriter(tmp_path, TEXT_SCORES) as writer:
            writer.write(ROWS)

    monkeypatch.setattr(datasets.json, "dump", break_off)
    with pytest.raises(ZeroDivisionError):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["part-00000.parquet"]


def test_the_manifest_appears_at_once_and_last(tmp_path, monkeypatch):
    seen = []
    dump = json.dump

    def look(manifest, handle, **options):
        dump(manifest, handle, **options)
        seen.append((tmp_path / MANIFEST).exists())

    monkeypatch.setattr(datasets.json, "dump", look)
    with DatasetWriter(tmp_path, TEXT_SCORES) as writer:
        writer.write(ROWS)
    assert seen == [False]
    assert sorted(path.name for path in tmp_path.iterdir()) == [MANIFEST, "part-00000.parquet"]


def test_a_part_that_changes_before_the_folder_is_sealed_is_noticed(tmp_path):
    """Kubeflow takes an output as it is, so the writer checks it."""

    def write():
        with DatasetWriter(tmp_path, TEXT_SCORES, rows_per_part=3) as writer:
            writer.write(ROWS)
            part = tmp_path / "part-00001.parquet"
            part.write_bytes(part.read_bytes()[:-1])

    with pytest.raises(StageError, match=r"part-00001\.parquet is not the file that was written"):
        write()


def test_a_part_that_goes_before_the_folder_is_sealed_is_noticed(tmp_path):
    def write():
        with DatasetWriter(tmp_path, TEXT_SCORES, rows_per_part=3) as writer:
            writer.write(ROWS)
            (tmp_path / "part-00000.parquet").unlink()

    with pytest.raises(StageError, match=r"part-00000\.parquet is missing"):
        write()


ANY_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "unique_id": st.integers(-(2**63), 2**63 - 1),
            "record_key": st.text(),
            "position": st.integers(0, 2**63 - 1),
            "id": st.none() | st.text(),
            "image": st.none() | st.text(),
            "source": st.text(),
            "question": st.none() | st.text(),
            "messages": st.lists(st.text(max_size=5), max_size=3),
            "raw": st.text(),
        }
    ),
    max_size=12,
)


@given(ANY_ROWS, st.integers(1, 5), st.integers(0, 12))
@settings(max_examples=50, deadline=None, database=None)
def test_what_is_written_is_read_again(rows, rows_per_part, first_write):
    with tempfile.TemporaryDirectory() as folder:
        with DatasetWriter(folder, RECORDS, rows_per_part) as writer:
            writer.write(rows[:first_write])
            writer.write(rows[first_write:])
        dataset = open_dataset(folder, RECORDS)
        assert list(dataset.rows()) == rows
        assert dataset.num_rows == len(rows)
        assert max(part["rows"] for part in dataset.manifest["parts"]) <= rows_per_part
        assert dataset.take(list(range(0, len(rows), 2)), ["raw"])["raw"].to_pylist() == [
            row["raw"] for row in rows[::2]
        ]


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
    with pytest.raises(StageError, match=r"columns of part-00001\.parquet differ from text_scores/2"):
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


def test_a_manifest_has_no_credentials(tmp_path):
    with DatasetWriter(tmp_path, TEXT_SCORES) as writer:
        writer.manifest.update(dataset_uri="http://user:hunter2@host/x?token=hunter3", counts={"read": 0})
        # What the work goes on with stays whole.
        assert writer.manifest["dataset_uri"] == "http://user:hunter2@host/x?token=hunter3"
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert manifest["dataset_uri"] == "http://***@host/x?token=***"
    assert manifest["counts"] == {"read": 0}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, as Linux has")
def test_a_full_disk_is_told_in_one_sentence(tmp_path):
    def write():
        with DatasetWriter(tmp_path, TEXT_SCORES) as writer:
            (tmp_path / "part-00000.parquet").symlink_to("/dev/full")
            writer.write([])

    with pytest.raises(StageError, match=f"^{tmp_path}: has no room left on its disk .*No space left on device"):
        write()


def test_a_folder_on_a_read_only_disk(tmp_path, monkeypatch):
    def refuse(path, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(datasets.Path, "mkdir", refuse)
    with pytest.raises(StageError, match=f"^{tmp_path}/new: is on a read-only disk"):
        DatasetWriter(tmp_path / "new", TEXT_SCORES)


def test_a_full_part_is_written_at_once(tmp_path):
    """Also when its last row just fills it: nothing waits in memory for the next one."""
    with DatasetWriter(tmp_path / "d", RECORDS, rows_per_part=2) as writer:
        writer.write([record_row(1), record_row(2)])
        assert [path.name for path in (tmp_path / "d").glob("*.parquet")] == ["part-00000.parquet"]


def test_a_folder_named_like_a_partition_adds_no_column(tmp_path):
    folder = tmp_path / "new" / "seed=7"
    write_records(folder, [record_row(1), record_row(2)])
    dataset = open_dataset(folder, RECORDS)
    assert dataset.table(["unique_id"]).column_names == ["unique_id"]
    assert dataset.take([1], ["unique_id"]).to_pylist() == [{"unique_id": 2}]


def test_no_folder_of_a_table_is_refused():
    with pytest.raises(StageError, match=r"features: no records/2 folder given, wanted at least one\."):
        open_parts([], RECORDS, (), "features")
