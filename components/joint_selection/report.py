"""The report: one HTML file that needs no script and no network, and its short Markdown twin."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from components.joint_selection import charts, gallery
from components.joint_selection.inputs import Records, Side
from free2ds_common import outcomes
from free2ds_common.datasets import Dataset, open_dataset
from free2ds_common.schemas import kmeans_schema
from free2ds_common.storage import atomic_writer

if TYPE_CHECKING:
    from components.joint_selection.stage import JointSelectionConfig, Scores

_CARDS = 6
_CLUSTERS_SHOWN = 12
_TEMPLATE = "report.html.jinja"

OUTCOME_WORDS = {
    outcomes.OK: "has a map",
    outcomes.TEXT_ONLY: "has no picture",
    outcomes.EOS_ONLY: "the model answered nothing, so the method defines no map",
    outcomes.NO_QUESTION: "no human turn is followed by an answer",
    outcomes.PROMPT_TOO_LONG: "the prompt does not fit the model",
    outcomes.NON_FINITE: "the attention was not a number",
    outcomes.NOT_SCORED: "missing in the attention parts",
    "image_missing": "the picture was gone",
    "image_unreadable": "the picture could not be read",
    "image_too_large": "the picture is too large",
    "image_outside_root": "the picture's path leaves the image root",
}


def write_report(
    config: "JointSelectionConfig",
    dataset: Dataset,
    records: Records,
    sides: Sequence[Side],
    scores: "Scores",
    summary: Mapping[str, Any],
    sentences: Sequence[str],
) -> None:
    """Write the HTML page.

    Args:
        config: The stage's settings.
        dataset: records/1.
        records: Its columns in memory.
        sides: Both models' outcomes.
        scores: Every score.
        summary: What summary.json holds.
        sentences: The tilt in words.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    with atomic_writer(config.report, "w") as handle:
        handle.write(
            environment.get_template(_TEMPLATE).render(
                summary=summary,
                sentences=sentences,
                outcome_words=OUTCOME_WORDS,
                charts=_charts(scores, summary),
                galleries=_galleries(config, dataset, records, scores),
                clusters=_clusters(config.kmeans),
            )
        )


def markdown(summary: Mapping[str, Any], sentences: Sequence[str]) -> str:
    """The page in a few lines, for the Kubeflow UI's overview."""
    counts = summary["counts"]
    lines = [
        "# Free2DS selection",
        "",
        *(f"- {sentence}" for sentence in sentences),
        "",
        "| | records |",
        "| --- | ---: |",
    ]
    lines += [f"| {name} | {counts[name]} |" for name in ("read", "written", "dropped", "rejected")]
    lines += ["", "| source | pool | selected | random control |", "| --- | ---: | ---: | ---: |"]
    for name, row in list(summary["sources"].items())[:20]:
        cell = name.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {cell} | {row['pool']} | {row['selected']} | {row['random']} |")
    return "\n".join(lines) + "\n"


def _charts(scores: "Scores", summary: Mapping[str, Any]) -> dict[str, str]:
    pool = np.flatnonzero(scores.in_pool)
    selected = scores.selected[pool]
    drawn = {
        name: charts.distribution(values[pool], values[pool][selected], label)
        for name, values, label in (
            ("iou", scores.iou, "IoU of the two maps"),
            ("text", scores.text_score, "text score (1 is the least typical)"),
            ("combined", scores.combined, "combined score"),
        )
    }
    drawn["signals"] = charts.iou_against_text(scores.iou[pool], scores.text_score[pool], selected)
    drawn["sources"] = charts.composition(summary["sources"])
    return drawn


def _galleries(
    config: "JointSelectionConfig", dataset: Dataset, records: Records, scores: "Scores"
) -> list[tuple[str, str, list[gallery.Card]]]:
    """Title, explanation and cards of each gallery."""
    pool = np.flatnonzero(scores.in_pool)
    with_iou = pool[~np.isnan(scores.iou[pool])]
    order = with_iou[np.argsort(-scores.combined[with_iou], kind="stable")]
    chosen = order[: len(order)][scores.selected[order]]
    # The deterministic line: what `sampler=top` would just take and just leave.
    line = max(0, min(int(scores.selected[order].sum()), len(order)) - _CARDS // 2)
    picks = {
        "Highest combined score": ("The models look at different places, or the text is unusual.", order[:_CARDS]),
        "Lowest combined score": ("The models look at the same place and the text is typical.", order[::-1][:_CARDS]),
        "Near the line": (
            "Around the score at which the deterministic sampler would stop.",
            order[line : line + _CARDS],
        ),
        "Drawn from the middle of the selection": (
            "What an average selected record looks like.",
            chosen[max(0, len(chosen) // 2 - _CARDS // 2) :][:_CARDS],
        ),
    }
    rows = np.unique(np.concatenate([pick for _, pick in picks.values()]).astype(np.int64))
    ids = records.unique_id[rows].tolist()
    found = gallery.records_of(dataset, ids)
    maps = [
        ("LLaVA looks here", gallery.maps_of(config.llava_attention, ids)),
        ("MGM looks here", gallery.maps_of(config.mgm_attention, ids)),
    ]
    made = {}
    for row, number in zip(rows.tolist(), ids, strict=True):
        numbers = [
            ("combined", f"{scores.combined[row]:.3f}"),
            ("IoU", f"{scores.iou[row]:.3f}"),
            ("text score", f"{scores.text_score[row]:.3f}"),
        ]
        layers = [(name, values.get(number)) for name, values in maps]
        made[row] = gallery.card(config.image_root_uri, found[number], layers, numbers, bool(scores.selected[row]))
    return [(title, text, [made[row] for row in pick.tolist()]) for title, (text, pick) in picks.items() if len(pick)]


def _clusters(folder: str) -> dict[str, Any]:
    """Chart and typical messages of the clusters; empty without the k-means model."""
    if not folder:
        return {}
    table = open_dataset(folder, kmeans_schema(1)).table(["num_turns", "typical_message"])
    sizes = table.column("num_turns").to_numpy()
    texts = table.column("typical_message").to_pylist()
    order = np.argsort(-sizes, kind="stable")
    return {
        "count": len(sizes),
        "chart": charts.clusters(sizes),
        "largest": [(int(sizes[row]), texts[row][:200]) for row in order[:_CLUSTERS_SHOWN]],
        "smallest": [(int(sizes[row]), texts[row][:200]) for row in order[::-1][:_CLUSTERS_SHOWN]],
    }
