"""What other settings would select, from stored scores: no model, no maps, seconds."""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from components.joint_selection.config import DrawSettings, SweepConfig
from components.joint_selection.draw import record_noise
from components.joint_selection.inputs import outcome_codes
from components.joint_selection.selection import Candidates, by_source, select, unusable
from components.joint_selection.wording import markdown_cell
from free2ds_common.datasets import open_dataset
from free2ds_common.errors import SettingError, StageError
from free2ds_common.schemas import SCORES
from free2ds_common.storage import atomic_writer

# Those of which a sweep takes several values, and their types.
SWEPT: dict[str, Callable[[str], str | float]] = {
    "alpha": float,
    "temperature": float,
    "sampler": str,
    "missing_iou": str,
    "text_normalization": str,
}
_SOURCES_SHOWN, _SOURCE_LENGTH = 20, 60


def run(config: SweepConfig) -> dict[str, Any]:
    """Draw with every combination of settings.

    Args:
        config: Settings.

    Returns:
        settings: the combinations; tilt: of each; overlap: share of each selection that is in each other one; sources:
        by name, records that any setting may draw, and selected records under each setting.

    Raises:
        StageError: Wrong settings, or no such scores.
    """
    same = {name: getattr(config, name) for name in ("ratio", "num_samples", "stratify", "seed")}
    combinations = itertools.product(*(_values(name, getattr(config, name)) for name in SWEPT))
    settings = [DrawSettings(**dict(zip(SWEPT, values, strict=True)), **same) for values in combinations]
    for one in settings:
        one.check()
    records = _read_scores(config.scores, config.seed)
    tilts, masks, pools = [], [], []
    for one in settings:
        selection = select(one, records)
        tilts.append(selection.tilt)
        masks.append(selection.selected)
        pools.append(selection.in_pool)
    common = [[float(np.count_nonzero(one & other) / np.count_nonzero(one)) for other in masks] for one in masks]
    columns = {str(number): mask for number, mask in enumerate(masks, start=1)}
    result = {
        "settings": [asdict(one) for one in settings],
        "tilt": tilts,
        "overlap": common,
        "sources": by_source(records.source, pool=np.logical_or.reduce(pools), **columns),
    }
    if config.output:
        with atomic_writer(config.output, "w") as handle:
            json.dump(result, handle, indent=1)
    return result


def as_markdown(result: dict[str, Any]) -> str:
    """The tables of a sweep: tilt, overlap, composition by source (the largest ones)."""
    numbers = [str(number) for number in range(1, len(result["settings"]) + 1)]
    shown = [name for name in SWEPT if len({one[name] for one in result["settings"]}) > 1] or list(SWEPT)[:2]
    head = [
        "",
        *shown,
        "mean score, pool",
        "mean score, selected",
        "in top n",
        "by chance",
        "weight ratio",
        "effective n",
    ]
    lines = ["## Tilt", "", _row(head), _row(["---:"] * len(head))]
    for number, one, tilt in zip(numbers, result["settings"], result["tilt"], strict=True):
        cells = [number, *(f"{one[name]}" for name in shown)]
        cells += [f"{tilt[name]:.4f}" for name in ("mean_combined_pool", "mean_combined_selected")]
        cells += [f"{tilt[name]:.1%}" for name in ("overlap_with_top", "overlap_by_chance")]
        lines.append(_row([*cells, f"{tilt['weight_ratio']:.3g}", f"{tilt['effective_sample_size']:.0f}"]))
    lines += ["", "## Share of a row's selection that is also in a column's", "", _row(["", *numbers])]
    lines.append(_row(["---:"] * (len(numbers) + 1)))
    for number, shares in zip(numbers, result["overlap"], strict=True):
        lines.append(_row([number, *(f"{share:.1%}" for share in shares)]))
    lines += ["", "## Records by source", "", _row(["source", "pool", *numbers])]
    lines.append(_row(["---", *["---:"] * (len(numbers) + 1)]))
    sources = list(result["sources"].items())
    for name, row in sources[:_SOURCES_SHOWN]:
        lines.append(
            _row([markdown_cell(name, _SOURCE_LENGTH), f"{row['pool']}", *(f"{row[number]}" for number in numbers)])
        )
    if len(sources) > _SOURCES_SHOWN:
        lines.append(f"\n{len(sources) - _SOURCES_SHOWN} smaller sources are not shown; --output has them all.")
    return "\n".join(lines)


def _values(name: str, text: str) -> list[str | float]:
    """Comma-separated values in their type.

    Raises:
        SettingError: One is not of that type.
    """
    try:
        return [SWEPT[name](value.strip()) for value in text.split(",")]
    except ValueError:
        raise SettingError(name, f"got {text!r}, wanted numbers separated by commas.") from None


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _read_scores(folder: str, seed: int) -> Candidates:
    dataset = open_dataset(folder, SCORES)
    if not dataset.num_rows:
        raise StageError(f"scores: {folder} holds no records. Give the scores of a finished selection.")
    names = ["record_key", "source", "iou", "text_similarity", "llava_outcome", "mgm_outcome"]
    table = dataset.table(names).combine_chunks()
    iou, similarity = (table.column(name).to_numpy(zero_copy_only=False) for name in ("iou", "text_similarity"))
    sides = [outcome_codes(table.column(name).combine_chunks()) for name in ("llava_outcome", "mgm_outcome")]
    source = table.column("source").combine_chunks().dictionary_encode()
    noise = record_noise(table.column("record_key").combine_chunks(), seed)
    return Candidates(iou, similarity, unusable(sides, similarity), source, noise)
