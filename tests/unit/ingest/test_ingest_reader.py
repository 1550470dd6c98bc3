"""Reading the data set file: formats, chunk borders, whole-input errors."""

import gzip
import hashlib
import json
import os
import time
import tracemalloc

import fsspec
import pytest

from components.ingest import reader as reader_module
from components.ingest.reader import DatasetReader, open_records
from components.ingest.values import BrokenRecord
from free2ds_common.errors import StageError

RECORDS = [
    {"id": 1, "text": 'a "quoted", [text] with \\ and ü 😀'},
    {"id": 2},
    -1.5e-07,
    "four",
    None,
    [5],
    {"id": {"six": [6.5]}},
]


def read(path):
    with open_records(str(path)) as reader:
        return list(reader)


def read_in_chunks(path, packed, chunk_bytes, monkeypatch):
    """Whether it is a list, and its records. The head shows the format; what follows comes in small pieces."""
    with open_records(str(path)) as reader, gzip.open(path) if packed else path.open("rb") as stream:
        monkeypatch.setattr(reader_module, "CHUNK_BYTES", chunk_bytes)
        reader._stream = stream
        reader._head = stream.read(1)
        return reader.is_list, list(reader)


def written(tmp_path, content, name="data.json"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("indent", [None, 1, 4])
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7, 64, 4 << 20])
def test_list(tmp_path, monkeypatch, indent, ascii_only, packed, chunk_bytes):
    content = json.dumps(RECORDS, indent=indent, ensure_ascii=ascii_only).encode()
    path = written(tmp_path, gzip.compress(content, mtime=0) if packed else content, "data.txt")
    assert read_in_chunks(path, packed, chunk_bytes, monkeypatch) == (True, RECORDS)


@pytest.mark.parametrize("chunk_bytes", [1, 5, 4 << 20])
@pytest.mark.parametrize("end", ["", "\n", "\r\n\r\n"])
@pytest.mark.parametrize("packed", [True, False])
def test_lines(tmp_path, monkeypatch, chunk_bytes, end, packed):
    content = ("\r\n\n".join(json.dumps(record) for record in RECORDS) + end).encode()
    path = written(tmp_path, gzip.compress(content, mtime=0) if packed else content, "data.json")
    assert read_in_chunks(path, packed, chunk_bytes, monkeypatch) == (False, RECORDS)


def test_byte_order_mark(tmp_path):
    assert read(written(tmp_path, b'\xef\xbb\xbf[{"id": 1}]')) == [{"id": 1}]
    assert read(written(tmp_path, b'\xef\xbb\xbf{"id": 1}\n{"id": 2}\n')) == [{"id": 1}, {"id": 2}]


def test_any_fsspec_location():
    with fsspec.open("memory://reader/data.jsonl", "wb") as file:
        file.write(b'{"id": 1}\n{"id": 2}\n')
    assert read("memory://reader/data.jsonl") == [{"id": 1}, {"id": 2}]


def test_sha256_is_that_of_the_stored_file(tmp_path):
    for content in (gzip.compress(b"[1, 2]", mtime=0), b"[1, 2]", b'{"id": 1}\n{"id": 2}'):
        path = written(tmp_path, content)
        with open_records(str(path)) as reader:
            list(reader)
            assert reader.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("position", [0, 1, 2])
def test_broken_line_is_one_item(tmp_path, position):
    lines = ['{"id": 1}', '{"id": 2}']
    lines.insert(position, ' {"id": oops} ')
    items = read(written(tmp_path, "\n".join(lines)))
    assert items.pop(position) == BrokenRecord('{"id": oops}', "not_json", "Expecting value: line 1 column 8 (char 7)")
    assert items == [{"id": 1}, {"id": 2}]


def test_line_that_is_not_utf8_or_too_deep_or_too_long_a_number(tmp_path):
    content = b'{"id": 1}\n{"id": "\xff"}\n' + b"[" * 100_000 + b"\n" + b"1" * 5000
    items = read(written(tmp_path, content))
    assert items[0] == {"id": 1}
    assert items[1].text == '{"id": "\\xff"}'
    assert "can't decode byte 0xff" in items[1].detail
    assert (items[2].reason, items[2].detail) == ("nested_too_deeply", "is nested deeper than can be read")
    assert items[3].reason == "number_too_long"
    assert "4300 digits" in items[3].detail


def test_list_as_first_line_of_json_lines(tmp_path):
    assert read(written(tmp_path, '["header"]\n{"id": 1}\n')) == [["header"], {"id": 1}]


NUMBER = "1" * 5000
REFUSED = [
    ('{"id": NaN}', "number_not_finite", "holds NaN, which is not JSON"),
    ('{"id": [-Infinity]}', "number_not_finite", "holds -Infinity, which is not JSON"),
    ('{"id": -1e999}', "number_not_finite", "holds -1e999, which is larger than any number here"),
    ('{"id": -1.5E-999}', "number_too_small", "holds -1.5E-999, which is nearer to 0 than any number here"),
    (f'{{"id": {NUMBER}}}', "number_too_long", "Exceeds the limit"),
    (NUMBER, "number_too_long", "Exceeds the limit"),
    ('{"a": {"b": 1, "b": 1}}', "duplicate_keys", "has the key 'b' twice in one object"),
    ('{"a]": "[\\"{", "a]": 2}', "duplicate_keys", "has the key 'a]' twice"),
    ('{"a": ' + "[" * 3000 + '"]\\\\"' + "]" * 3000 + "}", "nested_too_deeply", "deeper than can be read"),
]


@pytest.mark.parametrize(("text", "reason", "detail"), REFUSED)
@pytest.mark.parametrize("layout", ['{{"id": 1}}\n{}\n{{"id": 2}}', '[{{"id": 1}}, {} , {{"id": 2}}]'])
@pytest.mark.parametrize("chunk_bytes", [1, 7, 4 << 20])
@pytest.mark.parametrize("packed", [True, False])
def test_a_record_that_python_would_misread_costs_only_itself(
    tmp_path, monkeypatch, text, reason, detail, layout, chunk_bytes, packed
):
    content = layout.format(text).encode()
    path = written(tmp_path, gzip.compress(content, mtime=0) if packed else content)
    _, (before, broken, after) = read_in_chunks(path, packed, chunk_bytes, monkeypatch)
    assert (before, after) == ({"id": 1}, {"id": 2})
    assert (broken.text, broken.reason) == (text, reason)
    assert detail in broken.detail


def test_zeros_and_the_extreme_numbers_are_read(tmp_path):
    numbers = "0.0, -0e-999, 0E+5, 5e-324, 1.7976931348623157e308"
    assert read(written(tmp_path, f"[{numbers}]")) == [0.0, 0.0, 0.0, 5e-324, 1.7976931348623157e308]


def test_a_number_that_a_chunk_cuts_is_judged_whole(tmp_path, monkeypatch):
    """Its first 4,500 digits alone are too long for an integer; with its exponent it is a small number."""
    content = f'[{{"id": {NUMBER}e-4999}}]'.encode()
    assert read_in_chunks(written(tmp_path, content), False, 4500, monkeypatch) == (True, [{"id": 1.1111111111111112}])


@pytest.mark.parametrize("layout", ['{{"id": 1}}\n{}\n{{"id": 2}}', '[{{"id": 1}}, {} , {{"id": 2}}]'])
@pytest.mark.parametrize("chunk_bytes", [1, 40, 4 << 20])
@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"text": "x" * 189}),
        json.dumps({"text": "ü" * 95}, ensure_ascii=False),
        json.dumps([{"a": "]"}] * 60),
        "[" * 101 + "]" * 101,
        '"' + "\\\\" * 100 + '"',
    ],
)
def test_a_record_above_the_limit_is_not_kept(tmp_path, monkeypatch, layout, chunk_bytes, text):
    monkeypatch.setattr(reader_module, "MAX_RECORD_BYTES", 200)
    monkeypatch.setattr(reader_module, "_HEAD", 5)
    path = written(tmp_path, layout.format(text))
    _, (before, broken, after) = read_in_chunks(path, False, chunk_bytes, monkeypatch)
    assert (before, after) == ({"id": 1}, {"id": 2})
    assert broken == BrokenRecord(text[:5], "record_too_large", "has more than 200 bytes; its beginning is kept")


@pytest.mark.parametrize("layout", ["{}\n", "[{}]"])
def test_a_record_at_the_limit_is_read(tmp_path, monkeypatch, layout):
    monkeypatch.setattr(reader_module, "MAX_RECORD_BYTES", 200)
    value = {"messages": "ü" * 92}
    text = json.dumps(value, ensure_ascii=False)
    assert len(text.encode()) == 200
    assert read(written(tmp_path, layout.format(text))) == [value]


def test_one_huge_text_is_read_past_and_not_held(tmp_path):
    """A hundred times the limit, of which a few pieces are in memory at a time."""
    path = tmp_path / "data.json.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'[{"text": "')
        for _ in range(64):
            file.write(bytes(b"x" * (1 << 20)))
        file.write(b'"}, {"id": 2}]')
    tracemalloc.start()
    try:
        items = read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [items[0].reason, items[1]] == ["record_too_large", {"id": 2}]
    assert peak < 64 << 20


@pytest.mark.parametrize(
    "content", [b'[{"id": 1},%b{"id": 2}%b]', b'{"id": 1}%b\n{"id": 2}\n%b', b'%b[{"id": 1},{"id": 2}%b]']
)
@pytest.mark.parametrize("blank", [b" ", b"\n", b" \r\n\t"])
def test_a_run_of_blanks_is_skipped_in_one_go(tmp_path, content, blank):
    """More than a chunk and than a record may have; one step for each blank would take seconds."""
    blanks = blank * ((9 << 20) // len(blank))
    if content.startswith(b"{") and b"\n" not in blank:
        blanks = b"\n" + blanks
    started = time.monotonic()
    assert read(written(tmp_path, content % (blanks, blanks))) == [{"id": 1}, {"id": 2}]
    assert time.monotonic() - started < 5


def test_pipes_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in (tmp_path / "pipe", tmp_path / "link", "/dev/zero"):
        with pytest.raises(StageError, match=f"^{name}: is a pipe, a socket or a device"):
            read(name)


@pytest.mark.parametrize("blank", ["\x0b", "\x0c", "\u2028", "\u00a0"])
def test_what_json_does_not_count_as_blank(tmp_path, blank):
    items = read(written(tmp_path, f'{{"id": 1}}\n{blank}{{"id": 2}}'))
    assert items[0] == {"id": 1}
    assert (items[1].text, items[1].reason) == (f'{blank}{{"id": 2}}', "not_json")
    with pytest.raises(StageError, match="neither a JSON list"):
        read(written(tmp_path, f"{blank}[1]"))


def test_chat_messages_on_one_line(tmp_path):
    assert read(written(tmp_path, '{"messages": []}')) == [{"messages": []}]


def test_lone_surrogates_survive(tmp_path):
    assert read(written(tmp_path, '[{"id": "\\ud83d"}]')) == [{"id": "\ud83d"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        (" \n\n ", "is empty"),
        ("hello", "neither a JSON list of records nor one JSON object a line; it starts with 'hello'"),
        ("<html>\n<body>", "neither a JSON list"),
        (b"\x89PNG\r\n\x1a\n", "neither a JSON list"),
        ("42", "is JSON but not a list of records; it starts with '42'"),
        ('"text"', "is JSON but not a list"),
        ("null", "is JSON but not a list"),
        ('{"data": []}', "holds one JSON object"),
        ('{\n "data": [\n  {"id": 1}\n ]\n}', "holds one JSON object"),
        ('{"id": 1,', "neither a JSON list"),
        ("[", "wanted JSON .* at character 1, after 0 records, but found the end of the file"),
        ('[{"id": 1}', "wanted ']' at character 10, after 1 records, but found the end of the file"),
        ('[{"id": 1},', "after 1 records, but found the end of the file"),
        ('[{"id": 1}, {"id": "cut', "after 1 records, but found '\"cut'"),
        ('[{"id": 1}, ]', "after 1 records, but found ']'"),
        ('[{"id": 1} {"id": 2}]', "wanted ']' at character 11, after 1 records"),
        ('[{"id": 1}] [2]', "wanted nothing after the list at character 12"),
        ("[{'id': 1}]", "enclosed in double quotes"),
        (b'[{"id": "\xff"}]', "is not UTF-8"),
        ("[" * 100_000, "wanted the end of a record at character 100000, after 0 records, but found the end of"),
        (gzip.compress(b"[1, 2]", mtime=0)[:-9], "is a broken gzip file"),
        (b"\x1f\x8bnonsense", "is a broken gzip file"),
    ],
)
def test_no_data_set(tmp_path, content, message):
    path = written(tmp_path, content)
    with pytest.raises(StageError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_broken_list_is_refused_before_the_rest_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(reader_module, "CHUNK_BYTES", 64)
    path = written(tmp_path, '[{"id": oops},\n' + " " * 100_000 + "]")
    with path.open("rb") as stored:
        with pytest.raises(StageError, match="found 'oops"):
            list(DatasetReader(str(path), stored))
        assert stored.tell() < 50_000


def test_nothing_there(tmp_path):
    with pytest.raises(StageError, match=r"none\.json: nothing there"):
        read(tmp_path / "none.json")
    with pytest.raises(StageError, match=r"memory://reader/none\.json: nothing there"):
        read("memory://reader/none.json")
    with pytest.raises(StageError, match="is a folder"):
        read(tmp_path)
    with pytest.raises(StageError, match="cannot be opened"):
        read("nosuch://bucket/data.json")
