"""The attention stage's side of the results store: which records have a result there, and keeping new ones."""

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from free2ds_common import outcomes
from free2ds_common.places import place
from free2ds_common.results_store.found import Found
from free2ds_common.results_store.key import bucket_of
from free2ds_common.results_store.pictures import picture_identities
from free2ds_common.results_store.store import Kind, ResultsStore
from free2ds_common.results_store.writer import PartWriter
from free2ds_common.settings import AttentionConfig
from free2ds_common.stopping import stop_requests

# What a model says of a record and will say again. Not kept: what costs nothing (no picture, no question, too long a
# prompt), and what may be another thing the next time (a picture that cannot be read, attention that is not finite).
KEPT = (outcomes.OK, outcomes.EOS_ONLY)
# Of what `settings` of the stage says: what decides a map. Not the device, and not the model's name or place.
_DECIDING = (
    "model_fingerprint",
    "prompt",
    "preprocessing",
    "max_new_tokens",
    "dtype",
    "grid",
    "capture_version",
)


def attention_kind(positions: int) -> Kind:
    """Results with maps of so many vision tokens; `tokens` and `unknown_tokens` are of the question."""
    columns = [
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("num_steps", pa.int32(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("unknown_tokens", pa.int32(), nullable=False),
        pa.field("map", pa.list_(pa.float32(), positions)),
    ]
    return Kind("attention", pa.schema(columns))


class AttentionResults:
    """Results of a shard's records.

    Attributes:
        reused: Indices of the records that have one in the store.
        broken: Parts of the store that could not be used.
        stopping: Whether the stage was asked to end.
    """

    def __init__(
        self,
        keys: Mapping[int, tuple[bytes, int]],
        found: Found | None,
        writer: PartWriter | None,
        stopping: Callable[[], bool],
    ) -> None:
        """Hold keys and buckets of the records that the model may be asked about, and what was found of them."""
        self._keys, self._found, self._writer = keys, found, writer
        self.stopping = stopping
        self.broken = [] if found is None else found.broken
        self.reused = {index for index, (key, _) in keys.items() if found is not None and key in found}
        # Of records on their way: tokens of their question.
        self._words: dict[int, tuple[int, int]] = {}

    def row(self, index: int) -> dict[str, Any]:
        """The result of a record of `reused`: the columns of `attention_kind`."""
        assert self._found is not None
        return self._found.row(self._keys[index][0])

    def count_words(self, index: int, unknown: int, tokens: int) -> None:
        """Remember how many tokens a record's question has, and how many stand for an unknown word."""
        if self._writer is not None:
            self._words[index] = (unknown, tokens)

    def keep(self, index: int, outcome: str, num_steps: int, values: np.ndarray | None) -> None:
        """Keep a new result, if it is one to keep."""
        unknown, tokens = self._words.pop(index, (0, 0))
        if self._writer is None or outcome not in KEPT or index not in self._keys:
            return
        key, bucket = self._keys[index]
        result = {"outcome": outcome, "num_steps": num_steps, "tokens": tokens, "unknown_tokens": unknown}
        self._writer.add(key, bucket, {**result, "map": values})
        if self.stopping():
            self._writer.flush()

    def asked_to_stop(self) -> bool:
        """Whether the stage was asked to end; what is finished is kept at once, before it may be killed."""
        if not self.stopping():
            return False
        if self._writer is not None:
            self._writer.flush()
        return True

    @property
    def saved(self) -> int:
        """Results written to the store."""
        return 0 if self._writer is None else self._writer.saved


@contextmanager
def open_results(
    config: AttentionConfig, settings: Mapping[str, Any], records: Sequence[Mapping[str, Any]], log: logging.Logger
) -> Iterator[AttentionResults]:
    """Look a shard's records up in the results store, and keep new results there until the block ends.

    Args:
        config: Settings and ports; without a `cache_uri` nothing is found or kept.
        settings: The stage's settings, as its manifest has them.
        records: The shard.
        log: The stage's logger.

    Raises:
        StageError: The store or the pictures' one refuses to answer.
        StoreError: One of them does not answer.
    """
    if not config.cache_uri:
        yield AttentionResults({}, None, None, lambda: False)
        return
    deciding = {name: settings[name] for name in _DECIDING} | {"model_type": config.model_type}
    told = {"model": config.model, "revision": config.revision}
    store = ResultsStore(config.cache_uri, attention_kind(settings["grid"] ** 2), deciding, told)
    log.info("looking %d records up in %s", len(records), store.uri)
    keys = _keys(store, config.image_root_uri, records)
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="free2ds-results-"))
        wanted = {key for key, _ in keys.values()}
        found = store.take(wanted, (bucket for _, bucket in keys.values()), Path(scratch))
        stopping = stack.enter_context(stop_requests())
        results = AttentionResults(keys, found, stack.enter_context(PartWriter(store)), stopping)
        log.info("%s: %d of %d results are there", store.uri, len(results.reused), len(keys))
        yield results


def _keys(
    store: ResultsStore, image_root_uri: str, records: Sequence[Mapping[str, Any]]
) -> dict[int, tuple[bytes, int]]:
    """Key and bucket of every record that the model is asked about and whose picture can be told from others."""
    asked = [index for index, record in enumerate(records) if record["image"] and record["question"] is not None]
    identities = picture_identities(image_root_uri, (records[index]["image"] for index in asked))
    keys = {}
    for index in asked:
        record = records[index]
        if (identity := identities[record["image"]]) is not None:
            key = store.key({"question": record["question"], "picture": list(identity)})
            keys[index] = (key, bucket_of(place(record["image"], record["record_key"])))
    return keys
