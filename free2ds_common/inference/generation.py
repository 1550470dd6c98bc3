"""Greedy generation with continuous batching and prefix sharing, and, where wanted, the attention map of each answer.

Continuous batching: an answer that reaches EOS leaves the batch at once and another one takes its row. Prefix sharing:
questions about one picture share its features and, where their prompts are the same up to the end of the picture, the
keys and values of that prefix.

One file of more than 300 lines, because rows, cache, steps and waiting questions are one state that moves together.
"""

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from free2ds_common import outcomes
from free2ds_common.inference.capture import DecodePass, FixedDecodePass, KeyValueCache, Pass, PrefillPass
from free2ds_common.inference.decode_graphs import LENGTH_STEP, DecodeGraphs, rounded_length, rounded_rows
from free2ds_common.inference.maps import aggregate_steps
from free2ds_common.inference.model import Pixels, VisionLanguageModel
from free2ds_common.inference.prompts import Prompt

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """A record to answer.

    Attributes:
        index: Identifies it; the answer has the same.
        prompt: Tokens around the picture.
    """

    index: int
    prompt: Prompt


@dataclass(frozen=True)
class PictureGroup:
    """Questions about one picture.

    Attributes:
        pixels: The preprocessed picture, without batch dimension; empty for a question without one, which has no map.
        questions: At least one.
    """

    pixels: Pixels
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Answer:
    """The answer to a question.

    Attributes:
        index: The question's.
        tokens: Generated token ids, EOS included.
        outcome: OK, EOS_ONLY (where maps are wanted) or NON_FINITE.
        map: float32 on the CPU, (num_vision_tokens,), sum 1; None unless `outcome` is OK and maps are wanted.
    """

    index: int
    tokens: tuple[int, ...]
    outcome: str
    map: torch.Tensor | None


@dataclass
class _Row:
    """An answer being generated: a row of the batch."""

    question: Question
    features: torch.Tensor
    tokens: list[int] = field(default_factory=list)
    length: int = 0  # tokens in the key-value cache

    @property
    def vision_start(self) -> int:
        return len(self.question.prompt.before)


# Tokens of a prefill pass: more at once is no faster on any device measured, and takes memory.
_PREFILL_TOKENS = 32_768
# Pictures of an encoder's pass. MGM's fp32 detail maps take 0.4 GB each, and from 76 on torch refuses to resize them.
_ENCODED_AT_ONCE = 16

Item = TypeVar("Item")
# A picture's features and the questions about it.
_Waiting = tuple[torch.Tensor, tuple[Question, ...]]


class AnswerGenerator:
    """Answers questions with one model.

    Attributes:
        batch_size: Rows of the batch; halved when memory runs out.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        max_new_tokens: int,
        batch_size: int,
        share_prefix: bool = True,
        maps: bool = True,
    ) -> None:
        """Prepare.

        Args:
            model: The model, in eval mode.
            max_new_tokens: Longest answer, EOS included.
            batch_size: Answers to generate together.
            share_prefix: Compute a prefix once for all questions that have it.
            maps: Capture the attention; without, an answer has no map and a question may have no picture.
        """
        self.batch_size = batch_size
        self._model, self._max_new_tokens, self._share_prefix = model, max_new_tokens, share_prefix
        self._maps = maps

    @torch.inference_mode()
    def generate(self, groups: Iterable[PictureGroup]) -> Iterator[Answer]:
        """Answer every question; answers come in the order in which they finish.

        Args:
            groups: Read when rows are free. Neighbours of similar prompt length need the least padding.

        Raises:
            torch.OutOfMemoryError: A single record does not fit.
        """
        source = iter(groups)
        # Read, but not encoded yet; kept here so that running out of memory loses none of them.
        pending: list[PictureGroup] = []
        waiting: deque[_Waiting] = deque()
        exhausted = False
        while True:
            batch = _Batch(self._model, self._max_new_tokens, self.batch_size, self._share_prefix, self._maps)
            try:
                while True:
                    while not exhausted and sum(len(questions) for _, questions in waiting) < self.batch_size:
                        if not pending:
                            self._take(source, pending)
                        exhausted = not pending
                        some = pending[: self.batch_size]
                        waiting.extend(self._cut(self._encoded(some)))
                        del pending[: len(some)]
                    batch.admit(waiting)
                    if not batch.rows:
                        return
                    yield from batch.collect()
                    batch.decode()
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
            # Outside the handler: inside it, the error still holds the tensors of the pass that failed.
            self.batch_size //= 2
            logger.warning("out of memory: going on with %d answers at a time", self.batch_size)
            # Unfinished answers start again: none of them was returned yet.
            waiting = deque(self._cut([*batch.unfinished(), *waiting]))
            del batch
            torch.cuda.empty_cache()

    def _cut(self, groups: Iterable[_Waiting]) -> Iterator[_Waiting]:
        """Split groups so that none has more than `batch_size` questions."""
        for features, questions in groups:
            for start in range(0, len(questions), self.batch_size):
                yield features, questions[start : start + self.batch_size]

    def _take(self, source: Iterator[PictureGroup], pending: list[PictureGroup]) -> None:
        """Read groups until the pending ones fill a batch."""
        while sum(len(group.questions) for group in pending) < self.batch_size:
            group = next(source, None)
            if group is None:
                return
            pending.append(group)

    def _encoded(self, groups: Sequence[PictureGroup]) -> list[_Waiting]:
        """Encode the groups' pictures."""
        pictures = [group.pixels for group in groups if group.pixels]
        features: Iterator[torch.Tensor] = iter(())
        if pictures:
            device = self._model.device
            features = iter(
                self._encode({name: torch.stack([one[name] for one in pictures]).to(device) for name in pictures[0]})
            )
        return [(next(features) if group.pixels else self._no_features(), group.questions) for group in groups]

    def _no_features(self) -> torch.Tensor:
        """(0, hidden) features of a question without a picture."""
        nothing = torch.empty(0, dtype=torch.int64, device=self._model.device)
        embedded: torch.Tensor = self._model.decoder.embed_tokens(nothing)
        return embedded

    def _encode(self, pixels: Pixels) -> torch.Tensor:
        """Features of all pictures, a part at a time, fewer where they do not fit into memory together."""
        count = len(next(iter(pixels.values())))
        at_once = min(count, _ENCODED_AT_ONCE)
        while True:
            try:
                encoded = [
                    self._model.encode_images({name: value[start : start + at_once] for name, value in pixels.items()})
                    for start in range(0, count, at_once)
                ]
                return torch.cat(encoded)
            except torch.OutOfMemoryError:
                if at_once == 1:
                    raise
            # Outside the handler, as in `generate`.
            torch.cuda.empty_cache()
            at_once = -(-at_once // 2)


class _Batch:
    """The answers being generated: rows 0..n-1 of the key-value cache, of the step maps and of `rows`."""

    def __init__(
        self, model: VisionLanguageModel, max_new_tokens: int, size: int, share_prefix: bool, maps: bool
    ) -> None:
        self.rows: list[_Row] = []
        self._admitting: list[_Row] = []
        self._model, self._max_new_tokens, self._size = model, max_new_tokens, size
        self._share_prefix, self._maps = share_prefix, maps
        self._graphs = DecodeGraphs() if _takes_graphs(model.device) else None
        # A cache that grows moves, and its graphs are lost: room for the longest answer at once.
        spare = max_new_tokens + LENGTH_STEP if self._graphs else 0
        self._cache = KeyValueCache(size, model.decoder.config.num_hidden_layers, spare)
        self._steps = torch.zeros(size, max_new_tokens if maps else 0, model.num_vision_tokens, device=model.device)
        # Without maps: whether all of a row's logits were finite so far.
        self._finite = torch.ones(size, dtype=torch.bool, device=model.device)
        self._last = torch.zeros(size, dtype=torch.int64, device=model.device)
        # Of each row: tokens in the cache, the first vision token's place, generated tokens. Where graphs read them.
        self._numbers = torch.zeros(3, size, dtype=torch.int64, device=model.device)

    def unfinished(self) -> list[_Waiting]:
        """Questions whose answer was not returned, one by one."""
        rows = {id(row): row for row in self.rows + self._admitting}
        return [(row.features, (row.question,)) for row in rows.values()]

    def admit(self, waiting: deque[_Waiting]) -> None:
        """Prefill waiting questions into free rows; a picture's questions go together unless they are many."""
        admitted: list[list[_Row]] = []
        free = self._size - len(self.rows)
        # Prefilling a few rows at a time would leave the device idle: wait until a quarter of the batch is free.
        if not waiting or (self.rows and free < max(1, self._size // 4)):
            return
        while waiting and free:
            features, questions = waiting.popleft()
            if len(questions) > free:
                if admitted or len(questions) <= self._size // 2:
                    waiting.appendleft((features, questions))
                    break
                # More than half a batch: take some now. All of them would have to wait for the slowest answer.
                waiting.appendleft((features, questions[free:]))
                questions = questions[:free]
            rows = [_Row(question, features) for question in questions]
            self._admitting.extend(rows)
            admitted.append(rows)
            free -= len(rows)
        alone: list[_Row] = []
        shared: dict[tuple[int, ...], list[list[_Row]]] = {}
        for group in admitted:
            by_prefix: dict[tuple[int, ...], list[_Row]] = {}
            for row in group:
                by_prefix.setdefault(row.question.prompt.before, []).append(row)
            for prefix, rows in by_prefix.items():
                if self._share_prefix and len(rows) > 1:
                    shared.setdefault(prefix, []).append(rows)
                else:
                    alone.extend(rows)
        vision = self._model.num_vision_tokens
        for some in _passes(alone, [row.question.prompt.num_tokens + vision for row in alone]):
            self._prefill_alone(some)
        for prefix, families in shared.items():
            for part in _passes(families, [len(prefix) + vision] * len(families)):
                self._prefill_shared(prefix, part)
        self._admitting.clear()

    def _prefill_alone(self, rows: Sequence[_Row]) -> None:
        """Prefill whole prompts in one pass."""
        embedded = [
            torch.cat([self._embed(row.question.prompt.before), row.features, self._embed(row.question.prompt.after)])
            for row in rows
        ]
        self._prefill(rows, embedded)

    def _prefill_shared(self, prefix: tuple[int, ...], families: Sequence[list[_Row]]) -> None:
        """Prefill the prefix once per picture, then the questions after it."""
        before = self._embed(prefix)
        inputs = torch.stack([torch.cat([before, rows[0].features]) for rows in families])
        length = inputs.shape[1]
        first = PrefillPass(None, 0, torch.full((len(inputs),), length, device=inputs.device), [], 0)
        self._forward(inputs, torch.arange(length, device=inputs.device)[None], first)
        rows = [row for family in families for row in family]
        owner = [number for number, family in enumerate(families) for _ in family]
        self._prefill(
            rows,
            [self._embed(row.question.prompt.after) for row in rows],
            first.layers,
            torch.tensor(owner, device=inputs.device),
        )

    def _prefill(
        self,
        rows: Sequence[_Row],
        embedded: list[torch.Tensor],
        prefix: list[tuple[torch.Tensor, torch.Tensor]] | None = None,
        prefix_of_row: torch.Tensor | None = None,
    ) -> None:
        """Run the rows' new tokens, padded on the right, and take the first generated token of each."""
        device = self._model.device
        first_row, count = len(self.rows), len(rows)
        offset = prefix[0][0].shape[2] if prefix else 0
        lengths = torch.tensor([len(tokens) for tokens in embedded], device=device)
        inputs = torch.nn.utils.rnn.pad_sequence(embedded, batch_first=True)
        starts = [row.vision_start for row in rows] if self._maps else []
        step = PrefillPass(
            self._cache, first_row, lengths, starts, self._model.num_vision_tokens, prefix, prefix_of_row
        )
        position_ids = torch.arange(offset, offset + inputs.shape[1], device=device)[None]
        capacity = self._cache.capacity
        hidden = self._forward(inputs, position_ids, step)
        if self._graphs is not None and self._cache.capacity != capacity:
            self._graphs.forget()
        for row, tokens in zip(rows, embedded, strict=True):
            row.length = offset + len(tokens)
        self._finish_pass(rows, first_row, step, hidden[torch.arange(count, device=device), lengths - 1])
        self.rows.extend(rows)

    def decode(self) -> None:
        """Generate the next token of every row."""
        if not self.rows:
            return
        if self._graphs is not None:
            self._decode_by_graph(self._graphs)
            return
        starts = [row.vision_start for row in self.rows] if self._maps else []
        lengths = [row.length for row in self.rows]
        step = DecodePass(self._cache, lengths, starts, self._model.num_vision_tokens, self._model.device)
        inputs = self._model.decoder.embed_tokens(self._last[: len(self.rows), None])
        hidden = self._forward(inputs, step.position_ids[:, None], step)
        for row in self.rows:
            row.length += 1
        self._finish_pass(self.rows, 0, step, hidden[:, 0])

    def _decode_by_graph(self, graphs: DecodeGraphs) -> None:
        """The same with rows and lengths rounded up; what the rows beyond the last one compute is never read."""
        total, capacity = rounded_length(max(row.length for row in self.rows) + 1), self._cache.capacity
        if total > capacity:
            self._cache.require(total, len(self.rows))
            graphs.forget()
        self._numbers.zero_()
        numbers = [(row.length, row.vision_start, len(row.tokens)) for row in self.rows]
        self._numbers[:, : len(self.rows)] = torch.tensor(numbers).T.to(self._numbers.device)
        graphs.run(self._fixed_step, rounded_rows(len(self.rows), self._size), total)
        for row, token in zip(self.rows, self._last[: len(self.rows)].tolist(), strict=True):
            row.length += 1
            row.tokens.append(token)

    def _fixed_step(self, rows: int, total: int) -> None:
        """Next token and attention of the first `rows` rows, on the device alone."""
        lengths, starts, counts = self._numbers[:, :rows]
        step = FixedDecodePass(
            self._cache, lengths, starts if self._maps else None, self._model.num_vision_tokens, total
        )
        hidden = self._forward(self._model.decoder.embed_tokens(self._last[:rows, None]), lengths[:, None], step)
        self._record(torch.arange(rows, device=lengths.device), counts, step, hidden[:, 0])

    def _finish_pass(self, rows: Sequence[_Row], first_row: int, step: Pass, hidden: torch.Tensor) -> None:
        """Store the attention of a pass and the tokens that it predicts."""
        places = torch.arange(first_row, first_row + len(rows), device=hidden.device)
        self._record(places, torch.tensor([len(row.tokens) for row in rows], device=hidden.device), step, hidden)
        for row, token in zip(rows, self._last[places].tolist(), strict=True):
            row.tokens.append(token)

    def _record(self, places: torch.Tensor, counts: torch.Tensor, step: Pass, hidden: torch.Tensor) -> None:
        """Keep the attention and the next token of the rows at `places`, which have generated `counts` tokens."""
        if step.row_sum is not None:
            self._steps[places, counts] = step.row_sum / self._model.decoder.config.num_hidden_layers
            self._last[places] = self._model.lm_head(hidden).argmax(dim=-1)
            return
        # The largest of values among which is NaN is NaN.
        largest, self._last[places] = self._model.lm_head(hidden).max(dim=-1)
        self._finite[places] = (self._finite[places] | (counts == 0)) & torch.isfinite(largest)

    def collect(self) -> Iterator[Answer]:
        """Take finished answers out of the batch; rows from its end move into their places."""
        for index in reversed(range(len(self.rows))):
            row = self.rows[index]
            if len(row.tokens) < self._max_new_tokens and row.tokens[-1] not in self._model.eos_token_ids:
                continue
            answer = self._answer(index)
            if answer.outcome == outcomes.NON_FINITE:
                self._cache.clear(index)
            last = self.rows.pop()
            if last is not row:
                self._cache.move(len(self.rows), index, last.length)
                self._steps[index] = self._steps[len(self.rows)]
                self._last[index] = self._last[len(self.rows)]
                self._finite[index] = self._finite[len(self.rows)]
                self.rows[index] = last
            yield answer

    def _answer(self, index: int) -> Answer:
        row = self.rows[index]
        if not self._maps:
            outcome = outcomes.OK if bool(self._finite[index]) else outcomes.NON_FINITE
            return Answer(row.question.index, tuple(row.tokens), outcome, None)
        steps = self._steps[index, : len(row.tokens)]
        aggregated = aggregate_steps(steps)
        if not bool(torch.isfinite(steps if aggregated is None else aggregated).all()):
            return Answer(row.question.index, tuple(row.tokens), outcomes.NON_FINITE, None)
        if aggregated is None:
            return Answer(row.question.index, tuple(row.tokens), outcomes.EOS_ONLY, None)
        return Answer(row.question.index, tuple(row.tokens), outcomes.OK, aggregated.cpu())

    def _embed(self, tokens: Sequence[int]) -> torch.Tensor:
        """(tokens, hidden) embeddings."""
        ids = torch.tensor(tokens, dtype=torch.int64, device=self._model.device)
        embedded: torch.Tensor = self._model.decoder.embed_tokens(ids)
        return embedded

    def _forward(self, inputs: torch.Tensor, position_ids: torch.Tensor, step: Pass) -> torch.Tensor:
        """The decoder's last hidden states, (rows, tokens, hidden)."""
        hidden: torch.Tensor = self._model.decoder(
            inputs_embeds=inputs, position_ids=position_ids, past_key_values=step, capture=step, use_cache=True
        ).last_hidden_state
        return hidden


def _takes_graphs(device: torch.device) -> bool:
    """Whether decode steps run as CUDA graphs: on NVIDIA's devices."""
    return device.type == "cuda" and torch.version.cuda is not None


def _passes(items: Sequence[Item], tokens: Sequence[int]) -> Iterator[Sequence[Item]]:
    """Items of a pass each: as few passes as keep to `_PREFILL_TOKENS`, padding included, and all of one size."""
    if not items:
        return
    at_most = max(1, _PREFILL_TOKENS // max(tokens))
    size = -(-len(items) // -(-len(items) // at_most))
    for start in range(0, len(items), size):
        yield items[start : start + size]
