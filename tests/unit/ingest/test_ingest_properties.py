"""Whatever bytes a data set file holds, ingest ends with counts that add up or with one sentence."""

import gzip
import json
import tempfile
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from components.ingest.config import IngestConfig
from components.ingest.stage import run
from free2ds_common.datasets import open_dataset
from free2ds_common.errors import StageError
from free2ds_common.schemas import RECORDS

TEXT = st.text(max_size=8) | st.sampled_from(["<image>", "human", "gpt", "\ud83d"])
TURN = st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt"]), "value": TEXT})
RECORD = st.fixed_dictionaries(
    {"conversations": st.lists(TURN, min_size=1, max_size=3)}, optional={"id": TEXT, "source": TEXT}
)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
JSON = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=5
)
ITEMS = st.lists(RECORD | JSON | st.builds(lambda turns: {"conversations": turns}, JSON), max_size=5)


def as_list(items):
    return json.dumps(items).encode()


def as_lines(items):
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)


@st.composite
def mutated(draw):
    """A data set file in which a few bytes were replaced, inserted or cut out; some are packed before, some after."""
    data = bytearray(draw(st.sampled_from([as_list, as_lines]))(draw(ITEMS)))
    packed = draw(st.sampled_from(["no", "no", "before", "after"]))
    if packed == "before":
        data = bytearray(gzip.compress(bytes(data), mtime=0))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(data)))
        data[start : start + draw(st.integers(0, 3))] = draw(
            st.binary(max_size=3) | st.sampled_from([b"[", b"]", b"{", b"}", b",", b'"', b"\n", b"\xff", b"1e999"])
        )
    return gzip.compress(bytes(data), mtime=0) if packed == "after" else bytes(data)


def ingest(data, folder):
    (folder / "data.json").write_bytes(data)
    return run(
        IngestConfig(
            dataset_uri=str(folder / "data.json"),
            image_root_uri="",
            max_reject_fraction=1,
            records=str(folder / "records"),
            rejects=str(folder / "rejects.jsonl"),
        )
    )


def deep(levels):
    """A record and one that is nested so deeply."""
    conversations = [{"from": "human", "value": "q"}]
    record = json.dumps({"conversations": conversations})
    return f'{record}\n{record[:-1]}, "extra": {"[" * levels}{"]" * levels}}}\n'.encode()


@given(mutated())
@example(b"[" * 2000)
@example(b'{"conversations": ' + b"[" * 2000)
@example(deep(600))
@example(deep(980))
@settings(max_examples=100, deadline=None, database=None)
def test_mutated_files_end_in_counts_or_in_a_sentence(data):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        try:
            result = ingest(data, folder)
        except StageError as error:
            sentence, result = str(error), None
        if result is None:
            assert "\n" not in sentence
            return
        counts = result.counts
        assert counts.read == counts.written + counts.rejected
        assert open_dataset(folder / "records", RECORDS).num_rows == counts.written
        assert len((folder / "rejects.jsonl").read_bytes().splitlines()) == counts.rejected


@given(st.lists(RECORD, min_size=1, max_size=6), st.sampled_from([as_list, as_lines]), st.booleans())
@settings(max_examples=50, deadline=None, database=None)
def test_what_is_rejected_and_what_is_written_are_all_the_records_in_order(records, encode, packed):
    data = encode(records)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        speakers = [{turn["from"] for turn in record["conversations"]} for record in records]
        usable = [record for record, said_by in zip(records, speakers, strict=True) if "human" in said_by]
        try:
            ingest(gzip.compress(data) if packed else data, folder)
        except StageError:
            assert usable == []
        else:
            rows = open_dataset(folder / "records", RECORDS).rows(["unique_id", "raw"])
            assert [(row["unique_id"], json.loads(row["raw"])) for row in rows] == list(enumerate(usable, start=1))
        rejected = [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]
        kept = [(line["index"], line["record"]) for line in rejected]
        assert kept == [(index, record) for index, record in enumerate(records) if record not in usable]
