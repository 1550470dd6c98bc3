"""Embeddings of what the humans say: each distinct message once, and a table of who said it."""

import hashlib
import itertools
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from components.bert_features.config import BertFeaturesConfig
from components.bert_features.encoder import Encoder, Tokens, load_encoder
from free2ds_common.checkpoints import fingerprint, resolve_model
from free2ds_common.datasets import Dataset, DatasetWriter, open_dataset
from free2ds_common.inference.device import dtype_name, log_peak_memory
from free2ds_common.inference.heap import FreedMemory
from free2ds_common.result import Counts, StageResult
from free2ds_common.runlog import Progress
from free2ds_common.schemas import RECORDS, TEXT_TURNS, text_messages_schema

logger = logging.getLogger(__name__)

# Messages sorted by length and embedded together: enough for batches of one length, 200 MB of BERT-base's embeddings.
_WINDOW = 65_536
# The first is small, so that the model starts soon.
_FIRST_WINDOW = 4096
# Where messages are long, fewer: 250 characters each on average.
_WINDOW_CHARACTERS = 16 << 20
_MAX_PADDING = 0.05
_MOST_FREED_BYTES = 512 << 20
# Of a message's hash; two of 100 million messages share so much with a probability of 1e-23.
_SEEN_BYTES = 16


def run(config: BertFeaturesConfig) -> StageResult:
    """Embed the distinct messages of all records.

    Args:
        config: Settings.

    Raises:
        StageError: Wrong settings, no such records or model.

    Source:
        method.md section 4: CLS of the last hidden state, no pooling layer, no normalisation, at most 512 tokens.
    """
    config.check()
    part, parts = config.part_numbers()
    records = open_dataset(config.records, RECORDS)
    folder = Path(resolve_model(config.model, config.revision))
    encoder = load_encoder(folder, config.dtype)
    settings = {
        "model": config.model,
        "revision": config.revision,
        "model_fingerprint": fingerprint(folder),
        "dtype": dtype_name(encoder.dtype),
        "max_tokens": encoder.max_tokens,
        "part": config.part,
        "records_sha256": records.sha256,
    }
    batch_tokens = min(config.batch_tokens, encoder.most_batch_tokens)
    if batch_tokens < config.batch_tokens:
        logger.info("%d tokens a pass instead of %d: more would not be faster here", batch_tokens, config.batch_tokens)
    output = Path(config.features)
    with (
        DatasetWriter(output / "turns", TEXT_TURNS) as turns,
        DatasetWriter(output / "messages", text_messages_schema(encoder.dimensions)) as embeddings,
    ):
        source = MessageSource(records, turns, part, parts)
        padding = _embed(source, encoder, batch_tokens, embeddings)
        turns.manifest.update(settings)
        embeddings.manifest.update(settings)
    logger.info("%d turns of %d records, %d distinct messages", source.num_turns, records.num_rows, source.num_distinct)
    log_peak_memory(logger, encoder.device)
    metrics = {
        "turns": float(source.num_turns),
        "distinct_messages": float(source.num_distinct),
        "padding_share": padding,
    }
    return StageResult(Counts(read=records.num_rows, written=records.num_rows), metrics, settings)


class MessageSource:
    """The distinct messages of all records as a stream; on the way it writes the table of who said them.

    Of a message that was seen only its hash is kept, so memory does not grow with the texts.

    Attributes:
        num_records: Records read so far.
        num_turns: Turns of the part so far.
    """

    def __init__(self, records: Dataset, turns: DatasetWriter, part: int, parts: int) -> None:
        """Prepare.

        Args:
            records: records/1.
            turns: Gets a text_turns/1 row per turn of the part.
            part: Which messages to take: those whose hash falls into this part.
            parts: Number of parts.
        """
        self._records, self._turns, self._part, self._parts = records, turns, part, parts
        self._seen: set[bytes] = set()
        self.num_records = self.num_turns = 0

    @property
    def total_records(self) -> int:
        """Records that there are to read."""
        return self._records.num_rows

    @property
    def num_distinct(self) -> int:
        """Distinct messages so far."""
        return len(self._seen)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Key and text of every message that was not seen before."""
        for batch in self._records.batches(["unique_id", "record_key", "messages"]):
            owners: list[int] = []
            numbers: list[int] = []
            keys: list[str] = []
            for row, said in enumerate(batch.column(2).to_pylist()):
                for turn, message in enumerate(said):
                    digest = hashlib.sha256(message.encode())
                    key = digest.hexdigest()
                    if int(key[:15], 16) % self._parts != self._part:
                        continue
                    owners.append(row)
                    numbers.append(turn)
                    keys.append(key)
                    short = digest.digest()[:_SEEN_BYTES]
                    if short not in self._seen:
                        self._seen.add(short)
                        yield key, message
                self.num_records += 1
            picked = pa.array(owners, pa.int64())
            columns = [batch.column(0).take(picked), batch.column(1).take(picked), pa.array(numbers, pa.int32())]
            self._turns.write(pa.table([*columns, pa.array(keys, pa.string())], names=TEXT_TURNS.arrow.names))
            self.num_turns += len(keys)


def _embed(source: MessageSource, encoder: Encoder, batch_tokens: int, writer: DatasetWriter) -> float:
    """Write every message with its embedding; returns the share of padding in what the model read."""
    progress = Progress(source.total_records, "records", logger)
    freed = FreedMemory(_MOST_FREED_BYTES)
    real = padded = 0
    for window in _windows(source, encoder):
        lengths = window.tokens.lengths
        embeddings = np.empty((len(lengths), encoder.dimensions), dtype=np.float32)
        embedded = 0
        for chosen in token_batches(lengths, batch_tokens):
            embeddings[chosen] = encoder.embed(window.tokens, chosen)
            real += int(lengths[chosen].sum())
            padded += len(chosen) * int(lengths[chosen].max())
            # A window may take minutes: its records count as done in step with its messages.
            before, embedded = embedded, embedded + len(chosen)
            freed.limit()
            progress.add(window.num_records * embedded // len(lengths) - window.num_records * before // len(lengths))
        if not np.isfinite(embeddings).all():
            raise RuntimeError("the encoder gave NaN or infinite embeddings; try --dtype float32")
        columns = [
            pa.array(window.keys),
            pa.array(window.messages),
            pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), encoder.dimensions),
        ]
        writer.write(pa.table(columns, names=["message_key", "message", "embedding"]))
    progress.close()
    return 1 - real / padded if padded else 0.0


@dataclass(frozen=True)
class Window:
    """Messages that are sorted by length and embedded together.

    Attributes:
        keys: Of the messages.
        messages: Texts.
        tokens: Their token ids.
        num_records: Records that were read for it.
    """

    keys: list[str]
    messages: list[str]
    tokens: Tokens
    num_records: int


def _windows(source: MessageSource, encoder: Encoder) -> Iterator[Window]:
    """Window by window; the next one is read and tokenised while the model works on this one."""
    stream = iter(source)

    def prepare(most: int) -> Window | None:
        before, characters = source.num_records, 0
        keys: list[str] = []
        messages: list[str] = []
        for key, message in itertools.islice(stream, most):
            keys.append(key)
            messages.append(message)
            characters += len(message)
            if characters >= _WINDOW_CHARACTERS:
                break
        return Window(keys, messages, encoder.tokenize(messages), source.num_records - before) if keys else None

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer") as pool:
        pending = pool.submit(prepare, _FIRST_WINDOW)
        while (window := pending.result()) is not None:
            pending = pool.submit(prepare, _WINDOW)
            yield window


def token_batches(lengths: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """Rows for one forward pass each: neighbours in length, at most `batch_tokens` tokens and little padding.

    A pass is filled up with shorter rows, so passes of a length mostly have the same size: on a CPU, kernels are
    compiled and kept for each size, and the heap serves the same sizes again.

    Args:
        lengths: int, (n,), tokens per message.
        batch_tokens: Tokens of a pass with padding; a single longer message makes a pass of its own.

    Yields:
        int64 indices into `lengths`; every index once. At most `_MAX_PADDING` of a pass's tokens are padding.
    """
    order = np.argsort(lengths, kind="stable")[::-1]
    sorted_lengths = lengths[order]
    start = 0
    while start < len(order):
        longest = int(sorted_lengths[start])
        most = max(1, batch_tokens // max(1, longest))
        chosen = sorted_lengths[start : start + most]
        padded = longest * np.arange(1, len(chosen) + 1)
        stop = start + int(np.flatnonzero(np.cumsum(chosen) >= padded * (1 - _MAX_PADDING))[-1]) + 1
        yield order[start:stop]
        start = stop
