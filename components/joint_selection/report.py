"""The report: one HTML file that needs no script and no network, and its short Markdown twin."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from components.joint_selection import charts, gallery
from components.joint_selection.config import JointSelectionConfig
from components.joint_selection.inputs import Inputs
from components.joint_selection.selection import Candidates, Selection
from components.joint_selection.wording import markdown_cell, shortened
from free2ds_common import outcomes
from free2ds_common.datasets import Dataset
from free2ds_common.storage import atomic_writer

_CARDS = 6
_CLUSTERS_SHOWN = 12
_SOURCES_IN_MARKDOWN = 20
_MESSAGE_LENGTH = 200
_SOURCE_LENGTH = 80
_TEMPLATE = "report.html.jinja"
_PACKAGES = ("numpy", "pyarrow", "matplotlib", "pillow")

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
MISSING_IOU_WORDS = {
    "text": "by their text score alone",
    "reference": "as if the models had looked at entirely different places, which is the best image score",
    "exclude": "not at all: they cannot be drawn",
}


def write_report(
    config: JointSelectionConfig,
    inputs: Inputs,
    records: Candidates,
    selection: Selection,
    summary: Mapping[str, Any],
    sentences: Sequence[str],
) -> None:
    """Write the HTML page.

    Args:
        config: The stage's settings.
        inputs: What was read.
        records: What was drawn from.
        selection: Every score.
        summary: What summary.json holds.
        sentences: The tilt in words.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = "{:,}".format
    page = environment.get_template(_TEMPLATE).render(
        summary=summary,
        steps=counted_steps(summary),
        sentences=sentences,
        outcome_words=OUTCOME_WORDS,
        missing_words=MISSING_IOU_WORDS[summary["parameters"]["missing_iou"]],
        charts=_charts(records, selection, summary),
        galleries=_galleries(config, inputs, records, selection),
        clusters=_clusters(inputs.kmeans),
        versions={"Python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
    )
    with atomic_writer(config.report, "w") as handle:
        handle.write(page)


def counted_steps(summary: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """What became of the data set's records, from read to selected: step, records, reasons."""
    counts, ingest = summary["counts"], summary["ingest"]
    steps = []
    if ingest["counts"]:
        steps.append(("read from the data set", ingest["counts"]["read"], ""))
        steps.append(("rejected by ingest", ingest["counts"]["rejected"], _listed(ingest["reject_reasons"])))
    steps.append(("usable", counts["read"], ""))
    if missing := summary["reasons"].get(outcomes.NOT_SCORED):
        steps.append(("of these without a row in the attention parts", missing, ""))
    rejected = {reason: count for reason, count in summary["reasons"].items() if reason != outcomes.NOT_SCORED}
    steps.append(("rejected later", counts["rejected"], _listed(rejected)))
    excluded = counts["read"] - counts["rejected"] - summary["pool"]
    if excluded:
        steps.append(("left out", excluded, "no IoU, and missing_iou is exclude"))
    steps.append(("could be drawn", summary["pool"], ""))
    steps.append(("of these without an IoU", summary["without_iou"], ""))
    steps.append(("selected", counts["written"], ""))
    return steps


def _listed(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items()))


def markdown(summary: Mapping[str, Any], sentences: Sequence[str]) -> str:
    """The page in a few lines, for the Kubeflow UI.

    Args:
        summary: What summary.json holds.
        sentences: The tilt in words.
    """
    lines = ["# Free2DS selection", "", *(f"- {sentence}" for sentence in sentences), ""]
    lines += ["| step | records | reasons |", "| --- | ---: | --- |"]
    lines += [f"| {step} | {count:,} | {reasons} |" for step, count, reasons in counted_steps(summary)]
    lines += ["", "| source | pool | selected | random control |", "| --- | ---: | ---: | ---: |"]
    sources = list(summary["sources"].items())
    for name, row in sources[:_SOURCES_IN_MARKDOWN]:
        cell = markdown_cell(name, _SOURCE_LENGTH)
        lines.append(f"| {cell} | {row['pool']:,} | {row['selected']:,} | {row['random']:,} |")
    if len(sources) > _SOURCES_IN_MARKDOWN:
        lines.append(f"| {len(sources) - _SOURCES_IN_MARKDOWN} more | | | |")
    return "\n".join(lines) + "\n"


def _charts(records: Candidates, selection: Selection, summary: Mapping[str, Any]) -> dict[str, str]:
    pool = np.flatnonzero(selection.in_pool)
    selected = selection.selected[pool]
    drawn = {
        name: charts.distribution(values[pool], values[pool][selected], label)
        for name, values, label in (
            ("iou", records.iou, "IoU of the two maps"),
            ("text", selection.text_score, "text score (1 is the least typical)"),
            ("combined", selection.combined, "combined score"),
        )
    }
    drawn["signals"] = charts.iou_against_text(records.iou[pool], selection.text_score[pool], selected)
    drawn["sources"] = charts.composition(summary["sources"])
    return drawn


def _galleries(
    config: JointSelectionConfig, inputs: Inputs, records: Candidates, selection: Selection
) -> list[tuple[str, str, list[gallery.Card]]]:
    """Title, explanation and cards of each gallery."""
    with_iou = np.flatnonzero(selection.in_pool & ~np.isnan(records.iou))
    order = with_iou[np.argsort(-selection.combined[with_iou], kind="stable")]
    chosen = order[selection.selected[order]]
    margin = np.abs(selection.combined - selection.edge)[order]
    near = np.sort(np.argsort(margin, kind="stable")[:_CARDS])
    picks = {
        "Highest combined score": (
            "With an IoU: the models look at different places, or the text is unusual.",
            order[:_CARDS],
        ),
        "Lowest combined score": (
            "With an IoU: the models look at the same place and the text is typical.",
            order[::-1][:_CARDS],
        ),
        "Near the line": (
            "Nearest to the score at which the deterministic sampler (top) would stop.",
            order[near],
        ),
        "From the middle of the selection": (
            "What an average selected record looks like.",
            chosen[max(0, len(chosen) // 2 - _CARDS // 2) :][:_CARDS],
        ),
    }
    rows = np.unique(np.concatenate([pick for _, pick in picks.values()]).astype(np.int64))
    ids = inputs.records.unique_id[rows]
    found = inputs.dataset.take(rows.tolist(), ["image", "question", "messages", "source"]).to_pylist()
    maps = [
        (f"{name} looks here", gallery.framing_of(parts[0]), gallery.maps_of(parts, side.part[rows], ids))
        for name, parts, side in zip(("LLaVA", "MGM"), inputs.parts, inputs.sides, strict=True)
    ]
    made = {}
    for row, unique_id, record in zip(rows.tolist(), ids.tolist(), found, strict=True):
        numbers = [
            ("combined", f"{selection.combined[row]:.3f}"),
            ("IoU", f"{records.iou[row]:.3f}"),
            ("text score", f"{selection.text_score[row]:.3f}"),
        ]
        layers = [gallery.Layer(name, framing, values.get(unique_id)) for name, framing, values in maps]
        made[row] = gallery.card(
            config.image_root_uri, unique_id, record, layers, numbers, bool(selection.selected[row])
        )
    return [(title, text, [made[row] for row in pick.tolist()]) for title, (text, pick) in picks.items() if len(pick)]


def _clusters(kmeans: Dataset | None) -> dict[str, Any]:
    """Chart and typical messages of the clusters; empty without the k-means model."""
    if kmeans is None:
        return {}
    table = kmeans.table(["num_turns", "typical_message"])
    sizes = table.column("num_turns").to_numpy()
    texts = table.column("typical_message").to_pylist()
    order = np.argsort(-sizes, kind="stable")
    # Equal embeddings of different texts may leave a cluster without a message.
    filled = order[sizes[order] > 0]

    def shown(rows: np.ndarray) -> list[tuple[int, str]]:
        return [(int(sizes[row]), shortened(texts[row], _MESSAGE_LENGTH) or "(empty text)") for row in rows]

    return {
        "count": len(sizes),
        "chart": charts.clusters(sizes),
        "empty": len(order) - len(filled),
        "largest": shown(filled[:_CLUSTERS_SHOWN]),
        "smallest": shown(filled[::-1][:_CLUSTERS_SHOWN]),
    }
