"""What lmms-eval is given: questions as its tasks want them, and a model folder that its loader takes."""

import json

import pyarrow.parquet as pq
import pytest
from transformers import AutoProcessor

from components.evaluate.benchmark import Benchmark, BenchmarkQuestion
from components.evaluate.harness_inputs import require_askable, write_task
from components.evaluate.harness_model import complete_model
from components.evaluate.judge import METRICS
from free2ds_common.errors import StageError
from free2ds_common.inference.prompts import LLAVA_SYSTEM
from free2ds_common.inference.tokenizers import load_tokenizer
from tests.support.checkpoints import change_config, copy_checkpoint


def question(number, answers=("B",), **entries):
    return BenchmarkQuestion(id=f"q{number}", image=f"{number}.png", question=f"Q{number}?", answers=answers, **entries)


def benchmark(metric, *questions, name="tiny"):
    return Benchmark(name, metric, questions, "/pictures", 0, {})


@pytest.fixture
def write(tmp_path):
    """Write a task; returns its rows and its description."""

    def make(given, places=None):
        chosen = list(range(len(given.questions))) if places is None else places
        name = write_task(given, chosen, 16, tmp_path / "installed", tmp_path / "work")
        rows = pq.read_table(tmp_path / "work" / "data" / name).to_pylist()
        return rows, json.loads((tmp_path / "work" / "tasks" / f"{name}.yaml").read_text())

    return make


def picture(number):
    return {"bytes": None, "path": f"/pictures/{number}.png"}


class TestQuestions:
    def test_what_every_task_gets(self, write):
        rows, task = write(benchmark("pope", question(0, ("Yes",), category="random")))
        assert rows == [
            {"question_id": "q0", "question": "Q0?", "answer": "Yes", "category": "random", "image": picture(0)}
        ]
        assert task["include"].endswith("installed/pope/pope.yaml")
        assert (task["test_split"], task["dataset_name"], task["dataset_kwargs"]) == ("test", None, None)

    def test_pictures_are_marked_as_such(self, write, tmp_path):
        write(benchmark("gqa", question(0)))
        schema = pq.read_schema(next((tmp_path / "work").rglob("*.parquet")))
        assert json.loads(schema.metadata[b"huggingface"]) == {"info": {"features": {"image": {"_type": "Image"}}}}

    def test_only_those_that_are_to_be_asked(self, write):
        rows, _ = write(benchmark("gqa", *map(question, range(3))), [2])
        assert [row["question_id"] for row in rows] == ["q2"]

    def test_two_tasks_have_names_of_their_own(self, write):
        given = benchmark("gqa", question(0))
        assert [write(given)[1]["task"] for _ in range(2)] == ["free2ds_0", "free2ds_1"]

    def test_mme_pairs_by_the_id(self, write):
        rows, _ = write(benchmark("mme", *(question(n, ("No",), category="count", group="a.png") for n in range(2))))
        assert [row["question_id"] for row in rows] == ["a.png", "a.png"]

    def test_vqav2_tells_equal_answers_apart(self, write):
        rows, task = write(benchmark("vqa", question(0, ("cat", "cat")), name="vqav2-val"))
        assert rows[0]["answers"] == [{"answer": "cat", "answer_id": 0}, {"answer": "cat", "answer_id": 1}]
        assert task["include"].endswith("vqav2/vqav2_val.yaml")

    @pytest.mark.parametrize(
        ("name", "file"),
        [("vizwiz", "vizwiz_vqa/vizwiz_vqa_val.yaml"), ("mine", "textvqa/textvqa_val.yaml")],
    )
    def test_other_vqa(self, write, name, file):
        rows, task = write(benchmark("vqa", question(0, ("cat", "dog")), name=name))
        assert rows[0]["answers"] == ["cat", "dog"]
        assert task["include"].endswith(file)

    def test_scienceqa_has_choices_and_the_answers_place(self, write):
        rows, _ = write(benchmark("scienceqa", question(0, ("B",), options=("x", "y"))))
        assert (rows[0]["choices"], rows[0]["answer"]) == (["x", "y"], 1)

    def test_mmbench_numbers_rotations_by_the_million(self, write):
        given = [question(n, options=("x", "y"), group=group) for n, group in enumerate(["7", "9", "7"])]
        rows, task = write(benchmark("mmbench", *given))
        assert [row["index"] for row in rows] == [0, 1, 1_000_000]
        assert [rows[0][letter] for letter in "ABCD"] == ["x", "y", None, None]
        # The other one asks a paid service.
        assert task["include"].endswith("mmbench/mmbench_en_dev_static.yaml")

    def test_seed_has_a_list_of_pictures(self, write):
        rows, _ = write(benchmark("seed", question(0)))
        assert (rows[0]["image"], rows[0]["data_type"]) == ([picture(0)], "image")


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_has_a_task(metric, write):
    given = benchmark(metric, question(0, options=("x", "y"), category="c", group="g"))
    require_askable(given)
    assert write(given)[0][0]["question"] == "Q0?"


class TestRefused:
    def test_a_metric_without_a_task(self):
        with pytest.raises(StageError, match="tiny: harness lmms-eval has no task of metric mmvet that needs no key"):
            require_askable(benchmark("mmvet", question(0)))

    @pytest.mark.parametrize(
        ("metric", "options", "answer"), [("mmbench", "xyzvw", "E"), ("mmbench", "", "A"), ("scienceqa", "xy", "C")]
    )
    def test_options_that_it_does_not_know(self, metric, options, answer):
        given = benchmark(metric, question(4, (answer,), options=tuple(options)))
        wanted = f"tiny: question q4 has {len(options)} options and answer '{answer}'"
        with pytest.raises(StageError, match=wanted):
            require_askable(given)


class TestModel:
    @pytest.fixture
    def folder(self, tmp_path):
        return copy_checkpoint("llava_hf", tmp_path / "model")

    @staticmethod
    def asked(target, text="<image>\nWhich?"):
        """The prompt that lmms-eval makes, and the processor that it loads."""
        processor = AutoProcessor.from_pretrained(target)
        messages = [{"role": "user", "content": text}]
        return processor, processor.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def test_v1(self, folder, tmp_path):
        complete_model(folder, tmp_path / "view", "v1")
        _, prompt = self.asked(tmp_path / "view")
        assert prompt == f"{LLAVA_SYSTEM} USER: <image>\nWhich? ASSISTANT:"

    def test_its_tokens_are_the_own_harnesses(self, folder, tmp_path):
        """Both sides of the picture as sentencepiece tokenises each."""
        complete_model(folder, tmp_path / "view", "v1")
        processor, prompt = self.asked(tmp_path / "view")
        own = load_tokenizer(folder, "llama", 704)
        before, after = prompt.split("<image>")
        ids = processor.tokenizer(prompt).input_ids
        place = ids.index(640)
        assert ids[:place] == [1, *own.encode(before)]
        assert ids[place + 1 :] == own.encode(after)

    def test_how_many_tokens_a_picture_takes(self, folder, tmp_path):
        complete_model(folder, tmp_path / "view", "v1")
        processor, _ = self.asked(tmp_path / "view")
        assert (processor.patch_size, processor.num_additional_image_tokens) == (14, 1)
        assert processor.vision_feature_select_strategy == "default"

    def test_the_models_own_processor_is_left_alone(self, folder, tmp_path):
        (folder / "processor_config.json").write_text('{"patch_size": 7}')
        complete_model(folder, tmp_path / "view", "v1")
        assert (tmp_path / "view" / "processor_config.json").read_text() == '{"patch_size": 7}'

    def test_the_folder_stays_as_it_is(self, folder, tmp_path):
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        complete_model(folder, tmp_path / "view", "v1")
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    def test_a_tokenizer_json_is_left_alone(self, folder, tmp_path):
        complete_model(folder, tmp_path / "view", "v1")
        written = (tmp_path / "view" / "tokenizer.json").read_bytes()
        (folder / "tokenizer.json").write_bytes(written)
        complete_model(folder, tmp_path / "second", "v1")
        assert (tmp_path / "second" / "tokenizer.json").is_symlink()

    def test_a_placeholder_that_is_another_token(self, folder, tmp_path):
        change_config(folder, image_token_index=650)
        with pytest.raises(StageError, match="<image> is token 640 of the tokenizer, but image_token_index of config"):
            complete_model(folder, tmp_path / "view", "v1")

    def test_chat_shows_the_models_template_the_picture_and_the_text_apart(self, folder, tmp_path):
        template = (
            "{% for part in messages[0]['content'] %}{% if part['type'] == 'image' %}[<image>]"
            "{% else %}({{ part['text'] }}){% endif %}{% endfor %}"
        )
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
        complete_model(folder, tmp_path / "view", "chat")
        assert self.asked(tmp_path / "view")[1] == "[<image>](Which?)"

    def test_chat_without_a_template(self, folder, tmp_path):
        with pytest.raises(StageError, match=r"no chat template\. Use prompt v1\."):
            complete_model(folder, tmp_path / "view", "chat")
