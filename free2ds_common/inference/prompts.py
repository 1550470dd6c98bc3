"""The prompt of a record (docs/method.md, section 1) and its tokens around the picture."""

from dataclasses import dataclass
from typing import Protocol

PLACEHOLDER = "<image>"
INSTRUCTION = " Please answer the question using a single word or phrase."
# Vicuna's system sentence; LLaVA says "human" where MGM says "user".
_SYSTEM = (
    "A chat between a curious {who} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {who}'s questions."
)
LLAVA_SYSTEM = _SYSTEM.format(who="human")
MGM_SYSTEM = _SYSTEM.format(who="user")


class Tokenizer(Protocol):
    """Turns text into token ids without adding special tokens."""

    bos_token_id: int | None

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; control tokens written out in it count as plain text."""


@dataclass(frozen=True)
class Prompt:
    """Token ids on both sides of the picture.

    Attributes:
        before: BOS, system text and the question up to the picture.
        after: The rest of the prompt. Never empty, so that the last prompt token is text.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens without the picture's."""
        return len(self.before) + len(self.after)


def prompt_text(question: str, system: str) -> str:
    """The prompt with one placeholder.

    Args:
        question: A record's question. A record has one picture: placeholders after the first are removed.
        system: `LLAVA_SYSTEM` or `MGM_SYSTEM`.

    Source:
        docs/method.md, section 1. The instruction is added even if the question already ends with it.
    """
    if PLACEHOLDER not in question:
        question = f"{PLACEHOLDER}\n{question}"
    head, tail = question.split(PLACEHOLDER, 1)
    return f"{system} USER: {head}{PLACEHOLDER}{tail.replace(PLACEHOLDER, '')}{INSTRUCTION} "


def method_settings(system: str) -> dict[str, str]:
    """What decides the method's prompt, for the manifest."""
    return {"style": "method", "system": system, "instruction": INSTRUCTION}


def build_prompt(question: str, system: str, tokenizer: Tokenizer) -> Prompt:
    """A record's prompt as tokens; the two sides of the picture are tokenised separately, as LLaVA does."""
    before, after = prompt_text(question, system).split(PLACEHOLDER)
    return Prompt(_from_start(before, tokenizer), tuple(tokenizer.encode(after)))


def conversation_settings(system: str) -> dict[str, str]:
    """What decides the prompt of LLaVA's conversation v1, for the manifest."""
    return {"style": "v1", "system": system}


def build_conversation(question: str, system: str, tokenizer: Tokenizer) -> Prompt:
    """A question about a picture as LLaVA's conversation v1 asks it: nothing is added to its text.

    Args:
        question: With a placeholder where the picture stands; without one the picture stands before the text.
        system: As in `prompt_text`.
        tokenizer: Of the decoder.
    """
    if PLACEHOLDER not in question:
        question = f"{PLACEHOLDER}\n{question}"
    head, tail = question.split(PLACEHOLDER, 1)
    after = f"{tail.replace(PLACEHOLDER, '')} ASSISTANT:"
    return Prompt(_from_start(f"{system} USER: {head}", tokenizer), tuple(tokenizer.encode(after)))


def build_text_conversation(question: str, system: str, tokenizer: Tokenizer) -> Prompt:
    """The same without a picture."""
    return Prompt((), _from_start(f"{system} USER: {question} ASSISTANT:", tokenizer))


def _from_start(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens of the beginning of a prompt."""
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return (*bos, *tokenizer.encode(text))
