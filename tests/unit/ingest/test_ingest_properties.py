"""Whatever bytes a data set file holds, ingest ends with counts that add up or with one sentence."""

import gzip
import io
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from components.ingest import values
from components.ingest.config import IngestConfig
from components.ingest.stage import run
from components.ingest.values import ValueEnd
from free2ds_common.datasets import open_dataset
from free2ds_common.errors import StageError
from free2ds_common.schemas import RECORDS

_PICTURE = io.BytesIO()
Image.new("RGB", (2, 2)).save(_PICTURE, "PNG")
PICTURE = _PICTURE.getvalue()

TEXT = st.text(max_size=8) | st.sampled_from(["<image>", "human", "gpt", "<video>", "\ud83d"])
LLAVA_TURN = st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt", "system", "tool"]), "value": TEXT})
CHAT_TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": TEXT})
OTHERS = {
    "id": TEXT,
    "source": TEXT,
    "unique_id": st.integers(),
    "images": st.lists(st.sampled_from(["a.png", "none.png"]), max_size=2),
    "video": st.sampled_from([None, "a.mp4"]),
}
RECORD = st.fixed_dictionaries(
    {"conversations": st.lists(LLAVA_TURN, min_size=1, max_size=3)}, optional=OTHERS
) | st.fixed_dictionaries({"messages": st.lists(CHAT_TURN, min_size=1, max_size=3)}, optional=OTHERS)
# Values that Python cannot read, or would change.
POISON = st.sampled_from(
    [
        "NaN",
        "-Infinity",
        "1e999",
        "1e-999",
        "1" * 5000,
        '{"]": 1, "]": 1}',
        "[" * 2000 + "]" * 2000,
        '"' + "x" * (9 << 20) + '"',
    ]
)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
JSON = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=5
)
ITEMS = st.lists(
    RECORD | JSON | st.builds(lambda key, turns: {key: turns}, st.sampled_from(["conversations", "messages"]), JSON),
    max_size=5,
)


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
            st.binary(max_size=3)
            | st.sampled_from([b"[", b"]", b"{", b"}", b",", b'"', b"\\", b"\n", b"\xff", b"1e999", b"NaN"])
        )
    return gzip.compress(bytes(data), mtime=0) if packed == "after" else bytes(data)


def ingest(data, folder):
    (folder / "data.json").write_bytes(data)
    (folder / "a.png").write_bytes(PICTURE)
    return run(
        IngestConfig(
            dataset_uri=str(folder / "data.json"),
            image_root_uri=str(folder),
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


def is_usable(record):
    """Whether a record is, by what the docs say."""
    turns = record["conversations"] if "conversations" in record else record["messages"]
    said = [(turn.get("from") or turn.get("role"), turn.get("value") or turn.get("content")) for turn in turns]
    asked = [text or "" for speaker, text in said if speaker in ("human", "user")]
    return (
        "\ud83d" not in json.dumps(record, ensure_ascii=False)
        and asked != []
        and "<video>" not in "".join(asked)
        and "tool" not in [speaker for speaker, _ in said]
        and record.get("video") is None
        and record.get("images", []) in ([], ["a.png"])
    )


@given(
    st.lists(st.tuples(RECORD, st.none() | POISON), min_size=1, max_size=6),
    st.sampled_from(["[{}]", "{}\n", "\n \n{}"]),
    st.booleans(),
)
@settings(max_examples=100, deadline=None, database=None)
def test_what_is_rejected_and_what_is_written_are_all_the_records_in_order(drawn, layout, packed):
    texts = [
        json.dumps(record) if poison is None else f'{json.dumps(record)[:-1]}, "x": {poison}}}'
        for record, poison in drawn
    ]
    usable = [number for number, (record, poison) in enumerate(drawn) if poison is None and is_usable(record)]
    data = layout.format((" ,\n" if layout == "[{}]" else "\n").join(texts)).encode()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        try:
            ingest(gzip.compress(data, compresslevel=1) if packed else data, folder)
        except StageError:
            assert usable == []
        else:
            rows = open_dataset(folder / "records", RECORDS).rows(["unique_id", "raw"])
            assert [(row["unique_id"], json.loads(row["raw"])) for row in rows] == [
                (unique_id, drawn[number][0]) for unique_id, number in enumerate(usable, start=1)
            ]
        rejected = [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]
        assert [line["index"] for line in rejected] == [n for n in range(len(drawn)) if n not in usable]
        for line in rejected:
            record, poison = drawn[line["index"]]
            kept = texts[line["index"]]
            assert line["record"] == (record if poison is None else kept if len(kept) < 8 << 20 else kept[:1000])


# What a look at brackets and quotes alone may stumble over.
TRICKY = st.recursive(
    st.text('"\\[]{},\n', max_size=6) | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('"\\]}', max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(
    TRICKY,
    st.sampled_from([",", "]", " ,", "\n]", "\r\n", "\t]"]),
    st.integers(1, 40),
    st.sampled_from([1, 2, 3, 7, 4096]),
    st.sampled_from([None, 1]),
    st.booleans(),
)
# A window ends behind the backslash.
@example(['"'], "]", 100, 2, None, True)
@example([[], '"'], "]", 100, 6, None, True)
@settings(max_examples=300, deadline=None, database=None)
def test_a_value_that_is_stepped_over_ends_where_its_text_does(value, behind, piece, window, indent, ascii_only):
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    whole, ending = text + behind + '"[{', ValueEnd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(values, "_WINDOW", window)
        starts = range(0, len(whole), piece)
        found = ((start, ending.find(whole[start : start + piece], 0)) for start in starts)
        assert next(start + end for start, end in found if end is not None) == len(text)
