"""What lmms-eval reads: a benchmark's questions as a task of its own, and the model's folder with what it asks for."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.evaluate.benchmark import Benchmark, BenchmarkQuestion
from components.evaluate.judge import LETTERS
from free2ds_common.errors import StageError

# Of the task, and so of the files that its answers are in.
TASK_PREFIX = "free2ds_"
_OPTIONS = LETTERS[:4]
# MMBench numbers the rotations of question n as n, n + 1,000,000, n + 2,000,000 and so on.
_ROTATIONS = 1_000_000
_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
# How the `datasets` package knows that a column is pictures: by an entry of the schema's metadata.
_FEATURE = {"_type": "Image"}
_LABELLED = pa.list_(pa.struct([("answer", pa.string()), ("answer_id", pa.int64())]))

Row = Callable[[int, BenchmarkQuestion], Mapping[str, Any]]


@dataclass(frozen=True)
class Task:
    """A task of lmms-eval, and what its own code wants of a question.

    Attributes:
        file: Below lmms-eval's tasks; ours includes it.
        row: The columns of a question beside those that all have: its place and the question to their values.
        types: Of these columns.
        overrides: Entries of the task that stand in the place of the included ones.
        pictures: Whether its code expects a list of pictures.
    """

    file: str
    row: Row = lambda place, question: {}
    types: Mapping[str, pa.DataType] = field(default_factory=dict)
    overrides: Mapping[str, object] = field(default_factory=dict)
    pictures: bool = False


def _yes_no(place: int, question: BenchmarkQuestion) -> Mapping[str, Any]:
    """Of MME: its pairs are the questions of one id."""
    return {"question_id": question.group}


def _people(place: int, question: BenchmarkQuestion) -> Mapping[str, Any]:
    return {"answers": list(question.answers)}


def _labelled(place: int, question: BenchmarkQuestion) -> Mapping[str, Any]:
    """Of VQAv2, which leaves out every answer that equals one: only the id tells two people's apart."""
    return {"answers": [{"answer": one, "answer_id": number} for number, one in enumerate(question.answers)]}


def _choices(place: int, question: BenchmarkQuestion) -> Mapping[str, Any]:
    return {"choices": list(question.options), "answer": LETTERS.index(question.answers[0])}


def _image_only(place: int, question: BenchmarkQuestion) -> Mapping[str, Any]:
    return {"data_type": "image"}


_EXACT = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
_EXACT_MATCH = [{**_EXACT, "ignore_case": True, "ignore_punctuation": True}]
_TEXTVQA = Task("textvqa/textvqa_val.yaml", _people, {"answers": pa.list_(pa.string())}, {"metric_list": _EXACT_MATCH})
_BY_NAME = {
    "vqav2": Task("vqav2/vqav2_val.yaml", _labelled, {"answers": _LABELLED}),
    "vizwiz": Task("vizwiz_vqa/vizwiz_vqa_val.yaml", _people, {"answers": pa.list_(pa.string())}),
}
# The hub's GQA is two data sets that its code puts together, by a name that is written there.
_GQA = Task("gqa/gqa.yaml", overrides={"process_docs": None})
_MMBENCH_TYPES = {
    "index": pa.int64(),
    **dict.fromkeys(("hint", "source", "split", "L2-category", *_OPTIONS), pa.string()),
}
BY_METRIC: Mapping[str, Task] = {
    "vqa": _TEXTVQA,
    "gqa": _GQA,
    "scienceqa": Task(
        "scienceqa/scienceqa_img.yaml", _choices, {"choices": pa.list_(pa.string()), "answer": pa.int64()}
    ),
    "pope": Task("pope/pope.yaml"),
    "mme": Task("mme/mme.yaml", _yes_no),
    # By rules alone: the task of the other name asks a paid service where they find no option.
    "mmbench": Task("mmbench/mmbench_en_dev_static.yaml", types=_MMBENCH_TYPES),
    "seed": Task("seedbench/seedbench.yaml", _image_only, {"data_type": pa.string()}, pictures=True),
}


def task_of(benchmark: Benchmark) -> Task:
    """The task that judges a benchmark: by its metric, and where that is VQA accuracy, by its name."""
    if benchmark.metric == "vqa":
        return next((task for name, task in _BY_NAME.items() if benchmark.name.startswith(name)), _TEXTVQA)
    return BY_METRIC[benchmark.metric]


def require_askable(benchmark: Benchmark) -> None:
    """Refuse questions that lmms-eval would answer or judge wrongly without a word.

    Raises:
        StageError: There is no task of the metric, a question has no picture, or options that it does not know.
    """
    if benchmark.metric not in BY_METRIC:
        raise StageError(
            f"{benchmark.name}: harness lmms-eval has no task of metric {benchmark.metric} that needs no key of a paid "
            "service. Use harness own."
        )
    for question in benchmark.questions:
        if question.image is None:
            # It generates from the inputs of whichever question came before.
            raise StageError(
                f"{benchmark.name}: question {question.id} has no picture, and lmms-eval's LLaVA needs one. Make a "
                "benchmark of the questions with pictures, or use harness own."
            )
        wrong = {
            "mmbench": not 0 < len(question.options) <= len(_OPTIONS),
            "scienceqa": question.answers[0] not in LETTERS[: len(question.options)],
        }
        if wrong.get(benchmark.metric):
            raise StageError(
                f"{benchmark.name}: question {question.id} has {len(question.options)} options and answer "
                f"{question.answers[0]!r}, wanted the letter of one of its options, and of MMBench at most "
                f"{len(_OPTIONS)}. Use harness own."
            )


def write_task(benchmark: Benchmark, places: Sequence[int], max_new_tokens: int, installed: Path, folder: Path) -> str:
    """Write a benchmark as a task: the questions as Parquet, the pictures by their paths, and the task's YAML.

    The question is the folder's, for both harnesses are to be asked the same; prompts that the installed task adds are
    not used.

    Args:
        benchmark: The questions.
        places: Those to ask.
        max_new_tokens: Longest answer.
        installed: lmms-eval's folder of tasks.
        folder: Gets `tasks/`, for --include_path, and `data/`.

    Returns:
        The task's name.
    """
    task, name = task_of(benchmark), f"{TASK_PREFIX}{len(list(folder.glob('tasks/*.yaml')))}"
    data = folder / "data" / name
    data.mkdir(parents=True)
    _write_questions(benchmark, places, task, data / "test-00000-of-00001.parquet")
    described = {
        "include": str(installed / task.file),
        "task": name,
        "dataset_path": str(data),
        "dataset_name": None,
        # Of the hub: a token.
        "dataset_kwargs": None,
        "test_split": "test",
        "doc_to_text": "question",
        "generation_kwargs": {"max_new_tokens": max_new_tokens, "temperature": 0, "do_sample": False},
        **task.overrides,
    }
    (folder / "tasks").mkdir(exist_ok=True)
    # JSON is YAML too.
    (folder / "tasks" / f"{name}.yaml").write_text(json.dumps(described, indent=1), encoding="utf-8")
    return name


def _write_questions(benchmark: Benchmark, places: Sequence[int], task: Task, path: Path) -> None:
    numbered = _rotation_numbers(benchmark) if benchmark.metric == "mmbench" else {}
    types = {
        **dict.fromkeys(("question_id", "question", "answer", "category"), pa.string()),
        "image": pa.list_(_PICTURE) if task.pictures else _PICTURE,
        **task.types,
    }
    rows = []
    for place in places:
        question = benchmark.questions[place]
        picture = {"bytes": None, "path": f"{benchmark.image_root}/{question.image}"}
        row = {
            "question_id": question.id,
            "question": question.question,
            "answer": question.answers[0],
            "category": question.category,
            "image": [picture] if task.pictures else picture,
            **task.row(place, question),
        }
        if numbered:
            row |= {
                "index": numbered[place],
                "split": "dev",
                "hint": "",
                "source": "",
                "L2-category": question.category,
            }
            row |= dict(zip(_OPTIONS, question.options, strict=False))
        rows.append(row)
    image = {"feature": _FEATURE, "_type": "List"} if task.pictures else _FEATURE
    metadata = {"huggingface": json.dumps({"info": {"features": {"image": image}}})}
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(list(types.items()), metadata)), path)


def _rotation_numbers(benchmark: Benchmark) -> dict[int, int]:
    """What MMBench would call each question: the group's number, and a million more for each rotation before."""
    groups: dict[str, list[int]] = {}
    for place, question in enumerate(benchmark.questions):
        groups.setdefault(question.group or question.id, []).append(place)
    return {
        place: number + _ROTATIONS * rotation
        for number, places in enumerate(groups.values())
        for rotation, place in enumerate(places)
    }
