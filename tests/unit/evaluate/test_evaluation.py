"""From judged answers to numbers and intervals, worked out by hand."""

import numpy as np
import pytest

from free2ds_common.datasets import DatasetWriter, open_dataset
from free2ds_common.errors import StageError
from free2ds_common.evaluation import column_sets, draw_columns, measure, read_answers, tally
from free2ds_common.schemas import EVALUATION


def values(found):
    return {column: float(value) for column, value in found.items()}


def plain(scores, **options):
    return [(f"u{number}", "", "", "x", score) for number, score in enumerate(scores)]


@pytest.fixture
def stored(tmp_path):
    """What is read of evaluation/1 with these rows, which only say what matters."""

    def read(*rows):
        common = {"benchmark": "pope", "metric": "pope", "image": None, "category": "", "group": "", "question": "?"}
        common |= {
            "answers": ["Yes", "No"],
            "text": "yes",
            "num_tokens": 2,
            "outcome": "ok",
            "judged": "yes",
            "score": 1,
        }
        with DatasetWriter(tmp_path / "evaluation", EVALUATION) as writer:
            writer.write([{**common, "question_id": str(number), **row} for number, row in enumerate(rows)])
        return read_answers(open_dataset(tmp_path / "evaluation", EVALUATION))

    return read


def test_what_is_read_of_an_evaluation(stored):
    found = stored({"category": "c"}, {"judged": None, "score": None}, {"benchmark": "gqa", "metric": "gqa"})
    assert list(found) == ["pope", "gqa"]
    pope = found["pope"]
    assert (pope.metric, pope.ids, pope.categories, pope.judged) == ("pope", ("0", "1"), ("c", ""), ("yes", None))
    np.testing.assert_array_equal(pope.scores, [1, np.nan])
    assert (found["gqa"].metric, found["gqa"].ids) == ("gqa", ("2",))


def test_labels_are_the_first_answer_in_lower_case(stored):
    assert stored({})["pope"].labels == ("yes",)


def test_what_is_drawn_together(stored):
    """Its group, else its picture, else the question itself."""
    found = stored({"group": "g", "image": "a.png"}, {"image": "a.png"}, {})
    assert found["pope"].units == ("g", "a.png", "2")


def test_the_mean_score(make_answers):
    assert values(tally(make_answers(plain([1, 0, 0.5, 0]))).columns()) == {"tiny": 37.5}


def test_what_has_no_answer_is_left_out(make_answers):
    assert values(tally(make_answers(plain([1, np.nan, 0]))).columns()) == {"tiny": 50}


def test_other_questions_about_the_picture_count(make_answers):
    rows = [("a.png", "", "", "x", 1), ("a.png", "", "", None, np.nan), ("b.png", "", "", "x", 0)]
    assert values(tally(make_answers(rows)).columns()) == {"tiny": 50}


def test_nothing_has_an_answer(make_answers):
    with pytest.raises(StageError, match="tiny: none of its questions has an answer"):
        tally(make_answers(plain([np.nan])))


def test_accuracy_per_category(make_answers):
    rows = [("a", "image", "", "x", 1), ("b", "image", "", "x", 0), ("c", "text", "", "x", 1)]
    assert tally(make_answers(rows, metric="scienceqa", benchmark="sqa")).details() == {
        "sqa_image": 50,
        "sqa_text": 100,
    }


@pytest.mark.parametrize(("categories", "details"), [(1, 0), (2, 2), (40, 40), (41, 0)])
def test_few_categories_have_an_accuracy_each(make_answers, categories, details):
    rows = [(f"u{number}", f"c{number}", "", "x", 1) for number in range(categories)]
    assert len(tally(make_answers(rows)).details()) == details


POPE = [
    # random: two true "yes", one false, one missed; popular: one true "yes", one true "no".
    ("a", "random", "yes", "yes", 1),
    ("b", "random", "yes", "yes", 1),
    ("c", "random", "no", "yes", 0),
    ("d", "random", "yes", "no", 0),
    ("a", "popular", "yes", "yes", 1),
    ("b", "popular", "no", "no", 1),
]


def test_pope(make_answers):
    counted = tally(make_answers(POPE, metric="pope", benchmark="pope"))
    # F1 is 2 * 2 / (2 * 2 + 1 + 1) and 1.
    assert values(counted.columns()) == {"pope": pytest.approx(100 * (2 / 3 + 1) / 2)}
    assert counted.details() == {
        "pope_accuracy": pytest.approx(100 * 4 / 6),
        "pope_precision": 75,
        "pope_recall": 75,
        "pope_yes_ratio": pytest.approx(100 * 4 / 6),
        "pope_f1_popular": 100,
        "pope_f1_random": pytest.approx(100 * 2 / 3),
    }


def test_pope_without_a_true_yes(make_answers):
    assert values(tally(make_answers([("a", "random", "yes", "no", 0)], metric="pope")).columns()) == {"tiny": 0}


def test_pope_precision_and_recall(make_answers):
    """Of four "yes" one is right, and of two that had to be "yes", one was."""
    rows = [("a", "r", "yes", "yes", 1), ("b", "r", "yes", "no", 0)] + [("c", "r", "no", "yes", 0)] * 3
    found = tally(make_answers(rows, metric="pope")).details()
    assert (found["tiny_precision"], found["tiny_recall"], found["tiny_yes_ratio"]) == (25, 50, 80)


def test_pope_where_nothing_is_yes(make_answers):
    found = tally(make_answers([("a", "r", "no", "no", 1)], metric="pope")).details()
    assert (found["tiny_precision"], found["tiny_recall"], found["tiny_accuracy"]) == (0, 0, 100)


def test_mme(make_answers):
    rows = [
        # count: one pair right, one half right; code_reasoning, which is cognition: one pair wrong.
        ("a.png", "count", "yes", "yes", 1),
        ("a.png", "count", "no", "no", 1),
        ("b.png", "count", "yes", "yes", 1),
        ("b.png", "count", "no", "yes", 0),
        ("a.png", "code_reasoning", "yes", "no", 0),
        ("a.png", "code_reasoning", "no", "yes", 0),
    ]
    counted = tally(make_answers(rows, metric="mme", benchmark="mme"))
    # Accuracy 75 % and accuracy+ 50 %.
    assert values(counted.columns()) == {"mme_perception": 125, "mme_cognition": 0}
    assert counted.details() == {
        "mme_accuracy": 50,
        "mme_accuracy_plus": pytest.approx(100 / 3),
        "mme_accuracy_code_reasoning": 0,
        "mme_accuracy_plus_code_reasoning": 0,
        "mme_accuracy_count": 75,
        "mme_accuracy_plus_count": 50,
    }


@pytest.mark.parametrize(
    ("category", "side"),
    [(name, "cognition") for name in ("commonsense_reasoning", "numerical_calculation", "text_translation")]
    + [(name, "perception") for name in ("existence", "position", "color", "posters", "celebrity", "scene")]
    + [(name, "perception") for name in ("landmark", "artwork", "OCR")],
)
def test_the_two_sides_of_mme(make_answers, category, side):
    rows = [("a", category, "yes", "yes", 1), ("a", category, "no", "no", 1)]
    assert values(tally(make_answers(rows, metric="mme")).columns()) == {f"tiny_{side}": 200}


def test_half_a_pair_of_mme_leaves_the_whole_out(make_answers):
    rows = [("a", "count", "yes", "yes", 1), ("a", "count", "no", None, np.nan)] + [("b", "count", "yes", "no", 0)] * 2
    assert values(tally(make_answers(rows, metric="mme")).columns()) == {"tiny_perception": 0}


def test_half_a_pair_leaves_pairs_of_other_categories_in(make_answers):
    rows = [("a", "count", "yes", "yes", 1), ("a", "count", "no", None, np.nan)]
    rows += [("a", "scene", "yes", "yes", 1)] * 2 + [("b", "count", "yes", "yes", 1)] * 2
    assert values(tally(make_answers(rows, metric="mme")).columns()) == {"tiny_perception": 400}


def test_half_a_rotation_of_mmbench_leaves_the_whole_out(make_answers):
    rows = [("1", "c", "a", "A", 1), ("1", "c", "b", None, np.nan), ("2", "c", "a", "B", 0)]
    assert values(tally(make_answers(rows, metric="mmbench")).columns()) == {"tiny": 0}


def test_mmbench_counts_questions_whose_rotations_are_all_right(make_answers):
    rows = [("1", "c", "a", "A", 1), ("1", "c", "b", "B", 1), ("2", "c", "a", "A", 1), ("2", "c", "b", "A", 0)]
    assert values(tally(make_answers(rows, metric="mmbench")).columns()) == {"tiny": 50}


class TestIntervals:
    def test_all_alike_have_none_of_width(self, make_answers):
        (found,) = measure({"tiny": make_answers(plain([1, 1, 1]))}, 20, 0).values()
        assert (found.value, found.low, found.high) == (100, 100, 100)

    def test_they_are_as_wide_as_chance(self, make_answers):
        """400 coin flips: 50 % with a standard error of 2.5 %."""
        (found,) = measure({"tiny": make_answers(plain([1, 0] * 200))}, 2000, 0).values()
        assert (found.low, found.high) == (
            pytest.approx(50 - 1.96 * 2.5, abs=0.5),
            pytest.approx(50 + 1.96 * 2.5, abs=0.5),
        )

    def test_questions_about_one_picture_stay_together(self, make_answers):
        rows = [("a.png", "", "", "x", 1)] * 50 + [("b.png", "", "", "x", 0)] * 50
        (found,) = measure({"tiny": make_answers(rows)}, 100, 0).values()
        assert (found.low, found.high) == (0, 100)

    def test_the_seed_decides(self, make_answers):
        answers = {"tiny": make_answers(plain([1, 0] * 20))}
        assert measure(answers, 100, 3) == measure(answers, 100, 3)
        assert measure(answers, 100, 3) != measure(answers, 100, 4)

    @pytest.mark.parametrize("resamples", [1, 32, 33])
    def test_there_are_as_many_resamples_as_wanted(self, make_answers, resamples):
        (drawn,) = draw_columns([tally(make_answers(plain([1, 0])))], resamples, 0)
        assert drawn["tiny"].shape == (resamples,)

    def test_none_are_wanted(self, make_answers):
        (found,) = measure({"tiny": make_answers(plain([1, 0]))}, 0, 0).values()
        assert (found.value, found.low, found.high) == (50, None, None)

    def test_a_resample_without_one_of_popes_categories_does_not_count(self, make_answers):
        """Of two pictures a quarter of the resamples has the second alone, and as many the first."""
        rows = [("a", "random", "yes", "yes", 1), ("b", "popular", "yes", "yes", 1)]
        (found,) = measure({"tiny": make_answers(rows, metric="pope")}, 50, 0).values()
        assert (found.value, found.low, found.high) == (100, 100, 100)


def test_the_set_without_cognition_is_left_out_where_there_is_nothing_else():
    assert column_sets(["mme_cognition"]) == {"all": ["mme_cognition"]}
