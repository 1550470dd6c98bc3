"""The stage's side of the results store: embeddings of earlier runs, and keeping new ones."""

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from components.bert_features.config import BertFeaturesConfig
from components.bert_features.messages import MessageSource
from free2ds_common.datasets import Dataset
from free2ds_common.results_store.found import Found
from free2ds_common.results_store.key import bucket_of
from free2ds_common.results_store.store import Kind, ResultsStore
from free2ds_common.results_store.writer import PartWriter
from free2ds_common.stopping import stop_requests

logger = logging.getLogger(__name__)

# Raised when the same model and message give another embedding than before.
EMBEDDING_VERSION = 1
# Of what the stage's manifest says: what decides an embedding. Not the device, and not the model's name or place.
_DECIDING = ("model_fingerprint", "dtype", "max_tokens")


def text_kind(dimensions: int) -> Kind:
    """Results with embeddings of so many numbers; `tokens` and `unknown_tokens` as `Encoder.count_unknown`."""
    columns = [
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("unknown_tokens", pa.int32(), nullable=False),
        pa.field("embedding", pa.list_(pa.float32(), dimensions), nullable=False),
    ]
    return Kind("text", pa.schema(columns))


class TextResults:
    """Results of messages, by message key.

    Attributes:
        reused: Messages taken from the store so far.
        stopping: Whether the stage was asked to end.
    """

    def __init__(
        self,
        store: ResultsStore | None,
        found: Found | None,
        writer: PartWriter | None,
        stopping: Callable[[], bool],
    ) -> None:
        """Hold what was found; without a store nothing is found or kept."""
        self._store, self._found, self._writer = store, found, writer
        self.stopping = stopping
        self.reused = 0

    def is_there(self, message_key: str) -> bool:
        """Whether the store has a message's result."""
        return self._found is not None and self._key(message_key) in self._found

    def take(self, message_key: str) -> dict[str, Any]:
        """A result that is there: the columns of `text_kind`."""
        assert self._found is not None
        self.reused += 1
        return self._found.row(self._key(message_key))

    def keep(self, message_key: str, embedding: np.ndarray, unknown: int, tokens: int) -> None:
        """Keep a new result, unless it is not finite."""
        if self._writer is None or not np.isfinite(embedding).all():
            return
        result = {"tokens": tokens, "unknown_tokens": unknown, "embedding": embedding}
        self._writer.add(self._key(message_key), _bucket(message_key), result)

    def flush(self) -> int:
        """Write what is held; returns how many results were written in all."""
        if self._writer is None:
            return 0
        self._writer.flush()
        return self._writer.saved

    def _key(self, message_key: str) -> bytes:
        assert self._store is not None
        return self._store.key({"message": message_key})


def _bucket(message_key: str) -> int:
    return bucket_of(int(message_key[:16], 16))


@contextmanager
def open_results(
    config: BertFeaturesConfig, settings: Mapping[str, Any], dimensions: int, records: Dataset
) -> Iterator[TextResults]:
    """Look the messages up in the results store, and keep new results there until the block ends.

    Args:
        config: Settings and ports; without a `cache_uri` nothing is found or kept.
        settings: The stage's settings, as its manifest has them.
        dimensions: Of an embedding.
        records: Whose messages they are; read once more for their keys.

    Raises:
        StageError: The store refuses to answer.
        StoreError: The store does not answer.
    """
    if not config.cache_uri:
        yield TextResults(None, None, None, lambda: False)
        return
    deciding = {name: settings[name] for name in _DECIDING} | {"embedding_version": EMBEDDING_VERSION}
    told = {"model": config.model, "revision": config.revision}
    store = ResultsStore(config.cache_uri, text_kind(dimensions), deciding, told)
    wanted: set[bytes] = set()
    buckets: set[int] = set()
    for message_key, _ in MessageSource(records, None, *config.part_numbers()):
        wanted.add(store.key({"message": message_key}))
        buckets.add(_bucket(message_key))
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="free2ds-results-"))
        found = store.take(wanted, buckets, Path(scratch))
        logger.info("%s: %d of %d results are there", store.uri, len(found), len(wanted))
        del wanted
        stopping = stack.enter_context(stop_requests())
        yield TextResults(store, found, stack.enter_context(PartWriter(store)), stopping)
