"""The attention stage: a shard of records in, a map for each of them out. Both models' stages run it."""

import itertools
import logging
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from free2ds_common import outcomes
from free2ds_common.checkpoints import fingerprint, resolve_model
from free2ds_common.datasets import Dataset, DatasetWriter, open_dataset
from free2ds_common.errors import StageError
from free2ds_common.inference.attention_results import AttentionResults, open_results
from free2ds_common.inference.auto import load_auto
from free2ds_common.inference.device import (
    choose_device,
    default_batch_size,
    device_name,
    dtype_name,
    log_peak_memory,
    torch_dtype,
)
from free2ds_common.inference.generation import Answer, AnswerGenerator, Question
from free2ds_common.inference.model import VisionLanguageModel
from free2ds_common.inference.prefetch import PictureQuestions, prefetch
from free2ds_common.inference.prompts import Prompt
from free2ds_common.inference.unknown_words import UnknownWords
from free2ds_common.lineage import MADE_FROM, made_from
from free2ds_common.pictures import PictureProblem
from free2ds_common.result import Counts, StageResult
from free2ds_common.runlog import Progress
from free2ds_common.schemas import GRID, RECORDS, attention_schema
from free2ds_common.settings import AUTO, AttentionConfig
from free2ds_common.stopping import Stopped
from free2ds_common.storage import require_folder

# Raised when the same model and prompt give other maps than before.
CAPTURE_VERSION = 1
# Of the answers, without a finite map: from here on a warning.
WARN_NON_FINITE_SHARE = 0.05
# Records sorted by prompt length together, in batches: enough to need little padding, few enough to write in order.
_WINDOW_BATCHES = 8
_ROWS_PER_PART = 10_000
# Rows in a table: with a table for each row, every row would take 7 KB until its part is full.
_ROWS_PER_WRITE = 256

Record = Mapping[str, Any]


class Loader(Protocol):
    """Loads the stage's own model."""

    def __call__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> VisionLanguageModel:
        """Load a model folder; raises StageError for another model."""


@dataclass(frozen=True)
class _Row:
    """What attention/1 gets to know about a record.

    Attributes:
        index: The record's place in the shard.
        outcome: One of free2ds_common.outcomes.
        num_steps: Generated tokens.
        map: float32, (num_vision_tokens,); None unless `outcome` is OK.
    """

    index: int
    outcome: str
    num_steps: int = 0
    map: np.ndarray | None = None


def run_attention(config: AttentionConfig, system: str, load: Loader, log: logging.Logger) -> StageResult:
    """Write where a model looks for every record of a shard, in the shard's order.

    Args:
        config: Settings and ports.
        system: System text of the stage's prompt.
        load: Loads the stage's own model.
        log: The stage's logger, so that every line says which of the two models it is about.

    Raises:
        StageError: Wrong settings, no such shard or model, no GPU where one is required, or none of the shard's
            pictures can be used or gets a finite map.
        Stopped: The system asked the process to end; what was computed is in the results store.
    """
    config.check()
    device = choose_device(config.require_gpu)
    log.info("%s runs on: %s", config.model, device_name(device))
    shard = open_dataset(config.shard, RECORDS)
    dtype = torch_dtype(config.dtype, device)
    model = _load(config, system, load, device, dtype)
    records = list(shard.rows(["unique_id", "record_key", "image", "question"]))
    if any(record["image"] for record in records):
        require_folder("image_root_uri", config.image_root_uri)
    settings = _settings(config, model, dtype)
    log.info("%d records, %s on %s in %s", len(records), config.model, settings["device"], settings["dtype"])
    with open_results(config, settings, records, log) as results:
        by_outcome, num_steps = _write(config, model, records, settings, results, log)
        reused = len(results.reused)
    log_peak_memory(log, device)
    metrics = {f"outcome_{outcome}": float(count) for outcome, count in sorted(by_outcome.items())}
    metrics["generated_tokens"] = float(num_steps)
    metrics |= {"reused": float(reused), "computed": float(_answered_by_model(by_outcome) - reused)}
    counts = Counts(read=len(records), written=sum(by_outcome.values()))
    terse: dict[str, str | int] = {
        "display_name": _display_name(config, shard),
        "fingerprint": _shortened(settings["model_fingerprint"]),
        "rows": len(records),
    }
    return StageResult(counts, metrics, {**settings, "outcomes": dict(by_outcome)}, terse)


def _load(
    config: AttentionConfig, system: str, load: Loader, device: torch.device, dtype: torch.dtype
) -> VisionLanguageModel:
    """The model that the settings ask for.

    Raises:
        StageError: It cannot be loaded, or it is the stage's own model with another grid than the method's.
    """
    folder = Path(resolve_model(config.model, config.revision))
    if config.model_type == AUTO:
        return load_auto(folder, device, dtype, system, config.prompt)
    model = load(folder, device, dtype)
    if model.grid != GRID:
        raise StageError(
            f"{folder}: {model.grid} x {model.grid} vision tokens, wanted the {GRID} x {GRID} of the method's pair "
            "of models. Use model_type auto to compare maps of different grids."
        )
    return model


def _settings(config: AttentionConfig, model: VisionLanguageModel, dtype: torch.dtype) -> dict[str, Any]:
    """What decides the maps, for the manifest and the artifact's metadata."""
    return {
        "model": config.model,
        "revision": config.revision,
        "model_fingerprint": ", ".join(map(fingerprint, model.folders)),
        "prompt": dict(model.prompt_settings),
        "max_new_tokens": config.max_new_tokens,
        "preprocessing": dict(model.preprocessing),
        "dtype": dtype_name(dtype),
        "device": device_name(model.device),
        "grid": model.grid,
        "capture_version": CAPTURE_VERSION,
    }


def _display_name(config: AttentionConfig, shard: Dataset) -> str:
    """What tells the artifact from those of other shards and models."""
    number, of = shard.manifest.get("shard"), shard.manifest.get("num_shards")
    name = f"{config.SHORT_NAME} attention"
    return name if number is None else f"{name}, shard {number + 1} of {of}"


def _shortened(fingerprints: str) -> str:
    """Fingerprints that tell models apart in few letters; the manifest has them in full."""
    return re.sub(r"([0-9a-f]{12})[0-9a-f]+", r"\1", fingerprints)


def _write(
    config: AttentionConfig,
    model: VisionLanguageModel,
    records: Sequence[Record],
    settings: Mapping[str, Any],
    results: AttentionResults,
    log: logging.Logger,
) -> tuple[Counter[str], int]:
    """Answer the records and write attention/1; returns how many had which outcome, and the tokens generated."""
    by_outcome: Counter[str] = Counter()
    num_steps = 0
    started = time.monotonic()
    with DatasetWriter(config.attention, attention_schema(model.num_vision_tokens), _ROWS_PER_PART) as writer:
        writer.manifest[MADE_FROM] = made_from(shard=config.shard)
        progress = Progress(len(records) - len(results.reused), "records", log)
        rows = _in_order(_counted(_rows(records, model, config, results, log), progress), len(records), results)
        while some := list(itertools.islice(rows, _ROWS_PER_WRITE)):
            writer.write(
                [
                    {
                        "unique_id": records[row.index]["unique_id"],
                        "record_key": records[row.index]["record_key"],
                        "num_steps": row.num_steps,
                        "outcome": row.outcome,
                        "map": row.map,
                    }
                    for row in some
                ]
            )
            by_outcome.update(row.outcome for row in some)
            num_steps += sum(row.num_steps for row in some)
        progress.close()
        _require_a_usable_picture(config, records, by_outcome)
        _require_a_finite_map(config, by_outcome, settings["dtype"], log)
        counts = {"reused": len(results.reused), "computed": _answered_by_model(by_outcome) - len(results.reused)}
        writer.manifest.update(settings, outcomes=dict(by_outcome), **counts)
        # What it cost, on one device: no part of the content, nor of what decides it.
        writer.manifest["device_seconds"] = round(time.monotonic() - started, 3)
    return by_outcome, num_steps


def _require_a_usable_picture(config: AttentionConfig, records: Sequence[Record], by_outcome: Counter[str]) -> None:
    """Refuse a shard whose pictures all failed: that is a wrong setting, not bad pictures.

    Raises:
        StageError: There are pictures, and none can be used.
    """
    with_image = sum(bool(record["image"]) for record in records)
    unusable = sum(by_outcome[outcome] for outcome in outcomes.IMAGE_FAILURES)
    if unusable and unusable == with_image:
        raise StageError(
            f"{config.image_root_uri}: none of the {with_image} pictures of this shard can be used. "
            "Check image_root_uri."
        )


def _require_a_finite_map(config: AttentionConfig, by_outcome: Counter[str], dtype: str, log: logging.Logger) -> None:
    """Refuse a shard without a finite map, and warn where many are missing.

    Raises:
        StageError: There are answers, and the attention of all of them is NaN or infinite.
    """
    broken = by_outcome[outcomes.NON_FINITE]
    answered = _answered_by_model(by_outcome)
    if not broken:
        return
    remedy = f"{dtype} may be too narrow for the model: try dtype bfloat16 or float32, or copy the model folder again."
    if broken == answered:
        raise StageError(f"{config.model}: the attention of all {answered} answers is NaN or infinite. {remedy}")
    if broken >= WARN_NON_FINITE_SHARE * answered:
        log.warning("the attention of %d of %d answers is NaN or infinite. %s", broken, answered, remedy)


def _answered_by_model(by_outcome: Counter[str]) -> int:
    """Records that the model was asked about, in this run or an earlier one."""
    return by_outcome[outcomes.NON_FINITE] + by_outcome[outcomes.OK] + by_outcome[outcomes.EOS_ONLY]


def _rows(
    records: Sequence[Record],
    model: VisionLanguageModel,
    config: AttentionConfig,
    results: AttentionResults,
    log: logging.Logger,
) -> Iterator[_Row]:
    """One row per record without a result of an earlier run, as soon as it is known.

    Raises:
        Stopped: The system asked the process to end, and the answers on their way are finished and kept.
    """
    unanswered: list[_Row] = []

    def on_problem(group: PictureQuestions, problem: PictureProblem) -> None:
        log.warning("%s", problem)
        unanswered.extend(_Row(question.index, problem.reason) for question in group.questions)

    with_image = sum(bool(record["image"]) for record in records) - len(results.reused)
    wanted = config.batch_size or default_batch_size(model.device)
    batch_size = min(wanted, max(1, with_image))
    groups = _groups(records, model, wanted, results, unanswered, log)
    pictures = prefetch(groups, config.image_root_uri, model.preprocess, 2 * batch_size, on_problem)
    until_stopped = itertools.takewhile(lambda _: not results.asked_to_stop(), pictures)
    for answer in AnswerGenerator(model, config.max_new_tokens, batch_size).generate(until_stopped):
        row = _answered(answer)
        results.keep(row.index, row.outcome, row.num_steps, row.map)
        yield row
        yield from unanswered
        unanswered.clear()
    yield from unanswered
    if results.asked_to_stop():
        raise Stopped(f"stopped as asked to; {results.saved} new results are in {config.cache_uri}: run again to go on")


def _groups(
    records: Sequence[Record],
    model: VisionLanguageModel,
    batch_size: int,
    results: AttentionResults,
    unanswered: list[_Row],
    log: logging.Logger,
) -> Iterator[PictureQuestions]:
    """The questions of each picture, within a window of records, the shortest prompts first.

    Records with a result of an earlier run are left out; the words of their questions count.

    Args:
        records: The shard.
        model: Makes the prompts.
        batch_size: A window is some batches long.
        results: Of earlier runs.
        unanswered: Gets the rows of records without a question to ask.
        log: The stage's.

    Raises:
        StageError: Most words of the questions are unknown to the model, by the first window or by all.
    """
    window = _WINDOW_BATCHES * batch_size
    words, unasked = UnknownWords(model.folders[0]), model.prompt("")
    for index in results.reused:
        row = results.row(index)
        words.add(row["unknown_tokens"], row["tokens"])
    asked = [index for index in range(len(records)) if index not in results.reused]
    for start in range(0, len(asked), window):
        by_image: dict[str, list[Question]] = {}
        for index in asked[start : start + window]:
            record = records[index]
            if not record["image"]:
                unanswered.append(_Row(index, outcomes.TEXT_ONLY))
                continue
            if record["question"] is None:
                unanswered.append(_Row(index, outcomes.NO_QUESTION))
                continue
            prompt = model.prompt(record["question"])
            counts = _count_unknown(prompt, unasked, model.unk_token_id)
            words.add(*counts)
            results.count_words(index, *counts)
            if prompt.num_tokens + model.num_vision_tokens > model.context_length:
                unanswered.append(_Row(index, outcomes.PROMPT_TOO_LONG))
                continue
            by_image.setdefault(record["image"], []).append(Question(index, prompt))
        if start == 0:
            words.check()
        groups = [PictureQuestions(image, tuple(questions)) for image, questions in by_image.items()]
        yield from sorted(groups, key=_longest_prompt)
    words.check()
    if warning := words.warning():
        log.warning("%s", warning)


def _count_unknown(prompt: Prompt, unasked: Prompt, unknown: int | None) -> tuple[int, int]:
    """A question's unknown tokens and all of them: those of its prompt beyond the ones of every prompt."""

    def count(counted: Prompt) -> int:
        return sum(token == unknown for token in (*counted.before, *counted.after))

    return max(0, count(prompt) - count(unasked)), max(0, prompt.num_tokens - unasked.num_tokens)


def _longest_prompt(group: PictureQuestions) -> int:
    return max(question.prompt.num_tokens for question in group.questions)


def _answered(answer: Answer) -> _Row:
    values = None if answer.map is None else answer.map.numpy()
    return _Row(answer.index, answer.outcome, len(answer.tokens), values)


def _counted(rows: Iterable[_Row], progress: Progress) -> Iterator[_Row]:
    """Report rows as they come: a record is done even while its row waits for an earlier one."""
    for row in rows:
        progress.add()
        yield row


def _in_order(rows: Iterable[_Row], count: int, results: AttentionResults) -> Iterator[_Row]:
    """All rows in the shard's order: early ones wait; those of earlier runs are read when they are due."""
    early: dict[int, _Row] = {}
    coming = iter(rows)
    for due in range(count):
        if due in results.reused:
            found = results.row(due)
            yield _Row(due, found["outcome"], found["num_steps"], found["map"])
            continue
        while due not in early:
            row = next(coming)
            early[row.index] = row
        yield early.pop(due)
    # To its end: what comes after the last row is said there.
    for row in coming:
        early[row.index] = row
