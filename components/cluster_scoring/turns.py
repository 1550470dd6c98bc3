"""Joins the turns to the distinct messages: which row of the embeddings each turn of each record is."""

import binascii
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.cluster_scoring.features import BLOCK_ROWS, Features
from free2ds_common.datasets import Dataset
from free2ds_common.errors import StageError


@dataclass(frozen=True)
class Turns:
    """Who said which distinct message, ordered by record and turn.

    Attributes:
        message: int64, (turns,), row number of the distinct message.
        starts: int64, (records,), first turn of each record.
        unique_id: int64, (records,), ascending.
        record_key: One per record.
    """

    message: np.ndarray
    starts: np.ndarray
    unique_id: np.ndarray
    record_key: pa.ChunkedArray

    @property
    def per_record(self) -> np.ndarray:
        """int64, (records,), number of turns of each record."""
        return np.diff(self.starts, append=len(self.message))


def join_turns(features: Features) -> Turns:
    """Replace message keys by row numbers and put the turns of all parts in order.

    Raises:
        StageError: A key is not a hex sha256, a turn's message has no embedding, or a record lacks a turn.
    """
    message = pc.index_in(_message_keys(features.turns), value_set=_message_keys(features.messages).combine_chunks())
    if message.null_count:
        raise StageError(
            f"features: {message.null_count} turns without an embedding. Rerun bert_features for all parts."
        )
    table = pa.concat_tables([part.table(["unique_id", "turn"]) for part in features.turns])
    if not table.num_rows:
        raise StageError("features: no turns in them. Check that ingest wrote records.")
    unique_id, turn = (table.column(name).to_numpy() for name in ("unique_id", "turn"))
    order = np.lexsort((turn, unique_id))
    unique_id, turn = unique_id[order], turn[order]
    starts = np.flatnonzero(np.diff(unique_id, prepend=unique_id[0] - 1))
    expected = np.arange(len(turn)) - np.repeat(starts, np.diff(starts, append=len(turn)))
    wrong = np.flatnonzero(turn != expected)
    if len(wrong):
        raise StageError(
            f"features: turns of record {unique_id[wrong[0]]} are missing or there twice. Rerun bert_features."
        )
    rows = message.to_numpy().astype(np.int64)[order]
    return Turns(rows, starts, unique_id[starts], _record_keys(features.turns))


def _message_keys(tables: Sequence[Dataset]) -> pa.ChunkedArray:
    """`message_key` of all parts as 32 bytes each: as hex they would be most of the stage's memory."""
    chunks = []
    for part in tables:
        for batch in part.batches(["message_key"], BLOCK_ROWS):
            try:
                packed = binascii.unhexlify(batch.column(0).cast(pa.binary()).cast(pa.binary(64)).buffers()[1])
            except (pa.ArrowInvalid, binascii.Error) as error:
                raise StageError("features: a message_key is not a hex sha256. Rerun bert_features.") from error
            chunks.append(pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(batch), [None, pa.py_buffer(packed)]))
    return pa.chunked_array(chunks, pa.binary(32))


def _record_keys(turn_tables: Sequence[Dataset]) -> pa.ChunkedArray:
    """One key per record, by ascending unique_id; each record has one turn 0."""
    firsts = [
        pa.Table.from_batches([batch.filter(pc.equal(batch.column(2), 0))]).select(["unique_id", "record_key"])
        for part in turn_tables
        for batch in part.batches(["unique_id", "record_key", "turn"], BLOCK_ROWS)
    ]
    return pa.concat_tables(firsts).sort_by("unique_id").column("record_key")
