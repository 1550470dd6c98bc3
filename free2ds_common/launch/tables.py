"""What lists look like."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime


def print_rows(rows: Iterable[tuple[str, ...]], nothing: str) -> None:
    """Print a table.

    Args:
        rows: The first one is its head.
        nothing: Printed where there is no other row.
    """
    head, *body = rows
    print("\n".join(table([head, *body])) if body else nothing)


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows as lines, their columns below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def minute(time: datetime | None) -> str:
    """A time in UTC to the minute; empty for none."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M}" if time else ""


def took(started: datetime | None, ended: datetime | None) -> str:
    """How long a run took in hours and minutes; empty while it goes on, which the API tells as the year 1970."""
    if not started or not ended or ended < started:
        return ""
    minutes = round((ended - started).total_seconds() / 60)
    return f"{minutes // 60}:{minutes % 60:02}"
