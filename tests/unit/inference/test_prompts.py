import pytest

from free2ds_common.inference.prompts import INSTRUCTION, LLAVA_SYSTEM, MGM_SYSTEM, build_prompt, prompt_text


class Letters:
    """One token per character."""

    bos_token_id = -1

    def encode(self, text):
        return [ord(letter) for letter in text]


def test_systems():
    assert LLAVA_SYSTEM == (
        "A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions."
    )
    assert MGM_SYSTEM == LLAVA_SYSTEM.replace("human", "user")


@pytest.mark.parametrize(
    ("question", "middle"),
    [
        ("Why?", "<image>\nWhy?"),
        ("<image>\nWhy?", "<image>\nWhy?"),
        ("Why?\n<image>", "Why?\n<image>"),
        ("<image>a<image>b", "<image>ab"),
    ],
)
def test_placeholder(question, middle):
    assert prompt_text(question, "S.") == f"S. USER: {middle}{INSTRUCTION} "


def test_instruction():
    assert INSTRUCTION == " Please answer the question using a single word or phrase."


def test_instruction_is_added_again():
    assert prompt_text("Q" + INSTRUCTION, "S").count(INSTRUCTION) == 2


def test_tokens_around_the_picture():
    prompt = build_prompt("a\n<image>b", "S", Letters())
    assert prompt.before == (-1, *map(ord, "S USER: a\n"))
    assert prompt.after == tuple(map(ord, "b" + INSTRUCTION + " "))
