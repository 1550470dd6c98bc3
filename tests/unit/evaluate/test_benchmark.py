"""benchmark/1: what is read, and what is refused in one sentence."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.evaluate.benchmark import BenchmarkQuestion, read_benchmark
from free2ds_common.datasets import sha256_of_file
from free2ds_common.errors import StageError


def test_llava_records(write_benchmark, llava_record):
    records = [
        llava_record(7, "<image>\nWhat?", "a dog", image="a.png"),
        llava_record("t", "Which?", "B", options=["x", "y"], category="c", group="g", answers=["b", "c"]),
    ]
    found = read_benchmark(write_benchmark(records, max_new_tokens=5))
    assert found.questions == (
        BenchmarkQuestion(id="7", image="a.png", question="<image>\nWhat?", answers=("a dog",)),
        BenchmarkQuestion(
            id="t", image=None, question="Which?", answers=("b", "c"), options=("x", "y"), category="c", group="g"
        ),
    )
    assert (found.name, found.metric, found.max_new_tokens) == ("tiny", "gqa", 5)


def test_one_record_a_line(write_benchmark, llava_record):
    folder = write_benchmark([])
    lines = [json.dumps(llava_record(number, "q", "a")) for number in range(2)]
    (folder / "questions.json").write_text("\n".join(lines) + "\n \n")
    assert [question.id for question in read_benchmark(folder).questions] == ["0", "1"]


def test_a_list_after_an_empty_line(write_benchmark, llava_record):
    folder = write_benchmark([])
    (folder / "questions.json").write_text("\n" + json.dumps([llava_record(1, "q", "a")], indent=1))
    assert [question.id for question in read_benchmark(folder).questions] == ["1"]


def test_user_and_assistant(write_benchmark):
    turns = [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]
    found = read_benchmark(write_benchmark([{"id": 1, "conversations": turns}]))
    assert found.questions == (BenchmarkQuestion(id="1", image=None, question="q", answers=("a",)),)


def test_parquet_with_every_column(write_benchmark):
    folder = write_benchmark([], "tiny", "mmbench", questions="questions.parquet")
    row = {"id": "1", "image": "a.png", "question": "q", "answers": ["B"], "options": ["x", "y"], "category": "c"}
    pq.write_table(pa.Table.from_pylist([row | {"group": "g"}]), folder / "questions.parquet")
    wanted = BenchmarkQuestion(
        id="1", image="a.png", question="q", answers=("B",), options=("x", "y"), category="c", group="g"
    )
    assert read_benchmark(folder).questions == (wanted,)


def test_parquet_in_a_folder_that_looks_like_a_partition(write_benchmark):
    folder = write_benchmark([], "category=3", questions="questions.parquet")
    table = pa.table({"id": ["1"], "question": ["q"], "answers": [["a"]], "category": ["c"]})
    pq.write_table(table, folder / "questions.parquet")
    assert read_benchmark(folder).questions[0].category == "c"


def test_parquet_with_an_empty_text_for_no_picture(write_benchmark):
    folder = write_benchmark([], questions="questions.parquet")
    pq.write_table(
        pa.table({"id": ["1"], "question": ["q"], "answers": [["a"]], "image": [""]}), folder / "questions.parquet"
    )
    assert read_benchmark(folder).questions[0].image is None


def test_parquet(write_benchmark):
    folder = write_benchmark([], questions="questions.parquet")
    table = pa.table({"id": ["1"], "question": ["q"], "answers": [["a"]], "image": pa.array([None], pa.string())})
    pq.write_table(table, folder / "questions.parquet")
    assert read_benchmark(folder).questions == (BenchmarkQuestion(id="1", image=None, question="q", answers=("a",)),)


def test_its_origin(write_benchmark, llava_record):
    folder = write_benchmark([llava_record(1, "q", "a")])
    assert read_benchmark(folder).origin == {
        "source": "drawn",
        "revision": "1",
        "questions_sha256": sha256_of_file(folder / "questions.json"),
    }


def test_pictures_may_lie_elsewhere(write_benchmark, llava_record):
    folder = write_benchmark([llava_record(1, "q", "a")], images="../pictures")
    assert read_benchmark(folder).image_root == str(folder / "../pictures")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"schema": "benchmark/2"}, "is benchmark/2, wanted benchmark/1"),
        ({"metric": "bleu"}, "metric 'bleu' of benchmark.json, wanted one of gqa, mmbench"),
        ({"name": ""}, r"the name of benchmark\.json is empty"),
        ({"max_new_tokens": True}, "max_new_tokens True of benchmark.json, wanted a whole number"),
        ({"max_new_tokens": -1}, "max_new_tokens -1 of benchmark.json, wanted a whole number"),
        ({"source": None}, "does not say its source as text"),
        ({"max_new_tokens": "8"}, "max_new_tokens '8' of benchmark.json, wanted a whole number"),
        ({"questions": "other.json"}, "no such file, though benchmark.json names it"),
    ],
)
def test_a_wrong_description(write_benchmark, llava_record, entries, message):
    with pytest.raises(StageError, match=message):
        read_benchmark(write_benchmark([llava_record(1, "q", "a")], **entries))


def test_no_description(tmp_path):
    with pytest.raises(StageError, match=r"no benchmark\.json, wanted a benchmark folder"):
        read_benchmark(tmp_path)


@pytest.mark.parametrize(
    ("records", "metric", "message"),
    [
        ([], "gqa", "no questions in it"),
        ([{"id": "1"}], "gqa", "record 0 is no question"),
        (
            [{"id": "1", "conversations": [{"from": "gpt", "value": "a"}] * 2}],
            "gqa",
            "the first turn is not the human's",
        ),
        (
            [{"id": "1", "conversations": [{"from": "human", "value": "a"}] * 2}],
            "gqa",
            "or the second not the model's",
        ),
        (
            [{"id": "1", "conversations": [{"from": "human", "value": 1}, {"from": "gpt", "value": "a"}]}],
            "gqa",
            "record 0 is no question .*1 is no text",
        ),
        (
            [
                {
                    "id": "1",
                    "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
                    "options": [1],
                }
            ],
            "gqa",
            "record 0 is no question .*1 is no text",
        ),
    ],
)
def test_wrong_records(write_benchmark, records, metric, message):
    with pytest.raises(StageError, match=message):
        read_benchmark(write_benchmark(records, metric=metric))


def test_an_id_that_comes_twice(write_benchmark, llava_record):
    with pytest.raises(StageError, match="id 1 comes 2 times"):
        read_benchmark(write_benchmark([llava_record(1, "q", "a"), llava_record(1, "r", "a")]))


@pytest.mark.parametrize("metric", ["pope", "mme"])
def test_an_answer_that_is_neither_yes_nor_no(write_benchmark, llava_record, metric):
    with pytest.raises(StageError, match="question 1 has answer 'red', wanted yes or no"):
        read_benchmark(write_benchmark([llava_record(1, "q", "red")], metric=metric))


@pytest.mark.parametrize(
    ("metric", "answer", "wanted"),
    [
        ("gqa", "Red", "answers in lower case without a final period"),
        ("gqa", "red.", "answers in lower case without a final period"),
        ("vqa", "red", "the answers of several people"),
        ("scienceqa", "Rome", "letters of its options"),
        ("scienceqa", "C", "letters of its options"),
        ("mmbench", "a cat", "letters of its options"),
    ],
)
def test_an_answer_that_can_never_be_right(write_benchmark, llava_record, metric, answer, wanted):
    """One person's answer to VQA too: with nobody else, nobody agrees."""
    record = llava_record(1, "q", answer, options=["a dog", "a cat"])
    with pytest.raises(StageError, match=f"question 1 has answer '{answer}', which {metric} never .* Wanted {wanted}"):
        read_benchmark(write_benchmark([record], metric=metric))


def test_one_of_two_answers_that_can_be_right(write_benchmark, llava_record):
    folder = write_benchmark([llava_record(1, "q", "x", answers=["Blue", "red"])])
    assert read_benchmark(folder).questions[0].answers == ("Blue", "red")


def test_a_description_that_is_no_json(write_benchmark, llava_record):
    folder = write_benchmark([llava_record(1, "q", "a")])
    (folder / "benchmark.json").write_text("{")
    with pytest.raises(StageError, match=r"benchmark\.json"):
        read_benchmark(folder)


@pytest.mark.parametrize("answer", ["YES", "NO"])
def test_yes_and_no_in_any_case(write_benchmark, llava_record, answer):
    assert read_benchmark(write_benchmark([llava_record(1, "q", answer)], metric="pope")).metric == "pope"


def test_a_picture_of_mme_with_one_question(write_benchmark, llava_record):
    records = [llava_record(1, "q", "Yes", category="count", group="a.png")]
    with pytest.raises(StageError, match=r"group 'a\.png' of category 'count' has 1 questions, wanted pairs"):
        read_benchmark(write_benchmark(records, metric="mme"))


def test_no_json(write_benchmark):
    folder = write_benchmark([])
    (folder / "questions.json").write_text("[1,")
    with pytest.raises(StageError, match="no JSON list and not one JSON record a line"):
        read_benchmark(folder)


def test_no_parquet(write_benchmark):
    folder = write_benchmark([], questions="questions.parquet")
    (folder / "questions.parquet").write_text("x")
    with pytest.raises(StageError, match="cannot be read as Parquet"):
        read_benchmark(folder)


def test_parquet_without_a_column(write_benchmark):
    folder = write_benchmark([], questions="questions.parquet")
    pq.write_table(pa.table({"id": ["1"], "question": ["q"]}), folder / "questions.parquet")
    with pytest.raises(StageError, match=r"no column answers, wanted those of benchmark/1"):
        read_benchmark(folder)


def test_a_question_without_an_answer(write_benchmark):
    folder = write_benchmark([], questions="questions.parquet")
    table = pa.table({"id": ["1"], "question": ["q"], "answers": pa.array([[]], pa.list_(pa.string()))})
    pq.write_table(table, folder / "questions.parquet")
    with pytest.raises(StageError, match="question 1 has no answer"):
        read_benchmark(folder)
