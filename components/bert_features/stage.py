"""Embeddings of what the humans say: each distinct message once, and a table of who said it."""

import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from components.bert_features.encoder import Encoder, Tokens, load_encoder
from free2ds_common.datasets import DatasetWriter, open_dataset
from free2ds_common.errors import StageError
from free2ds_common.models import fingerprint, resolve_model
from free2ds_common.result import Counts, StageResult
from free2ds_common.runlog import Progress
from free2ds_common.schemas import RECORDS, TEXT_TURNS, text_messages_schema
from free2ds_common.settings import DTYPES, require_at_least, require_choice

_LOG = logging.getLogger(__name__)

# Messages tokenised, sorted by length and embedded together: enough for batches of one length, little memory.
_WINDOW = 16_384
_MAX_PADDING = 0.05
# A pass this full of one length is worth running by itself.
_WITHOUT_MASK = 0.25


@dataclass(frozen=True)
class BertFeaturesConfig:
    """Settings of the stage.

    Attributes:
        records: records/1 folder.
        model: Folder, object-store URI or hub id of a BERT encoder.
        revision: Hub branch or commit; unused for folders.
        batch_tokens: Tokens of one forward pass, padding included.
        dtype: One of `DTYPES`.
        part: "i/n": only the messages whose hash falls into part i of n, counted from 0; "0/1" takes all.
        features: Folder to write: `messages` (text_messages/1) and `turns` (text_turns/1).
    """

    records: str
    model: str
    revision: str
    batch_tokens: int
    dtype: str
    part: str
    features: str


def parse_part(part: str) -> tuple[int, int]:
    """The two numbers of "i/n".

    Raises:
        StageError: It is not i/n with 0 <= i < n.
    """
    first, slash, second = part.partition("/")
    if not slash or not first.isdigit() or not second.isdigit() or int(first) >= int(second):
        raise StageError(f"part: got {part!r}, wanted i/n with i from 0 to n - 1, such as 0/4.")
    return int(first), int(second)


def run(config: BertFeaturesConfig) -> StageResult:
    """Embed the distinct messages of all records.

    Args:
        config: Settings.

    Raises:
        StageError: Wrong settings, no such records or model.

    Source:
        method.md section 4: CLS of the last hidden state, no pooling layer, no normalisation, at most 512 tokens.
    """
    require_at_least("batch_tokens", config.batch_tokens, 1)
    require_choice("dtype", config.dtype, DTYPES)
    part, parts = parse_part(config.part)
    records = open_dataset(config.records, RECORDS)
    folder = Path(resolve_model(config.model, config.revision))
    encoder = load_encoder(folder, config.dtype)
    settings = {
        "model": config.model,
        "revision": config.revision,
        "model_fingerprint": fingerprint(folder),
        "dtype": str(encoder.dtype).removeprefix("torch."),
        "max_tokens": encoder.max_tokens,
        "part": config.part,
        "records_uri": config.records,
    }
    messages: dict[str, str] = {}
    num_turns = 0
    with DatasetWriter(Path(config.features) / "turns", TEXT_TURNS) as writer:
        for batch in records.batches(["unique_id", "record_key", "messages"]):
            rows = []
            for record in batch.to_pylist():
                for turn, message in enumerate(record["messages"]):
                    key = hashlib.sha256(message.encode()).hexdigest()
                    if int(key[:15], 16) % parts == part:
                        messages.setdefault(key, message)
                        rows.append(
                            {
                                "unique_id": record["unique_id"],
                                "record_key": record["record_key"],
                                "turn": turn,
                                "message_key": key,
                            }
                        )
            writer.write(rows)
            num_turns += len(rows)
        writer.manifest.update(settings, num_records=records.num_rows)
    _LOG.info("%d turns of %d records, %d distinct messages", num_turns, records.num_rows, len(messages))
    padding = _embed(messages, encoder, config, settings)
    metrics = {"turns": float(num_turns), "distinct_messages": float(len(messages)), "padding_share": padding}
    return StageResult(Counts(read=records.num_rows, written=records.num_rows), metrics, settings)


def _embed(messages: dict[str, str], encoder: Encoder, config: BertFeaturesConfig, settings: dict) -> float:
    """Write every message with its embedding; returns the share of padding in what the model read."""
    progress = Progress(len(messages), "messages", _LOG)
    real = padded = 0
    with DatasetWriter(Path(config.features) / "messages", text_messages_schema(encoder.dimensions)) as writer:
        for keys, tokens in _windows(messages, encoder):
            embeddings = np.empty((len(keys), encoder.dimensions), dtype=np.float32)
            for chosen in token_batches(tokens.lengths, config.batch_tokens):
                embeddings[chosen] = encoder.embed(tokens, chosen)
                real += int(tokens.lengths[chosen].sum())
                padded += len(chosen) * int(tokens.lengths[chosen].max())
                progress.add(len(chosen))
            if not np.isfinite(embeddings).all():
                raise RuntimeError("the encoder gave NaN or infinite embeddings; try --dtype float32")
            columns = [
                pa.array(keys),
                pa.array([messages[key] for key in keys]),
                pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), encoder.dimensions),
            ]
            writer.write(pa.table(columns, names=["message_key", "message", "embedding"]))
        writer.manifest.update(settings)
    progress.close()
    if torch.cuda.is_available():
        _LOG.info("peak GPU memory %.2f GiB", torch.cuda.max_memory_allocated() / 2**30)
    return 1 - real / padded if padded else 0.0


def _windows(messages: dict[str, str], encoder: Encoder) -> Iterator[tuple[list[str], Tokens]]:
    """Keys and tokens, window by window; the next window is tokenised while the model works on this one."""
    keys = list(messages)

    def prepare(start: int) -> tuple[list[str], Tokens]:
        chosen = keys[start : start + _WINDOW]
        return chosen, encoder.tokenize([messages[key] for key in chosen])

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer") as pool:
        pending = pool.submit(prepare, 0) if keys else None
        for start in range(_WINDOW, len(keys) + _WINDOW, _WINDOW):
            assert pending is not None
            window = pending.result()
            if start < len(keys):
                pending = pool.submit(prepare, start)
            yield window


def token_batches(lengths: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """Rows for one forward pass each: neighbours in length, at most `batch_tokens` tokens and little padding.

    Rows of one length need no mask, which the fused kernel likes; lengths are mixed where one of them is too rare.

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
        alike = int((chosen == longest).sum())
        if alike * longest >= batch_tokens * _WITHOUT_MASK:
            stop = start + alike
        else:
            padded = longest * np.arange(1, len(chosen) + 1)
            stop = start + int(np.flatnonzero(np.cumsum(chosen) >= padded * (1 - _MAX_PADDING))[-1]) + 1
        yield order[start:stop]
        start = stop
