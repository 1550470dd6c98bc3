"""The stage on a tiny LLaVA: every question answered and judged, whatever the batch."""

import dataclasses
import json
import logging

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, LlavaForConditionalGeneration

from components.evaluate.answering import replies
from components.evaluate.benchmark import read_benchmark
from components.evaluate.config import EvaluateConfig
from components.evaluate.stage import run
from free2ds_common.datasets import open_dataset
from free2ds_common.errors import StageError
from free2ds_common.inference.auto import load_auto
from free2ds_common.inference.prompts import LLAVA_SYSTEM
from free2ds_common.inference.tokenizers import load_tokenizer
from free2ds_common.schemas import EVALUATION
from tests.support.checkpoints import CPU, FP32, copy_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return copy_checkpoint("llava_hf", tmp_path_factory.mktemp("model") / "llava_hf")


@pytest.fixture
def mixed(write_benchmark, llava_record):
    """Questions about two pictures, among them some without one."""
    pictures = {number: {"image": f"{number % 2}.png"} for number in range(7) if number % 3}
    records = [
        llava_record(number, f"What is in place {number}?", "thing", **pictures.get(number, {})) for number in range(7)
    ]
    return write_benchmark(records, metric="gqa")


@pytest.fixture
def config(tmp_path, folder):
    def make(*benchmarks, **options):
        return EvaluateConfig(
            benchmarks=",".join(map(str, benchmarks)),
            model=str(folder),
            **{"max_new_tokens": 6, "resamples": 20} | options,
            evaluation=str(tmp_path / "evaluation"),
            metrics=str(tmp_path / "metrics.json"),
        )

    return make


def rows_of(config):
    return list(open_dataset(config.evaluation, EVALUATION).rows())


def one_by_one(folder, benchmark, max_new_tokens=6):
    """Greedy answers of transformers' own model, nothing batched, prompts written out here."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=FP32).eval()
    tokenizer = load_tokenizer(folder, "llama", model.config.text_config.vocab_size)
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    said = []
    for question in benchmark.questions:
        embed = model.get_input_embeddings()
        if question.image:
            picture = Image.open(f"{benchmark.image_root}/{question.image}").convert("RGB")
            pixels = processor(picture, return_tensors="pt").pixel_values
            with torch.no_grad():
                features = model.get_image_features(pixels).pooler_output[0]
            before, after = f"{LLAVA_SYSTEM} USER: ", f"\n{question.question} ASSISTANT:"
            parts = [embed(torch.tensor([1, *tokenizer.encode(before)])), features]
            parts.append(embed(torch.tensor(tokenizer.encode(after))))
        else:
            text = f"{LLAVA_SYSTEM} USER: {question.question} ASSISTANT:"
            parts = [embed(torch.tensor([1, *tokenizer.encode(text)]))]
        with torch.no_grad():
            tokens = model.generate(
                inputs_embeds=torch.cat(parts)[None], do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=2
            )[0]
        said.append(tokenizer.decode([token for token in tokens.tolist() if token != 2]).strip())
    return said


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_answers_are_those_of_plain_generation(config, folder, mixed, batch_size):
    given = config(mixed, batch_size=batch_size)
    run(given)
    rows = rows_of(given)
    assert [row["question_id"] for row in rows] == list("0123456")
    assert [row["text"] for row in rows] == one_by_one(folder, read_benchmark(mixed))
    assert {row["outcome"] for row in rows} == {"ok"}


def test_a_row_is_judged(config, mixed):
    given = config(mixed)
    result = run(given)
    rows = rows_of(given)
    assert [row["score"] for row in rows] == [float(row["judged"] == "thing") for row in rows]
    assert (result.counts.read, result.counts.written, result.counts.rejected) == (7, 7, 0)


def test_an_answer_is_right(config, mixed, folder):
    """The same questions once more, with what the model says as the answers."""
    said = one_by_one(folder, read_benchmark(mixed))
    records = json.loads((mixed / "questions.json").read_text())
    for record, text in zip(records, said, strict=True):
        record["conversations"][1]["value"] = text.rstrip(".").lower()
    (mixed / "questions.json").write_text(json.dumps(records))
    result = run(config(mixed))
    assert result.metrics["tiny"] == 100


def test_the_metrics_file(config, mixed, write_benchmark, llava_record, tmp_path):
    records = [
        llava_record(number, "Is there?", answer, image="a.png", category="count", group="a.png")
        for number, answer in enumerate(["Yes", "No"])
    ]
    run(config(mixed, write_benchmark(records, "mme", "mme")))
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert list(content["columns"]) == ["tiny", "mme_perception"]
    assert content["relative"] == {}
    assert content["outcomes"] == {"tiny": {"ok": 7}, "mme": {"ok": 2}}
    assert content["empty_answers"] == {"tiny": 0, "mme": 0}
    assert content["settings"]["prompt"] == {"style": "v1", "system": LLAVA_SYSTEM}


def test_relative_to_itself(config, write_benchmark, llava_record, tmp_path):
    records = [llava_record(n, "Is there?", answer, image="a.png") for n, answer in enumerate(["yes", "yes", "no"])]
    benchmark = write_benchmark(records, "pope", "pope")
    run(config(benchmark))
    (tmp_path / "evaluation").rename(tmp_path / "baseline")
    result = run(config(benchmark, baseline_uri=str(tmp_path / "baseline")))
    assert result.metrics["relative_all"] == 100


def test_the_manifest_says_where_the_questions_come_from(config, mixed):
    given = config(mixed)
    run(given)
    manifest = open_dataset(given.evaluation, EVALUATION).manifest
    assert manifest["benchmarks"]["tiny"] == {"metric": "gqa", **read_benchmark(mixed).origin}


def test_a_picture_that_is_missing_stops_the_run(config, mixed):
    (mixed / "images" / "0.png").unlink()
    with pytest.raises(StageError, match=r"evaluate: 2 of 7 records rejected \(image_missing 2\)"):
        run(config(mixed))


def test_a_picture_that_may_be_missing(config, mixed):
    (mixed / "images" / "0.png").unlink()
    given = config(mixed, max_reject_fraction=0.5)
    result = run(given)
    rows = rows_of(given)
    assert [row["question_id"] for row in rows if row["outcome"] == "image_missing"] == ["2", "4"]
    assert [row["question_id"] for row in rows if row["score"] is None] == ["2", "4"]
    assert (result.counts.written, result.counts.rejected) == (5, 2)


def test_a_prompt_that_is_too_long(config, write_benchmark, llava_record, folder):
    long = "word " * json.loads((folder / "config.json").read_text())["text_config"]["max_position_embeddings"]
    benchmark = write_benchmark([llava_record(0, long, "a"), llava_record(1, "q", "a")])
    given = config(benchmark, max_reject_fraction=0.5)
    run(given)
    assert [row["outcome"] for row in rows_of(given)] == ["prompt_too_long", "ok"]


def test_a_prompt_that_is_too_long_with_its_picture(write_benchmark, llava_record, folder):
    """The text alone takes all but one of the tokens that there are; without the picture it fits."""
    model = load_auto(folder, CPU, FP32, LLAVA_SYSTEM, "v1")
    records = [llava_record(0, "q", "a", image="a.png"), llava_record(1, "q", "a")]
    model = dataclasses.replace(model, context_length=model.prompt("q").num_tokens + 1)
    found = replies(model, read_benchmark(write_benchmark(records)), 1, 4, logging.getLogger())
    assert {reply.index: reply.outcome for reply in found} == {0: "prompt_too_long", 1: "ok"}


def test_every_question_has_one_reply(folder, mixed):
    (mixed / "images" / "0.png").unlink()
    model = load_auto(folder, CPU, FP32, LLAVA_SYSTEM, "v1")
    found = list(replies(model, read_benchmark(mixed), 2, 1, logging.getLogger()))
    assert sorted(reply.index for reply in found) == list(range(7))


def test_no_question_can_be_answered(folder, write_benchmark, llava_record):
    benchmark = write_benchmark([llava_record(0, "q", "a", image="a.png")])
    (benchmark / "images" / "a.png").unlink()
    model = load_auto(folder, CPU, FP32, LLAVA_SYSTEM, "v1")
    found = list(replies(model, read_benchmark(benchmark), 2, 1, logging.getLogger()))
    assert [(reply.index, reply.outcome) for reply in found] == [(0, "image_missing")]


def test_a_benchmarks_own_longest_answer(config, write_benchmark, llava_record):
    given = config(write_benchmark([llava_record(0, "q", "a")], max_new_tokens=1))
    run(given)
    assert [row["num_tokens"] for row in rows_of(given)] == [1]


def test_two_benchmarks_of_one_name(config, mixed):
    with pytest.raises(StageError, match="benchmarks: two are called tiny"):
        run(config(mixed, mixed))


def test_a_baseline_that_is_none(config, mixed):
    with pytest.raises(StageError, match=r"baseline_uri: .*no _manifest\.json.* Wanted the evaluation of an earlier"):
        run(config(mixed, baseline_uri=str(mixed)))


def test_a_wrong_baseline_is_refused_before_the_model_is_loaded(config, mixed, write_benchmark, llava_record):
    other = config(write_benchmark([llava_record(9, "q", "yes")], "tiny2", "pope"))
    run(other)
    with pytest.raises(StageError, match="baseline: has tiny2, wanted tiny"):
        run(dataclasses.replace(other, benchmarks=str(mixed), baseline_uri=other.evaluation, model="nowhere"))


def test_answers_that_are_empty_are_counted_and_judged(config, tmp_path, write_benchmark, llava_record, caplog):
    """A model that ends every answer at once: POPE takes that for yes, as its evaluator does."""
    folder = copy_checkpoint("llava_hf", tmp_path / "silent")
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    last = load_tokenizer(folder, "llama", model.config.text_config.vocab_size).encode(" ASSISTANT:")[-1]
    with torch.no_grad():
        # What reaches the head is the last token's embedding, and EOS alone likes that.
        for layer in model.model.language_model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.language_model.norm.weight.fill_(1)
        model.lm_head.weight.zero_()
        model.lm_head.weight[2] = model.get_input_embeddings().weight[last]
    model.save_pretrained(folder)
    benchmark = write_benchmark([llava_record(1, "q", "yes"), llava_record(2, "q", "no")], "pope", "pope")
    given = dataclasses.replace(config(benchmark), model=str(folder))
    run(given)
    assert [(row["text"], row["judged"], row["score"]) for row in rows_of(given)] == [("", "yes", 1), ("", "yes", 0)]
    assert json.loads((tmp_path / "metrics.json").read_text())["empty_answers"] == {"pope": 2}
    assert open_dataset(given.evaluation, EVALUATION).manifest["empty_answers"] == {"pope": 2}
    assert "pope: 2 answers are empty." in caplog.messages


def test_no_benchmark(config):
    with pytest.raises(StageError, match="benchmarks: is empty"):
        run(config(" , "))


def test_an_answer_that_is_not_finite(folder, mixed):
    model = load_auto(folder, CPU, FP32, LLAVA_SYSTEM, "v1")
    with torch.no_grad():
        model.decoder.norm.weight.fill_(float("nan"))
    found = list(replies(model, read_benchmark(mixed), 3, 4, logging.getLogger()))
    assert {reply.outcome for reply in found} == {"non_finite"}
    assert len(found) == 7
