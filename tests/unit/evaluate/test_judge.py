"""What each metric reads out of an answer; the cases are those that the reference evaluators tell apart."""

import pytest

from components.evaluate.benchmark import BenchmarkQuestion
from components.evaluate.judge import METRICS


def question(*answers, options=()):
    return BenchmarkQuestion(id="1", image=None, question="?", answers=answers, options=options)


@pytest.mark.parametrize(
    ("text", "judged", "score"),
    [
        ("Red.", "red", 1),
        ("red", "red", 1),
        (".red", ".red", 0),
        ("red..", "red", 1),
        ("re", "re", 0),
        ("a red", "a red", 0),
        ("", "", 0),
    ],
)
def test_gqa(text, judged, score):
    assert METRICS["gqa"](text, question("red")) == (judged, score)


def test_gqa_takes_the_answer_as_it_stands():
    assert METRICS["gqa"]("Red", question("Red")) == ("red", 0)


def test_vqa_normalises_both_sides():
    assert METRICS["vqa"]("The Two.", question(*["two"] * 4, *["a"] * 6)) == ("2", 1)


@pytest.mark.parametrize(
    ("text", "judged", "score"),
    [
        ("B", "B", 1),
        ("B. Rome", "B", 1),
        ("B.", "FAILED", 0),
        ("The answer is B.", "B", 1),
        ("The answer is B. The answer is B.", "FAILED", 0),
        ("The answer is B", "FAILED", 0),
        ("The answer is F.", "F", 0),
        ("b", "FAILED", 0),
        ("b. Rome", "FAILED", 0),
        ("F", "FAILED", 0),
        ("AB", "FAILED", 0),
        ("A", "A", 0),
        ("Rome", "FAILED", 0),
        ("", "FAILED", 0),
    ],
)
def test_scienceqa(text, judged, score):
    """By LLaVA's `eval_science_qa.py`; a period needs a blank after it, and "The answer is" any character."""
    assert METRICS["scienceqa"](text, question("B", options=("Paris", "Rome"))) == (judged, score)


def test_scienceqa_takes_no_letter_that_was_not_offered():
    assert METRICS["scienceqa"]("C", question("C", options=("Paris", "Rome"))) == ("C", 0)


@pytest.mark.parametrize(("text", "score"), [("E", 1), ("E. v", 1), ("D", 0)])
def test_scienceqa_has_five_letters(text, score):
    assert METRICS["scienceqa"](text, question("E", options=tuple("rstuv")))[1] == score


@pytest.mark.parametrize(
    ("text", "judged"),
    [
        ("No", "no"),
        ("no", "no"),
        ("No, there is none", "no"),
        ("There is not a dog. Yes", "no"),
        ("Yes. No", "yes"),
        ("NO", "yes"),
        ("Yes\nno", "yes"),
        ("Nothing", "yes"),
        ("", "yes"),
        ("Maybe", "yes"),
    ],
)
@pytest.mark.parametrize("label", ["yes", "no"])
def test_pope(text, judged, label):
    """By LLaVA's `eval_pope.py`: words are what blanks divide, in the first sentence, without commas."""
    assert METRICS["pope"](text, question(label)) == (judged, judged == label)


@pytest.mark.parametrize(
    ("text", "judged"),
    [
        ("Yes.", "yes"),
        ("yes, it is", "yes"),
        (" No", "no"),
        ("Not", "no"),
        ("Nope", "no"),
        ("y", "yes"),
        ("N.", "no"),
        ("yo", "other"),
        ("a yes", "other"),
        ("I say yes", "other"),
        ("I no", "no"),
        ("", "other"),
    ],
)
@pytest.mark.parametrize("label", ["Yes", "No"])
def test_mme(text, judged, label):
    """By `parse_pred_ans` of lmms-eval's MME utilities."""
    assert METRICS["mme"](text, question(label)) == (judged, judged == label.lower())


@pytest.mark.parametrize(
    ("text", "judged"),
    [
        ("B", "B"),
        ("(B) a cat", "B"),
        ("(B) it is", "B"),
        ("B. a cat", "B"),
        ("the answer: B).", "B"),
        ("A", "A"),
        ("A or so", "A"),
        # A bare A of four words or more may be an article; with a period it is none.
        ("A dog is what I see", "A"),
        ("A cow is here", "other"),
        ("A cow here", "A"),
        ("I think B is right", "B"),
        ("A. It is a cow", "A"),
        ("A cat. B) it is", "B"),
        ("a cat", "B"),
        ("A Cat", "A"),
        ("THE CAT IS A CAT", "B"),
        ("A or B", "other"),
        # Each form is looked for by itself.
        ("A or B.", "A"),
        ("a cat or a dog", "other"),
        ("E", "E"),
        ("E or B", "other"),
        ("b", "other"),
        ("B;", "other"),
        ("", "other"),
    ],
)
def test_mmbench(text, judged):
    """By lmms-eval's `MMBench_Evaluator.can_infer`: five letters whatever is offered, then the options' texts."""
    options = ("a dog", "a cat")
    assert METRICS["mmbench"](text, question("B", options=options)) == (judged, judged == "B")


def test_mmbench_quotes_options_in_any_case():
    assert METRICS["mmbench"]("it is a cat", question("B", options=("A dog", "A Cat"))) == ("B", 1)


@pytest.mark.parametrize("letter", "ABCDE")
@pytest.mark.parametrize("form", ["X", "X.", "X,", "X:", "X)", "X).", "(X)", "(X).", ":X", ":X,", ":X.", ":X)", ":X)."])
def test_mmbench_takes_a_letter_in_these_forms(form, letter):
    said = f"so {form.replace('X', letter)}"
    assert METRICS["mmbench"](said, question("A", options=tuple("vwxyz")))[0] == letter


@pytest.mark.parametrize(("text", "score"), [("C", 1), ("C.", 0), ("c", 0), ("D", 0)])
def test_seed(text, score):
    assert METRICS["seed"](text, question("C", options=("a", "b", "c", "d"))) == (text, score)
