"""Brings the stage's inputs together: one row per record, whatever the number and order of the parts."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from components.joint_selection.config import JointSelectionConfig
from components.joint_selection.overlap import Comparison, intersection_over_union, resample, top_bits
from components.joint_selection.records import Records, count_unknown, locate, read_records, there_twice
from free2ds_common import outcomes
from free2ds_common.datasets import Dataset, first_difference, open_dataset, open_parts
from free2ds_common.errors import StageError
from free2ds_common.schemas import TEXT_SCORES, attention_schema, kmeans_schema

logger = logging.getLogger(__name__)

LLAVA, MGM = "llava", "mgm"
_BATCH_ROWS, _TEXT_BATCH_ROWS = 8192, 65_536
_OK, _NOT_SCORED = outcomes.ALL.index(outcomes.OK), outcomes.ALL.index(outcomes.NOT_SCORED)
# What must be alike in all parts of one side.
SAME_IN_ALL_PARTS = (
    "model_fingerprint",
    "dtype",
    "prompt",
    "preprocessing",
    "max_new_tokens",
    "grid",
    "capture_version",
)
# What must be alike in the text scores and the k-means model.
SAME_CLUSTERING = (
    "records_sha256",
    "model_fingerprint",
    "dtype",
    "max_tokens",
    "num_clusters",
    "num_iterations",
    "order",
    "seed",
)


@dataclass(frozen=True)
class Side:
    """One model's maps.

    Attributes:
        name: LLAVA or MGM.
        parts: attention/1, at least one.
        outcome: uint8, (N,), index into `outcomes.ALL`.
        bits: uint64, (N, words): top positions; zeros where there is no map.
        part: int32, (N,): which of the parts has the record's row; -1 for none.
        unknown: Rows of ids that are not in records.
    """

    name: str
    parts: Sequence[Dataset]
    outcome: np.ndarray
    bits: np.ndarray
    part: np.ndarray
    unknown: int


@dataclass(frozen=True)
class Text:
    """The text side.

    Attributes:
        similarity: float64, (N,), in [0, 1]; NaN for a record without one.
        num_turns: int32, (N,), human turns; 0 where there is no similarity.
        cluster: int32, (N,), of the first human turn; 0 where there is no similarity.
        manifest: Of text_scores/2.
        unknown: Rows of ids that are not in records.
    """

    similarity: np.ndarray
    num_turns: np.ndarray
    cluster: np.ndarray
    manifest: Mapping[str, Any]
    unknown: int


@dataclass(frozen=True)
class Inputs:
    """Everything that was read, one row per record.

    Attributes:
        dataset: records/2.
        records: Its columns in memory.
        comparison: On what the maps of both models are compared.
        llava: LLaVA's maps.
        mgm: MGM's maps.
        text: The text side.
        kmeans: kmeans/1 of the text side; None where it was not given.
    """

    dataset: Dataset
    records: Records
    comparison: Comparison
    llava: Side
    mgm: Side
    text: Text
    kmeans: Dataset | None

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both models."""
        return self.llava, self.mgm

    @property
    def unknown_ids(self) -> dict[str, int]:
        """Rows of ids that are not in records, by input port."""
        return {**{port_of(side.name): side.unknown for side in self.sides}, "text_scores": self.text.unknown}

    @property
    def compared(self) -> np.ndarray:
        """bool, (N,): both models have a map."""
        both: np.ndarray = (self.llava.outcome == _OK) & (self.mgm.outcome == _OK)
        return both

    @property
    def why_no_iou(self) -> np.ndarray:
        """Both models' outcomes as one, uint8, (N,), index into `outcomes.ALL`: ok for a record with an IoU.

        Where the models differ, one that is not ok; of two such the first in `outcomes.ALL`, whichever model's it is.
        """
        sides = np.stack([side.outcome for side in self.sides])
        failed = np.where(sides == _OK, len(outcomes.ALL), sides).min(axis=0)
        return np.where(self.compared, _OK, failed).astype(np.uint8)

    def iou(self) -> np.ndarray:
        """IoU of both models' maps, float64, (N,); NaN where one is missing.

        Source:
            docs/method.md, section 3.
        """
        known = self.compared
        iou = np.full(len(known), np.nan)
        iou[known] = intersection_over_union(self.llava.bits[known], self.mgm.bits[known], self.comparison.k)
        return iou


def port_of(side: str) -> str:
    """The input port of a model's maps."""
    return f"{side}_attention"


def read_inputs(config: JointSelectionConfig) -> Inputs:
    """Read everything and see that it belongs together.

    Args:
        config: Settings.

    Raises:
        StageError: Parts of different models, of other records, or there twice.
    """
    dataset, records = read_records(config.records)
    llava, mgm = (
        open_parts(folders, attention_schema(), SAME_IN_ALL_PARTS, port_of(name))
        for name, folders in ((LLAVA, config.llava_attention), (MGM, config.mgm_attention))
    )
    comparison = Comparison.of((_grid(llava[0]), _grid(mgm[0])), config.top_percent)
    with ThreadPoolExecutor(2) as pool:
        # Side by side: reading, decompressing and partitioning all let other threads run.
        reading = [
            pool.submit(read_side, name, parts, records, comparison) for name, parts in ((LLAVA, llava), (MGM, mgm))
        ]
    llava_side, mgm_side = (side.result() for side in reading)
    text = read_text(config.text_scores, records)
    kmeans = open_kmeans(config.kmeans, text) if config.kmeans else None
    return Inputs(dataset, records, comparison, llava_side, mgm_side, text, kmeans)


def read_side(name: str, parts: Sequence[Dataset], records: Records, comparison: Comparison) -> Side:
    """Read one model's parts, a batch of maps in memory at a time.

    Args:
        name: LLAVA or MGM.
        parts: attention/1, in any order.
        records: What they belong to.
        comparison: On what the maps are compared; larger ones are resampled to its grid.

    Raises:
        StageError: Rows that are there twice, or of another record with the same id.
    """
    count, port = len(records.unique_id), port_of(name)
    outcome = np.full(count, _NOT_SCORED, np.uint8)
    bits = np.zeros((count, -(-(comparison.grid**2) // 64)), np.uint64)
    part_of = np.full(count, -1, np.int32)
    unknown: list[np.ndarray] = []
    for number, part in enumerate(parts):
        where = f"{port}: {part.folder}"
        for batch in part.batches(["unique_id", "record_key", "outcome", "map"], _BATCH_ROWS):
            rows, known = locate(records, batch, where, unknown)
            if (again := there_twice(rows, part_of[rows] >= 0)).size:
                raise StageError(f"{where}: {records.named(again)} there twice. Give every shard once.")
            part_of[rows] = number
            outcome[rows] = outcome_codes(known.column(2))
            has_map = known.column(3).is_valid().to_numpy(zero_copy_only=False)
            if (wrong := rows[(outcome[rows] == _OK) != has_map]).size:
                raise StageError(
                    f"{where}: {records.named(wrong)} with outcome ok and no map, or a map and another outcome. "
                    "Score that shard again."
                )
            if has_map.any():
                bits[rows[has_map]] = _top_bits(known.column(3), _grid(part), comparison, where)
    missing = np.flatnonzero(part_of < 0)
    if len(missing):
        logger.warning("%s: no row for %s", port, records.named(missing))
    return Side(name, parts, outcome, bits, part_of, count_unknown(unknown, port))


def read_text(folder: str, records: Records) -> Text:
    """Text similarity per record.

    Raises:
        StageError: Scores are there twice, of other records, or not in [0, 1].
    """
    similarity = np.full(len(records.unique_id), np.nan)
    num_turns, cluster = np.zeros((2, len(similarity)), np.int32)
    unknown: list[np.ndarray] = []
    where = f"text_scores: {folder}"
    dataset = open_dataset(folder, TEXT_SCORES)
    for batch in dataset.batches(
        ["unique_id", "record_key", "text_similarity", "num_turns", "cluster"], _TEXT_BATCH_ROWS
    ):
        rows, known = locate(records, batch, where, unknown)
        if (again := there_twice(rows, ~np.isnan(similarity[rows]))).size:
            raise StageError(f"{where}: {records.named(again)} there twice. Rerun cluster_scoring.")
        values = known.column(2).to_numpy()
        if (wrong := rows[~((values >= 0) & (values <= 1))]).size:
            raise StageError(f"{where}: {records.named(wrong)} outside [0, 1]. Rerun cluster_scoring.")
        similarity[rows] = values
        num_turns[rows], cluster[rows] = known.column(3).to_numpy(), known.column(4).to_numpy()
    missing = np.flatnonzero(np.isnan(similarity))
    if len(missing):
        logger.warning("text_scores: no score for %s", records.named(missing))
    return Text(similarity, num_turns, cluster, dataset.manifest, count_unknown(unknown, "text_scores"))


def open_kmeans(folder: str, text: Text) -> Dataset:
    """Open kmeans/1.

    Raises:
        StageError: It is not the model that the text scores come from.
    """
    kmeans = open_dataset(folder, kmeans_schema(1))
    if name := first_difference(kmeans.manifest, text.manifest, SAME_CLUSTERING):
        raise StageError(
            f"kmeans: {folder} is not of the text scores' run, {name} {kmeans.manifest.get(name)!r} but theirs is "
            f"{text.manifest.get(name)!r}. Give both outputs of one run of cluster_scoring."
        )
    return kmeans


def outcome_codes(column: pa.Array) -> np.ndarray:
    """Outcomes as uint8, (n,), index into `outcomes.ALL`, from words."""
    coded = column.dictionary_encode()
    codes = np.array([outcomes.ALL.index(word) for word in coded.dictionary.to_pylist()], np.uint8)
    found: np.ndarray = codes[coded.indices.to_numpy()]
    return found


def counted(codes: np.ndarray) -> dict[str, int]:
    """Records by outcome, in the order of `outcomes.ALL`; outcomes of no record are left out.

    Args:
        codes: uint8, (n,), index into `outcomes.ALL`.
    """
    return {outcomes.ALL[code]: int(count) for code, count in enumerate(np.bincount(codes)) if count}


def _grid(part: Dataset) -> int:
    """Vision tokens per side."""
    return int(part.manifest["grid"])


def _top_bits(column: pa.Array, own: int, comparison: Comparison, where: str) -> np.ndarray:
    """Top positions of the maps of a batch; rows without one are left out."""
    maps = column.flatten().to_numpy().reshape(-1, own * own)
    if not np.isfinite(maps).all():
        raise StageError(f"{where}: a map is not finite. Score that shard again.")
    return top_bits(resample(maps, own, comparison.grid), comparison.k)
