"""Embeddings of what the humans say: each distinct message once, and a table of who said it."""

import logging
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from components.bert_features.batching import read_windows, token_batches
from components.bert_features.config import BertFeaturesConfig
from components.bert_features.encoder import Encoder, load_encoder
from components.bert_features.messages import MessageSource
from components.bert_features.results import TextResults, open_results
from free2ds_common.checkpoints import fingerprint, resolve_model
from free2ds_common.datasets import DatasetWriter, open_dataset
from free2ds_common.errors import StageError
from free2ds_common.inference.device import choose_device, device_name, dtype_name, log_peak_memory
from free2ds_common.inference.heap import FreedMemory
from free2ds_common.inference.unknown_words import UnknownWords
from free2ds_common.lineage import MADE_FROM, made_from
from free2ds_common.result import Counts, StageResult
from free2ds_common.runlog import Progress
from free2ds_common.schemas import RECORDS, TEXT_TURNS, text_messages_schema
from free2ds_common.stopping import Stopped

logger = logging.getLogger(__name__)

_MAX_FREED_BYTES = 512 << 20


def run(config: BertFeaturesConfig) -> StageResult:
    """Embed the distinct messages of all records.

    Args:
        config: Settings.

    Raises:
        StageError: Wrong settings, no such records or model, no GPU where one is required, or most words are unknown to
            the model.
        Stopped: The system asked the process to end; what was computed is in the results store.

    Source:
        docs/method.md, section 4: CLS of the last hidden state, no pooling layer, no normalisation, at most 512 tokens.
    """
    config.check()
    part, parts = config.part_numbers()
    device = choose_device(config.require_gpu)
    logger.info("%s runs on: %s", config.model, device_name(device))
    records = open_dataset(config.records, RECORDS)
    folder = Path(resolve_model(config.model, config.revision))
    encoder = load_encoder(folder, config.dtype, device)
    settings = {
        "model": config.model,
        "revision": config.revision,
        "model_fingerprint": fingerprint(folder),
        "dtype": dtype_name(encoder.dtype),
        "device": device_name(encoder.device),
        "max_tokens": encoder.max_tokens,
        "part": config.part,
        "records_sha256": records.sha256,
    }
    batch_tokens = min(config.batch_tokens, encoder.max_batch_tokens)
    if batch_tokens < config.batch_tokens:
        logger.info("%d tokens a batch instead of %d: more would not be faster here", batch_tokens, config.batch_tokens)
    output = Path(config.features)
    started = time.monotonic()
    with (
        open_results(config, settings, encoder.dimensions, records) as results,
        DatasetWriter(output / "turns", TEXT_TURNS) as turns,
        DatasetWriter(output / "messages", text_messages_schema(encoder.dimensions)) as embeddings,
    ):
        turns.manifest[MADE_FROM] = embeddings.manifest[MADE_FROM] = made_from(records=config.records)
        source = MessageSource(records, turns, part, parts)
        words = UnknownWords(folder)
        padding = _embed(source, encoder, batch_tokens, results, embeddings, words)
        reused, computed = results.reused, source.num_distinct - results.reused
        cost = {"reused": reused, "computed": computed, "device_seconds": round(time.monotonic() - started, 3)}
        turns.manifest.update(settings, **cost)
        embeddings.manifest.update(settings, **cost)
    logger.info("%d turns of %d records, %d distinct messages", source.num_turns, records.num_rows, source.num_distinct)
    log_peak_memory(logger, encoder.device)
    metrics = {
        "turns": float(source.num_turns),
        "distinct_messages": float(source.num_distinct),
        "padding_share": padding,
        "unknown_token_share": words.share,
        "reused": float(reused),
        "computed": float(computed),
    }
    return StageResult(Counts(read=records.num_rows, written=records.num_rows), metrics, settings)


def _embed(
    source: MessageSource,
    encoder: Encoder,
    batch_tokens: int,
    results: TextResults,
    writer: DatasetWriter,
    words: UnknownWords,
) -> float:
    """Write every message with its embedding and count unknown words.

    Returns:
        The share of padding in what the model read.

    Raises:
        StageError: Most words are unknown, in the first window or in all; or an embedding is not finite.
        Stopped: The system asked the process to end.
    """
    progress = Progress(source.total_records, "records", logger)
    freed = FreedMemory(_MAX_FREED_BYTES)
    real = padded = 0
    for window in read_windows(source, encoder, results.is_there):
        first = not words.total
        embeddings = np.empty((len(window.keys), encoder.dimensions), dtype=np.float32)
        for index in np.setdiff1d(np.arange(len(window.keys)), window.new).tolist():
            found = results.take(window.keys[index])
            embeddings[index] = found["embedding"]
            words.add(found["unknown_tokens"], found["tokens"])
        unknown, tokens = encoder.count_unknown(window.tokens)
        words.add(int(unknown.sum()), int(tokens.sum()))
        if first:
            words.check()
        lengths = window.tokens.lengths
        padded_lengths = encoder.padded_lengths(lengths)
        embedded = 0
        for batch in token_batches(padded_lengths, batch_tokens):
            computed = encoder.embed(window.tokens, batch)
            embeddings[window.new[batch]] = computed
            for row, index in enumerate(batch.tolist()):
                key = window.keys[window.new[index]]
                results.keep(key, computed[row], int(unknown[index]), int(tokens[index]))
            real += int(lengths[batch].sum())
            padded += int(padded_lengths[batch].sum())
            # A window may take minutes: its records count as done in step with its messages.
            before, embedded = embedded, embedded + len(batch)
            freed.limit()
            progress.add(window.num_records * embedded // len(lengths) - window.num_records * before // len(lengths))
            if results.stopping():
                raise Stopped(f"stopped as asked to; {results.flush()} new results are kept: run again to go on")
        if not len(lengths):
            progress.add(window.num_records)
        if not np.isfinite(embeddings).all():
            raise StageError(
                f"{words.where}: the model gave NaN or infinite embeddings in {dtype_name(encoder.dtype)}. "
                "Try dtype float32."
            )
        columns = [
            pa.array(window.keys),
            pa.array(window.messages),
            pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), encoder.dimensions),
        ]
        writer.write(pa.table(columns, names=["message_key", "message", "embedding"]))
    words.check()
    if warning := words.warning():
        logger.warning("%s", warning)
    progress.close()
    return 1 - real / padded if padded else 0.0
