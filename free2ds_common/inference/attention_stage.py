"""The attention stage: one shard of records to one map per record. Both models' stages are this."""

import itertools
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from free2ds_common import outcomes
from free2ds_common.checkpoints import fingerprint, resolve_model
from free2ds_common.datasets import DatasetWriter, open_dataset
from free2ds_common.errors import StageError
from free2ds_common.inference.auto import load_auto
from free2ds_common.inference.decode import Answer, Decoder, Question
from free2ds_common.inference.device import choose_device, dtype_name, log_peak_memory, torch_dtype
from free2ds_common.inference.feed import PictureQuestions, feed
from free2ds_common.inference.model import VisionLanguageModel
from free2ds_common.pictures import PictureProblem
from free2ds_common.result import Counts, StageResult
from free2ds_common.runlog import Progress
from free2ds_common.schemas import GRID, RECORDS, attention_schema
from free2ds_common.settings import AUTO, AttentionConfig
from free2ds_common.storage import require_folder

logger = logging.getLogger(__name__)

# Raised when the same model and prompt give other maps than before.
CAPTURE_VERSION = 1
# Records sorted by prompt length together, in batches: enough to fill batches evenly, few enough to write in order.
_WINDOW_BATCHES = 8
_ROWS_PER_PART = 10_000
# Written together: a table of its own for every row would cost 7 KB each until its part is full.
_ROWS_PER_WRITE = 256


class Loader(Protocol):
    """Loads a model folder."""

    def __call__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> VisionLanguageModel:
        """Load it; raises StageError where it is not the right model."""


def run_attention(config: AttentionConfig, system: str, load: Loader, log: logging.Logger) -> StageResult:
    """Write where a model looks for every record of a shard, in the shard's order.

    Args:
        config: Settings.
        system: System text of the stage's prompt.
        load: The loader of the stage's own model.
        log: The stage's logger: with two models side by side, each line says whose it is.

    Raises:
        StageError: Wrong settings, no such shard or model, or no picture of the shard can be used.
    """
    config.check()
    shard = open_dataset(config.shard, RECORDS)
    device = choose_device()
    dtype = torch_dtype(config.dtype, device)
    folder = Path(resolve_model(config.model, config.revision))
    if config.model_type == AUTO:
        model = load_auto(folder, device, dtype, system, config.prompt)
    else:
        model = load(folder, device, dtype)
        if model.grid != GRID:
            raise StageError(
                f"{folder}: {model.grid} x {model.grid} vision tokens, wanted the {GRID} x {GRID} of the method's pair "
                "of models. Use model_type auto to compare maps of different grids."
            )
    records = list(shard.rows(["unique_id", "record_key", "image", "question"]))
    if any(record["image"] for record in records):
        require_folder("image_root_uri", config.image_root_uri)
    settings = {
        "model": config.model,
        "revision": config.revision,
        "model_fingerprint": ", ".join(map(fingerprint, model.folders)),
        "prompt": dict(model.prompt_settings),
        "max_new_tokens": config.max_new_tokens,
        "preprocessing": dict(model.preprocessing),
        "dtype": dtype_name(dtype),
        "grid": model.grid,
        "capture_version": CAPTURE_VERSION,
    }
    log.info("%d records, %s on %s in %s", len(records), config.model, device, settings["dtype"])
    counted: Counter[str] = Counter()
    steps = 0
    with DatasetWriter(config.attention, attention_schema(model.positions), _ROWS_PER_PART) as writer:
        progress = Progress(len(records), "records", log)
        rows = _in_order(records, _counted(_answers(records, model, config), progress))
        while some := list(itertools.islice(rows, _ROWS_PER_WRITE)):
            writer.write(some)
            counted.update(row["outcome"] for row in some)
            steps += sum(row["num_steps"] for row in some)
        progress.close()
        writer.manifest.update(settings, outcomes=dict(counted), records_uri=config.shard)
    with_image = sum(bool(record["image"]) for record in records)
    unusable = sum(counted[outcome] for outcome in outcomes.IMAGE_FAILURES)
    if unusable and unusable == with_image:
        raise StageError(
            f"{config.image_root_uri}: none of the {with_image} pictures of this shard can be used. "
            "Check image_root_uri."
        )
    log_peak_memory(log, device)
    metrics = {f"outcome_{outcome}": float(count) for outcome, count in sorted(counted.items())}
    counts = Counts(read=len(records), written=sum(counted.values()))
    return StageResult(counts, {**metrics, "generated_tokens": float(steps)}, {**settings, "outcomes": dict(counted)})


def _answers(
    records: list[dict[str, Any]], model: VisionLanguageModel, config: AttentionConfig
) -> Iterator[tuple[int, str, int, Any]]:
    """(index in the shard, outcome, G, map) of every record, in the order in which they are known."""
    at_once: list[tuple[int, str, int, Any]] = []

    def groups() -> Iterator[PictureQuestions]:
        window = _WINDOW_BATCHES * config.batch_size
        for start in range(0, len(records), window):
            by_image: dict[str, list[Question]] = {}
            for index in range(start, min(start + window, len(records))):
                record = records[index]
                if not record["image"]:
                    at_once.append((index, outcomes.TEXT_ONLY, 0, None))
                elif record["question"] is None:
                    at_once.append((index, outcomes.NO_QUESTION, 0, None))
                else:
                    prompt = model.prompt(record["question"])
                    if len(prompt.before) + model.positions + len(prompt.after) > model.max_positions:
                        at_once.append((index, outcomes.PROMPT_TOO_LONG, 0, None))
                    else:
                        by_image.setdefault(record["image"], []).append(Question(index, prompt))
            ready = [PictureQuestions(image, tuple(questions)) for image, questions in by_image.items()]
            yield from sorted(ready, key=_longest_prompt)

    def unusable(group: PictureQuestions, problem: PictureProblem) -> None:
        logger.warning("%s", problem)
        at_once.extend((question.index, problem.reason, 0, None) for question in group.questions)

    batch_size = min(config.batch_size, max(1, sum(bool(record["image"]) for record in records)))
    decoder = Decoder(model, config.max_new_tokens, batch_size)
    pictures = feed(groups(), config.image_root_uri, model.preprocess, 2 * batch_size, unusable)
    for answer in decoder.answer(pictures):
        yield _row(answer)
        yield from at_once
        at_once.clear()
    yield from at_once


def _counted(answers: Iterator[tuple[int, str, int, Any]], progress: Progress) -> Iterator[tuple[int, str, int, Any]]:
    """Report answers as they come: those that wait for an earlier record of the shard are done too."""
    for answer in answers:
        progress.add()
        yield answer


def _longest_prompt(group: PictureQuestions) -> int:
    return max(len(question.prompt.before) + len(question.prompt.after) for question in group.questions)


def _row(answer: Answer) -> tuple[int, str, int, Any]:
    values = None if answer.map is None else answer.map.numpy()
    return answer.index, answer.outcome, len(answer.tokens), values


def _in_order(records: list[dict[str, Any]], answers: Iterator[tuple[int, str, int, Any]]) -> Iterator[dict[str, Any]]:
    """attention/1 rows in the shard's order; what comes early waits."""
    early: dict[int, tuple[str, int, Any]] = {}
    due = 0
    for index, *answer in answers:
        early[index] = tuple(answer)
        while due in early:
            outcome, num_steps, values = early.pop(due)
            record = records[due]
            yield {
                "unique_id": record["unique_id"],
                "record_key": record["record_key"],
                "num_steps": num_steps,
                "outcome": outcome,
                "map": values,
            }
            due += 1
