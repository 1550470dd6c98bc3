"""What each metric reads out of an answer, and whether that is right. Each follows its reference evaluator."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from components.evaluate import vqa

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# What ScienceQA's evaluator reads where no letter is found.
FAILED = "FAILED"
OTHER = "other"
_SCIENCE_QA_LETTERS = LETTERS[:5]
_THE_ANSWER_IS = re.compile(r"The answer is ([A-Z]).")
# Words that MMBench's evaluator takes for the letter X, in its order.
_MMBENCH_WORDS = ("X", "X.", "X,", "X:", "X)", "X).", "(X)", "(X).", ":X", ":X,", ":X.", ":X)", ":X).")


class Judgeable(Protocol):
    """What a metric needs to know of a question."""

    @property
    def answers(self) -> Sequence[str]:
        """Accepted answers."""

    @property
    def options(self) -> Sequence[str]:
        """Texts of the options A, B, ..."""


# What was read out of the text, and the score in [0, 1].
Judgement = tuple[str, float]
Judge = Callable[[str, Judgeable], Judgement]


def judge_vqa(text: str, question: Judgeable) -> Judgement:
    """VQA accuracy; see `vqa`."""
    answer = vqa.normalized(text)
    return answer, vqa.accuracy(answer, [vqa.normalized(other) for other in question.answers])


def judge_gqa(text: str, question: Judgeable) -> Judgement:
    """Equality after a final period and the case are taken away.

    Source:
        LLaVA's `convert_gqa_for_eval.py`.
    """
    answer = text.rstrip(".").lower()
    return answer, float(answer in question.answers)


def judge_science_qa(text: str, question: Judgeable) -> Judgement:
    """The option's letter alone, before a period, or in "The answer is A." if that comes once.

    Source:
        LLaVA's `eval_science_qa.py`.
    """
    answer = FAILED
    if len(text) == 1 and text in _SCIENCE_QA_LETTERS:
        answer = text
    elif text[1:3] == ". " and text[0] in _SCIENCE_QA_LETTERS:
        answer = text[0]
    elif len(found := _THE_ANSWER_IS.findall(text)) == 1:
        answer = found[0]
    offered = answer in _SCIENCE_QA_LETTERS[: len(question.options)] if question.options else True
    return answer, float(offered and answer in question.answers)


def judge_pope(text: str, question: Judgeable) -> Judgement:
    """No where the first sentence has the word "No", "no" or "not"; yes for everything else.

    Source:
        LLaVA's `eval_pope.py`.
    """
    words = text.partition(".")[0].replace(",", "").split(" ")
    answer = "no" if {"No", "no", "not"} & set(words) else "yes"
    return answer, float(answer == question.answers[0].lower())


def judge_mme(text: str, question: Judgeable) -> Judgement:
    """Yes or no within the first four letters, or y or n alone.

    Source:
        lmms-eval's utilities of MME, `parse_pred_ans`.
    """
    said = text.lower().strip().replace(".", "")
    said = {"y": "yes", "n": "no"}.get(said, said)
    answer = next((word for word in ("yes", "no") if word in said[:4]), OTHER)
    return answer, float(answer == question.answers[0].lower())


def judge_mmbench(text: str, question: Judgeable) -> Judgement:
    """The one letter that stands as a word of its own, else the one option whose text is quoted; nothing is guessed.

    Source:
        lmms-eval's `MMBench_Evaluator`, `can_infer`; it takes no bare "A" from more than three words, where it may be
        an article. Differs: where that asks a language model or draws an option, the answer is wrong.
    """
    words, letters = text.split(), LETTERS[:5]
    for form in _MMBENCH_WORDS:
        found = [letter for letter in letters if form.replace("X", letter) in words]
        if len(found) == 1 and not (form == "X" and found == ["A"] and len(words) > 3):
            return found[0], float(found[0] in question.answers)
    said = text.lower()
    quoted = [letter for letter, option in zip(LETTERS, question.options, strict=False) if option.lower() in said]
    answer = quoted[0] if len(quoted) == 1 else OTHER
    return answer, float(answer in question.answers)


def judge_seed(text: str, question: Judgeable) -> Judgement:
    """The letter, and nothing else.

    Source:
        LLaVA's `convert_seed_for_submission.py`.
    """
    return text, float(text in question.answers)


METRICS: Mapping[str, Judge] = {
    "vqa": judge_vqa,
    "gqa": judge_gqa,
    "scienceqa": judge_science_qa,
    "pope": judge_pope,
    "mme": judge_mme,
    "mmbench": judge_mmbench,
    "seed": judge_seed,
}
