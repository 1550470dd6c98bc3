"""Rel. %: against a baseline on the same questions, worked out by hand."""

import numpy as np
import pytest

from components.evaluate.benchmark import Benchmark, BenchmarkQuestion
from components.evaluate.relative import paired, relative, require_baseline
from free2ds_common.errors import StageError


def plain(scores):
    return [(f"u{number}", "", "", "x", score) for number, score in enumerate(scores)]


@pytest.fixture
def benchmark():
    def make(ids="0", name="tiny", metric="gqa"):
        questions = tuple(BenchmarkQuestion(id=one, image=None, question="?", answers=("x",)) for one in ids)
        return Benchmark(name, metric, questions, "images", 0, {})

    return make


def test_columns_and_means(make_answers):
    pair = [("a", "count", "yes", "yes", 1), ("a", "count", "no", "no", 1)]
    thought = [("b", "code_reasoning", "yes", "yes", 1), ("b", "code_reasoning", "no", "yes", 0)]
    whole = [("b", "code_reasoning", "yes", "yes", 1), ("b", "code_reasoning", "no", "no", 1)]
    ours = {"tiny": make_answers(plain([1, 1, 0, 0])), "mme": make_answers(pair + thought, "mme", "mme")}
    base = {"tiny": make_answers(plain([1, 1, 1, 1])), "mme": make_answers(pair + whole, "mme", "mme")}
    # 50 of 100, 200 of 200 and 50 of 200 points.
    assert {name: found.value for name, found in relative(ours, base, 0, 0).items()} == {
        "tiny": 50,
        "mme_perception": 100,
        "mme_cognition": 25,
        "all": pytest.approx(175 / 3),
        "without_mme_cognition": 75,
    }


def test_both_sides_are_resampled_together(make_answers):
    answers = {"tiny": make_answers(plain([1, 0] * 20))}
    found = relative(answers, answers, 50, 0)["tiny"]
    assert (found.value, found.low, found.high) == (100, 100, 100)


def test_the_order_of_the_questions_does_not_matter(make_answers):
    rows = plain([1, 0, 1, 0, 0])
    turned = {"tiny": make_answers(rows[::-1], ids="43210")}
    assert relative({"tiny": make_answers(rows)}, turned, 50, 0)["tiny"].low == 100


def test_questions_that_one_side_lacks_count_for_neither(make_answers):
    one, other = paired(make_answers(plain([1, np.nan, 0])), make_answers(plain([np.nan, 1, 1])))
    assert (one.ids, other.ids) == (("2",), ("2",))


def test_intervals_are_of_the_ratio(make_answers):
    """Ours is right on half of 400 coin flips, the baseline on all: 50 % with a standard error of 2.5."""
    answers, baseline = {"tiny": make_answers(plain([1, 0] * 200))}, {"tiny": make_answers(plain([1] * 400))}
    found = relative(answers, baseline, 2000, 0)["tiny"]
    assert (found.low, found.high) == (pytest.approx(45.1, abs=0.5), pytest.approx(54.9, abs=0.5))


def test_the_mean_has_an_interval_of_its_own(make_answers):
    """Two such columns, each of other questions: the standard error of their mean is smaller by the root of 2."""
    answers = {name: make_answers(plain([1, 0] * 200), benchmark=name) for name in ("one", "two")}
    baseline = {name: make_answers(plain([1] * 400), benchmark=name) for name in ("one", "two")}
    found = relative(answers, baseline, 2000, 0)["all"]
    assert (found.low, found.high) == (pytest.approx(46.5, abs=0.5), pytest.approx(53.5, abs=0.5))


def test_resamples_in_which_the_baseline_has_nothing_right_do_not_count(make_answers):
    answers, baseline = {"tiny": make_answers(plain([1, 1]))}, {"tiny": make_answers(plain([1, 0]))}
    found = relative(answers, baseline, 50, 0)["tiny"]
    assert (found.value, found.low, found.high) == (200, 100, 200)


def test_a_column_of_which_nothing_is_left_to_be_relative_to(make_answers):
    """The baseline is right where ours has no answer."""
    with pytest.raises(StageError, match="baseline: tiny is 0, nothing can be relative to it"):
        relative({"tiny": make_answers(plain([np.nan, 1]))}, {"tiny": make_answers(plain([1, 0]))}, 0, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "other"}, "baseline: has tiny, wanted other"),
        ({"ids": "9"}, "baseline: is not of the same questions of tiny"),
        ({"ids": "01"}, "baseline: is not of the same questions of tiny"),
        ({"metric": "vqa"}, "baseline: is not of the same questions of tiny"),
    ],
)
def test_a_baseline_of_something_else(make_answers, benchmark, given, message):
    with pytest.raises(StageError, match=message):
        require_baseline({"tiny": make_answers(plain([1]))}, [benchmark(**given)])


def test_a_baseline_that_lacks_a_benchmark(make_answers, benchmark):
    with pytest.raises(StageError, match="baseline: has tiny, wanted tiny, more"):
        require_baseline({"tiny": make_answers(plain([1]))}, [benchmark(), benchmark(name="more")])


def test_a_baseline_that_has_one_more(make_answers, benchmark):
    baseline = {name: make_answers(plain([1]), benchmark=name) for name in ("tiny", "more")}
    with pytest.raises(StageError, match="baseline: has tiny, more, wanted tiny"):
        require_baseline(baseline, [benchmark()])


def test_a_baseline_of_nothing(make_answers, benchmark):
    with pytest.raises(StageError, match="baseline: tiny is 0, nothing can be relative to it"):
        require_baseline({"tiny": make_answers(plain([0]))}, [benchmark()])


def test_a_baseline_of_the_same(make_answers, benchmark):
    require_baseline({"tiny": make_answers(plain([1]))}, [benchmark()])
