"""The rows of an attention table: those that earlier runs found out, and those that the model is asked for now."""

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from free2ds_common import outcomes
from free2ds_common.inference.attention_results import AttentionResults, unasked
from free2ds_common.inference.device import default_batch_size
from free2ds_common.inference.generation import Answer, AnswerGenerator, Question
from free2ds_common.inference.model import VisionLanguageModel
from free2ds_common.inference.prefetch import PictureQuestions, prefetch
from free2ds_common.inference.prompts import Prompt
from free2ds_common.inference.unknown_words import UnknownWords
from free2ds_common.left_over import LeftOver
from free2ds_common.pictures import PictureProblem
from free2ds_common.runlog import Progress
from free2ds_common.settings import AttentionConfig
from free2ds_common.stopping import Stopped

# Records sorted by prompt length together, in batches: enough to need little padding, few enough to write in order.
_WINDOW_BATCHES = 8

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
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


@dataclass(frozen=True)
class Scored:
    """A shard's records with what was found out about them.

    Attributes:
        config: Settings and ports.
        records: The shard.
        left_over: The results that its own will join.
        model: None where all results were there.
        settings: Of the model, as in the manifest.
        results: Of earlier runs.
        log: The stage's logger.
    """

    config: AttentionConfig
    records: Sequence[Record]
    left_over: LeftOver
    model: VisionLanguageModel | None
    settings: Mapping[str, Any]
    results: AttentionResults
    log: logging.Logger


def rows_in_order(scored: Scored) -> Iterator[Row]:
    """A row per record, in the shard's order.

    Args:
        scored: The shard.

    Raises:
        StageError: Most words of the questions are unknown to the model, by the first window or by all.
        Stopped: The system asked the process to end, and the answers on their way are finished and kept.
    """
    progress = Progress(len(scored.records) - len(scored.results.reused), "records", scored.log)
    yield from _in_order(_counted(_new_rows(scored), progress), len(scored.records), scored.results)
    progress.close()


def _new_rows(scored: Scored) -> Iterator[Row]:
    """One row per record without a result of an earlier run; errors as `_rows` and `_groups`."""
    if scored.model is not None:
        yield from _rows(scored.records, scored.model, scored.config, scored.results, scored.log)
        return
    words = _words_of_results(Path(scored.config.model), scored.results)
    words.check()
    for index, record in enumerate(scored.records):
        if outcome := unasked(record):
            yield Row(index, outcome)


def _words_of_results(where: Path, results: AttentionResults) -> UnknownWords:
    """The words of the questions whose results are of earlier runs."""
    words = UnknownWords(where)
    for index in results.reused:
        row = results.row(index)
        words.add(row["unknown_tokens"], row["tokens"])
    return words


def _rows(
    records: Sequence[Record],
    model: VisionLanguageModel,
    config: AttentionConfig,
    results: AttentionResults,
    log: logging.Logger,
) -> Iterator[Row]:
    """One row per record without a result of an earlier run, as soon as it is known.

    Raises:
        Stopped: The system asked the process to end, and the answers on their way are finished and kept.
    """
    unanswered: list[Row] = []

    def on_problem(group: PictureQuestions, problem: PictureProblem) -> None:
        log.warning("%s", problem)
        unanswered.extend(Row(question.index, problem.reason) for question in group.questions)

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
        yield from _kept(unanswered, results)
        unanswered.clear()
    yield from _kept(unanswered, results)
    if results.asked_to_stop():
        raise Stopped(f"stopped as asked to; {results.saved} new results are in {config.cache_uri}: run again to go on")


def _kept(rows: Iterable[Row], results: AttentionResults) -> Iterator[Row]:
    """Rows without an answer, those kept that will be the same the next time."""
    for row in rows:
        results.keep(row.index, row.outcome, row.num_steps, row.map)
        yield row


def _groups(
    records: Sequence[Record],
    model: VisionLanguageModel,
    batch_size: int,
    results: AttentionResults,
    unanswered: list[Row],
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
    words, no_question = _words_of_results(model.folders[0], results), model.prompt("")
    asked = [index for index in range(len(records)) if index not in results.reused]
    for start in range(0, len(asked), window):
        by_image: dict[str, list[Question]] = {}
        for index in asked[start : start + window]:
            record = records[index]
            if outcome := unasked(record):
                unanswered.append(Row(index, outcome))
                continue
            prompt = model.prompt(record["question"])
            counts = _count_unknown(prompt, no_question, model.unk_token_id)
            words.add(*counts)
            results.count_words(index, *counts)
            if prompt.num_tokens + model.num_vision_tokens > model.context_length:
                unanswered.append(Row(index, outcomes.PROMPT_TOO_LONG))
                continue
            by_image.setdefault(record["image"], []).append(Question(index, prompt))
        if start == 0:
            words.check()
        groups = [PictureQuestions(image, tuple(questions)) for image, questions in by_image.items()]
        yield from sorted(groups, key=_longest_prompt)
    words.check()
    if warning := words.warning():
        log.warning("%s", warning)


def _count_unknown(prompt: Prompt, no_question: Prompt, unknown: int | None) -> tuple[int, int]:
    """A question's unknown tokens and all of them: those of its prompt beyond the ones of every prompt."""

    def count(counted: Prompt) -> int:
        return sum(token == unknown for token in (*counted.before, *counted.after))

    return max(0, count(prompt) - count(no_question)), max(0, prompt.num_tokens - no_question.num_tokens)


def _longest_prompt(group: PictureQuestions) -> int:
    return max(question.prompt.num_tokens for question in group.questions)


def _answered(answer: Answer) -> Row:
    values = None if answer.map is None else answer.map.numpy()
    return Row(answer.index, answer.outcome, len(answer.tokens), values)


def _counted(rows: Iterable[Row], progress: Progress) -> Iterator[Row]:
    """Report rows as they come: a record is done even while its row waits for an earlier one."""
    for row in rows:
        progress.add()
        yield row


def _in_order(rows: Iterable[Row], count: int, results: AttentionResults) -> Iterator[Row]:
    """All rows in the shard's order: early ones wait; those of earlier runs are read when they are due."""
    early: dict[int, Row] = {}
    coming = iter(rows)
    for due in range(count):
        if due in results.reused:
            found = results.row(due)
            yield Row(due, found["outcome"], found["num_steps"], found["map"])
            continue
        while due not in early:
            row = next(coming)
            early[row.index] = row
        yield early.pop(due)
    # To its end: what comes after the last row is said there.
    for row in coming:
        early[row.index] = row
