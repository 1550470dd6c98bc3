"""Markdown tables, and the report in a few lines."""

import re
from collections.abc import Sequence

from components.joint_selection.report.wording import (
    changes_in_words,
    counted_steps,
    missing_in_words,
    reuse_in_words,
    shares_by_outcome,
    shortened_in_the_middle,
    tilt_in_words,
)
from components.joint_selection.summary import Summary
from free2ds_common.redact import redacted
from free2ds_common.storage import atomic_writer

_SOURCES_SHOWN, _SOURCE_LENGTH = 20, 80
# What would end a cell or start markup. Not the underscore: within a word, where names have it, it means nothing.
_MARKUP = re.compile(r"[\\|`*<\[]")
LEFT, RIGHT = "---", "---:"
_CHANCE = ("lift", "lift of 95% of draws")


def cell(text: str, max_length: int) -> str:
    """Any text, shortened to `max_length` characters, to be read as it is in a table's cell."""
    return _MARKUP.sub(r"\\\g<0>", shortened_in_the_middle(" ".join(text.split()), max_length))


def row(cells: Sequence[str]) -> str:
    """A row of a table."""
    return "| " + " | ".join(cells) + " |"


def write_overview(path: str, summary: Summary) -> None:
    """Write `overview`."""
    with atomic_writer(path, "w") as handle:
        handle.write(redacted(overview(summary)))


def overview(summary: Summary) -> str:
    """The report in a few lines, for the Kubeflow UI."""
    lines = ["# Free2DS selection", ""]
    lines += [f"- **Warning:** {sentence}" for sentence in summary.warnings]
    sentences = (*tilt_in_words(summary), *changes_in_words(summary), reuse_in_words(summary))
    lines += [f"- {sentence}" for sentence in sentences if sentence]
    lines += [""]
    lines += [row(("step", "records", "reasons")), row((LEFT, RIGHT, LEFT))]
    lines += [row((step.name, f"{step.records:,}", step.reasons)) for step in counted_steps(summary)]
    lines += _outcome_table(summary)
    lines += ["", row(("source", "pool", "selected", "random control", *_CHANCE)), row((LEFT, *[RIGHT] * 5))]
    sources = list(summary.sources.items())
    for name, counts in sources[:_SOURCES_SHOWN]:
        numbers = (f"{count:,}" for count in (counts.pool, counts.selected, counts.random))
        lines.append(row((cell(name, _SOURCE_LENGTH), *numbers, *_chance_of(summary, name))))
    if len(sources) > _SOURCES_SHOWN:
        lines.append(f"| {len(sources) - _SOURCES_SHOWN} more | | | | | |")
    return "\n".join(lines) + "\n"


def _outcome_table(summary: Summary) -> list[str]:
    """Pool, selection and top n by outcome, and how records without an IoU are ranked."""
    head = (
        "outcome of both models",
        "could be drawn",
        "of the pool",
        "of the selection",
        f"of the top {summary.counts.written:,}",
    )
    lines = ["", row(head), row((LEFT, *[RIGHT] * (len(head) - 1)))]
    lines += [row((one.name, f"{one.records:,}", *one[2:])) for one in shares_by_outcome(summary)]
    if summary.without_iou:
        lines += ["", f"Records without an IoU are ranked {missing_in_words(summary)}."]
    return lines


def _chance_of(summary: Summary, source: str) -> tuple[str, str]:
    """A source's lift in this draw, and in 95 % of draws; empty for one that is not in the pool."""
    if (found := summary.chance.sources.get(source)) is None:
        return "", ""
    return f"{found.lift_drawn:.2f}", f"{found.lift.low:.2f} to {found.lift.high:.2f}"
