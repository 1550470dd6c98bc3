"""VQA accuracy as LLaVA's m4c evaluator counts it (TextVQA, VizWiz, VQAv2): its normaliser, its soft score.

The VQA repository's own evaluator differs in punctuation and normalises only where the ten answers disagree.
"""

import re
from collections.abc import Sequence

_NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`!'
_PERIOD = re.compile(r"\.(?!\d)")
# The evaluator gives re.UNICODE where re.sub takes the count: no more periods than that are removed.
_PERIODS_REMOVED = int(re.UNICODE)
_WORDS = re.compile(r"\S+")
# Words that become another one when their apostrophes are put in; the apostrophes say where they were.
_CONTRACTIONS_OF = _WORDS.findall("""
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd
it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't somebody'll
somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll
they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
""")
# Those of two apostrophes of which one or the other is missing.
_DOUBLE_CONTRACTIONS_OF = _WORDS.findall("""
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've
""")
# As the evaluator has them, oddities included.
_ODD = {
    "'ow'sat": "'ow's'at",
    "'ows'at": "'ow's'at",
    "ow's'at": "'ow's'at",
    "somebody'd": "somebodyd",
    "yall'd've": "y'all'd've",
    "y'alld've": "y'all'd've",
    "y'all'dve": "y'all'd've",
}


def _missing_one(word: str) -> list[str]:
    """A word with each of its apostrophes left out in turn."""
    return [word[:place] + word[place + 1 :] for place, letter in enumerate(word) if letter == "'"]


CONTRACTIONS = (
    {word.replace("'", ""): word for word in _CONTRACTIONS_OF}
    | {without: word for word in _DOUBLE_CONTRACTIONS_OF for without in _missing_one(word)}
    | _ODD
)


def normalized(answer: str) -> str:
    """An answer in the form in which answers are compared.

    Source:
        LLaVA's `m4c_evaluator.py`, `EvalAIAnswerProcessor`.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    kept = text
    for mark in _PUNCTUATION:
        beside_a_space = f"{mark} " in text or f" {mark}" in text
        kept = kept.replace(mark, "" if beside_a_space else " ")
    words = [_NUMBERS.get(word, word) for word in _PERIOD.sub("", kept, count=_PERIODS_REMOVED).split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def accuracy(answer: str, answers: Sequence[str]) -> float:
    """How many of the people agree: the mean, over each left out in turn, of min(1, agreeing others / 3).

    Args:
        answer: The model's, normalised.
        answers: The people's, normalised.
    """
    agreeing = answers.count(answer)
    total = len(answers)
    with_it, without_it = min(1.0, (agreeing - 1) / 3), min(1.0, agreeing / 3)
    return (agreeing * with_it + (total - agreeing) * without_it) / total if agreeing else 0.0
