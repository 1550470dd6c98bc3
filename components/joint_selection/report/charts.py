"""The report's charts as inline SVG: matplotlib, in colours that read on a light and a dark ground."""

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from components.joint_selection.chance import CurvePoint
from components.joint_selection.report.wording import shortened_in_the_middle
from components.joint_selection.summary import SourceCounts

# Text stays text: small, searchable, and it takes the page's colour.
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "free2ds", "font.family": "sans-serif"})
# Names of sources are the data set's: a "$" in them is a dollar.
matplotlib.rcParams["text.parse_math"] = False

POOL_COLOUR, SELECTED_COLOUR = "#8a9bb0", "#d9622b"
_INK = "#010203"  # replaced by currentColor
_TEMPERATURES = (1e-6, 1e4)
_MAX_SOURCES, _MAX_LETTERS = 15, 44
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
    figure = Figure(figsize=(4.2, 2.6))
    axes = figure.subplots()
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
    figure = Figure(figsize=(4.2, 2.9))
    axes = figure.subplots()
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


def composition(sources: Mapping[str, SourceCounts]) -> str:
    """Share of each source before and after, the largest sources first."""
    names = list(sources)[:_MAX_SOURCES]
    pool = [sources[name].pool for name in names]
    selected = [sources[name].selected for name in names]
    if rest := [sources[name] for name in list(sources)[_MAX_SOURCES:]]:
        names.append(f"{len(rest)} others")
        pool.append(sum(row.pool for row in rest))
        selected.append(sum(row.selected for row in rest))
    figure = Figure(figsize=(6.4, 0.8 + 0.36 * len(names)))
    axes = figure.subplots()
    places = np.arange(len(names))[::-1]
    for label, counts, colour, shift in (
        ("pool", pool, POOL_COLOUR, 0.2),
        ("selected", selected, SELECTED_COLOUR, -0.2),
    ):
        axes.barh(places + shift, np.array(counts) / max(1, sum(counts)), 0.38, color=colour, label=label)
    axes.set_yticks(places, [shortened_in_the_middle(name, _MAX_LETTERS) for name in names], fontsize=8)
    axes.set_xlabel("share of records")
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure, "Composition by source")


def temperatures(curve: Sequence[CurvePoint], by_chance: float, pool: int, present: float | None) -> str:
    """Expected overlap with the top n, and effective sample size, over the temperature.

    Args:
        curve: By temperature.
        by_chance: Overlap of a uniform draw.
        pool: Records that could be drawn.
        present: The temperature of this run, or None.
    """
    figure = Figure(figsize=(8.4, 2.6), layout="constrained")
    axes = figure.subplots(1, 2)
    # A temperature beyond what an axis can show is at its end.
    at = np.clip([point.temperature for point in curve], *_TEMPERATURES)
    place = next((number for number, point in enumerate(curve) if point.temperature == present), None)
    overlap = [point.overlap for point in curve]
    size = [point.effective_sample_size / pool for point in curve]
    for one, values, label in zip(
        axes, (overlap, size), ("expected share in the top n", "effective sample size / pool"), strict=True
    ):
        one.plot(at, values, color=POOL_COLOUR, lw=1.8)
        one.set_xscale("log")
        # Not powers of ten in formulas: those are not parsed here.
        one.xaxis.set_major_formatter("{x:g}")
        one.xaxis.set_minor_formatter(NullFormatter())
        one.set_ylim(0, 1.04)
        one.set_xlabel("temperature")
        one.set_ylabel(label)
        if place is not None:
            one.plot([at[place]], [values[place]], "o", color=SELECTED_COLOUR, label="this run")
    axes[0].axhline(by_chance, color=POOL_COLOUR, lw=1, ls="--", label="a random draw")
    axes[0].legend(frameon=False, fontsize=8)
    return _svg(figure, "Overlap and effective sample size over the temperature")


def clusters(sizes: np.ndarray) -> str:
    """Turns per cluster, largest first."""
    figure = Figure(figsize=(6.4, 2.2))
    axes = figure.subplots()
    axes.fill_between(np.arange(1, len(sizes) + 1), np.sort(sizes)[::-1], step="mid", color=POOL_COLOUR)
    axes.set_xlabel("cluster, largest first")
    axes.set_ylabel("human turns")
    return _svg(figure, "Cluster sizes")
