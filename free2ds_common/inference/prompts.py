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
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return Prompt(tuple(bos + tokenizer.encode(before)), tuple(tokenizer.encode(after)))
