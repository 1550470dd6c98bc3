"""A record's line and key are those that Python's json writes, however they are made."""

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.ingest.canonical import line_and_key, record_key

TEXT = st.text(max_size=6) | st.sampled_from(["\\u", "\x7f", "\x1f", "é", "\u2028", "from", "value", '"', "a"])
SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
JSON = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)
TURN = st.fixed_dictionaries({"from": TEXT | JSON, "value": TEXT | JSON}) | st.fixed_dictionaries(
    {"value": TEXT, "from": TEXT}
)


def is_text(value):
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


@given(st.dictionaries(TEXT, JSON | st.lists(TURN, max_size=3), max_size=4).filter(is_text))
@settings(max_examples=300, deadline=None, database=None)
def test_line_and_key(record):
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    key = hashlib.sha256(canonical.encode()).hexdigest()
    assert line_and_key(record) == (json.dumps(record, separators=(",", ":")), key)
    assert record_key(record) == key


@pytest.mark.parametrize(
    ("record", "canonical"),
    [
        (
            {"id": 1, "conversations": [{"from": "a", "value": "b"}]},
            '{"conversations":[{"from":"a","value":"b"}],"id":1}',
        ),
        ({"x": [{"value": "b", "from": "a"}]}, '{"x":[{"from":"a","value":"b"}]}'),
        ({"x": [{"from": "a", "value": {"d": 1, "c": 2}}]}, '{"x":[{"from":"a","value":{"c":2,"d":1}}]}'),
        ({"x": [{"from": {"d": 1, "c": 2}, "value": "b"}]}, '{"x":[{"from":{"c":2,"d":1},"value":"b"}]}'),
        ({"x": [[{"d": 1, "c": 2}]]}, '{"x":[[{"c":2,"d":1}]]}'),
        ({"x": {"d": 1, "c": 2}}, '{"x":{"c":2,"d":1}}'),
        ({"é": "\x7f", "a": "ü"}, '{"a":"ü","é":"\x7f"}'),
        ({"b": "\x7f", "a": "\\u"}, '{"a":"\\\\u","b":"\x7f"}'),
    ],
)
def test_keys_are_sorted_at_every_level_and_characters_stay(record, canonical):
    assert line_and_key(record)[1] == hashlib.sha256(canonical.encode()).hexdigest()
