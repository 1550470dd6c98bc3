"""Takes from the results store what both models said in earlier runs; what is left over is theirs to score."""

import contextlib
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from components.llava_attention.config import LlavaAttentionSettings
from components.mgm_attention.config import MgmAttentionSettings
from components.reuse.config import ReuseConfig
from free2ds_common.datasets import Dataset, DatasetWriter, open_dataset
from free2ds_common.errors import SettingError
from free2ds_common.inference.asked import known_settings
from free2ds_common.inference.attention_results import (
    ANSWERED,
    asked_images,
    result_keys,
    results_store,
    terse_metadata,
    unasked,
)
from free2ds_common.inference.unknown_words import UnknownWords
from free2ds_common.left_over import LEFT_OVER, LeftOver
from free2ds_common.lineage import MADE_FROM, made_from
from free2ds_common.options import read_options
from free2ds_common.ranges import sorted_range, spill
from free2ds_common.result import Counts, StageResult
from free2ds_common.results_store.pictures import Identity, picture_identities
from free2ds_common.schemas import GRID, RECORDS, attention_schema
from free2ds_common.settings import AttentionSettings
from free2ds_common.storage import require_folder

logger = logging.getLogger(__name__)

_COLUMNS = ["unique_id", "record_key", "image", "question"]
# In memory at a time, with their maps of both models: some 300 MB.
ROWS_PER_RANGE = 20_000
_ROWS_PER_PART = 10_000


def run(config: ReuseConfig) -> StageResult:
    """Divide the records, for each model, into those whose outcome is known and those that are left over.

    Without a results store, and where nobody knows the settings of a model before it is loaded, all are left over.

    Args:
        config: Settings and ports.

    Raises:
        StageError: Wrong settings, no records/2, or a store that refuses.
        StoreError: A store does not answer.
    """
    config.check()
    records = open_dataset(config.records, RECORDS)
    with contextlib.ExitStack() as stack:
        sides = {
            "llava": _Side(stack, config, LlavaAttentionSettings, "llava", records.num_rows),
            "mgm": _Side(stack, config, MgmAttentionSettings, "mgm", records.num_rows),
        }
        anything = any(side.known for side in sides.values())
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="free2ds-reuse-")))
        for table in _by_range(records, scratch) if anything else _as_they_come(records):
            rows = table.select(_COLUMNS).to_pylist()
            identities = _identities(config, rows) if anything else {}
            for side in sides.values():
                side.divide(table, rows, identities, scratch)
        for side in sides.values():
            side.finish()
    metrics: dict[str, float] = {}
    terse: dict[str, dict[str, str | int]] = {}
    for name, side in sides.items():
        metrics |= {f"{name}_reused": float(side.answered), f"{name}_missing": float(side.missing_rows)}
        terse[f"{name}_finished"] = side.terse()
    counts = Counts(read=records.num_rows, written=records.num_rows)
    metadata = {f"{name}_new": "yes" if side.new else "no" for name, side in sides.items()}
    return StageResult(counts, metrics, metadata, terse_of=terse)


def outputs(result: StageResult) -> dict[str, Any]:
    """What the Kubeflow task hands on."""
    return {name: result.metadata[name] for name in ("llava_new", "mgm_new")}


def _settings(config: ReuseConfig, kind: type[AttentionSettings], name: str) -> AttentionSettings:
    """What the attention stage of a model will be asked for.

    Raises:
        SettingError: It would refuse it.
    """
    settings = kind(
        **{
            "model": getattr(config, f"{name}_model"),
            "revision": getattr(config, f"{name}_revision"),
            "image_root_uri": config.image_root_uri,
            "cache_uri": config.cache_uri,
            **read_options(kind, getattr(config, f"{name}_options")),
        }
    )
    try:
        settings.check()
    except SettingError as error:
        raise SettingError(f"{name}_{error.setting}", error.problem) from None
    return settings


def _by_range(records: Dataset, scratch: Path) -> Iterator[pa.Table]:
    """The records by their place, so that a part of the store is looked for in few of the tables."""
    for path in spill(records, max(1, -(-records.num_rows // ROWS_PER_RANGE)), scratch):
        yield sorted_range(path)
        path.unlink()


def _as_they_come(records: Dataset) -> Iterator[pa.Table]:
    for batch in records.batches():
        yield pa.Table.from_batches([batch])


def _identities(config: ReuseConfig, rows: Sequence[Mapping[str, Any]]) -> dict[str, Identity | None]:
    images = list(asked_images(rows))
    if images:
        require_folder("image_root_uri", config.image_root_uri)
    return picture_identities(config.image_root_uri, images)


def _row(record: Mapping[str, Any], outcome: str) -> dict[str, Any]:
    """A record of attention/1 that no model is asked about."""
    return {"unique_id": record["unique_id"], "record_key": record["record_key"], "num_steps": 0, "outcome": outcome}


class _Side:
    """One model's records: written as they are found out.

    Attributes:
        known: Settings of its results; empty where nobody knows them.
        answered: Records whose answer was taken from the store.
        missing_rows: Records that are left over.
    """

    def __init__(
        self, stack: contextlib.ExitStack, config: ReuseConfig, kind: type[AttentionSettings], name: str, asked: int
    ) -> None:
        """Look whether the settings are known, and begin both outputs.

        Args:
            stack: Seals both when it ends without an error.
            config: Of the stage.
            kind: Of the model's stage.
            name: Begins the model's settings and ports.
            asked: Records in all.

        Raises:
            StageError: The model's stage would refuse its settings.
        """
        self._settings, self._asked = _settings(config, kind, name), asked
        self.known = known_settings(self._settings, on_gpu=config.on_gpu)
        self.answered = self.missing_rows = 0
        self._store = results_store(self._settings, self.known) if self.known else None
        schema = attention_schema(self.known.get("grid", GRID) ** 2)
        finished, missing = getattr(config, f"{name}_finished"), getattr(config, f"{name}_missing")
        self._finished = stack.enter_context(DatasetWriter(finished, schema, _ROWS_PER_PART))
        self._missing = stack.enter_context(DatasetWriter(missing, RECORDS))
        self._finished.manifest[MADE_FROM] = made_from(records=config.records)
        self._missing.manifest[MADE_FROM] = made_from(records=config.records)
        self._outcomes: Counter[str] = Counter()
        self._words = UnknownWords(Path(self._settings.model))

    def divide(
        self,
        table: pa.Table,
        rows: Sequence[Mapping[str, Any]],
        identities: Mapping[str, Identity | None],
        scratch: Path,
    ) -> None:
        """Write some records to one output or the other.

        Args:
            table: records/2.
            rows: `_COLUMNS` of them.
            identities: Of their pictures.
            scratch: For what is taken from the store.
        """
        if self._store is None:
            self._missing.write(table)
            self.missing_rows += table.num_rows
            return
        keys = result_keys(self._store, identities, rows)
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            wanted = {key for key, _ in keys.values()}
            found = self._store.take(wanted, (bucket for _, bucket in keys.values()), Path(folder))
            taken = [index for index, (key, _) in keys.items() if key in found]
            if taken:
                self._take(table.take(pa.array(taken)), found.table([keys[index][0] for index in taken]))
        without = {index: outcome for index, row in enumerate(rows) if (outcome := unasked(row))}
        self._outcomes.update(without.values())
        self._finished.write([_row(rows[index], outcome) for index, outcome in without.items()])
        finished = {*taken, *without}
        rest = [index for index in range(len(rows)) if index not in finished]
        self._missing.write(table.take(pa.array(rest, pa.int64())))
        self.missing_rows += len(rest)

    def _take(self, records: pa.Table, results: pa.Table) -> None:
        """Write results with their records' ids."""
        columns = {name: records.column(name) for name in ("unique_id", "record_key")}
        columns |= {name: results.column(name) for name in ("num_steps", "outcome", "map")}
        self._finished.write(pa.table(columns))
        outcomes = Counter(results.column("outcome").to_pylist())
        self._outcomes += outcomes
        self.answered += sum(outcomes[outcome] for outcome in ANSWERED)
        for unknown, tokens in zip(
            *(results.column(name).to_pylist() for name in ("unknown_tokens", "tokens")), strict=True
        ):
            self._words.add(unknown, tokens)

    @property
    def new(self) -> bool:
        """Whether the model has to be loaded."""
        return self.missing_rows > 0 or not self.known

    def finish(self) -> None:
        """Say in both manifests what was found.

        Raises:
            StageError: Most words of the finished records' questions are unknown to the model.
        """
        self._words.check()
        name = self._settings.SHORT_NAME
        if self._store is None:
            logger.info("%s: no results of earlier runs are known; all %d records are left over", name, self._asked)
        else:
            self._finished.manifest |= {
                **self.known,
                "outcomes": dict(self._outcomes),
                "reused": self.answered,
                "computed": 0,
                "device_seconds": 0.0,
                "store": self._store.uri,
            }
            finished = sum(self._outcomes.values())
            logger.info("%s: %d records are finished, %d are left over", name, finished, self.missing_rows)
        told = LeftOver(self._asked, self.answered, self.known)
        self._missing.manifest[LEFT_OVER] = told.as_json()

    def terse(self) -> dict[str, str | int]:
        """What the artifact of the finished records carries."""
        name = f"{self._settings.SHORT_NAME} attention, from earlier runs"
        return terse_metadata(name, self.known, sum(self._outcomes.values()))
