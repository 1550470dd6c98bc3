"""Embeddings of what the humans say: each distinct message once, and a table of who said it."""

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa

from components.bert_features.batching import read_windows, token_batches
from components.bert_features.config import BertFeaturesConfig
from components.bert_features.encoder import Encoder, load_encoder
from components.bert_features.messages import MessageSource
from free2ds_common.checkpoints import fingerprint, resolve_model
from free2ds_common.datasets import DatasetWriter, open_dataset
from free2ds_common.inference.device import dtype_name, log_peak_memory
from free2ds_common.inference.heap import FreedMemory
from free2ds_common.result import Counts, StageResult
from free2ds_common.runlog import Progress
from free2ds_common.schemas import RECORDS, TEXT_TURNS, text_messages_schema

logger = logging.getLogger(__name__)

_MAX_FREED_BYTES = 512 << 20


def run(config: BertFeaturesConfig) -> StageResult:
    """Embed the distinct messages of all records.

    Args:
        config: Settings.

    Raises:
        StageError: Wrong settings, no such records or model.

    Source:
        docs/method.md, section 4: CLS of the last hidden state, no pooling layer, no normalisation, at most 512 tokens.
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
    batch_tokens = min(config.batch_tokens, encoder.max_batch_tokens)
    if batch_tokens < config.batch_tokens:
        logger.info("%d tokens a batch instead of %d: more would not be faster here", batch_tokens, config.batch_tokens)
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


def _embed(source: MessageSource, encoder: Encoder, batch_tokens: int, writer: DatasetWriter) -> float:
    """Write every message with its embedding; returns the share of padding in what the model read."""
    progress = Progress(source.total_records, "records", logger)
    freed = FreedMemory(_MAX_FREED_BYTES)
    real = padded = 0
    for window in read_windows(source, encoder):
        lengths = window.tokens.lengths
        embeddings = np.empty((len(lengths), encoder.dimensions), dtype=np.float32)
        embedded = 0
        for batch in token_batches(lengths, batch_tokens):
            embeddings[batch] = encoder.embed(window.tokens, batch)
            real += int(lengths[batch].sum())
            padded += len(batch) * int(lengths[batch].max())
            # A window may take minutes: its records count as done in step with its messages.
            before, embedded = embedded, embedded + len(batch)
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
