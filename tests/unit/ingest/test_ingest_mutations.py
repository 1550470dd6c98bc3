"""Valid data sets, broken at random places: no traceback, and no record is lost, checked against Python's own parser.

`FREE2DS_EXAMPLES=5000` tries that many instead of a few hundred.
"""

import copy
import gzip
import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.ingest.reader import DatasetReader
from free2ds_common.datasets import open_dataset
from free2ds_common.errors import StageError
from free2ds_common.schemas import RECORDS
from tests.unit.ingest.test_ingest_properties import ingest

EXAMPLES = int(os.environ.get("FREE2DS_EXAMPLES", "150"))
TURNS = [
    {"from": "human", "value": '<image>\nWhat "is" this? ü😀'},
    {"from": "gpt", "value": "A cat.\\"},
    {"from": "human", "value": "Why? {[]}"},
    {"from": "gpt", "value": "It has\twhiskers."},
]
CHAT = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "1, 2, 3"}]
VALID = [
    {"id": "000000033471", "image": "a.png", "conversations": TURNS},
    {"id": 2, "conversations": TURNS[2:], "score": 0.25, "tags": [], "nested": {"a": [None, True]}},
    {"id": None, "messages": CHAT, "images": ["a.png"]},
    {"id": "x" * 60, "image": "./a.png", "conversations": TURNS[:2], "source": "coco", "unique_id": 7},
]
TOKENS = [
    *("[", "]", "{", "}", ",", ":", '"', "\\", "\n", "\r\n", " ", "null", "true", "tru", "NaN", "-Infinity", "1e999"),
    *("1e-999", "-", "1.", "01", "9" * 4400, '"a":1,', '"id":1,', "\\ud83d", "\\u00", "/*", "\0", "[" * 1100, "{}\n{}"),
    *('{"id":1}', "'", "\ufeff", "é"),
]
WRONG = [None, True, 0, -1.5, "", "text", [], {}, [[]], {"a": {}}, "../a.png", "none.png", ["a.png", "b.png"]]


def places(value, path=()):
    """Paths of all values inside a value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield (*path, key)
        yield from places(inner, (*path, key))


@st.composite
def retyped(draw):
    """Valid records, of which some values are of another type."""
    records = copy.deepcopy(draw(st.lists(st.sampled_from(VALID), min_size=1, max_size=5)))
    for _ in range(draw(st.integers(0, 2))):
        *path, last = draw(st.sampled_from(list(places(records))))
        holder = records
        for key in path:
            holder = holder[key]
        holder[last] = copy.deepcopy(draw(st.sampled_from(WRONG)))
    return records


@st.composite
def broken(draw, data, protected):
    """Bytes with flipped bits, cuts and tokens that do not belong there, none before `protected`."""
    data = bytearray(data)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(protected, len(data)))
        match draw(st.sampled_from(["flip", "cut", "token", "end"])):
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[at : at + draw(st.integers(1, 200))]
            case "token":
                data[at:at] = draw(st.sampled_from(TOKENS)).encode()
            case "end" if draw(st.booleans()):
                del data[at:]
    return bytes(data)


def parsed(text):
    """What Python reads; None for nothing."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def outcome(data, chunk_bytes=4 << 20):
    """Sentence of the refusal or None, positions and JSON of what was written, and of what was rejected."""
    chunks = DatasetReader._chunks

    def pieces(reader):
        for chunk in chunks(reader):
            yield from (chunk[start : start + chunk_bytes] for start in range(0, len(chunk), chunk_bytes))

    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(DatasetReader, "_chunks", pieces)
        folder = Path(place)
        try:
            counts = ingest(data, folder).counts
            sentence = None
            rows = open_dataset(folder / "records", RECORDS).rows(["position", "raw"])
            written = {row["position"]: row["raw"] for row in rows}
            assert counts.written == len(written)
        except StageError as error:
            sentence, counts, written = str(error), error.counts, {}
            assert "\n" not in sentence
        lines = (folder / "rejects.jsonl").read_bytes().splitlines() if (folder / "rejects.jsonl").exists() else []
        rejected = {line["index"]: line["record"] for line in map(json.loads, lines)}
        assert len(rejected) == len(lines)
    if sentence is None:
        assert counts.read == counts.written + counts.rejected
        assert sorted(written.keys() | rejected.keys()) == list(range(counts.read))
        assert not written.keys() & rejected.keys()
    return sentence, written, rejected


def is_same(record, text):
    """Whether a reject's record is what a text says, as a value or as the text itself."""
    # Nested too deeply to be written, but not to be parsed.
    return record is None or record in (text, parsed(text)) or json.dumps(record) == json.dumps(parsed(text))


CHUNKS = st.sampled_from([1, 7, 64, 4 << 20])


@given(st.data(), retyped(), st.sampled_from([None, 1]), st.booleans(), CHUNKS)
@settings(max_examples=EXAMPLES, deadline=None, database=None)
def test_a_list(data, records, indent, packed, chunk_bytes):
    text = data.draw(broken(json.dumps(records, indent=indent, ensure_ascii=False).encode(), 1))
    whole = parsed(text)
    sentence, written, rejected = outcome(gzip.compress(text, 1) if packed else text, chunk_bytes)
    if not isinstance(whole, list):
        return
    assert sentence is None or "none of its" in sentence or "the list is empty" in sentence
    for position, raw in written.items():
        assert json.loads(raw) == whole[position]
    for position, record in rejected.items():
        kept = parsed(record) if isinstance(record, str) and not isinstance(whole[position], str) else record
        assert record is None or json.dumps(kept) == json.dumps(whole[position])
    if sentence is None:
        assert len(written) + len(rejected) == len(whole)


@given(st.data(), retyped(), st.booleans(), CHUNKS)
@settings(max_examples=EXAMPLES, deadline=None, database=None)
def test_lines(data, records, packed, chunk_bytes):
    # The first line stays, so that the file stays one of lines.
    lines = [json.dumps(record, ensure_ascii=False) for record in [VALID[0], *records]]
    text = data.draw(broken("\n".join(lines).encode(), len(lines[0].encode()) + 1))
    found = [line for line in (line.strip(b" \t\r\n") for line in text.split(b"\n")) if line]
    sentence, written, rejected = outcome(gzip.compress(text, 1) if packed else text, chunk_bytes)
    assert sentence is None
    assert len(written) + len(rejected) == len(found)
    for position, raw in written.items():
        assert json.loads(raw) == json.loads(found[position])
    for position, record in rejected.items():
        assert is_same(record, found[position].decode(errors="backslashreplace"))


@given(st.data(), st.sampled_from([json.dumps(VALID), "\n".join(map(json.dumps, VALID))]))
@settings(max_examples=EXAMPLES, deadline=None, database=None)
def test_a_packed_file_is_read_whole_or_refused(data, text):
    packed = data.draw(broken(gzip.compress(text.encode(), mtime=0), 2))
    sentence, written, rejected = outcome(packed)
    if sentence is None:
        assert [json.loads(written[position]) for position in sorted(written)] == VALID
        assert rejected == {}
