"""The cron of Kubeflow Pipelines: six fields, seconds first, in UTC."""

import re
from collections.abc import Callable
from datetime import date, datetime, timedelta

from free2ds_common.errors import StageError

# A number, a range or *, each with a step or not, and lists of them; ? and names as in MON-FRI.
_FIELD = re.compile(r"(\?|(\*|\w+(-\w+)?)(/\d+)?)(,(\*|\w+(-\w+)?)(/\d+)?)*")
# Name, least and most number, and names that may stand for them.
_FIELDS = (
    ("second", 0, 59, ""),
    ("minute", 0, 59, ""),
    ("hour", 0, 23, ""),
    ("day of the month", 1, 31, ""),
    ("month", 1, 12, "JANFEBMARAPRMAYJUNJULAUGSEPOCTNOVDEC"),
    ("day of the week", 0, 6, "SUNMONTUEWEDTHUFRISAT"),
)
_ANY = ("*", "?")
_FOUR_YEARS = 4 * 366


def check_cron(cron: str) -> None:
    """Refuse a schedule that the backend would misread.

    Args:
        cron: Six fields: second, minute, hour, day of month, month, day of week.

    Raises:
        StageError: Another number of fields (a crontab's five are accepted by the backend and misread), a field that is
            none or out of range, or a start every second.
    """
    fields = cron.split()
    example = "such as '0 0 3 * * 1' for Mondays at 03:00"
    if len(fields) != 6:
        raise StageError(f"--cron: got {cron!r} with {len(fields)} fields, wanted six, seconds first, {example}.")
    for field in fields:
        if not _FIELD.fullmatch(field):
            raise StageError(f"--cron: {field!r} in {cron!r} is no cron field; wanted six, {example}.")
    if not (fields[0].isdigit() and int(fields[0]) < 60):
        raise StageError(f"--cron: the first field of {cron!r} is the second, wanted a number from 0 to 59, {example}.")
    for field, found, (name, least, most, _) in zip(fields, numbers(cron), _FIELDS, strict=True):
        if not found:
            raise StageError(
                f"--cron: {field!r} in {cron!r} is no {name}, wanted numbers from {least} to {most}, {example}."
            )


def next_time(cron: str, after: datetime) -> datetime:
    """When a schedule starts its next run.

    Args:
        cron: As `check_cron` wants it.
        after: UTC.

    Raises:
        StageError: Never within the four years in which every date comes up, such as on 30 February.
    """
    (second, minute, hour, *_), is_day = numbers(cron), days_of(cron)
    day = after.replace(hour=0, minute=0, second=0, microsecond=0)
    for _ in range(_FOUR_YEARS):
        if is_day(day):
            times = (day.replace(hour=h, minute=m, second=s) for h in hour for m in minute for s in second)
            if found := next((time for time in times if time > after), None):
                return found
        day += timedelta(days=1)
    raise StageError(f"--cron: {cron!r} never comes up. Give days that its months have.")


def numbers(cron: str) -> list[list[int]]:
    """The numbers of each of the six fields, ascending; none for a field with one that is out of range."""
    return [
        _values(field, least, most, names) for field, (_, least, most, names) in zip(cron.split(), _FIELDS, strict=True)
    ]


def days_of(cron: str) -> Callable[[date], bool]:
    """Whether a schedule starts a run on a day."""
    _, _, _, days, months, weekdays = numbers(cron)
    _, _, _, day_field, _, weekday_field = cron.split()
    # A day fits if either fits, where both are given; as the backend's library has it.
    either = not day_field.startswith(_ANY) and not weekday_field.startswith(_ANY)

    def fits(day: date) -> bool:
        found = (day.day in days, day.isoweekday() % 7 in weekdays)
        return day.month in months and (any(found) if either else all(found))

    return fits


def _values(field: str, least: int, most: int, names: str) -> list[int]:
    """The numbers that a field stands for, ascending; none where one of them is out of range.

    Args:
        field: Of a cron.
        least: Of the numbers.
        most: Of the numbers.
        names: That may stand for numbers from the least one on, three letters each; empty for none.
    """
    spelled = {names[at : at + 3]: least + at // 3 for at in range(0, len(names), 3)}
    found: set[int] = set()
    for part in field.split(","):
        whole, _, step = part.partition("/")
        first, _, last = whole.partition("-")
        ends = [spelled.get(text.upper(), int(text) if text.isdecimal() else -1) for text in (first, last or first)]
        if first in _ANY:
            ends = [least, most]
        elif step and not last:
            ends[1] = most
        if not least <= ends[0] <= ends[1] <= most or (step and not int(step)):
            return []
        found.update(range(ends[0], ends[1] + 1, int(step or 1)))
    return sorted(found)
