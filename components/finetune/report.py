"""The page about a training: loss, learning rate, and what it was made of. It needs no script and no network."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from components.finetune.config import FinetuneConfig
from components.finetune.training import Outcome
from free2ds_common.redact import redacted
from free2ds_common.storage import atomic_writer

# Pixels of a curve and its margins: left, top, right, bottom.
_WIDTH, _HEIGHT, _MARGIN = 760, 260, (64, 12, 12, 34)
_LOSS, _SMOOTHED, _RATE = "#8a9bb0", "#d9622b", "#4a7fb5"
# Of the steps: what a point of the smoothed curve is the mean of.
_WINDOW = 0.05
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:860px;padding:0 1rem}
table{border-collapse:collapse}td,th{padding:.15rem .9rem .15rem 0;text-align:left;vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums}svg{max-width:100%;height:auto}code{overflow-wrap:anywhere}
@media(prefers-color-scheme:dark){body{background:#16191d;color:#dde2e8}}"""


def write_report(path: str, config: FinetuneConfig, outcome: Outcome, content: Mapping[str, Any]) -> None:
    """Write the page.

    Args:
        path: Where to.
        config: Settings.
        outcome: What came of the training.
        content: Its metrics and what it was made of; JSON values.
    """
    losses = [step["loss"] for step in outcome.history]
    rates = [step["learning_rates"][0] for step in outcome.history]
    parts = [
        f"<h1>{html.escape(config.model)}, trained on {outcome.counts.written:,} records</h1>",
        "<h2>Loss per step</h2>",
        curve([(losses, _LOSS, "each step"), (smoothed(losses), _SMOOTHED, "mean of its neighbours")], "loss"),
        "<h2>Learning rate of the adapters</h2>",
        curve([(rates, _RATE, "learning rate")], "learning rate"),
        "<h2>Numbers</h2>",
        _table({**content["metrics"], **vars(outcome.counts)}),
        "<h2>Records that were not learnt from</h2>" + _table(outcome.rejected) if outcome.rejected else "",
        "<h2>Made of</h2>",
        _table({name: value for name, value in content.items() if name not in ("metrics", "rejected_by_reason")}),
    ]
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Training</title>'
        f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )
    with atomic_writer(path, "w") as handle:
        handle.write(redacted(page))


def smoothed(values: Sequence[float]) -> list[float]:
    """Each value's mean with its neighbours, as many on either side as there are."""
    reach = int(len(values) * _WINDOW / 2)
    means = []
    for place in range(len(values)):
        near = min(reach, place, len(values) - 1 - place)
        inside = values[place - near : place + near + 1]
        means.append(sum(inside) / len(inside))
    return means


def curve(lines: Sequence[tuple[Sequence[float], str, str]], label: str) -> str:
    """Values over the steps as an <svg> element.

    Args:
        lines: Values per step, colour and name of each line.
        label: Of the y axis.
    """
    values = [value for line, _, _ in lines for value in line]
    low, high = min(0.0, *values), max(*values, 1e-12)
    steps = max(len(line) for line, _, _ in lines)
    left, top, right, bottom = _MARGIN
    inner_width, inner_height = _WIDTH - left - right, _HEIGHT - top - bottom

    def x(step: int) -> float:
        return left + inner_width * ((step - 1) / (steps - 1) if steps > 1 else 0.5)

    def y(value: float) -> float:
        return top + inner_height * (1 - (value - low) / (high - low))

    drawn = []
    for part in range(5):
        value = low + (high - low) * part / 4
        drawn.append(
            f'<line x1="{left}" x2="{_WIDTH - right}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="currentColor" '
            f'opacity=".15"/><text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        )
    drawn += [
        f'<text x="{x(step):.1f}" y="{_HEIGHT - 16}" text-anchor="middle">{step}</text>'
        for step in sorted({1, (steps + 1) // 2, steps})
    ]
    for number, (line, colour, name) in enumerate(lines):
        points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in enumerate(line, start=1))
        drawn.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        drawn.append(
            f'<text x="{_WIDTH - right}" y="{top + 14 + 16 * number}" text-anchor="end" fill="{colour}">{name}</text>'
        )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" font-size="12" '
        f'aria-label="{label} per step" fill="currentColor">{"".join(drawn)}'
        f'<text x="{left}" y="{_HEIGHT - 2}">step</text></svg>'
    )


def _table(rows: Mapping[str, Any]) -> str:
    """Names and values."""
    cells = []
    for name, value in rows.items():
        number = isinstance(value, int | float)
        text = f"{value:,.6g}" if number else value if isinstance(value, str) else json.dumps(value)
        cells.append(f"<tr><th>{html.escape(name)}</th><td{' class=n' * number}>{html.escape(text)}</td></tr>")
    return f"<table>{''.join(cells)}</table>"
