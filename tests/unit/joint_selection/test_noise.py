"""The noise of a record: words of a keyed hash, pinned, so that next year's run draws what this one draws."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from components.joint_selection.draw import record_noise


def words(text, seed):
    digest = hashlib.blake2b(text.encode(), digest_size=24, key=seed.to_bytes(8, "little")).digest()
    return [int.from_bytes(digest[start : start + 8], "little") for start in (0, 8, 16)]


@pytest.mark.parametrize("seed", [0, 42, 2**32 - 1])
def test_a_records_words_are_those_of_its_key(seed):
    assert record_noise(pa.array(["a", "b"]), seed).tolist() == [words("a", seed), words("b", seed)]


def test_a_records_words_are_fixed_for_ever():
    assert record_noise(pa.array(["a"]), 42).tolist() == [
        [5415946628405995877, 14780194910008465216, 18081423310134174680]
    ]


def test_equal_records_are_told_apart_by_how_often_they_came_before():
    """Whatever stands between them; the third one is the second repeat, and another key starts anew."""
    keys = ["x", "a", "b", "a", "a", "b"]
    wanted = ["x", "a", "b", "a#1", "a#2", "b#1"]
    assert record_noise(pa.array(keys), 7).tolist() == [words(text, 7) for text in wanted]


def test_keys_are_hashed_in_blocks(monkeypatch):
    monkeypatch.setattr("components.joint_selection.draw._HASH_ROWS", 2)
    keys = [f"{number}" for number in range(5)]
    np.testing.assert_array_equal(record_noise(pa.array(keys), 7), np.array([words(key, 7) for key in keys], np.uint64))
