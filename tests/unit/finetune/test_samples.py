"""Records as tokens in memory."""

import json

import numpy as np
import pytest

from components.finetune.samples import read_samples, records_sha256
from free2ds_common.datasets import DatasetWriter
from free2ds_common.errors import StageError
from free2ds_common.schemas import RECORDS

BOS, EOS, PICTURE, UNKNOWN = 1, 2, 3, 4
VISION_TOKENS = 5


class Letters:
    """One token per character; an x is unknown."""

    bos_token_id = BOS
    unk_token_id = UNKNOWN

    def encode(self, text):
        return [UNKNOWN if letter == "x" else 10 + ord(letter) for letter in text]


def record(question, answer, **others):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {**others, "conversations": [{"from": "system", "value": "S"}, *turns]}


@pytest.fixture
def read(tmp_path):
    def read_records(records, max_length=1000):
        path = tmp_path / "selected.json"
        path.write_text(records if isinstance(records, str) else json.dumps(records))
        return read_samples(str(path), tmp_path, Letters(), PICTURE, EOS, VISION_TOKENS, max_length)

    return read_records


# [S USER: q ASSISTANT: a] has 24 tokens; with a picture, as one token, [S USER: @\nq ASSISTANT: a] has 26.
def test_sizes_and_kinds(read):
    samples = read([record("q", "a"), record("q", "a", image="a.png")])
    assert samples.lengths.tolist() == [24, 26 + VISION_TOKENS - 1]
    assert samples.has_picture.tolist() == [False, True]
    assert [sample.image for sample in samples] == [None, "a.png"]


def test_tokens_of_each(read):
    samples = read([record("q", "a"), record("q", "a", image="a.png"), record("q", "bb")])
    letters = "".join(chr(token - 10) for token in samples[2].ids[1:-1])
    assert letters == "S USER: q ASSISTANT: bb"
    assert samples[2].learnt.tolist() == [False] * 21 + [True] * 4
    assert (samples[1].ids == PICTURE).sum() == 1
    assert samples[2].ids.dtype == np.int32


def test_records_of_ingest_are_read_as_a_selection_is(read, tmp_path):
    raw = record("q", "a", image="a.png")
    row = {"unique_id": 1, "record_key": "k", "position": 0, "id": None, "image": "a.png", "source": "s"}
    row |= {"question": "q", "messages": ["q"], "raw": json.dumps(raw)}
    with DatasetWriter(tmp_path / "records", RECORDS) as writer:
        writer.write([row])
    found = read_samples(str(tmp_path / "records"), tmp_path, Letters(), PICTURE, EOS, VISION_TOKENS, 1000)
    assert found[0].ids.tolist() == read([raw])[0].ids.tolist()


def test_unusable_records_are_counted(read):
    samples = read([record("q", "a"), 7, {"conversations": []}, record("q", "a", image="../a.png")])
    assert (len(samples), samples.num_read) == (1, 4)
    assert samples.rejected == {"not_an_object": 1, "conversations_missing": 1, "image_outside_root": 1}


def test_a_long_answer_is_cut_off(read):
    samples = read([record("q", "abcdef"), record("q", "a")], max_length=25)
    assert (samples.lengths.tolist(), samples.truncated) == ([25, 24], 1)
    assert samples[0].learnt.sum() == 4


@pytest.mark.parametrize(("image", "max_length"), [(None, 21), ("a.png", 24), ("a.png", 5)])
def test_a_record_without_answer_or_picture_within_the_limit_is_left_out(read, image, max_length):
    with pytest.raises(StageError, match=r"none of 1 records can be learnt from \(.*'too_long': 1"):
        read([record("q", "a", image=image)], max_length=max_length)


def test_a_conversation_of_just_the_limit_is_whole(read):
    samples = read([record("q", "a", image="a.png")], max_length=26 + VISION_TOKENS - 1)
    assert samples.truncated == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "is an object, wanted a JSON list of records"),
        ("[", "is no JSON list of records"),
        ("[]", "none of 0 records can be learnt from"),
    ],
)
def test_files_without_records(read, text, message):
    with pytest.raises(StageError, match=message):
        read(text)


def test_a_tokenizer_of_another_language_is_refused(read):
    with pytest.raises(StageError, match="tokens are unknown words"):
        read([record("x" * 90, "a")])


def test_a_selection_that_is_not_there(tmp_path):
    with pytest.raises(StageError, match="nowhere: no such file"):
        records_sha256(str(tmp_path / "nowhere"))


def test_the_number_of_tokens_to_learn(read):
    assert read([record("q", "a"), record("q", "bb")]).num_learnt == 3 + 4
