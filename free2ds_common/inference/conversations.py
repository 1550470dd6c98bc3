"""LLaVA's training prompt ("v1") of a whole conversation as tokens: what is asked, what is to be learnt."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from free2ds_common.inference.prompts import LLAVA_SYSTEM, PLACEHOLDER, Tokenizer
from free2ds_common.turns import GPT, HUMAN, SYSTEM, RecordProblem

USER, ASSISTANT = "USER: ", " ASSISTANT:"


@dataclass(frozen=True)
class Conversation:
    """A conversation as tokens.

    Attributes:
        ids: Token ids; the picture is one token, `image_token` of `conversation_tokens`.
        learnt: Whether a token is an answer's, its EOS included; as long as `ids`.
    """

    ids: list[int]
    learnt: list[bool]


def exchanges(turns: Sequence[tuple[str, str]]) -> tuple[str, list[tuple[str, str]]]:
    """The system text and the pairs of question and answer of a conversation.

    As LLaVA does it, a first turn that is not a human's is left out; a question without an answer at the end teaches
    nothing and is left out too.

    Args:
        turns: (speaker, value) in order, as of `turns_of`. A system turn may stand first; else it is `LLAVA_SYSTEM`.

    Raises:
        RecordProblem: Human and gpt do not take turns, or there is no answer.
    """
    system, said = LLAVA_SYSTEM, list(turns)
    if said and said[0][0] == SYSTEM:
        system = said.pop(0)[1].strip() or LLAVA_SYSTEM
    if said and said[0][0] == GPT:
        said.pop(0)
    for number, (speaker, _) in enumerate(said):
        wanted = GPT if number % 2 else HUMAN
        if speaker != wanted:
            raise RecordProblem("turns_not_alternating", f"turn {number} is from {speaker}, wanted {wanted}")
    if len(said) < 2:
        raise RecordProblem("no_answer", "no question has an answer")
    values = [value for _, value in said]
    return system, list(zip(values[::2], values[1::2], strict=False))


def with_picture_first(questions: Sequence[str]) -> list[str]:
    """Questions with one placeholder: in front of the question that names the picture, else of the first.

    Source:
        LLaVA puts "<image>" and a line break before a turn's text wherever in it the picture is named.
    """
    shown_with = next((number for number, text in enumerate(questions) if PLACEHOLDER in text), 0)
    # A record has one picture: placeholders after the first are removed, as in the method's prompt.
    texts = [text.replace(PLACEHOLDER, "").strip() if PLACEHOLDER in text else text for text in questions]
    texts[shown_with] = f"{PLACEHOLDER}\n{texts[shown_with].strip()}"
    return texts


def conversation_tokens(
    turns: Sequence[tuple[str, str]], has_picture: bool, tokenizer: Tokenizer, image_token: int, eos: int
) -> Conversation:
    r"""A conversation in LLaVA's prompt "v1".

    `SYSTEM USER: <image>\nquestion ASSISTANT: answer</s>USER: question ASSISTANT: answer</s>`; the text between two
    control tokens is tokenised by itself.

    Args:
        turns: As in `exchanges`.
        has_picture: Whether the record has a picture.
        tokenizer: The decoder's.
        image_token: Stands for the picture.
        eos: Ends an answer.

    Raises:
        RecordProblem: As `exchanges`.
    """
    system, pairs = exchanges(turns)
    questions = [question for question, _ in pairs]
    if has_picture:
        questions = with_picture_first(questions)
    else:
        questions = [question.replace(PLACEHOLDER, "") for question in questions]
    ids: list[int] = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    learnt = [False] * len(ids)
    for number, (question, (_, answer)) in enumerate(zip(questions, pairs, strict=True)):
        before, shown, after = f"{'' if number else system + ' '}{USER}{question}{ASSISTANT}".rpartition(PLACEHOLDER)
        if shown:
            start = [*tokenizer.encode(before), image_token]
            ids += start
            learnt += [False] * len(start)
        asked, whole = tokenizer.encode(after), tokenizer.encode(f"{after} {answer}")
        # The same beginning: no tokenizer's words reach over the blank.
        num_asked = sum(
            1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(asked, whole, strict=False))
        )
        ids += [*whole, eos]
        learnt += [False] * num_asked + [True] * (len(whole) - num_asked + 1)
    return Conversation(ids, learnt)
