"""harness=lmms-eval, with a stand-in for its command and, where it is installed, with itself."""

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from components.evaluate import harness
from components.evaluate.config import EvaluateConfig
from components.evaluate.stage import run
from free2ds_common.datasets import open_dataset
from free2ds_common.errors import StageError
from free2ds_common.schemas import EVALUATION
from tests.support.checkpoints import copy_checkpoint

REAL = importlib.util.find_spec("lmms_eval") is not None
# sentencepiece's, behind unknown, begin and end.
BYTE_TOKENS = slice(3, 259)
STAND_IN = Path(__file__).parents[2] / "support" / "lmms_eval_main.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return copy_checkpoint("llava_hf", tmp_path_factory.mktemp("model") / "llava_hf")


@pytest.fixture
def config(tmp_path, folder):
    def make(*benchmarks, **options):
        return EvaluateConfig(
            benchmarks=",".join(map(str, benchmarks)),
            **{"model": str(folder), "harness": "lmms-eval", "max_new_tokens": 6, "resamples": 0} | options,
            evaluation=str(tmp_path / "evaluation"),
            metrics=str(tmp_path / "metrics.json"),
        )

    return make


@pytest.fixture
def lmms_eval(tmp_path, monkeypatch):
    """Install the stand-in; returns what sets its behaviour."""
    site = tmp_path / "site"
    package = site / "lmms_eval"
    (package / "tasks").mkdir(parents=True)
    (package / "__init__.py").touch()
    shutil.copyfile(STAND_IN, package / "__main__.py")

    def behave(release="0.7.3", **behaviour):
        (package / "behaviour.json").write_text(json.dumps(behaviour))
        dist_info = site / "lmms_eval-0.dist-info"
        dist_info.mkdir(exist_ok=True)
        (dist_info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: lmms_eval\nVersion: {release}\n")

    behave.calls = lambda: [json.loads(line) for line in (package / "calls.jsonl").read_text().splitlines()]
    behave.tasks = package / "tasks"
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])]))
    return behave


@pytest.fixture
def colours(write_benchmark, llava_record):
    """Three questions about pictures of their own."""
    records = [llava_record(n, f"Colour {n}?", ["red", "blue", "red"][n], image=f"{n}.png") for n in range(3)]
    return write_benchmark(records, "colours", "gqa")


SAID = {"Colour 0?": " Red.", "Colour 1?": "red", "Colour 2?": "red"}


def rows_of(config):
    return list(open_dataset(config.evaluation, EVALUATION).rows())


class TestAnswers:
    def test_they_are_judged_by_this_projects_rules_in_the_questions_order(self, config, colours, lmms_eval):
        lmms_eval(answers=SAID)
        given = config(colours)
        result = run(given)
        rows = rows_of(given)
        assert [row["text"] for row in rows] == ["Red.", "red", "red"]
        assert [row["score"] for row in rows] == [1, 0, 1]
        assert [row["num_tokens"] for row in rows] == [None] * 3
        assert result.metrics["colours"] == pytest.approx(100 * 2 / 3)

    def test_its_own_metrics_stand_beside_them(self, config, colours, lmms_eval, tmp_path):
        lmms_eval(answers=SAID)
        given = config(colours)
        result = run(given)
        own = {"version": "0.7.3", "metrics": {"colours": {"exact_match": 0.25}}, "exceptions": 0}
        assert json.loads((tmp_path / "metrics.json").read_text())["lmms_eval"] == own
        manifest = open_dataset(given.evaluation, EVALUATION).manifest
        assert manifest["lmms_eval"] == own
        assert manifest["harness"] == "lmms-eval"
        assert result.metrics["lmms_eval_colours_exact_match"] == 0.25

    def test_an_empty_answer_is_an_answer(self, config, colours, lmms_eval):
        lmms_eval(answers={**SAID, "Colour 1?": ""})
        given = config(colours)
        assert run(given).counts.written == 3

    def test_exceptions_that_it_makes_empty_answers_of_are_counted(self, config, colours, lmms_eval):
        lmms_eval(answers=SAID, raising=["Colour 1?"])
        with pytest.raises(StageError, match=r"evaluate: 1 of 3 records rejected \(harness_failed 1\)"):
            run(config(colours))

    def test_exceptions_that_are_allowed(self, config, colours, lmms_eval, caplog):
        lmms_eval(answers=SAID, raising=["Colour 1?"])
        given = config(colours, max_reject_fraction=0.5)
        run(given)
        assert [row["outcome"] for row in rows_of(given)] == ["ok", "harness_failed", "ok"]
        assert "lmms-eval: generating failed 1 times, 1 answers are empty" in caplog.text
        assert open_dataset(given.evaluation, EVALUATION).manifest["lmms_eval"]["exceptions"] == 1

    def test_answers_that_are_fewer_than_the_questions(self, config, colours, lmms_eval):
        lmms_eval(answers=SAID, keeps=2)
        with pytest.raises(StageError, match="2 answers to the 3 questions of colours"):
            run(config(colours))

    def test_a_picture_that_is_missing_is_not_asked_about(self, config, colours, lmms_eval):
        lmms_eval(answers=SAID)
        (colours / "images" / "0.png").unlink()
        given = config(colours, max_reject_fraction=0.5)
        run(given)
        assert [row["outcome"] for row in rows_of(given)] == ["image_missing", "ok", "ok"]
        assert [row["text"] for row in rows_of(given)] == ["", "red", "red"]
        (call,) = lmms_eval.calls()
        assert [row["question"] for row in call["asked"]["free2ds_0"]] == ["Colour 1?", "Colour 2?"]

    def test_it_is_not_run_where_no_picture_can_be_used(self, config, colours, lmms_eval):
        lmms_eval(answers=SAID)
        for path in (colours / "images").iterdir():
            path.write_bytes(b"no picture")
        with pytest.raises(StageError, match=r"3 of 3 records rejected \(image_unreadable 3\)"):
            run(config(colours))
        with pytest.raises(FileNotFoundError):
            lmms_eval.calls()


class TestCall:
    def test_it_is_offline_one_at_a_time_and_told_where_the_weights_go(self, config, colours, lmms_eval):
        lmms_eval(answers=SAID)
        run(config(colours))
        (call,) = lmms_eval.calls()
        assert set(call["offline"].values()) == {"1"}
        assert (call["model"], call["batch_size"], call["tasks"]) == ("llava_hf", "1", "free2ds_0")
        assert (call["force_simple"], call["log_samples"]) == (True, True)
        assert call["model_args"].split(",")[1:] == ["device=cpu", "device_map=cpu", "dtype=float32"]

    def test_a_gpu(self, tmp_path):
        command = harness._command(tmp_path, ["free2ds_0"], "cuda", "bfloat16")
        assert command[:3] == [sys.executable, "-m", "lmms_eval"]
        assert command[command.index("--model_args") + 1].endswith(
            "/model,device=cuda:0,device_map=cuda:0,dtype=bfloat16"
        )

    def test_the_task_is_the_installed_one_with_the_folders_questions(self, config, colours, lmms_eval):
        lmms_eval(answers=SAID)
        run(config(colours))
        task = lmms_eval.calls()[0]["tasks_written"]["free2ds_0"]
        assert task["include"] == str(lmms_eval.tasks / "gqa" / "gqa.yaml")
        assert task["doc_to_text"] == "question"
        assert task["process_docs"] is None
        assert task["generation_kwargs"] == {"max_new_tokens": 6, "temperature": 0, "do_sample": False}

    def test_a_benchmarks_own_longest_answer(self, config, lmms_eval, write_benchmark, llava_record):
        lmms_eval(answers={"q": "a"})
        run(config(write_benchmark([llava_record(0, "q", "a", image="0.png")], max_new_tokens=1)))
        assert lmms_eval.calls()[0]["tasks_written"]["free2ds_0"]["generation_kwargs"]["max_new_tokens"] == 1

    def test_its_failure_is_one_sentence_though_its_exit_code_is_0(self, config, colours, lmms_eval):
        lmms_eval(failing="'NoneType' object is not iterable")
        wanted = r"lmms-eval failed \(exit code 0\): 'NoneType' object is not iterable\.$"
        with pytest.raises(StageError, match=wanted):
            run(config(colours))

    def test_its_exit_code(self, config, colours, lmms_eval):
        lmms_eval(answers=SAID, code=3)
        with pytest.raises(StageError, match=r"lmms-eval failed \(exit code 3\): Loading weights: 100%"):
            run(config(colours))


class TestRefused:
    def test_not_installed(self, config, colours, monkeypatch):
        monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(
            StageError, match=r"harness: lmms-eval is not installed here\. On this machine run make lmms"
        ):
            run(config(colours, model="absent/before-it-is-looked-for"))

    def test_another_release(self, config, colours, lmms_eval):
        lmms_eval(release="0.8.0")
        with pytest.raises(StageError, match=r"harness: lmms-eval 0\.8\.0 is installed, wanted 0\.7\.x"):
            run(config(colours))

    def test_another_harness(self, config, colours):
        with pytest.raises(StageError, match="harness: got 'vlmeval', wanted one of lmms-eval, own"):
            run(config(colours, harness="vlmeval"))

    def test_another_model(self, config, colours, lmms_eval, tmp_path):
        lmms_eval(answers=SAID)
        model = copy_checkpoint("llava_hf", tmp_path / "other")
        described = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**described, "model_type": "paligemma"}))
        with pytest.raises(StageError, match="model_type 'paligemma', but harness lmms-eval is for 'llava' alone"):
            run(config(colours, model=str(model)))

    def test_a_question_without_a_picture(self, config, lmms_eval, write_benchmark, llava_record):
        lmms_eval(answers={})
        with pytest.raises(StageError, match="tiny: question 7 has no picture, and lmms-eval's LLaVA needs one"):
            run(config(write_benchmark([llava_record(7, "q", "a")])))


@pytest.mark.skipif(not REAL, reason="needs lmms-eval: make lmms-eval")
def test_lmms_eval_itself_gives_the_own_engines_answers(config, write_benchmark, llava_record, tmp_path):
    """With the own engine's answers as the accepted ones, lmms-eval answers the same and gives full marks."""

    def benchmark(name, metric, said):
        records = [llava_record(n, f"What is in place {n}?", said[n], image=f"{n}.png") for n in range(8)]
        if metric == "vqa":
            records = [{**record, "answers": [record["conversations"][1]["value"]] * 10} for record in records]
        return write_benchmark(records, name, metric)

    # Stray bytes, which no trained model says, look different in the two decoders.
    model = copy_checkpoint("llava_hf", tmp_path / "model")
    state = load_file(model / "model.safetensors")
    (head,) = (tensor for name, tensor in state.items() if name.endswith("lm_head.weight"))
    head[BYTE_TOKENS] = 0
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    given = config(benchmark("untold", "gqa", ["thing"] * 8), harness="own", model=str(model))
    run(given)
    own = [row["text"] for row in rows_of(given)]
    (tmp_path / "evaluation").rename(tmp_path / "own")
    folders = [benchmark(name, "vqa", own) for name in ("textvqa", "vqav2", "vizwiz")]
    given = config(*folders, model=str(model))
    run(given)
    assert len(set(own)) > 1
    assert [row["text"] for row in rows_of(given)] == own * 3
    told = json.loads((tmp_path / "metrics.json").read_text())["lmms_eval"]
    assert told["metrics"] == {name: {"exact_match": 1.0} for name in ("textvqa", "vqav2", "vizwiz")}
