"""The page of a verdict: one HTML file that needs no script and no network."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from components.verdict.differences import BEAT, LOST, Findings
from free2ds_common.evaluation import ALL, WITHOUT_COGNITION, Estimate
from free2ds_common.redact import redacted
from free2ds_common.storage import atomic_writer

_WORDS = {BEAT: "selecting", LOST: "random", "open": "not told apart"}
_MODELS = {"llava": "LLaVA", "mgm": "MGM", "text": "text model"}
_SETS = {ALL: "mean", WITHOUT_COGNITION: "mean without MME's cognition"}
# Pixels: names, plot, a row, and what is left free at either side of the plot.
_NAMES, _PLOT, _ROW, _SIDE = 230, 460, 24, 14
# Colours and sizes of the selection's report.
_STYLE = """:root{color-scheme:light dark;
--ground:#fdfdfb;--ink:#1d2430;--soft:#5b6675;--line:#d8dde3;--panel:#f3f5f7;--mark:#b8481a}
@media(prefers-color-scheme:dark){:root{
--ground:#14181e;--ink:#e6e9ee;--soft:#9aa6b5;--line:#333c47;--panel:#1d232b;--mark:#f08a55}}
body{margin:0 auto;max-width:70rem;padding:1.2rem;background:var(--ground);color:var(--ink);
font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.7rem;margin:.2rem 0}h2{margin-top:2.4rem;border-bottom:1px solid var(--line);font-size:1.25rem}
p,li{max-width:46rem}.soft{color:var(--soft)}.said{font-size:1.25rem}
.warning{border-left:.3rem solid var(--mark);background:var(--panel);padding:.5rem .9rem}
table{border-collapse:collapse;margin:.8rem 0;font-size:.92rem}
td,th{border-bottom:1px solid var(--line);padding:.25rem .8rem .25rem 0;text-align:left;vertical-align:top}
td.n,th.n{text-align:right;white-space:nowrap}.scroll{overflow-x:auto}svg{max-width:100%;height:auto}"""


def write_page(path: str, content: Mapping[str, Any], found: Findings) -> None:
    """Write the page.

    Args:
        path: Where to.
        content: What comparison.json holds.
        found: The same, typed.
    """
    arms = list(next(iter(found.arms.values())))
    parts = [
        "<h1>Did selecting help?</h1>",
        f'<p class="said"><b>{_escaped(content["sentence"])}</b></p>',
        f'<p class="soft">{_escaped(content["model"])}, trained on the selection and on as many records at random; '
        f"{_seeds(found)}. A difference counts where its 95 % interval, over {content['resamples']:,} resamples of "
        "questions and seeds, has no 0. Points are hundredths of the most that a benchmark can give.</p>",
        *(f'<p class="warning"><b>Mind:</b> {_escaped(one)}</p>' for one in content["warnings"]),
        "<h2>Selected minus random</h2>",
        _plot({column: one.points for column, one in found.differences.items()} | _named(found.mean)),
        _table(
            ["benchmark", "selected", "random", "difference", "points", "better"],
            [
                [
                    column,
                    f"{found.arms[column]['selected'].value:.2f}",
                    f"{found.arms[column]['random'].value:.2f}",
                    _signed(one.own),
                    _signed(one.points),
                    _WORDS[one.outcome],
                ]
                for column, one in found.differences.items()
            ],
        ),
        f"<h2>Rel. %, {_escaped(found.baseline)} being 100</h2>",
        _relative(found),
        "<h2>Every model</h2>",
        _table(
            ["benchmark", *arms],
            [[column, *(_between(values[arm]) for arm in arms)] for column, values in found.arms.items()],
        ),
        _lmms_eval(content["lmms_eval"], arms),
        "<h2>What it took</h2>",
        _costs(content["costs"], found.seeds),
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Did selecting help?</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    with atomic_writer(path, "w") as handle:
        handle.write(redacted(page))


def _lmms_eval(metrics: Mapping[str, Mapping[str, float]], arms: Sequence[str]) -> str:
    """What lmms-eval says of its answers, if they are its."""
    if not metrics:
        return ""
    rows = [[name, *(f"{one[arm]:.4g}" if arm in one else "" for arm in arms)] for name, one in metrics.items()]
    return (
        "<h2>lmms-eval's own metrics</h2><p>Of the same answers, in its own units: shares of 1, of MME points, of "
        "MMBench percent; the mean over the seeds. Everything above is judged by this project.</p>"
        + _table(["benchmark and metric", *arms], rows)
    )


def _seeds(found: Findings) -> str:
    return ", ".join(f"{arm}: {count} training{'s' * (count > 1)}" for arm, count in found.seeds.items())


def _named(sets: Mapping[str, Estimate]) -> dict[str, Estimate]:
    return {_SETS[label]: one for label, one in sets.items()}


def _relative(found: Findings) -> str:
    columns = dict.fromkeys(column for values in found.relative.values() for column in values)
    if not columns:
        return f"<p>Nothing to be relative to: {_escaped(found.baseline)} has 0 everywhere.</p>"
    rows = [
        [_SETS.get(column, column), *(_between(values[column]) for values in found.relative.values())]
        for column in columns
    ]
    left_out = [column for column in found.arms if column not in columns]
    note = f"<p>Left out, for {_escaped(found.baseline)} has 0 there: {_escaped(', '.join(left_out))}.</p>"
    return _table(["benchmark", *found.relative], rows) + (note if left_out else "")


def _costs(costs: Mapping[str, Any], seeds: Mapping[str, int]) -> str:
    by_model = costs["selecting_device_hours"]
    hours_of = ", ".join(f"{_MODELS[model]} {one:.3g}" for model, one in by_model.items())
    devices = f"{sum(by_model.values()):.3g} hours of devices ({hours_of}); " if by_model else ""
    rows = [
        [
            "selecting",
            "1",
            "",
            f"{devices}{costs['selecting_hours']:.3g} h from start to end; {costs['computed']:,} results computed, "
            f"{costs['reused']:,} taken from a results store, whose hours are an earlier run's",
        ]
    ]
    for arm, hours in costs["training_device_hours"].items():
        records = costs["records"][arm]
        rows.append(
            [
                f"training on {arm}",
                f"{seeds[arm]}",
                "not known" if records is None else f"{records:,.0f}",
                "not known" if hours is None else f"{hours:.3g} hours of devices, all trainings together",
            ]
        )
    return _table(["work", "times", "records each", "took"], rows)


def _plot(rows: Mapping[str, Estimate]) -> str:
    """Differences and their intervals around 0, as an <svg> element."""
    ends = [abs(end) for one in rows.values() for end in (one.value, one.low, one.high) if end is not None]
    reach = max(*ends, 1e-9)
    height, middle = _ROW * len(rows) + 30, _NAMES + _PLOT / 2

    def x(value: float) -> float:
        return middle + value / reach * (_PLOT / 2 - _SIDE)

    drawn = [f'<line x1="{middle}" x2="{middle}" y1="0" y2="{height - 26}" stroke="var(--line)"/>']
    for number, (name, one) in enumerate(rows.items()):
        y = _ROW * number + _ROW / 2
        low, high = (one.value if end is None else end for end in (one.low, one.high))
        colour = "var(--mark)" if low > 0 or high < 0 else "var(--soft)"
        drawn.append(
            f'<text x="0" y="{y + 4}">{_escaped(name)}</text>'
            f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3"/>'
            f'<circle cx="{x(one.value):.1f}" cy="{y}" r="5" fill="{colour}"/>'
        )
    for value, anchor in ((-reach, "start"), (0.0, "middle"), (reach, "end")):
        drawn.append(f'<text x="{x(value):.1f}" y="{height - 8}" text-anchor="{anchor}">{value:+.2g}</text>')
    return (
        f'<svg viewBox="0 0 {_NAMES + _PLOT} {height}" width="{_NAMES + _PLOT}" role="img" font-size="13" '
        f'fill="currentColor" aria-label="Selected minus random, in points">{"".join(drawn)}</svg>'
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(f"<{tag}{' class=n' * (place > 0)}>{_escaped(text)}</{tag}>" for place, text in enumerate(row))

    lines = [f"<tr>{cells('th', head)}</tr>", *(f"<tr>{cells('td', row)}</tr>" for row in rows)]
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _between(one: Estimate) -> str:
    """A number and its interval."""
    return f"{one.value:.2f}" if one.low is None else f"{one.value:.2f} ({one.low:.2f} to {one.high:.2f})"


def _signed(one: Estimate) -> str:
    """A difference and its interval."""
    return f"{one.value:+.2f}" if one.low is None else f"{one.value:+.2f} ({one.low:+.2f} to {one.high:+.2f})"


def _escaped(text: object) -> str:
    return html.escape(str(text))
