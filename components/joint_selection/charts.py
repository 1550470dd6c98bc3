"""The report's charts as inline SVG: matplotlib, colours that read on light and dark ground."""

import io
import re
from collections.abc import Mapping

import matplotlib

matplotlib.use("svg")
# Text stays text: small, searchable, and it takes the page's colour.
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "free2ds", "font.family": "sans-serif"})
# Names of sources are the data set's: a "$" in them is a dollar.
matplotlib.rcParams["text.parse_math"] = False

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.colors import LinearSegmentedColormap  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from components.joint_selection.wording import shortened_in_the_middle  # noqa: E402

POOL_COLOUR, SELECTED_COLOUR = "#8a9bb0", "#d9622b"
_INK = "#010203"  # replaced by currentColor
_MOST_SOURCES, _MOST_LETTERS = 15, 44
_SHARE_COLOURS = LinearSegmentedColormap.from_list("share", [POOL_COLOUR, SELECTED_COLOUR])


def _svg(figure: Figure, label: str) -> str:
    """The figure as an <svg> element with a transparent ground and the page's text colour."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=_INK)
        for spine in axes.spines.values():
            spine.set_color(_INK)
        for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
            text.set_color(_INK)
        legend = axes.get_legend()
        for text in legend.get_texts() if legend else ():
            text.set_color(_INK)
    written = io.StringIO()
    figure.savefig(written, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", svg, count=1)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _range(values: np.ndarray) -> tuple[float, float]:
    """Lowest and highest value; one of width 1 where all are the same or there is none."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    return low, high if high > low else low + 1


def distribution(pool: np.ndarray, selected: np.ndarray, label: str) -> str:
    """Histogram of the pool and of the selection, each as a share of its own size.

    Args:
        pool: float64, (n,), NaN left out.
        selected: float64, (m,), NaN left out.
        label: Of the x axis.
    """
    pool, selected = pool[~np.isnan(pool)], selected[~np.isnan(selected)]
    figure, axes = plt.subplots(figsize=(4.2, 2.6))
    edges = np.linspace(*_range(pool), 31)
    for values, colour, name in ((pool, POOL_COLOUR, "pool"), (selected, SELECTED_COLOUR, "selected")):
        counts, _ = np.histogram(values, edges)
        shares = counts / max(1, len(values))
        axes.stairs(
            shares, edges, color=colour, fill=name == "pool", alpha=0.6 if name == "pool" else 1, lw=1.8, label=name
        )
    axes.set_xlabel(label)
    axes.set_ylabel("share of records")
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure, f"Distribution of {label}")


def iou_against_text(iou: np.ndarray, text: np.ndarray, selected: np.ndarray) -> str:
    """Where pool and selection lie between the two signals, as binned counts."""
    known = ~np.isnan(iou) & ~np.isnan(text)
    figure, axes = plt.subplots(figsize=(4.2, 2.9))
    if known.any():
        bins = [np.linspace(*_range(values[known]), 41) for values in (iou, text)]
        counts, _, _ = np.histogram2d(iou[known], text[known], bins)
        chosen, _, _ = np.histogram2d(iou[known & selected], text[known & selected], bins)
        x, y = (edges[:-1] + np.diff(edges) / 2 for edges in bins)
        places = np.argwhere(counts)
        share = chosen[counts > 0] / counts[counts > 0]
        area = 6 + 60 * np.sqrt(counts[counts > 0] / counts.max())
        drawn = axes.scatter(x[places[:, 0]], y[places[:, 1]], area, share, cmap=_SHARE_COLOURS, vmin=0, vmax=1)
        bar = figure.colorbar(drawn, ax=axes)
        bar.set_label("share selected")
    axes.set_xlabel("IoU of the two maps (a larger dot is more records)")
    axes.set_ylabel("text score")
    return _svg(figure, "IoU against text score")


def composition(sources: Mapping[str, Mapping[str, int]]) -> str:
    """Share of each source before and after, the largest sources first."""
    names = list(sources)[:_MOST_SOURCES]
    rows = [dict(sources[name]) for name in names]
    if len(sources) > len(names):
        names.append(f"{len(sources) - len(names)} others")
        rest = [sources[name] for name in list(sources)[_MOST_SOURCES:]]
        rows.append({column: sum(row[column] for row in rest) for column in ("pool", "selected", "random")})
    total = {column: max(1, sum(row[column] for row in sources.values())) for column in ("pool", "selected")}
    figure, axes = plt.subplots(figsize=(6.4, 0.8 + 0.36 * len(names)))
    places = np.arange(len(names))[::-1]
    for column, colour, shift in (("pool", POOL_COLOUR, 0.2), ("selected", SELECTED_COLOUR, -0.2)):
        axes.barh(places + shift, [row[column] / total[column] for row in rows], 0.38, color=colour, label=column)
    axes.set_yticks(places, [shortened_in_the_middle(name, _MOST_LETTERS) for name in names], fontsize=8)
    axes.set_xlabel("share of records")
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure, "Composition by source")


def clusters(sizes: np.ndarray) -> str:
    """Turns per cluster, largest first."""
    figure, axes = plt.subplots(figsize=(6.4, 2.2))
    axes.fill_between(np.arange(1, len(sizes) + 1), np.sort(sizes)[::-1], step="mid", color=POOL_COLOUR)
    axes.set_xlabel("cluster, largest first")
    axes.set_ylabel("human turns")
    return _svg(figure, "Cluster sizes")
