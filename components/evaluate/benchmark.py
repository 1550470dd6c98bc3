"""A benchmark: a folder with `benchmark.json`, the questions and the pictures (benchmark/1)."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.evaluate.judge import METRICS
from free2ds_common.checkpoints import read_json_object
from free2ds_common.datasets import sha256_of_file
from free2ds_common.errors import StageError, first_line
from free2ds_common.schemas import BENCHMARK

DESCRIPTION = "benchmark.json"
# Entries of the description; the others may be left out.
_WANTED = ("schema", "name", "metric", "questions", "source", "revision")
_YES_NO = ("yes", "no")
_LETTERS = "letters of its options: A, B, ..."
# What metrics need to find in an answer: some answers none of them ever takes for right.
_WANTED_ANSWERS = {
    "vqa": "the answers of several people, ten as a rule",
    "gqa": "answers in lower case without a final period",
    "scienceqa": _LETTERS,
    "mmbench": _LETTERS,
}
_HUMAN, _GPT = ("human", "user"), ("gpt", "assistant")


@dataclass(frozen=True)
class BenchmarkQuestion:
    """A question; the attributes are the columns of benchmark/1.

    Attributes:
        id: Unique within the benchmark.
        image: Path below the folder's pictures; None for a question without one.
        question: All that the model is told.
        answers: Accepted answers.
        options: Texts of the options A, B, ...
        category: What the metric counts apart.
        group: Questions that count together.
    """

    id: str
    image: str | None
    question: str
    answers: tuple[str, ...]
    options: tuple[str, ...] = ()
    category: str = ""
    group: str = ""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark folder that passed its checks.

    Attributes:
        name: What it is called in results.
        metric: A key of `METRICS`.
        questions: In the file's order.
        image_root: Folder of the pictures.
        max_new_tokens: Longest answer; 0 leaves it to the stage's setting.
        origin: Source, revision and the sha256 of the questions, for the manifest.
    """

    name: str
    metric: str
    questions: tuple[BenchmarkQuestion, ...]
    image_root: str
    max_new_tokens: int
    origin: Mapping[str, str]


def read_benchmark(folder: Path) -> Benchmark:
    """Read a benchmark folder.

    Raises:
        StageError: It is no benchmark/1, its questions cannot be read, or they are not what the metric needs.
    """
    try:
        described = read_json_object(folder / DESCRIPTION)
    except FileNotFoundError:
        raise StageError(f"{folder}: no {DESCRIPTION}, wanted a benchmark folder. See components/evaluate.") from None
    if missing := [name for name in _WANTED if not isinstance(described.get(name), str)]:
        raise StageError(f"{folder}: {DESCRIPTION} does not say its {', '.join(missing)} as text.")
    if not described["name"]:
        raise StageError(f"{folder}: the name of {DESCRIPTION} is empty, wanted what results call the benchmark.")
    if described["schema"] != BENCHMARK.name:
        raise StageError(f"{folder}: {DESCRIPTION} is {described['schema']}, wanted {BENCHMARK.name}.")
    if described["metric"] not in METRICS:
        raise StageError(
            f"{folder}: metric {described['metric']!r} of {DESCRIPTION}, wanted one of {', '.join(sorted(METRICS))}."
        )
    max_new_tokens = described.get("max_new_tokens", 0)
    if type(max_new_tokens) is not int or max_new_tokens < 0:
        raise StageError(f"{folder}: max_new_tokens {max_new_tokens!r} of {DESCRIPTION}, wanted a whole number.")
    path = folder / described["questions"]
    questions = tuple(_read_questions(path))
    _check(path, described["metric"], questions)
    return Benchmark(
        name=described["name"],
        metric=described["metric"],
        questions=questions,
        image_root=str(folder / str(described.get("images", "images"))),
        max_new_tokens=max_new_tokens,
        origin={
            "source": described["source"],
            "revision": described["revision"],
            "questions_sha256": sha256_of_file(path),
        },
    )


def require_names(benchmarks: Sequence[Benchmark]) -> None:
    """Refuse two benchmarks of one name.

    Raises:
        StageError: A name comes twice.
    """
    names = Counter(benchmark.name for benchmark in benchmarks)
    if twice := [name for name, count in names.items() if count > 1]:
        raise StageError(f"benchmarks: two are called {twice[0]}. Change the name in one's {DESCRIPTION}.")


def _read_questions(path: Path) -> Iterator[BenchmarkQuestion]:
    """The questions of a file, Parquet or LLaVA's JSON (a list, or one record a line)."""
    if not path.is_file():
        raise StageError(f"{path}: no such file, though {DESCRIPTION} names it. Copy the whole benchmark folder.")
    if path.suffix == ".parquet":
        yield from _from_parquet(path)
        return
    text = path.read_text(encoding="utf-8")
    try:
        records = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in _lines(text)]
    except (ValueError, RecursionError) as error:
        raise StageError(f"{path}: no JSON list and not one JSON record a line ({first_line(error)}).") from None
    for number, record in enumerate(records):
        try:
            yield _from_record(record)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StageError(
                f"{path}: record {number} is no question ({type(error).__name__}: {first_line(error)}), wanted id, "
                "conversations with a human and a gpt turn, and image where there is one."
            ) from None


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _from_parquet(path: Path) -> Iterator[BenchmarkQuestion]:
    try:
        table = pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise StageError(f"{path}: cannot be read as Parquet ({first_line(error)}).") from None
    if missing := {"id", "question", "answers"} - set(table.column_names):
        raise StageError(f"{path}: no column {', '.join(sorted(missing))}, wanted those of {BENCHMARK.name}.")
    for row in table.to_pylist():
        yield BenchmarkQuestion(
            id=str(row["id"]),
            image=row.get("image") or None,
            question=row["question"] or "",
            answers=tuple(row["answers"] or ()),
            options=tuple(row.get("options") or ()),
            category=row.get("category") or "",
            group=row.get("group") or "",
        )


def _from_record(record: Mapping[str, Any]) -> BenchmarkQuestion:
    """A LLaVA record; `answers`, `options`, `category` and `group` stand beside its conversation."""
    human, gpt = record["conversations"][:2]
    if human["from"] not in _HUMAN or gpt["from"] not in _GPT:
        raise ValueError("the first turn is not the human's, or the second not the model's")
    return BenchmarkQuestion(
        id=str(record["id"]),
        image=record.get("image") or None,
        question=_text(human["value"]),
        answers=_texts(record.get("answers") or [gpt["value"]]),
        options=_texts(record.get("options") or []),
        category=_text(record.get("category") or ""),
        group=_text(record.get("group") or ""),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _texts(values: Sequence[object]) -> tuple[str, ...]:
    return tuple(map(_text, values))


def _check(path: Path, metric: str, questions: Sequence[BenchmarkQuestion]) -> None:
    """Refuse questions that the metric cannot judge.

    Raises:
        StageError: There are none, an id comes twice, an answer is missing or no such answer can be right, or groups
            are not of the size that the metric needs.
    """
    if not questions:
        raise StageError(f"{path}: no questions in it.")
    for question in questions:
        if not question.answers:
            raise StageError(f"{path}: question {question.id} has no answer.")
        if metric in ("pope", "mme") and question.answers[0].lower() not in _YES_NO:
            raise StageError(f"{path}: question {question.id} has answer {question.answers[0]!r}, wanted yes or no.")
        if metric in _WANTED_ANSWERS and not any(METRICS[metric](answer, question)[1] for answer in question.answers):
            raise StageError(
                f"{path}: question {question.id} has answer {question.answers[0]!r}, which {metric} never takes for "
                f"right. Wanted {_WANTED_ANSWERS[metric]}."
            )
    ids = Counter(question.id for question in questions)
    if twice := [name for name, count in ids.items() if count > 1]:
        raise StageError(f"{path}: id {twice[0]} comes {ids[twice[0]]} times, wanted an id of its own per question.")
    if metric == "mme":
        pairs = Counter((question.category, question.group) for question in questions)
        if odd := [(category, group) for (category, group), count in pairs.items() if count != 2]:
            category, group = odd[0]
            raise StageError(
                f"{path}: group {group!r} of category {category!r} has {pairs[odd[0]]} questions, wanted pairs."
            )
