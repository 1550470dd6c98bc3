"""The report: one HTML file that needs no script and no network."""

import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import jinja2
import numpy as np

from components.joint_selection.inputs import Inputs
from components.joint_selection.report import charts
from components.joint_selection.report.gallery import galleries
from components.joint_selection.report.wording import (
    MODEL_NAMES,
    OUTCOME_WORDS,
    changes_in_words,
    counted_steps,
    missing_in_words,
    plus_minus,
    reuse_in_words,
    shares_by_outcome,
    shortened,
    tilt_in_words,
)
from components.joint_selection.selection import Candidates, Selection
from components.joint_selection.summary import Summary
from free2ds_common.datasets import Dataset
from free2ds_common.redact import redacted
from free2ds_common.storage import atomic_writer

_CLUSTERS_SHOWN = 12
_MESSAGE_LENGTH = 200
_TEMPLATE = "report.html.jinja"
_PACKAGES = ("numpy", "pyarrow", "matplotlib", "pillow")


def write_report(path: str, inputs: Inputs, candidates: Candidates, selection: Selection, summary: Summary) -> None:
    """Write the page.

    Args:
        path: Where to.
        inputs: What was read.
        candidates: What was drawn from.
        selection: Every score.
        summary: The run in numbers.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = "{:,}".format
    environment.filters["plus_minus"] = plus_minus
    page = environment.get_template(_TEMPLATE).render(
        summary=summary,
        steps=counted_steps(summary),
        sentences=tilt_in_words(summary),
        model_names=MODEL_NAMES,
        outcome_words=OUTCOME_WORDS,
        missing_words=missing_in_words(summary),
        reuse_words=reuse_in_words(summary),
        changes=changes_in_words(summary),
        outcome_shares=shares_by_outcome(summary),
        charts=_charts(candidates, selection, summary),
        galleries=galleries(summary.parameters.image_root_uri, inputs, candidates, selection),
        clusters=_clusters(inputs.kmeans) if inputs.kmeans else None,
        versions={"Python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
    )
    with atomic_writer(path, "w") as handle:
        handle.write(redacted(page))


def _charts(candidates: Candidates, selection: Selection, summary: Summary) -> dict[str, str]:
    """Inline SVG by the name that the template uses."""
    pool = np.flatnonzero(selection.in_pool)
    selected = selection.selected[pool]
    iou, text, combined = (values[pool] for values in (candidates.iou, selection.text_score, selection.combined))
    return {
        "iou": charts.distribution(iou, iou[selected], "IoU of the two maps"),
        "text": charts.distribution(text, text[selected], "text score (1 is the least typical)"),
        "combined": charts.distribution(combined, combined[selected], "combined score"),
        "signals": charts.iou_against_text(iou, text, selected),
        "sources": charts.composition(summary.sources),
        "temperatures": _temperatures(summary),
    }


def _temperatures(summary: Summary) -> str:
    present = None if summary.parameters.sampler == "top" else summary.parameters.temperature
    return charts.temperatures(summary.chance.curve, summary.chance.overlap_random.expected, summary.pool, present)


@dataclass(frozen=True)
class _Clusters:
    """The page's part on clusters.

    Attributes:
        count: All clusters.
        chart: Inline SVG of their sizes.
        empty: Clusters without a message.
        largest: Turns and typical message of each.
        smallest: The same; empty ones are left out.
    """

    count: int
    chart: str
    empty: int
    largest: list[tuple[int, str]]
    smallest: list[tuple[int, str]]


def _clusters(kmeans: Dataset) -> _Clusters:
    """Chart and typical messages of the clusters."""
    table = kmeans.table(["num_turns", "typical_message"])
    sizes = table.column("num_turns").to_numpy()
    texts = table.column("typical_message").to_pylist()
    order = np.argsort(-sizes, kind="stable")
    # FAISS splits a large cluster where one is empty; of a text said many times, one half stays without a message.
    filled = order[sizes[order] > 0]

    def shown(rows: np.ndarray) -> list[tuple[int, str]]:
        return [(int(sizes[row]), shortened(texts[row], _MESSAGE_LENGTH) or "(empty text)") for row in rows]

    return _Clusters(
        count=len(sizes),
        chart=charts.clusters(sizes),
        empty=len(order) - len(filled),
        largest=shown(filled[:_CLUSTERS_SHOWN]),
        smallest=shown(filled[::-1][:_CLUSTERS_SHOWN]),
    )
