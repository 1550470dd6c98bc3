"""LLaVA's training prompt: what it says, and which of it is learnt."""

import pytest

from free2ds_common.inference.conversations import conversation_tokens, exchanges, with_picture_first
from free2ds_common.inference.prompts import LLAVA_SYSTEM
from free2ds_common.turns import GPT, HUMAN, SYSTEM, RecordProblem

BOS, EOS, PICTURE = 1, 2, 3
SHOWN = {BOS: "[", EOS: "]", PICTURE: "@"}


class Letters:
    """One token per character."""

    bos_token_id = BOS

    def encode(self, text):
        return [1000 + ord(letter) for letter in text]


class Words:
    """One token per word, in which the blank before it is."""

    bos_token_id = None

    def __init__(self):
        self.known = []

    def encode(self, text):
        words = text.split()
        self.known += [word for word in words if word not in self.known]
        return [10 + self.known.index(word) for word in words]


def said(*texts):
    return [((HUMAN, GPT)[number % 2], text) for number, text in enumerate(texts)]


def shown(ids):
    return "".join(SHOWN.get(token) or chr(token - 1000) for token in ids)


def both(*texts, picture=False):
    """The whole prompt, and what is learnt of it."""
    found = conversation_tokens(said(*texts), picture, Letters(), PICTURE, EOS)
    assert len(found.ids) == len(found.learnt)
    whole = shown(found.ids)
    return whole.replace(LLAVA_SYSTEM, "S"), shown(
        [token for token, learnt in zip(found.ids, found.learnt, strict=True) if learnt]
    )


def test_a_question_about_a_picture():
    assert both("<image>\nWhat?", "A cat.", picture=True) == ("[S USER: @\nWhat? ASSISTANT: A cat.]", " A cat.]")


def test_several_turns_are_each_learnt():
    whole, learnt = both("<image>\nWhat?", "A cat.", "Sure?", "Yes.", picture=True)
    assert whole == "[S USER: @\nWhat? ASSISTANT: A cat.]USER: Sure? ASSISTANT: Yes.]"
    assert learnt == " A cat.] Yes.]"


def test_text_alone():
    assert both("Hello ", "Hi.") == ("[S USER: Hello  ASSISTANT: Hi.]", " Hi.]")


def test_a_placeholder_without_a_picture_is_left_out():
    assert both("Hello<image>", "Hi.")[0] == "[S USER: Hello ASSISTANT: Hi.]"


def test_a_picture_that_no_turn_names_comes_first():
    assert both("What?", "A cat.", picture=True)[0] == "[S USER: @\nWhat? ASSISTANT: A cat.]"


def test_a_picture_in_a_later_turn_stays_there():
    assert both("Hello", "Hi.", "What <image>?", "A cat.", picture=True)[0] == (
        "[S USER: Hello ASSISTANT: Hi.]USER: @\nWhat ? ASSISTANT: A cat.]"
    )


def test_an_empty_answer_teaches_to_end():
    assert both("Hello", "")[1] == " ]"


def test_a_tokenizer_of_words_and_without_bos():
    words = Words()
    found = conversation_tokens([(SYSTEM, "Be short."), *said("Why me ?", "So it is")], False, words, PICTURE, EOS)
    learnt = [token for token, told in zip(found.ids, found.learnt, strict=True) if told]
    assert learnt == [*words.encode("So it is"), EOS]
    assert found.ids[: len(found.ids) - 4] == words.encode("Be short. USER: Why me ? ASSISTANT:")


def test_placeholders_after_the_first_question_with_one_are_removed():
    assert with_picture_first([" a", "b <image> c<image> ", "<image>d"]) == [" a", "<image>\nb  c", "d"]


@pytest.mark.parametrize(
    ("turns", "system", "pairs"),
    [
        (said("q", "a"), LLAVA_SYSTEM, [("q", "a")]),
        ([(SYSTEM, " be kind "), *said("q", "a")], "be kind", [("q", "a")]),
        ([(SYSTEM, " "), *said("q", "a")], LLAVA_SYSTEM, [("q", "a")]),
        ([(GPT, "welcome"), *said("q", "a")], LLAVA_SYSTEM, [("q", "a")]),
        (said("q", "a", "unanswered"), LLAVA_SYSTEM, [("q", "a")]),
    ],
)
def test_what_is_asked_and_answered(turns, system, pairs):
    assert exchanges(turns) == (system, pairs)


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "no_answer: no question has an answer"),
        (said("q"), "no_answer"),
        ([(HUMAN, "q"), (HUMAN, "q"), (GPT, "a")], "turns_not_alternating: turn 1 is from human, wanted gpt"),
        ([*said("q", "a"), (SYSTEM, "s")], "turns_not_alternating: turn 2 is from system, wanted human"),
    ],
)
def test_conversations_that_cannot_be_learnt(turns, message):
    with pytest.raises(RecordProblem, match=message):
        exchanges(turns)
