"""Joins where the models look with how typical the text is, and draws the records worth training on."""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from components.joint_selection.draw import SAMPLERS, STRATIFY, draw, record_noise, take_top
from components.joint_selection.inputs import Records, Side, grid_of, read_records, read_side, read_text
from components.joint_selection.overlap import intersection_over_union, top_k
from components.joint_selection.report import write_report
from components.joint_selection.scoring import (
    MISSING_IOU,
    TEXT_NORMALIZATION,
    combine,
    image_score,
    text_score,
    tilt,
)
from free2ds_common import __version__, outcomes
from free2ds_common.datasets import Dataset, DatasetWriter
from free2ds_common.errors import StageError
from free2ds_common.result import Counts, StageResult, check_reject_fraction
from free2ds_common.schemas import SCORES
from free2ds_common.settings import require_choice, require_fraction
from free2ds_common.storage import atomic_writer

_LOG = logging.getLogger(__name__)

_MODEL_FACTS = ("model", "revision", "model_fingerprint", "dtype", "grid", "max_new_tokens")
_WRITE_ROWS = 50_000


@dataclass(frozen=True)
class JointSelectionConfig:
    """Settings of the stage; README.md explains each.

    Attributes:
        records: records/1 folder.
        llava_attention: attention/1 folders of the first model, one per shard.
        mgm_attention: attention/1 folders of the second model.
        text_scores: text_scores/1 folder.
        image_root_uri: What the records' images are relative to; for the report's galleries.
        ratio: Share of the records to select, in (0, 1].
        num_samples: Exact number to select; 0 means "use ratio".
        alpha: Weight of the text side, in [0, 1].
        temperature: Of the softmax, above 0.
        sampler: One of `SAMPLERS`.
        missing_iou: One of `MISSING_IOU`.
        text_normalization: One of `TEXT_NORMALIZATION`.
        top_percent: Share of a map's positions that count as looked at, in (0, 100].
        stratify: "source" draws within each source in proportion; empty draws over all.
        max_reject_fraction: Largest accepted share of records that cannot be used or were not scored.
        seed: Of the draw and of the random control.
        selected: LLaVA JSON to write.
        scores: scores/1 folder to write.
        report: HTML to write.
        summary: JSON to write.
        random: LLaVA JSON of the random control to write; empty for none.
        kmeans: kmeans/1 folder, for the report's page on clusters; empty for none.
    """

    records: str
    llava_attention: Sequence[str]
    mgm_attention: Sequence[str]
    text_scores: str
    image_root_uri: str
    ratio: float
    num_samples: int
    alpha: float
    temperature: float
    sampler: str
    missing_iou: str
    text_normalization: str
    top_percent: float
    stratify: str
    max_reject_fraction: float
    seed: int
    selected: str
    scores: str
    report: str
    summary: str
    random: str
    kmeans: str


@dataclass(frozen=True)
class Scores:
    """Every record's scores, in input order; NaN where there is none.

    Attributes:
        iou: float64, (N,).
        image_score: float64, (N,), in [0, 1].
        text_similarity: float64, (N,), in [0, 1].
        text_score: float64, (N,), in [0, 1].
        combined: float64, (N,); NaN outside the pool.
        probability: float64, (N,); 0 outside the pool.
        in_pool: bool, (N,): may be drawn.
        rejected: bool, (N,): the picture could not be used.
        selected: bool, (N,).
        control: bool, (N,): the random control.
    """

    iou: np.ndarray
    image_score: np.ndarray
    text_similarity: np.ndarray
    text_score: np.ndarray
    combined: np.ndarray
    probability: np.ndarray
    in_pool: np.ndarray
    rejected: np.ndarray
    selected: np.ndarray
    control: np.ndarray


def check_settings(config: JointSelectionConfig) -> None:
    """Refuse settings out of range.

    Raises:
        StageError: One of them is.
    """
    require_fraction("ratio", config.ratio, zero_allowed=False)
    require_fraction("alpha", config.alpha)
    require_fraction("max_reject_fraction", config.max_reject_fraction)
    if not 0 < config.temperature < float("inf"):
        raise StageError(f"temperature: got {config.temperature:g}, wanted a number above 0.")
    if not 0 < config.top_percent <= 100:
        raise StageError(f"top_percent: got {config.top_percent:g}, wanted a number in (0, 100].")
    if config.num_samples < 0:
        raise StageError(f"num_samples: got {config.num_samples}, wanted 0 (use ratio) or the number to select.")
    if not 0 <= config.seed < 2**32:
        raise StageError(f"seed: got {config.seed}, wanted an integer from 0 to 4294967295.")
    require_choice("sampler", config.sampler, SAMPLERS)
    require_choice("missing_iou", config.missing_iou, MISSING_IOU)
    require_choice("text_normalization", config.text_normalization, TEXT_NORMALIZATION)
    require_choice("stratify", config.stratify, STRATIFY)


def run(config: JointSelectionConfig) -> StageResult:
    """Score every record, draw, and write selection, scores, report and summary.

    Args:
        config: Settings.

    Raises:
        StageError: Wrong settings, inputs that do not belong together, or fewer records than are to be drawn.

    Source:
        method.md sections 3 and 5; section 6 for what differs from the reference.
    """
    check_settings(config)
    dataset, records = read_records(config.records)
    grids = grid_of(config.llava_attention, "llava_attention"), grid_of(config.mgm_attention, "mgm_attention")
    grid = min(grids)
    sides = [
        read_side(folders, name, records, grid, config.top_percent)
        for folders, name in ((config.llava_attention, "llava_attention"), (config.mgm_attention, "mgm_attention"))
    ]
    similarity = read_text(config.text_scores, records)
    reasons = _check_rejects(config, sides)
    scores = score_and_draw(config, records, sides, similarity, top_k(grid * grid, config.top_percent))
    summary = _summary(config, records, sides, scores, reasons, grids)
    _write_scores(config.scores, records, sides, scores, summary)
    _write_records(config.selected, dataset, scores.selected)
    if config.random:
        _write_records(config.random, dataset, scores.control)
    with atomic_writer(config.summary, "w") as handle:
        json.dump(summary, handle, indent=1)
    sentences = tilt_in_words(summary)
    write_report(config, dataset, records, sides, scores, summary, sentences)
    for sentence in sentences:
        _LOG.info("%s", sentence)
    counts = Counts(**summary["counts"])
    metrics = {name: float(value) for name, value in summary["tilt"].items()}
    metrics |= {"pool": float(summary["pool"]), "without_iou": float(summary["without_iou"])}
    return StageResult(
        counts, metrics, {name: value for name, value in summary.items() if name not in ("counts", "tilt")}
    )


def score_and_draw(
    config: JointSelectionConfig, records: Records, sides: Sequence[Side], similarity: np.ndarray, k: int
) -> Scores:
    """The arithmetic from bit sets and text similarity to the draw.

    Args:
        config: Settings, checked.
        records: What is drawn from.
        sides: Both models' bit sets.
        similarity: float64, (N,), text similarity.
        k: Bits set in each map.

    Raises:
        StageError: More records wanted than the pool has.
    """
    count = len(records.unique_id)
    ok = outcomes.ALL.index(outcomes.OK)
    known = (sides[0].outcome == ok) & (sides[1].outcome == ok)
    iou = np.full(count, np.nan)
    iou[known] = intersection_over_union(sides[0].bits[known], sides[1].bits[known], k)
    failures = [outcomes.ALL.index(word) for word in outcomes.IMAGE_FAILURES]
    rejected = np.isin(sides[0].outcome, failures) | np.isin(sides[1].outcome, failures)
    in_pool = ~rejected
    if config.missing_iou == "exclude":
        in_pool &= known
    pool = np.flatnonzero(in_pool)
    wanted = config.num_samples or int(len(pool) * config.ratio)
    if wanted > len(pool):
        raise StageError(f"num_samples: got {wanted}, but only {len(pool)} records can be drawn. Ask for fewer.")
    if wanted == 0:
        raise StageError(
            f"ratio: {config.ratio:g} of {len(pool)} records is no record at all. Raise ratio or num_samples."
        )
    image = np.full(count, np.nan)
    text, combined, probability = np.full(count, np.nan), np.full(count, np.nan), np.zeros(count)
    image[pool] = image_score(iou[pool], config.missing_iou)
    text[pool] = text_score(similarity[pool], config.text_normalization)
    combined[pool] = combine(image[pool], text[pool], config.alpha)
    noise = record_noise(records.record_key, config.seed)[pool]
    strata = np.zeros(len(pool), np.int64)
    if config.stratify == "source":
        strata = records.source.indices.to_numpy()[pool].astype(np.int64)
    chosen, p, _ = draw(combined[pool], config.temperature, wanted, config.sampler, noise, strata, config.seed)
    probability[pool] = p
    selected, control = np.zeros(count, bool), np.zeros(count, bool)
    selected[pool[chosen]] = True
    control[pool[take_top(noise[:, 1].astype(np.float64), noise[:, 2], wanted)]] = True
    return Scores(iou, image, similarity, text, combined, probability, in_pool, rejected, selected, control)


def _check_rejects(config: JointSelectionConfig, sides: Sequence[Side]) -> dict[str, int]:
    """Reasons of the records that an attention stage could not use or did not see; too many are an error."""
    bad = np.zeros(len(sides[0].outcome), bool)
    reasons: Counter[str] = Counter()
    for word in (*outcomes.IMAGE_FAILURES, outcomes.NOT_SCORED):
        code = outcomes.ALL.index(word)
        either = (sides[0].outcome == code) | (sides[1].outcome == code)
        if either.any():
            reasons[word] = int((either & ~bad).sum())
            bad |= either
    counted = Counts(read=len(bad), written=int((~bad).sum()), rejected=int(bad.sum()))
    check_reject_fraction(counted, config.max_reject_fraction, reasons, "attention")
    return dict(reasons)


def _summary(
    config: JointSelectionConfig,
    records: Records,
    sides: Sequence[Side],
    scores: Scores,
    reasons: Mapping[str, int],
    grids: tuple[int, int],
) -> dict[str, Any]:
    pool = np.flatnonzero(scores.in_pool)
    combined = scores.combined[pool]
    noise = record_noise(records.record_key, config.seed)[pool, 2]
    selected = np.flatnonzero(scores.selected[pool])
    best = take_top(combined, noise, len(selected))
    read, written, rejected = len(records.unique_id), int(scores.selected.sum()), int(scores.rejected.sum())
    outcome_counts = {
        name: {outcomes.ALL[code]: int(n) for code, n in enumerate(np.bincount(side.outcome)) if n}
        for name, side in zip(("llava", "mgm"), sides, strict=True)
    }
    parameters = {
        name: value
        for name, value in asdict(config).items()
        if isinstance(value, str | int | float)
        and name not in ("selected", "scores", "report", "summary", "random", "kmeans")
    }
    by_source = _by_source(records, scores)
    return {
        "counts": {"read": read, "written": written, "dropped": read - written - rejected, "rejected": rejected},
        "reasons": dict(reasons),
        "pool": len(pool),
        "without_iou": int(np.isnan(scores.iou[pool]).sum()),
        "all_scores_equal": bool(combined.min() == combined.max()),
        "tilt": tilt(combined, scores.probability[pool], selected, best, config.temperature),
        "outcomes": outcome_counts,
        "sources": by_source,
        "parameters": parameters,
        "grids": {"llava": grids[0], "mgm": grids[1], "compared_on": min(grids)},
        "models": {
            name: {fact: side.manifest.get(fact, "") for fact in _MODEL_FACTS}
            for name, side in zip(("llava", "mgm"), sides, strict=True)
        },
        "code_version": __version__,
    }


def _by_source(records: Records, scores: Scores) -> dict[str, dict[str, int]]:
    """Records per source in the pool, in the selection and in the random control; largest sources first."""
    codes = records.source.indices.to_numpy()
    names = records.source.dictionary.to_pylist()
    columns = {"pool": scores.in_pool, "selected": scores.selected, "random": scores.control}
    sizes = {name: np.bincount(codes[mask], minlength=len(names)) for name, mask in columns.items()}
    order = np.argsort(-sizes["pool"], kind="stable")
    return {names[code]: {name: int(size[code]) for name, size in sizes.items()} for code in order}


def tilt_in_words(summary: Mapping[str, Any]) -> list[str]:
    """What the tilt means, for log and report."""
    values, counts = summary["tilt"], summary["counts"]
    lines = [
        f"Selected {counts['written']} of {summary['pool']} records that could be drawn.",
        f"Mean combined score: {values['mean_combined_selected']:.4f} selected, "
        f"{values['mean_combined_pool']:.4f} in the pool.",
        f"{values['overlap_with_top']:.1%} of the selection is in the deterministic top {counts['written']}; "
        f"a purely random draw would have {values['overlap_by_chance']:.1%}.",
        f"The most probable record is {values['weight_ratio']:.3g} times as likely as the least probable one; "
        f"the effective sample size is {values['effective_sample_size']:.0f} of {summary['pool']}.",
    ]
    if summary["all_scores_equal"]:
        lines.append("All scores are equal: the draw is uniform.")
    return lines


def _score_columns(records: Records, sides: Sequence[Side], scores: Scores, rows: slice) -> Iterator[pa.Array]:
    words = pa.array(outcomes.ALL)
    yield pa.array(records.unique_id[rows])
    yield records.record_key[rows]
    yield records.source[rows].cast(pa.string())
    for values in (scores.iou, scores.image_score):
        yield pa.array(values[rows], from_pandas=True)
    yield pa.array(scores.text_similarity[rows])
    for values in (scores.text_score, scores.combined):
        yield pa.array(values[rows], from_pandas=True)
    yield pa.array(scores.probability[rows])
    for side in sides:
        yield pa.DictionaryArray.from_arrays(pa.array(side.outcome[rows]), words).cast(pa.string())
    yield pa.array(scores.selected[rows])


def _write_scores(
    folder: str, records: Records, sides: Sequence[Side], scores: Scores, summary: Mapping[str, Any]
) -> None:
    with DatasetWriter(folder, SCORES) as writer:
        for start in range(0, len(records.unique_id), _WRITE_ROWS):
            columns = list(_score_columns(records, sides, scores, slice(start, start + _WRITE_ROWS)))
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
