"""The verdict: which model is which, differences with intervals, the sentence, the page."""

import json

import numpy as np
import pytest

from components.verdict.config import VerdictConfig
from components.verdict.stage import run
from free2ds_common.datasets import DatasetWriter
from free2ds_common.errors import StageError
from free2ds_common.schemas import EVALUATION

TRAINING = {"device_hours": 1.5, "records": 10}


def row(benchmark, number, score, metric="gqa", category="", group=""):
    return {
        "benchmark": benchmark,
        "metric": metric,
        "question_id": f"{benchmark}-{number}",
        "image": f"{number}.jpg",
        "category": category,
        "group": group,
        "question": "What?",
        "answers": ["yes"],
        "text": "x",
        "num_tokens": 2,
        "outcome": "ok" if score is not None else "image_missing",
        "judged": None if score is None else ("yes" if score else "no"),
        "score": score,
    }


@pytest.fixture
def evaluation(tmp_path):
    """Write an evaluation: scores by benchmark, or rows."""

    def write(label, benchmarks, training=None, asked=None, **manifest):
        folder = tmp_path / f"ev-{label.replace(':', '-')}"
        with DatasetWriter(folder, EVALUATION) as writer:
            for name, scores in benchmarks.items():
                given = [one if isinstance(one, dict) else row(name, n, one) for n, one in enumerate(scores)]
                writer.write(given)
            writer.manifest.update(
                label=label,
                model="org/m",
                model_fingerprint="f",
                benchmarks=asked or {},
                training=training or {},
                **manifest,
            )
        return str(folder)

    return write


@pytest.fixture
def verdict(evaluation, tmp_path):
    """Run the stage on evaluations by label; returns comparison.json."""

    def decide(untuned, training=TRAINING, told=None, **by_label):
        told = told or {}
        arms = {name.replace("_", ":"): benchmarks for name, benchmarks in by_label.items()}
        (tmp_path / "summary.json").write_text(
            json.dumps(
                {"run": {"seconds": 7200.0}, "reuse": {"llava": {"computed": 5, "reused": 2}}}
                | {"device_seconds": {"llava": 5400.0, "text": 900.0}}
            )
        )
        config = VerdictConfig(
            arms=list(arms),
            resamples=400,
            seed=1,
            untuned=evaluation("untuned", untuned),
            evaluations=[evaluation(label, given, training, **told.get(label, {})) for label, given in arms.items()],
            summary=str(tmp_path / "summary.json"),
            comparison=str(tmp_path / "comparison.json"),
            report=str(tmp_path / "verdict.html"),
        )
        result = run(config)
        return json.loads((tmp_path / "comparison.json").read_text()), result

    return decide


GOOD, BAD = [1.0] * 36 + [0.0] * 4, [0.0] * 30 + [1.0] * 10
HALF = [1.0, 0.0] * 20


def test_selecting_beats_random_where_the_interval_has_no_0(verdict):
    found, _ = verdict({"a": HALF, "b": HALF}, selected_1={"a": GOOD, "b": HALF}, random_1={"a": BAD, "b": HALF})
    assert found["differences"]["a"]["outcome"] == "beat"
    assert found["differences"]["b"]["outcome"] == "open"
    # 90 % against 25 %.
    assert found["differences"]["a"]["own"]["value"] == pytest.approx(65)
    assert found["mean"]["all"]["value"] == pytest.approx(32.5)
    assert found["sentence"].startswith("Selecting beat random on 1 of 2, lost on 0; mean +32.5 ± ")
    assert found["sentence"].endswith(" points. On the whole selecting was better.")


def test_it_loses_where_random_is_better(verdict):
    found, _ = verdict({"a": HALF}, selected_1={"a": BAD}, random_1={"a": GOOD})
    assert found["differences"]["a"]["outcome"] == "lost"
    assert "beat random on 0 of 1, lost on 1; difference -65.0" in found["sentence"]
    assert found["sentence"].endswith("On the whole selecting was worse.")


def test_the_same_answers_cannot_be_told_apart(verdict):
    found, _ = verdict({"a": HALF}, selected_1={"a": HALF}, random_1={"a": HALF})
    assert found["differences"]["a"]["own"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert found["sentence"] == (
        "Selecting beat random on 0 of 1, lost on 0; difference +0.0 ± 0.0 points. On the whole the two cannot be told "
        "apart."
    )


def test_a_difference_that_is_less_than_what_is_shown_has_no_sign(verdict):
    """A hundredth of one question in 40, that is 0.025 points, for random."""
    found, _ = verdict({"a": HALF}, selected_1={"a": HALF}, random_1={"a": [*HALF[:-1], 0.01]})
    assert found["differences"]["a"]["own"]["value"] == pytest.approx(-0.025)
    assert "lost on 0; difference +0.0 ± " in found["sentence"]


def test_questions_are_resampled_for_both_sides_at_once(verdict):
    """Both right on the same half: their difference is 0 whatever is drawn, though each varies."""
    found, _ = verdict({"a": HALF}, selected_1={"a": HALF}, random_1={"a": HALF})
    one = found["arms"]["a"]["selected"]
    assert one["high"] - one["low"] > 10


def test_seeds_are_resampled_together_if_they_are_the_same(verdict):
    """Each seed moves both arms by as much: paired, that is no doubt about the difference."""
    low, high = [1.0] * 10 + [0.0] * 30, [1.0] * 30 + [0.0] * 10
    paired, _ = verdict(
        {"a": HALF},
        selected_1={"a": low},
        selected_2={"a": high},
        random_1={"a": low},
        random_2={"a": high},
    )
    assert paired["differences"]["a"]["own"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    apart, _ = verdict(
        {"a": HALF},
        selected_1={"a": low},
        selected_2={"a": high},
        random_1={"a": low},
        random_3={"a": high},
    )
    assert apart["differences"]["a"]["own"]["high"] > 40


def test_means_are_over_seeds(verdict):
    found, _ = verdict({"a": HALF}, selected_1={"a": GOOD}, selected_2={"a": HALF}, random_1={"a": HALF})
    assert found["arms"]["a"]["selected"]["value"] == pytest.approx(70)
    assert found["seeds"] == {"selected": 2, "random": 1}


def test_few_trainings_are_warned_about(verdict):
    once, _ = verdict({"a": HALF}, selected_1={"a": HALF}, random_1={"a": HALF})
    assert once["warnings"] == [
        "Selected or random was trained once: the intervals know of other questions, not of another seed."
    ]

    def trained(seeds):
        arms = {f"{arm}_{seed}": {"a": HALF} for arm in ("selected", "random") for seed in range(seeds)}
        return verdict({"a": HALF}, everything_1={"a": HALF}, **arms)[0]["warnings"]

    # The root of a half.
    assert trained(2) == ["With 2 trainings the intervals show about 71% of the spread between seeds."]
    assert trained(5) == []


def test_chance_is_warned_about(verdict):
    many = {name: HALF for name in "abcd"}
    found, _ = verdict(many, selected_1=many, random_1=many)
    assert found["warnings"][-1].startswith("Of 4 comparisons at 95 %, 0.2 come out by chance alone")


def mme(both):
    """Two categories of three pairs each, perception and cognition: how many pairs are right in each."""
    return [
        row("mme", f"{category}-{pair}-{part}", float(pair < right), "mme", category, f"g{pair}")
        for category, right in zip(("count", "code_reasoning"), both, strict=True)
        for pair in range(3)
        for part in range(2)
    ]


def test_points_are_of_the_most_that_a_column_can_be(verdict):
    found, _ = verdict({"mme": mme((1, 1))}, selected_1={"mme": mme((3, 0))}, random_1={"mme": mme((0, 3))})
    assert found["differences"]["mme_perception"]["own"]["value"] == pytest.approx(200)
    assert found["differences"]["mme_perception"]["points"]["value"] == pytest.approx(100)
    assert found["mean"]["all"]["value"] == pytest.approx(0)
    assert found["mean"]["without_mme_cognition"]["value"] == pytest.approx(100)


class TestRelative:
    def test_is_against_the_untuned_model(self, verdict):
        found, _ = verdict({"a": HALF}, selected_1={"a": GOOD}, random_1={"a": BAD})
        assert found["baseline"] == "untuned"
        assert found["relative"]["selected"]["a"]["value"] == pytest.approx(180)
        assert found["relative"]["random"]["all"]["value"] == pytest.approx(50)

    def test_is_against_everything_if_that_was_trained(self, verdict):
        found, _ = verdict({"a": BAD}, selected_1={"a": GOOD}, random_1={"a": BAD}, everything_1={"a": HALF})
        assert found["baseline"] == "everything"
        assert found["relative"]["selected"]["a"]["value"] == pytest.approx(180)
        assert set(found["relative"]) == {"untuned", "selected", "random"}

    def test_leaves_out_what_has_nothing_to_be_relative_to(self, verdict, tmp_path):
        nothing = [0.0] * 40
        found, _ = verdict(
            {"a": HALF, "b": nothing}, selected_1={"a": GOOD, "b": HALF}, random_1={"a": BAD, "b": nothing}
        )
        assert set(found["relative"]["selected"]) == {"a", "all", "without_mme_cognition"}
        assert "Left out, for untuned has 0 there: b." in (tmp_path / "verdict.html").read_text()

    def test_of_nothing_at_all_is_said(self, verdict, tmp_path):
        found, _ = verdict({"a": [0.0] * 40}, selected_1={"a": GOOD}, random_1={"a": BAD})
        assert found["relative"] == {"selected": {}, "random": {}}
        assert "Nothing to be relative to: untuned has 0 everywhere." in (tmp_path / "verdict.html").read_text()


def test_questions_without_an_answer_are_left_out_for_all(verdict):
    found, _ = verdict({"a": [None, *HALF[1:]]}, selected_1={"a": GOOD}, random_1={"a": BAD})
    # Of 39 questions: 35 and 10 are right.
    assert found["arms"]["a"]["selected"]["value"] == pytest.approx(100 * 35 / 39)
    assert found["arms"]["a"]["random"]["value"] == pytest.approx(100 * 10 / 39)


class TestCosts:
    def test_are_of_selecting_and_of_all_trainings(self, verdict):
        found, _ = verdict({"a": HALF}, selected_1={"a": GOOD}, selected_2={"a": GOOD}, random_1={"a": BAD})
        assert found["costs"] == {
            "selecting_hours": 2.0,
            "selecting_device_hours": {"llava": 1.5, "text": 0.25},
            "computed": 5,
            "reused": 2,
            "training_device_hours": {"selected": 3.0, "random": 1.5},
            "records": {"selected": 10.0, "random": 10.0},
        }

    def test_the_page_has_them(self, verdict, tmp_path):
        verdict({"a": HALF}, selected_1={"a": GOOD}, random_1={"a": BAD})
        page = (tmp_path / "verdict.html").read_text()
        assert "1.75 hours of devices (LLaVA 1.5, text model 0.25); 2 h from start to end; 5 results computed" in page
        assert "1.5 hours of devices, all trainings together" in page

    def test_are_not_known_of_models_from_elsewhere(self, verdict, tmp_path):
        found, _ = verdict({"a": HALF}, training={}, selected_1={"a": GOOD}, random_1={"a": BAD})
        assert found["costs"]["training_device_hours"] == {"selected": None, "random": None}
        assert "<td class=n>not known</td>" in (tmp_path / "verdict.html").read_text()


def test_the_page_needs_nothing_else(verdict, tmp_path):
    found, _ = verdict({"<a>": HALF}, selected_1={"<a>": GOOD}, random_1={"<a>": BAD})
    page = (tmp_path / "verdict.html").read_text()
    assert found["sentence"] in page
    assert "&lt;a&gt;" in page
    assert "<a>" not in page
    assert "<script" not in page
    assert "http" not in page


def test_metrics_are_flat_numbers(verdict):
    _, result = verdict({"a": HALF}, selected_1={"a": GOOD}, random_1={"a": BAD})
    assert result.metrics["difference_all"] == pytest.approx(65)
    assert (result.metrics["beat"], result.metrics["lost"]) == (1.0, 0.0)
    assert result.metrics["a_selected"] == pytest.approx(90)
    assert all(np.isfinite(value) for value in result.metrics.values())


class TestRefusal:
    @pytest.mark.parametrize(
        ("arms", "message"),
        [
            (["selected:1"], "arms: got selected:1, wanted random among them"),
            (["random:1"], "wanted selected among them"),
            ([], "arms: got none, wanted selected among them"),
            (["selected:1", "random"], "arms: got 'random', wanted one of selected, random, everything, a colon and"),
            (["selected:x", "random:1"], "arms: got 'selected:x'"),
            (["best:1", "random:1"], "arms: got 'best:1'"),
            (["selected:1", "random:1", "random:1"], "with one of them twice"),
        ],
    )
    def test_wrong_arms(self, arms, message):
        config = VerdictConfig(arms=arms, untuned="", evaluations=[], summary="", comparison="", report="")
        with pytest.raises(StageError, match=message):
            config.check()

    def test_a_label_that_is_no_arm(self, verdict, evaluation, tmp_path):
        self.refused(evaluation, tmp_path, ["selected:1", "best:1"], "its label is 'best:1', wanted one of selected:1")

    def test_an_arm_twice(self, evaluation, tmp_path):
        self.refused(evaluation, tmp_path, ["selected:1", "selected:1"], "a second evaluation of selected:1")

    def test_an_arm_that_is_missing(self, evaluation, tmp_path):
        self.refused(evaluation, tmp_path, ["selected:1"], "evaluations: none of random:1")

    def refused(self, evaluation, tmp_path, labels, message):
        config = VerdictConfig(
            arms=["selected:1", "random:1"],
            untuned=evaluation("untuned", {"a": HALF}),
            evaluations=[evaluation(label, {"a": HALF}) for label in labels],
            summary="",
            comparison=str(tmp_path / "c"),
            report=str(tmp_path / "r"),
        )
        with pytest.raises(StageError, match=message):
            run(config)

    def test_other_benchmarks(self, verdict):
        with pytest.raises(StageError, match="not all of the same benchmarks"):
            verdict({"a": HALF}, selected_1={"a": HALF}, random_1={"b": HALF})

    def test_models_that_began_from_another(self, verdict):
        training = TRAINING | {"model_fingerprint": "g"}
        with pytest.raises(StageError, match=r"selected:1 began from another model \(g\) than the untuned one \(f\)\."):
            verdict({"a": HALF}, training=training, selected_1={"a": HALF}, random_1={"a": HALF})

    def test_models_that_began_from_the_untuned_one(self, verdict):
        training = TRAINING | {"model_fingerprint": "f"}
        verdict({"a": HALF}, training=training, selected_1={"a": HALF}, random_1={"a": HALF})

    def test_other_files_of_a_benchmark(self, evaluation, tmp_path):
        asked = {"a": {"metric": "gqa", "questions_sha256": "1"}, "b": {"metric": "gqa", "questions_sha256": "2"}}
        other = asked | {"b": {"metric": "gqa", "questions_sha256": "3"}}
        config = VerdictConfig(
            arms=["selected:1", "random:1"],
            untuned=evaluation("untuned", {"a": HALF}, asked=asked),
            evaluations=[
                evaluation("selected:1", {"a": HALF}, asked=asked),
                evaluation("random:1", {"a": HALF}, asked=other),
            ],
            summary="",
            comparison=str(tmp_path / "c"),
            report=str(tmp_path / "r"),
        )
        with pytest.raises(
            StageError, match=r"evaluations: random:1 was asked other files of b than the untuned model"
        ):
            run(config)

    def test_other_questions(self, verdict):
        with pytest.raises(StageError, match="not all have the same questions of a"):
            verdict({"a": HALF}, selected_1={"a": HALF}, random_1={"a": HALF[1:]})

    @pytest.mark.parametrize("content", [None, "{}"])
    def test_no_summary(self, evaluation, tmp_path, content):
        if content is not None:
            (tmp_path / "summary.json").write_text(content)
        config = VerdictConfig(
            arms=["selected:1", "random:1"],
            untuned=evaluation("untuned", {"a": HALF}),
            evaluations=[evaluation(label, {"a": HALF}) for label in ("selected:1", "random:1")],
            summary=str(tmp_path / "summary.json"),
            comparison=str(tmp_path / "c"),
            report=str(tmp_path / "r"),
        )
        with pytest.raises(StageError, match=r"summary\.json: is no summary of a selection"):
            run(config)


class TestLmmsEval:
    @staticmethod
    def own_metrics(value):
        return {"harness": "lmms-eval", "lmms_eval": {"metrics": {"a": {"exact_match": value}}}}

    def test_its_metrics_are_means_over_the_seeds(self, verdict, tmp_path):
        told = {f"selected:{seed}": self.own_metrics(0.25 * seed) for seed in (1, 2)}
        found, _ = verdict({"a": HALF}, told=told, selected_1={"a": GOOD}, selected_2={"a": GOOD}, random_1={"a": BAD})
        assert found["lmms_eval"] == {"a exact_match": {"selected": 0.375}}
        page = (tmp_path / "verdict.html").read_text()
        assert "<h2>lmms-eval's own metrics</h2>" in page
        assert "<td>a exact_match</td><td class=n></td><td class=n>0.375</td>" in page

    def test_models_that_were_asked_by_different_harnesses(self, verdict):
        told = {"selected:1": self.own_metrics(0.5)}
        found, _ = verdict({"a": HALF}, told=told, selected_1={"a": GOOD}, random_1={"a": BAD})
        assert "The answers come from different harnesses: lmms-eval, own." in found["warnings"]

    def test_nothing_is_said_without_it(self, verdict, tmp_path):
        found, _ = verdict({"a": HALF}, selected_1={"a": GOOD}, random_1={"a": BAD})
        assert found["lmms_eval"] == {}
        assert not any("harness" in one for one in found["warnings"])
        assert "lmms-eval" not in (tmp_path / "verdict.html").read_text()
