"""What makes a record usable, and the columns taken from it."""

import hashlib
import json

import pytest

from components.ingest.records import check_record, nesting, question
from free2ds_common.turns import RecordProblem


def record(*turns, **others):
    names = {"h": "human", "g": "gpt", "s": "system"}
    return {"id": "x", **others, "conversations": [{"from": names[turn[0]], "value": turn[1]} for turn in turns]}


def chat(role, content):
    return {"role": role, "content": content}


def nested(levels):
    value = []
    for level in range(levels - 1):
        value = [value] if level % 2 else {"a": value}
    return value


@pytest.mark.parametrize(
    ("value", "levels"),
    [(1, 0), ("[[", 0), ([], 1), ({}, 1), ([1, [2]], 2), ({"a": 1, "b": [{}]}, 3), (nested(2000), 2000)],
)
def test_nesting(value, levels):
    assert nesting(value) == levels


def test_the_deepest_record_that_is_read():
    assert check_record(record(("h", "q"), extra=nested(499))).messages == ["q"]


def test_columns():
    original = record(("h", "<image>\nWhat?"), ("g", "A <image>"), ("h", "Why\n<Image> "), image="coco/a.jpg")
    checked = check_record(original)
    assert checked.image == "coco/a.jpg"
    assert checked.source == "coco"
    assert checked.question == "<image>\nWhat?"
    assert checked.messages == ["What?", "Why"]
    assert checked.raw == (
        '{"id":"x","image":"coco/a.jpg","conversations":[{"from":"human","value":"<image>\\nWhat?"},'
        '{"from":"gpt","value":"A <image>"},{"from":"human","value":"Why\\n<Image> "}]}'
    )
    canonical = (
        '{"conversations":[{"from":"human","value":"<image>\\nWhat?"},{"from":"gpt","value":"A <image>"},'
        '{"from":"human","value":"Why\\n<Image> "}],"id":"x","image":"coco/a.jpg"}'
    )
    assert checked.record_key == hashlib.sha256(canonical.encode()).hexdigest()


def test_record_key_ignores_the_order_of_keys_only():
    one = check_record(record(("h", "ü"), id=1, extra=2))
    other = check_record(dict(reversed(record(("h", "ü"), id=1, extra=2).items())))
    assert one.record_key == other.record_key
    assert one.raw != other.raw
    assert (
        one.record_key
        == hashlib.sha256('{"conversations":[{"from":"human","value":"ü"}],"extra":2,"id":1}'.encode()).hexdigest()
    )
    assert one.record_key != check_record(record(("h", "ü"), id=1, extra=3)).record_key


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([("human", "q"), ("gpt", "a")], "q"),
        ([("human", "q1"), ("human", "q2"), ("gpt", "a")], "q2"),
        ([("gpt", "hello"), ("human", "q"), ("gpt", "a")], "q"),
        ([("human", "q1"), ("system", "s"), ("gpt", "a"), ("human", "q2"), ("gpt", "a")], "q2"),
        ([("human", "q")], None),
        ([("gpt", "a"), ("human", "q")], None),
        ([("human", ""), ("gpt", "")], ""),
    ],
)
def test_question(turns, expected):
    assert question(turns) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("<image>\nWhat?", "What?"),
        ("What?\n<image>", "What?"),
        ("  a <Image> b ", "a  b"),
        ("<image><image>", ""),
        ("<IMAGE> stays", "<IMAGE> stays"),
    ],
)
def test_messages_are_cleaned(value, expected):
    assert check_record(record(("h", value))).messages == [expected]


@pytest.mark.parametrize(
    ("fields", "image", "source"),
    [
        ({}, None, "text-only"),
        ({"image": None}, None, "text-only"),
        ({"image": ""}, None, "text-only"),
        ({"image": "gqa/images/1.jpg"}, "gqa/images/1.jpg", "gqa"),
        ({"image": "./gqa//images/x/../1.jpg"}, "gqa/images/1.jpg", "gqa"),
        ({"image": "1.jpg"}, "1.jpg", "images"),
        ({"image": "1.jpg", "source": "repo@1:a/{b,c} | d"}, "1.jpg", "repo@1:a/{b,c} | d"),
        ({"source": "mine"}, None, "mine"),
        ({"source": " "}, None, "text-only"),
        ({"source": 7}, None, "text-only"),
    ],
)
def test_image_and_source(fields, image, source):
    checked = check_record(record(("h", "q"), **fields))
    assert (checked.image, checked.source) == (image, source)


@pytest.mark.parametrize(
    ("value", "reason", "detail"),
    [
        ([1], "not_an_object", "is a list, wanted an object"),
        ("text", "not_an_object", "is a text"),
        (None, "not_an_object", "is missing or null"),
        (1.5, "not_an_object", "is a number"),
        (True, "not_an_object", "is true or false"),
        ({}, "conversations_missing", "conversations is missing or null"),
        ({"conversations": []}, "conversations_missing", "conversations is an empty list"),
        ({"conversations": {"from": "human"}}, "conversations_missing", "conversations is an object"),
        ({"conversations": ["hello"]}, "turn_malformed", "turn 0 is no object"),
        ({"conversations": [{"value": "q"}]}, "turn_malformed", "turn 0"),
        ({"conversations": [{"from": 1, "value": "q"}]}, "turn_malformed", "turn 0"),
        (nested(501), "nested_too_deeply", "is nested 501 levels deep, at most 500 are read"),
        (record(("h", "q"), extra=nested(500)), "nested_too_deeply", "is nested 501 levels deep"),
        (record(("h", "q"), extra=nested(2000)), "nested_too_deeply", "is nested 2001 levels deep"),
        ({"conversations": [{"from": ["human"], "value": "q"}]}, "turn_malformed", "turn 0 is no object with a text"),
        ({"conversations": [{"from": "human", "value": "q", "role": "gpt"}]}, "keys_disagree", "has from and role"),
        (record(("g", "a"), ("s", "b")), "no_human_turn", "none of the 2 turns is from human"),
        (record(("h", 5)), "value_not_string", "the value of turn 0 is a number"),
        (record(("h", "q"), ("g", None)), "value_not_string", "the value of turn 1 is missing or null"),
        (record(("h", "q"), ("g", ["a"])), "value_not_string", "the value of turn 1 is a list"),
        (record(("h", "q"), image=7), "image_not_string", "image is a number"),
        (record(("h", "q"), image={}), "image_not_string", "image is an object"),
        (record(("h", "q"), image=False), "image_not_string", "image is true or false"),
        (record(("h", "q"), image=["a.jpg", "b.jpg"]), "image_list", "a list of 2"),
        (record(("h", "q"), image=[]), "image_list", "a list of 0"),
        (record(("h", "q"), image="/etc/passwd"), "image_outside_root", "'/etc/passwd'"),
        (record(("h", "q"), image="a/../../b.jpg"), "image_outside_root", "'a/../../b.jpg'"),
        (record(("h", "q"), image="\ud800.jpg"), "lone_surrogate", r"holds '\\ud800', half of a character"),
        (record(("h", "a\ud83db")), "lone_surrogate", r"holds '\\ud83d'"),
        (record(("h", "q"), **{"\udc00": 1}), "lone_surrogate", r"holds '\\udc00'"),
        (record(("h", "q"), images="a.jpg"), "image_not_string", "images is a text, wanted a list of one path"),
        (record(("h", "q"), images=[None]), "image_not_string", "image is missing or null"),
        (record(("h", "q"), images=[{"path": "a.jpg"}]), "image_not_string", "image is an object"),
        (record(("h", "q"), images=["a.jpg", "b.jpg"]), "image_list", "images is a list of 2"),
        (record(("h", "q"), images=[["a.jpg"]]), "image_list", "image is a list of 1"),
        (record(("h", "q"), images=["../b.jpg"]), "image_outside_root", "'../b.jpg'"),
        (
            record(("h", "q"), images=["a.jpg"], image="b.jpg"),
            "keys_disagree",
            "image is 'b.jpg', images holds 'a.jpg'",
        ),
        (record(("h", "q"), messages=[chat("user", "other")]), "keys_disagree", "conversations and messages hold"),
        (
            {"messages": [chat("user", [{"type": "image"}])]},
            "content_parts",
            "the content of turn 0 is a list of parts",
        ),
        ({"messages": [chat("user", None)]}, "value_not_string", "the value of turn 0 is missing or null"),
        ({"messages": "hello"}, "conversations_missing", "messages is a text, wanted a list of turns"),
        ({"messages": [], "conversations": None}, "conversations_missing", "messages is an empty list"),
        ({"messages": [chat("system", "s"), chat("assistant", "a")]}, "no_human_turn", "from human or user"),
        ({"messages": [{**chat("user", "q"), "from": "gpt"}]}, "keys_disagree", "turn 0 has from and role"),
        ({"messages": [{**chat("user", "q"), "value": "p"}]}, "keys_disagree", "turn 0 has from and role"),
        ({"messages": [chat("user", "q"), chat("tool", "a")]}, "unknown_role", "turn 1 is from 'tool'"),
        ({"messages": [chat("User", "q")]}, "unknown_role", "turn 0 is from 'User'"),
        ({"conversations": [{"from": "observation", "value": "q"}]}, "unknown_role", "turn 0 is from 'observation'"),
        (record(("h", "q"), image_path="a.jpg"), "image_key_unknown", "has image_path"),
        (record(("h", "q"), Image="a.jpg"), "image_key_unknown", "has Image"),
        (record(("h", "q"), imgUrls=["a.jpg"]), "image_key_unknown", "has imgUrls"),
        (record(("h", "q"), picture="a.jpg", image=""), "image_key_unknown", "has picture"),
        (record(("h", "q"), video="a.mp4"), "not_a_picture", "has video; only pictures are read"),
        (record(("h", "q"), videos=["a.mp4"], image="a.jpg"), "not_a_picture", "has videos"),
        (record(("h", "q"), Video="a.mp4"), "not_a_picture", "has Video"),
        (record(("h", "q"), audio_path="a.wav"), "not_a_picture", "has audio_path"),
        (record(("h", "<video>\nq")), "not_a_picture", "a human turn holds <video>"),
        (record(("h", "q"), ("g", "a"), ("h", "Listen: <audio>")), "not_a_picture", "a human turn holds <audio>"),
    ],
)
def test_rejected(value, reason, detail):
    with pytest.raises(RecordProblem, match=detail) as caught:
        check_record(value)
    assert caught.value.reason == reason


def test_chat_messages_are_read_like_conversations():
    original = {
        "messages": [
            chat("system", "Be brief."),
            chat("user", "<image>What?"),
            chat("assistant", "A cat."),
            chat("user", "Why?"),
        ],
        "images": ["coco/a.jpg"],
    }
    checked = check_record(original)
    assert checked.question == "<image>What?"
    assert checked.messages == ["What?", "Why?"]
    assert checked.image == "coco/a.jpg"
    assert checked.source == "coco"
    assert json.loads(checked.raw) == original


@pytest.mark.parametrize(
    "turn",
    [
        {"from": "user", "value": "q"},
        {"role": "human", "content": "q"},
        {"from": "human", "content": "q"},
        {"from": "human", "value": "q", "role": "user", "content": "q"},
        {"from": "human", "value": "q", "role": None, "weight": 1},
    ],
)
def test_who_speaks_and_what_is_said(turn):
    checked = check_record({"conversations": [turn, {"from": "assistant", "value": "a"}]})
    assert checked.question == "q"
    assert checked.messages == ["q"]


@pytest.mark.parametrize(
    ("fields", "image"),
    [
        ({"images": ["./a//b.jpg"]}, "a/b.jpg"),
        ({"images": ["a.jpg"], "image": None}, "a.jpg"),
        ({"images": ["a.jpg"], "image": "./a.jpg"}, "a.jpg"),
        ({"images": []}, None),
        ({"images": None}, None),
        ({"image": "a.jpg", "images": []}, "a.jpg"),
        ({"image": "a.jpg", "image_path": "/data/a.jpg"}, "a.jpg"),
        ({"video_id": "v7", "audio_features": [1], "picture_of": "a cat"}, None),
        ({"image_id": 7, "image_size": [2, 3], "video": None, "videos": [], "image_path": "", "audio": {}}, None),
    ],
)
def test_where_the_picture_is_named(fields, image):
    assert check_record(record(("h", "q"), **fields)).image == image


def test_two_keys_that_say_the_same():
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    both = {"conversations": turns, "messages": [chat("user", "q"), chat("assistant", "a")]}
    assert check_record(both).question == "q"


@pytest.mark.parametrize(
    "turns", [[("h", "Is <video src=x></video> HTML, and <video>?")], [("h", "q"), ("g", "<video> is a tag")]]
)
def test_html_and_answers_may_name_the_tag(turns):
    assert len(check_record(record(*turns)).messages) == 1


@pytest.mark.parametrize(
    ("own", "text"),
    [("a", "a"), ("", ""), (7, "7"), (1.5, "1.5"), (True, "true"), (["ü", 1], '["ü",1]'), (None, None)],
)
def test_the_own_id_is_text(own, text):
    assert check_record(record(("h", "q"), ("g", "a"), id=own)).id == text


def test_a_record_may_have_no_id():
    without = record(("h", "q"), ("g", "a"))
    del without["id"]
    assert check_record(without).id is None
