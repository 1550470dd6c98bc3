"""Makes benchmark folders of official files: questions as Parquet, pictures linked or copied, and `benchmark.json`."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from components.evaluate.benchmark import DESCRIPTION, BenchmarkQuestion, read_benchmark
from components.evaluate.config import ConvertConfig
from components.evaluate.official import OFFICIAL_FORMATS, Converted
from free2ds_common.errors import StageError, first_line
from free2ds_common.schemas import BENCHMARK
from free2ds_common.storage import OutsideRootError, clean_path, room_on_disk

QUESTIONS, IMAGES = "questions.parquet", "images"


def convert(config: ConvertConfig) -> int:
    """Write a benchmark folder.

    Args:
        config: What to make of which files.

    Returns:
        How many questions it has.

    Raises:
        StageError: A wrong setting, files that are not the official ones, a missing picture, or an output folder that
            is not empty.
    """
    config.check()
    output = Path(config.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise StageError(f"{output}: is there already, wanted a new or an empty folder.")
    official = OFFICIAL_FORMATS[config.benchmark]
    files = [Path(file) for file in config.files]
    if not official.fewest <= len(files) <= official.most:
        raise StageError(f"{config.benchmark}: got {len(files)} files, wanted {official.wanted}.")
    if missing := [file for file in files if not file.exists()]:
        raise StageError(f"{missing[0]}: no such file. {config.benchmark} wants {official.wanted}.")
    try:
        converted = official.read(files)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise StageError(
            f"{files[0]}: not the official format of {config.benchmark} ({type(error).__name__}: {first_line(error)}), "
            f"wanted {official.wanted}."
        ) from error
    with room_on_disk(output):
        output.mkdir(parents=True, exist_ok=True)
        _place_pictures(config, converted, output / IMAGES)
        _write_questions(converted.questions, output / QUESTIONS)
        described = {
            "schema": BENCHMARK.name,
            "name": config.name or config.benchmark,
            "metric": official.metric,
            "questions": QUESTIONS,
            "images": IMAGES,
            "source": config.source,
            "revision": config.revision,
        }
        # Last: without it, the folder is none.
        (output / DESCRIPTION).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    return len(read_benchmark(output).questions)


def _place_pictures(config: ConvertConfig, converted: Converted, folder: Path) -> None:
    """Put every picture that a question names into the folder: a link where the disk allows it, else a copy.

    Raises:
        StageError: One is missing or its name leaves the folder.
    """
    folder.mkdir()
    for name in dict.fromkeys(question.image for question in converted.questions if question.image is not None):
        try:
            clean_path(name)
        except OutsideRootError:
            raise StageError(f"{name!r}: is no path below the pictures' folder.") from None
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name in converted.pictures:
            found = converted.pictures[name]
            if isinstance(found, bytes):
                target.write_bytes(found)
                continue
            source = found
        elif config.images:
            source = Path(config.images) / name
        else:
            raise StageError(f"images: is empty, wanted the folder with {name} and the other pictures.")
        if not source.is_file():
            raise StageError(f"{source}: no such picture, though a question is about it. Give the folder as images.")
        try:
            os.link(source.resolve(), target)
        except OSError:
            shutil.copyfile(source, target)


def _write_questions(questions: Sequence[BenchmarkQuestion], path: Path) -> None:
    rows = [{name: getattr(question, name) for name in BENCHMARK.arrow.names} for question in questions]
    pq.write_table(pa.Table.from_pylist(rows, schema=BENCHMARK.arrow), path, compression="zstd")
