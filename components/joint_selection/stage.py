"""Joins where the models look with how typical the text is, and draws the records worth training on."""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from components.joint_selection.config import JointSelectionConfig
from components.joint_selection.draw import record_noise
from components.joint_selection.inputs import (
    Inputs,
    Side,
    Text,
    open_kmeans,
    read_records,
    read_side,
    read_text,
)
from components.joint_selection.overlap import intersection_over_union, top_k
from components.joint_selection.report import markdown, write_report
from components.joint_selection.selection import Candidates, Selection, by_source, select, unusable
from free2ds_common import __version__, outcomes
from free2ds_common.datasets import Dataset, DatasetWriter, open_parts
from free2ds_common.errors import StageError
from free2ds_common.result import Counts, StageResult, check_reject_fraction
from free2ds_common.schemas import SCORES, attention_schema
from free2ds_common.storage import atomic_writer

logger = logging.getLogger(__name__)

SIDES = ("llava", "mgm")
# A record that cluster_scoring has no score for cannot be ranked: it is rejected.
NO_TEXT_SCORE = "no_text_score"
# What must be alike in all parts of one side.
_SAME_IN_ALL_PARTS = (
    "model_fingerprint", "dtype", "prompt", "preprocessing", "max_new_tokens", "grid", "capture_version",
)  # fmt: skip
_MODEL_FACTS = ("model", "revision", "model_fingerprint", "dtype", "grid", "max_new_tokens", "capture_version")
_TEXT_MODEL_FACTS = ("model", "revision", "model_fingerprint", "dtype", "max_tokens", "num_clusters", "faiss_version")
_OUTPUTS = ("selected", "scores", "report", "summary", "random", "overview")
_WRITE_ROWS = 50_000


def run(config: JointSelectionConfig) -> StageResult:
    """Score every record, draw, and write selection, scores, report and summary.

    Args:
        config: Settings.

    Raises:
        StageError: Wrong settings, inputs that do not belong together, or fewer records than are to be drawn.

    Source:
        method.md sections 3 and 5; section 6 for what differs from the reference.
    """
    config.check()
    inputs = read_inputs(config)
    records = Candidates(
        iou=record_iou(inputs, config.top_percent),
        text_similarity=inputs.text.similarity,
        rejected=unusable([side.outcome for side in inputs.sides], inputs.text.similarity),
        source=inputs.records.source,
        noise=record_noise(inputs.records.record_key, config.seed),
    )
    selection = select(config, records)
    summary = _summary(config, inputs, records, selection)
    _write_scores(config.scores, inputs, records, selection, summary)
    _write_records(config.selected, inputs.dataset, selection.selected)
    _write_records(config.random, inputs.dataset, selection.control)
    with atomic_writer(config.summary, "w") as handle:
        json.dump(summary, handle, indent=1)
    sentences = tilt_in_words(summary)
    write_report(config, inputs, records, selection, summary, sentences)
    if config.overview:
        with atomic_writer(config.overview, "w") as handle:
            handle.write(markdown(summary, sentences))
    for sentence in sentences:
        logger.info("%s", sentence)
    metrics = {name: float(value) for name, value in summary["tilt"].items()}
    metrics |= {"pool": float(summary["pool"]), "without_iou": float(summary["without_iou"])}
    metadata = {name: value for name, value in summary.items() if name not in ("counts", "tilt")}
    return StageResult(Counts(**summary["counts"]), metrics, metadata)


def read_inputs(config: JointSelectionConfig) -> Inputs:
    """Read everything and see that it belongs together.

    Args:
        config: Settings.

    Raises:
        StageError: Parts of different models, of other records, there twice, or too much missing.
    """
    dataset, records = read_records(config.records)
    folders = dict(zip(SIDES, (config.llava_attention, config.mgm_attention), strict=True))
    llava, mgm = (
        open_parts(folders[side], attention_schema(), _SAME_IN_ALL_PARTS, f"{side}_attention") for side in SIDES
    )
    grid = min(int(part.manifest["grid"]) for part in (llava[0], mgm[0]))
    with ThreadPoolExecutor(len(SIDES)) as pool:
        # Side by side: reading, decompressing and partitioning all let other threads run.
        llava_side, mgm_side = (
            pool.submit(read_side, parts, f"{side}_attention", records, grid, config.top_percent)
            for side, parts in zip(SIDES, (llava, mgm), strict=True)
        )
        sides = llava_side.result(), mgm_side.result()
    text = read_text(config.text_scores, records)
    kmeans = open_kmeans(config.kmeans, text) if config.kmeans else None
    reasons = _check_rejects(config, sides, text)
    return Inputs(dataset, records, (llava, mgm), sides, text, kmeans, reasons)


def record_iou(inputs: Inputs, top_percent: float) -> np.ndarray:
    """IoU of both models' maps, float64, (N,); NaN where one is missing.

    Source:
        method.md section 3.
    """
    one, other = inputs.sides
    ok = outcomes.ALL.index(outcomes.OK)
    known = (one.outcome == ok) & (other.outcome == ok)
    iou = np.full(len(known), np.nan)
    k = top_k(min(inputs.grids) ** 2, top_percent)
    iou[known] = intersection_over_union(one.bits[known], other.bits[known], k)
    return iou


def _check_rejects(config: JointSelectionConfig, sides: Sequence[Side], text: Text) -> dict[str, int]:
    """Reasons of the records that cannot be used or were not scored; too many are an error, and so are unknown ids."""
    bad = np.zeros(len(text.similarity), bool)
    reasons: Counter[str] = Counter()

    def count(word: str, mask: np.ndarray) -> None:
        if new := int((mask & ~bad).sum()):
            reasons[word] = new
            bad[mask] = True

    def either_side(word: str) -> np.ndarray:
        code = outcomes.ALL.index(word)
        return (sides[0].outcome == code) | (sides[1].outcome == code)

    for word in outcomes.IMAGE_FAILURES:
        count(word, either_side(word))
    count(NO_TEXT_SCORE, np.isnan(text.similarity))
    # Last: only these are not rejected.
    count(outcomes.NOT_SCORED, either_side(outcomes.NOT_SCORED))
    counted = Counts(read=len(bad), written=int((~bad).sum()), rejected=int(bad.sum()))
    check_reject_fraction(counted, config.max_reject_fraction, reasons, "attention and text scores")
    for name, unknown in (
        ("llava_attention", sides[0].unknown), ("mgm_attention", sides[1].unknown), ("text_scores", text.unknown),
    ):  # fmt: skip
        if unknown / len(bad) > config.max_reject_fraction:
            raise StageError(
                f"{name}: {unknown} ids that are not in records, {len(bad)} that are; more than max_reject_fraction "
                f"{config.max_reject_fraction:g} allows. Use the folders of one run."
            )
    return dict(reasons)


def _summary(config: JointSelectionConfig, inputs: Inputs, records: Candidates, selection: Selection) -> dict[str, Any]:
    scores = selection.combined[selection.in_pool]
    read, written, rejected = len(records.iou), int(selection.selected.sum()), int(records.rejected.sum())
    outcome_counts = {
        name: {outcomes.ALL[code]: int(n) for code, n in enumerate(np.bincount(side.outcome)) if n}
        for name, side in zip(SIDES, inputs.sides, strict=True)
    }
    manifests = [*(parts[0].manifest for parts in inputs.parts), inputs.text.manifest]
    facts = (_MODEL_FACTS, _MODEL_FACTS, _TEXT_MODEL_FACTS)
    ingest = inputs.dataset.manifest
    return {
        "counts": {"read": read, "written": written, "dropped": read - written - rejected, "rejected": rejected},
        "reasons": dict(inputs.reasons),
        "unknown_ids": {
            "llava_attention": inputs.sides[0].unknown,
            "mgm_attention": inputs.sides[1].unknown,
            "text_scores": inputs.text.unknown,
        },
        "ingest": {
            "dataset_uri": ingest.get("dataset_uri", ""),
            "counts": ingest.get("counts", {}),
            "reject_reasons": ingest.get("reject_reasons", {}),
        },
        "pool": int(selection.in_pool.sum()),
        "without_iou": int(np.isnan(records.iou[selection.in_pool]).sum()),
        "all_scores_equal": bool(scores.min() == scores.max()),
        "tilt": selection.tilt,
        "outcomes": outcome_counts,
        "sources": by_source(
            records.source, pool=selection.in_pool, selected=selection.selected, random=selection.control
        ),
        "parameters": {
            name: value
            for name, value in asdict(config).items()
            if isinstance(value, str | int | float) and name not in _OUTPUTS
        },
        "grids": {"llava": inputs.grids[0], "mgm": inputs.grids[1], "compared_on": min(inputs.grids)},
        "models": {
            name: {fact: manifest[fact] for fact in wanted if fact in manifest}
            for name, manifest, wanted in zip((*SIDES, "text"), manifests, facts, strict=True)
        },
        "code_version": __version__,
    }


def tilt_in_words(summary: Mapping[str, Any]) -> list[str]:
    """What the tilt means, for log and report."""
    values, counts = summary["tilt"], summary["counts"]
    lines = [
        f"Selected {counts['written']} of {summary['pool']} records that could be drawn.",
        f"Mean combined score: {values['mean_combined_selected']:.4f} selected, "
        f"{values['mean_combined_pool']:.4f} in the pool.",
        f"{values['overlap_with_top']:.1%} of the selection is in the deterministic top {counts['written']}; "
        f"a purely random draw would have {values['overlap_by_chance']:.1%}.",
    ]
    if summary["all_scores_equal"]:
        lines.append("All scores are equal: the draw is uniform.")
    elif summary["parameters"]["sampler"] == "top":
        lines.append("Nothing was drawn at random: the highest scores were taken.")
    else:
        lines.append(
            f"The most probable record is {values['weight_ratio']:.3g} times as likely as the least probable one; "
            f"the effective sample size is {values['effective_sample_size']:.0f} of {summary['pool']}."
        )
    return lines


def _score_columns(inputs: Inputs, records: Candidates, selection: Selection, rows: slice) -> Iterator[pa.Array]:
    words = pa.array(outcomes.ALL)
    yield pa.array(inputs.records.unique_id[rows])
    yield inputs.records.record_key[rows]
    yield records.source[rows].cast(pa.string())
    for values in (records.iou, selection.image_score, records.text_similarity, selection.text_score):
        yield pa.array(values[rows], from_pandas=True)
    yield pa.array(selection.combined[rows], from_pandas=True)
    yield pa.array(selection.probability[rows])
    for side in inputs.sides:
        yield pa.DictionaryArray.from_arrays(pa.array(side.outcome[rows]), words).cast(pa.string())
    yield pa.array(selection.selected[rows])


def _write_scores(
    folder: str, inputs: Inputs, records: Candidates, selection: Selection, summary: Mapping[str, Any]
) -> None:
    with DatasetWriter(folder, SCORES) as writer:
        for start in range(0, len(records.iou), _WRITE_ROWS):
            columns = list(_score_columns(inputs, records, selection, slice(start, start + _WRITE_ROWS)))
            writer.write(pa.table(columns, names=SCORES.arrow.names))
        writer.manifest.update(parameters=summary["parameters"], models=summary["models"], counts=summary["counts"])


def _write_records(path: str, dataset: Dataset, wanted: np.ndarray) -> None:
    """The wanted records in input order, untouched but for unique_id; read once more as a stream.

    Args:
        path: JSON list to write.
        dataset: records/1.
        wanted: bool, (N,).
    """
    row, first = 0, True
    with atomic_writer(path, "w") as handle:
        handle.write("[")
        for batch in dataset.batches(["unique_id", "raw"]):
            inside = np.flatnonzero(wanted[row : row + len(batch)])
            for place in inside:
                record = json.loads(batch.column(1)[int(place)].as_py())
                record["unique_id"] = batch.column(0)[int(place)].as_py()
                # ASCII: a half surrogate pair of the input stays what it was.
                handle.write(("\n" if first else ",\n") + json.dumps(record))
                first = False
            row += len(batch)
        handle.write("\n]\n")
