import pytest

from free2ds_common.inference.prompts import (
    INSTRUCTION,
    LLAVA_SYSTEM,
    MGM_SYSTEM,
    build_prompt,
    method_settings,
    prompt_text,
)


class Letters:
    """One token per character."""

    bos_token_id = -1

    def encode(self, text):
        return [ord(letter) for letter in text]


def test_llavas_whole_prompt():
    assert prompt_text("Why?", LLAVA_SYSTEM) == (
        "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the human's questions. USER: <image>\nWhy? Please answer the question using a "
        "single word or phrase. "
    )


def test_mgms_whole_prompt():
    assert prompt_text("Why?", MGM_SYSTEM) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: <image>\nWhy? Please answer the question using a "
        "single word or phrase. "
    )


def test_the_model_has_to_say_assistant_itself():
    assert "ASSISTANT" not in prompt_text("Why?", LLAVA_SYSTEM)


def test_one_blank_at_the_end():
    text = prompt_text("Why?", LLAVA_SYSTEM)
    assert len(text) - len(text.rstrip()) == 1


@pytest.mark.parametrize(
    ("question", "middle"),
    [
        ("Why?", "<image>\nWhy?"),
        ("<image>\nWhy?", "<image>\nWhy?"),
        ("Why?\n<image>", "Why?\n<image>"),
        ("What is <image> here?", "What is <image> here?"),
        ("<image>a<image>b", "<image>ab"),
        ("a<image>\n<image>b<image>", "a<image>\nb"),
        ("<Image>\nWhy?", "<image>\n<Image>\nWhy?"),
        ("  Why? ", "<image>\n  Why? "),
        ("", "<image>\n"),
    ],
)
def test_placeholder(question, middle):
    assert prompt_text(question, "S.") == f"S. USER: {middle}{INSTRUCTION} "


def test_instruction_is_added_again():
    """Also in the words that LLaVA-665K has it in."""
    assert prompt_text("Q" + INSTRUCTION, "S") == f"S USER: <image>\nQ{INSTRUCTION}{INSTRUCTION} "
    question = "Q\nAnswer the question using a single word or phrase."
    assert prompt_text(question, "S") == f"S USER: <image>\n{question}{INSTRUCTION} "


def test_tokens_around_the_picture():
    prompt = build_prompt("a\n<image>b", "S", Letters())
    assert prompt.before == (-1, *map(ord, "S USER: a\n"))
    assert prompt.after == tuple(map(ord, "b" + INSTRUCTION + " "))


def test_number_of_tokens():
    """BOS, 8 of "S USER: ", then "\\nQ?", 58 of the instruction and the blank."""
    assert build_prompt("Q?", "S", Letters()).num_tokens == 1 + 8 + 3 + 58 + 1


def test_a_tokenizer_without_bos():
    tokenizer = Letters()
    tokenizer.bos_token_id = None
    assert build_prompt("a", "S", tokenizer).before == tuple(map(ord, "S USER: "))


@pytest.mark.parametrize("token", [0, 1])
def test_any_number_can_be_bos(token):
    tokenizer = Letters()
    tokenizer.bos_token_id = token
    assert build_prompt("a", "S", tokenizer).before[0] == token


def test_what_manifests_say():
    assert method_settings("S") == {"style": "method", "system": "S", "instruction": INSTRUCTION}
