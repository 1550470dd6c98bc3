"""The attention stage's side of the results store: which records have a result there, and keeping new ones."""

import contextlib
import logging
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from free2ds_common import outcomes
from free2ds_common.inference.asked import KIND, deciding_settings
from free2ds_common.places import place
from free2ds_common.results_store.found import Found
from free2ds_common.results_store.key import bucket_of
from free2ds_common.results_store.pictures import Identity, picture_identities
from free2ds_common.results_store.store import Kind, ResultsStore
from free2ds_common.results_store.writer import PartWriter
from free2ds_common.settings import AttentionConfig, AttentionSettings
from free2ds_common.stopping import stop_requests

# What a model says of a record and will say again. Not kept: what costs nothing (no picture, no question), and what may
# be another thing the next time (a picture that cannot be read, attention that is not finite).
KEPT = (outcomes.OK, outcomes.EOS_ONLY, outcomes.PROMPT_TOO_LONG)
# Of them, those that the model has answered.
ANSWERED = (outcomes.OK, outcomes.EOS_ONLY)


def attention_kind(positions: int) -> Kind:
    """Results with maps of so many vision tokens; `tokens` and `unknown_tokens` are of the question."""
    columns = [
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("num_steps", pa.int32(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("unknown_tokens", pa.int32(), nullable=False),
        pa.field("map", pa.list_(pa.float32(), positions)),
    ]
    return Kind(KIND, pa.schema(columns))


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
    store = results_store(config, settings)
    log.info("looking %d records up in %s", len(records), store.uri)
    identities = picture_identities(config.image_root_uri, asked_images(records))
    keys = result_keys(store, identities, records)
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="free2ds-results-"))
        wanted = {key for key, _ in keys.values()}
        found = store.take(wanted, (bucket for _, bucket in keys.values()), Path(scratch))
        stopping = stack.enter_context(stop_requests())
        results = AttentionResults(keys, found, stack.enter_context(PartWriter(store)), stopping)
        log.info("%s: %d of %d results are there", store.uri, len(results.reused), len(keys))
        yield results


def results_store(config: AttentionSettings, settings: Mapping[str, Any]) -> ResultsStore:
    """The results of a model with its settings.

    Args:
        config: Says where the store is, and how the model is called.
        settings: As in the attention stage's manifest.

    Raises:
        StageError: `cache_uri` is no location of any store.
    """
    told = {"model": config.model, "revision": config.revision}
    deciding = deciding_settings(config, settings)
    return ResultsStore(config.cache_uri, attention_kind(settings["grid"] ** 2), deciding, told)


def unasked(record: Mapping[str, Any]) -> str | None:
    """The outcome of a record that no model is asked about; None for any other."""
    if not record["image"]:
        return outcomes.TEXT_ONLY
    return outcomes.NO_QUESTION if record["question"] is None else None


def asked_images(records: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The pictures of the records that a model is asked about."""
    return (record["image"] for record in records if unasked(record) is None)


def result_keys(
    store: ResultsStore, identities: Mapping[str, Identity | None], records: Sequence[Mapping[str, Any]]
) -> dict[int, tuple[bytes, int]]:
    """Key and bucket of every record that the model is asked about and whose picture can be told from others.

    Args:
        store: The model's results.
        identities: Of the pictures of these records.
        records: Rows of records/2: image, record_key, question.
    """
    keys = {}
    for index, record in enumerate(records):
        if unasked(record) is None and (identity := identities[record["image"]]) is not None:
            key = store.key({"question": record["question"], "picture": list(identity)})
            keys[index] = (key, bucket_of(place(record["image"], record["record_key"])))
    return keys


def terse_metadata(display_name: str, settings: Mapping[str, Any], rows: int) -> dict[str, str | int]:
    """What an attention artifact carries: many of them come together; the manifest holds the rest.

    Args:
        display_name: What tells it from the others.
        settings: As in its manifest; empty where none are known.
        rows: Of it.
    """
    fingerprints = re.sub(r"([0-9a-f]{12})[0-9a-f]+", r"\1", settings.get("model_fingerprint", ""))
    return {"display_name": display_name, "fingerprint": fingerprints, "rows": rows}
