"""The prompt of a record (method section 1) and its tokens around the picture."""

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
        """Token ids of `text`; control tokens spelled out in it are plain text."""


@dataclass(frozen=True)
class Prompt:
    """Token ids on both sides of the picture.

    Attributes:
        before: BOS, system text and what stands before the picture.
        after: What stands after it; at least one token, so the last prompt row is a text row.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]


def prompt_text(question: str, system: str) -> str:
    """The prompt with one placeholder.

    Args:
        question: A record's question; a second and further placeholder becomes nothing, since a record has one picture.
        system: `LLAVA_SYSTEM` or `MGM_SYSTEM`.

    Source:
        method.md section 1. The instruction is added even where the question already ends with one.
    """
    if PLACEHOLDER not in question:
        question = f"{PLACEHOLDER}\n{question}"
    head, tail = question.split(PLACEHOLDER, 1)
    return f"{system} USER: {head}{PLACEHOLDER}{tail.replace(PLACEHOLDER, '')}{INSTRUCTION} "


def method_settings(system: str) -> dict[str, str]:
    """What decides the method's prompt, for manifests."""
    return {"style": "method", "system": system, "instruction": INSTRUCTION}


def build_prompt(question: str, system: str, tokenizer: Tokenizer) -> Prompt:
    """Tokens of a record's prompt, each side of the picture tokenised by itself as LLaVA does."""
    before, after = prompt_text(question, system).split(PLACEHOLDER)
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return Prompt(tuple(bos + tokenizer.encode(before)), tuple(tokenizer.encode(after)))
