"""A benchmark's questions through the batched engine."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from components.evaluate.benchmark import Benchmark, BenchmarkQuestion
from free2ds_common import outcomes
from free2ds_common.inference.generation import Answer, AnswerGenerator, PictureGroup, Question
from free2ds_common.inference.model import VisionLanguageModel
from free2ds_common.inference.prefetch import PictureQuestions, prefetch
from free2ds_common.pictures import PictureProblem

# Questions whose prompts are made together and sorted by length, in batches. The questions of a picture stay together.
_WINDOW_BATCHES = 8


@dataclass(frozen=True)
class Reply:
    """What a model said.

    Attributes:
        index: The question's place in the benchmark.
        outcome: OK, or why there is no answer: a word of free2ds_common.outcomes.
        text: Without control tokens and blanks around it.
        num_tokens: Generated, EOS included; None where it is not known.
    """

    index: int
    outcome: str
    text: str = ""
    num_tokens: int | None = 0


def replies(
    model: VisionLanguageModel, benchmark: Benchmark, max_new_tokens: int, batch_size: int, log: logging.Logger
) -> Iterator[Reply]:
    """Answer every question; replies come as they are done.

    Args:
        model: Loaded with a prompt that has both kinds of question, and `decode`.
        benchmark: The questions.
        max_new_tokens: Longest answer.
        batch_size: Questions that are answered together.
        log: The stage's.
    """
    unanswered: list[Reply] = []

    def on_problem(group: PictureQuestions, problem: PictureProblem) -> None:
        log.warning("%s", problem)
        unanswered.extend(Reply(question.index, problem.reason) for question in group.questions)

    def pictures() -> Iterator[PictureGroup]:
        groups = _with_picture(model, benchmark.questions, batch_size, unanswered)
        yield from prefetch(groups, benchmark.image_root, model.preprocess, 2 * batch_size, on_problem)
        yield from _without_picture(model, benchmark.questions, unanswered)

    size = min(batch_size, len(benchmark.questions))
    for answer in AnswerGenerator(model, max_new_tokens, size, maps=False).generate(pictures()):
        yield _reply(model, answer)
        yield from unanswered
        unanswered.clear()
    yield from unanswered


def _reply(model: VisionLanguageModel, answer: Answer) -> Reply:
    assert model.decode is not None
    if answer.outcome != outcomes.OK:
        return Reply(answer.index, answer.outcome, num_tokens=len(answer.tokens))
    return Reply(answer.index, outcomes.OK, model.decode(answer.tokens).strip(), len(answer.tokens))


def _with_picture(
    model: VisionLanguageModel, questions: Sequence[BenchmarkQuestion], batch_size: int, unanswered: list[Reply]
) -> Iterator[PictureQuestions]:
    """The questions about each picture, the shortest prompts of a window first."""
    by_image: dict[str, list[int]] = {}
    for index, question in enumerate(questions):
        if question.image is not None:
            by_image.setdefault(question.image, []).append(index)
    window: list[PictureQuestions] = []
    waiting = 0
    for image, indexes in by_image.items():
        asked = [Question(index, model.prompt(questions[index].question)) for index in indexes]
        if fitting := tuple(_fitting(asked, model, model.num_vision_tokens, unanswered)):
            window.append(PictureQuestions(image, fitting))
        waiting += len(fitting)
        if waiting >= _WINDOW_BATCHES * batch_size:
            yield from sorted(window, key=_longest)
            window, waiting = [], 0
    yield from sorted(window, key=_longest)


def _without_picture(
    model: VisionLanguageModel, questions: Sequence[BenchmarkQuestion], unanswered: list[Reply]
) -> Iterator[PictureGroup]:
    """Questions of text alone, the shortest first."""
    assert model.text_prompt is not None
    asked = [
        Question(index, model.text_prompt(question.question))
        for index, question in enumerate(questions)
        if question.image is None
    ]
    for question in sorted(_fitting(asked, model, 0, unanswered), key=lambda one: one.prompt.num_tokens):
        yield PictureGroup({}, (question,))


def _fitting(
    asked: Iterable[Question], model: VisionLanguageModel, vision_tokens: int, unanswered: list[Reply]
) -> Iterator[Question]:
    """Those whose prompts fit into the model's context; the others have no answer."""
    for question in asked:
        if question.prompt.num_tokens + vision_tokens > model.context_length:
            unanswered.append(Reply(question.index, outcomes.PROMPT_TOO_LONG))
        else:
            yield question


def _longest(group: PictureQuestions) -> int:
    return max(question.prompt.num_tokens for question in group.questions)
