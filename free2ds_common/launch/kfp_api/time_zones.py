"""A cron of a time zone as one in UTC, which is all that the backend knows; or a refusal where no one cron says it."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from free2ds_common.errors import SettingError
from free2ds_common.launch.kfp_api.cron import days_of, next_time, numbers

_DAY_MINUTES = 24 * 60
# After so many years dates fall on the same weekdays again, leap years too.
_WEEKDAYS_REPEAT = 28
_LOOK_AHEAD_DAYS = 400


@dataclass(frozen=True)
class Zoned:
    """A cron in UTC.

    Attributes:
        cron: It.
        shift: Says when the zone's clocks change and runs start at another time there; empty where they do not.
    """

    cron: str
    shift: str


def in_utc(cron: str, zone_name: str, now: datetime) -> Zoned:
    """A cron of a time zone as one in UTC, by the zone's clock at its next run.

    Args:
        cron: As `check_cron` wants it.
        zone_name: Such as Europe/Berlin.
        now: UTC.

    Raises:
        StageError: There is no such zone, or in UTC it takes more than one cron.
    """
    zone = _zone(zone_name)
    wall = next_time(cron, now.astimezone(zone).replace(tzinfo=None))
    first = wall.replace(tzinfo=zone).astimezone(UTC)
    found = _shifted(cron, _offset(zone, first))
    if not found:
        raise SettingError(
            "--time-zone",
            f"{cron!r} of {zone_name} cannot be written as one cron in UTC, which is {_clock(_offset(zone, first))} "
            "off: its days or minutes would be others for some runs only. Choose another time of day, make a schedule "
            "of each time, or leave --time-zone out and give UTC.",
        )
    change = _next_change(zone, first)
    if change is None or _shifted(cron, _offset(zone, change)) == found:
        return Zoned(found, "")
    minutes = _offset(zone, change) - _offset(zone, first)
    return Zoned(
        found,
        f"The clocks of {zone_name} go {'forward' if minutes > 0 else 'back'} {abs(minutes)} minutes on "
        f"{change.astimezone(zone):%Y-%m-%d}: from then on runs start {abs(minutes)} minutes "
        f"{'later' if minutes > 0 else 'earlier'} there, until this command is given again.",
    )


def _zone(name: str) -> ZoneInfo:
    """A time zone.

    Raises:
        SettingError: There is none of this name, or none at all.
    """
    try:
        return ZoneInfo(name)
    # A name that is no path within the database, or that of a folder in it.
    except (ZoneInfoNotFoundError, ValueError, OSError):
        known = available_timezones()
    if not known:
        raise SettingError(
            "--time-zone", "this machine has no time zones. Install the package tzdata, or give the cron in UTC."
        ) from None
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {close[0]}?" if close else "Give one such as Europe/Berlin."
    raise SettingError("--time-zone", f"there is no zone {name!r}. {hint}") from None


def _shifted(cron: str, offset: int) -> str:
    """A cron of a zone in UTC; empty where no one cron is it.

    Args:
        cron: In the zone.
        offset: Minutes by which the zone is ahead of UTC.
    """
    _, minutes, hours, *_ = numbers(cron)
    times = [divmod(hour * 60 + minute - offset, _DAY_MINUTES) for hour in hours for minute in minutes]
    days = {day for day, _ in times}
    in_utc_hours, in_utc_minutes = {time // 60 for _, time in times}, {time % 60 for _, time in times}
    if len(times) != len(in_utc_hours) * len(in_utc_minutes):
        return ""
    second, minute_field, _, *day_fields = cron.split()
    if in_utc_minutes != set(minutes):
        minute_field = _field(in_utc_minutes)
    hour_field = "*" if len(in_utc_hours) == 24 else _field(in_utc_hours)
    if all(map(days_of(cron), _all_days())):
        return " ".join([second, minute_field, hour_field, *day_fields])
    day = days.pop()
    day_fields = day_fields if day == 0 else _moved(cron, day)
    found = " ".join([second, minute_field, hour_field, *day_fields])
    if days or not day_fields:
        return ""
    was, now = days_of(cron), days_of(found)
    moved = all(was(one) == now(one + timedelta(days=day)) for one in _all_days())
    return found if moved else ""


def _moved(cron: str, by: int) -> list[str]:
    """The fields of days, months and weekdays, days moved by one; none where a day would be none of a month."""
    _, _, _, days, _, weekdays = numbers(cron)
    _, _, _, day_field, month_field, weekday_field = cron.split()
    if len(days) < 31:
        if not (min(days) + by >= 1 and max(days) + by <= 31):
            return []
        day_field = _field({day + by for day in days})
    if len(weekdays) < 7:
        weekday_field = _field({(weekday + by) % 7 for weekday in weekdays})
    return [day_field, month_field, weekday_field]


def _field(values: Iterable[int]) -> str:
    return ",".join(map(str, sorted(values)))


def _all_days() -> Iterable[date]:
    first = date(2000, 1, 1)
    return (first + timedelta(days=number) for number in range(_WEEKDAYS_REPEAT * 1461 // 4))


def _offset(zone: ZoneInfo, moment: datetime) -> int:
    """Minutes by which a zone is ahead of UTC at a moment."""
    offset = moment.astimezone(zone).utcoffset()
    assert offset is not None
    return round(offset.total_seconds() / 60)


def _next_change(zone: ZoneInfo, after: datetime) -> datetime | None:
    """The first minute with another offset, within more than a year; None if there is none."""
    before = _offset(zone, after)
    late = next(
        (day for number in range(_LOOK_AHEAD_DAYS) if _offset(zone, day := after + timedelta(days=number)) != before),
        None,
    )
    if late is None:
        return None
    early = late - timedelta(days=1)
    while late - early > timedelta(minutes=1):
        middle = early + (late - early) / 2
        early, late = (middle, late) if _offset(zone, middle) == before else (early, middle)
    return late


def _clock(minutes: int) -> str:
    """Such as 5:30 hours."""
    return f"{abs(minutes) // 60}:{abs(minutes) % 60:02} hours"
