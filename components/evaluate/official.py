"""The official files of each benchmark, and the prompts that LLaVA asks them with: one function per benchmark."""

import base64
import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.evaluate.benchmark import BenchmarkQuestion
from components.evaluate.judge import LETTERS

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
_UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
_MME_HINT = "Please answer yes or no."
# MMBench numbers the rotations of question n as n, n + 1,000,000, n + 2,000,000 and so on.
_ROTATIONS = 1_000_000
_NO_TEXT = ("", "nan", "none")
_PICTURES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Converted:
    """What the files of a benchmark hold.

    Attributes:
        questions: In the files' order.
        pictures: By the name that questions have, where they are not in a folder of that layout: content or path.
    """

    questions: Sequence[BenchmarkQuestion]
    pictures: Mapping[str, bytes | Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Official:
    """How a benchmark is converted.

    Attributes:
        metric: How its answers are judged.
        read: From its files to its questions.
        wanted: Which files, for messages.
        fewest: How many at least.
        most: How many at most.
    """

    metric: str
    read: Callable[[Sequence[Path]], Converted]
    wanted: str
    fewest: int = 1
    most: int = 1


def _entries(path: Path, name: str) -> Sequence[Mapping[str, Any]]:
    """A list of a JSON object."""
    found: Sequence[Mapping[str, Any]] = json.loads(path.read_bytes())[name]
    return found


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            yield json.loads(line)


def _lettered(options: Sequence[str]) -> str:
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


def read_vqav2(files: Sequence[Path]) -> Converted:
    """VQAv2: questions and annotations; pictures are COCO's."""
    asked = json.loads(files[0].read_bytes())
    about = {one["question_id"]: one for one in _entries(files[1], "annotations")}
    subtype = asked.get("data_subtype", "val2014")
    return Converted(
        [
            BenchmarkQuestion(
                id=str(one["question_id"]),
                image=f"COCO_{subtype}_{one['image_id']:012d}.jpg",
                question=f"{one['question']}\n{SHORT}",
                answers=tuple(answer["answer"] for answer in about[one["question_id"]]["answers"]),
                category=about[one["question_id"]].get("answer_type", ""),
            )
            for one in asked["questions"]
        ]
    )


def read_gqa(files: Sequence[Path]) -> Converted:
    """GQA: testdev_balanced_questions.json or another of its balanced files."""
    return Converted(
        [
            BenchmarkQuestion(
                id=str(name),
                image=f"{one['imageId']}.jpg",
                question=f"{one['question']}\n{SHORT}",
                answers=(one["answer"],),
            )
            for name, one in json.loads(files[0].read_bytes()).items()
        ]
    )


def read_vizwiz(files: Sequence[Path]) -> Converted:
    """VizWiz: val.json."""
    return Converted(
        [
            BenchmarkQuestion(
                id=one["image"],
                image=one["image"],
                question=f"{one['question']}\n{_UNANSWERABLE}\n{SHORT}",
                answers=tuple(answer["answer"] for answer in one["answers"]),
                category=one.get("answer_type", ""),
            )
            for one in json.loads(files[0].read_bytes())
        ]
    )


def read_scienceqa(files: Sequence[Path]) -> Converted:
    """ScienceQA: problems.json and pid_splits.json, its test split; questions without a picture too."""
    problems, chosen = json.loads(files[0].read_bytes()), json.loads(files[1].read_bytes())["test"]
    questions = []
    for name in chosen:
        one = problems[name]
        context = f"Context: {one['hint']}\n" if one.get("hint") else ""
        questions.append(
            BenchmarkQuestion(
                id=str(name),
                image=f"{name}/{one['image']}" if one.get("image") else None,
                question=f"{context}{one['question']}\n{_lettered(one['choices'])}\n{LETTER}",
                answers=(LETTERS[one["answer"]],),
                options=tuple(one["choices"]),
                category="image" if one.get("image") else "text",
            )
        )
    return Converted(questions)


def read_textvqa(files: Sequence[Path]) -> Converted:
    """TextVQA: its JSON and, for the prompt of LLaVA's numbers, that of its OCR tokens."""
    tokens: dict[str, list[str]] = {}
    if len(files) > 1:
        tokens = {
            one["image_id"]: one["ocr_tokens"] if "ocr_tokens" in one else [word["word"] for word in one["ocr_info"]]
            for one in _entries(files[1], "data")
        }
    questions = []
    for one in _entries(files[0], "data"):
        seen = f"Reference OCR token: {', '.join(tokens.get(one['image_id'], []))}\n" if tokens else ""
        questions.append(
            BenchmarkQuestion(
                id=str(one["question_id"]),
                image=f"{one['image_id']}.jpg",
                question=f"{one['question']}\n{seen}{SHORT}",
                answers=tuple(one["answers"]),
            )
        )
    return Converted(questions)


def read_pope(files: Sequence[Path]) -> Converted:
    """POPE: coco_pope_random.json, coco_pope_popular.json and coco_pope_adversarial.json, or some of them."""
    return Converted(
        [
            BenchmarkQuestion(
                id=f"{category}-{one['question_id']}",
                image=one["image"],
                question=f"{one['text']}\n{SHORT}",
                answers=(one["label"],),
                category=category,
            )
            for file in files
            for category in [file.stem.rpartition("_")[2]]
            for one in _json_lines(file)
        ]
    )


def read_mme(files: Sequence[Path]) -> Converted:
    """MME: the folder of its release, one folder per category with a text file beside or apart from each picture."""
    questions: list[BenchmarkQuestion] = []
    pictures: dict[str, bytes | Path] = {}
    for category in sorted(folder for folder in files[0].iterdir() if folder.is_dir()):
        texts = {path.stem: path for path in sorted(category.rglob("*.txt"))}
        for picture in sorted(path for path in category.rglob("*") if path.suffix.lower() in _PICTURES):
            name = f"{category.name}/{picture.name}"
            pictures[name] = picture
            lines = texts[picture.stem].read_text(encoding="utf-8").splitlines()
            for number, line in enumerate(line for line in lines if line.strip()):
                asked, answer = line.rstrip().split("\t")
                questions.append(
                    BenchmarkQuestion(
                        id=f"{name}-{number}",
                        image=name,
                        question=f"{asked.replace(_MME_HINT, '').strip()}\n{SHORT}",
                        answers=(answer,),
                        category=category.name,
                        # Other categories have other pictures of that name.
                        group=name,
                    )
                )
    return Converted(questions, pictures)


def read_mmbench(files: Sequence[Path]) -> Converted:
    """MMBench: its TSV with the pictures in it.

    A rotated question has the picture of the first one again, or names its row. Each picture is kept once, since
    questions about one picture are answered together.
    """
    csv.field_size_limit(sys.maxsize)
    questions: list[BenchmarkQuestion] = []
    pictures: dict[str, bytes | Path] = {}
    with files[0].open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    content_of = {row["index"]: row["image"] for row in rows}
    name_of: dict[str, str] = {}
    for row in rows:
        index = int(row["index"])
        options = _present(row)
        hint = f"{row['hint']}\n" if (row.get("hint") or "").lower() not in _NO_TEXT else ""
        # Short content is the index of the row that has it.
        content = content_of[row["image"]] if row["image"].isdecimal() else row["image"]
        name = name_of.setdefault(content, f"{index}.jpg")
        if name not in pictures:
            pictures[name] = base64.b64decode(content, validate=True)
        questions.append(
            BenchmarkQuestion(
                id=str(index),
                image=name,
                question=f"{hint}{row['question']}\n{_lettered(options)}\n{LETTER}",
                answers=(row["answer"],),
                options=tuple(options),
                category=row.get("category") or "",
                group=str(index % _ROTATIONS),
            )
        )
    return Converted(questions, pictures)


def _present(row: Mapping[str, str]) -> list[str]:
    """The options of a row, up to the first that is missing."""
    options: list[str] = []
    for letter in LETTERS:
        if (row.get(letter) or "").lower() in _NO_TEXT:
            break
        options.append(row[letter])
    return options


def read_seed(files: Sequence[Path]) -> Converted:
    """SEED-Bench: SEED-Bench.json, its questions about pictures; those about videos are left out."""
    content = json.loads(files[0].read_bytes())
    kinds = {number: name for name, number in content["question_type"].items()}
    questions = []
    for one in content["questions"]:
        if one["data_type"] != "image":
            continue
        options = [one[f"choice_{letter}"] for letter in "abcd"]
        questions.append(
            BenchmarkQuestion(
                id=str(one["question_id"]),
                image=one["data_id"],
                question=f"{one['question']}\n{_lettered(options)}\n{LETTER}",
                answers=(one["answer"],),
                options=tuple(options),
                category=kinds[one["question_type_id"]],
            )
        )
    return Converted(questions)


OFFICIAL_FORMATS: Mapping[str, Official] = {
    "vqav2": Official("vqa", read_vqav2, "the questions' and the annotations' JSON", 2, 2),
    "gqa": Official("gqa", read_gqa, "testdev_balanced_questions.json"),
    "vizwiz": Official("vqa", read_vizwiz, "val.json"),
    "scienceqa": Official("scienceqa", read_scienceqa, "problems.json and pid_splits.json", 2, 2),
    "textvqa": Official("vqa", read_textvqa, "its JSON and, if wanted, that of the OCR tokens", 1, 2),
    "pope": Official(
        "pope", read_pope, "coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json", 1, 3
    ),
    "mme": Official("mme", read_mme, "the folder of its release"),
    "mmbench": Official("mmbench", read_mmbench, "its TSV"),
    "seed": Official("seed", read_seed, "SEED-Bench.json"),
}
