"""schedule --time-zone: the same moments in UTC, or a refusal; what is said of summer time."""

import json
import zoneinfo
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from free2ds_common.errors import StageError
from free2ds_common.launch.kfp_api import time_zones
from free2ds_common.launch.kfp_api.cron import next_time
from free2ds_common.launch.kfp_api.time_zones import in_utc
from tests.support.kfp_stub import V2

REQUIRED = ["--param", "dataset_uri=gs://b/d.json", "--param", "image_root_uri=gs://b/i"]
WINTER, SUMMER = datetime(2026, 11, 27, 12, tzinfo=UTC), datetime(2026, 7, 1, 12, tzinfo=UTC)
# Minutes ahead of UTC, all year.
FIXED = {
    "Asia/Tokyo": 540,
    "Asia/Kolkata": 330,
    "Asia/Kathmandu": 345,
    "Pacific/Kiritimati": 840,
    "Pacific/Marquesas": -570,
    "America/Phoenix": -420,
}


@pytest.mark.parametrize(
    ("cron", "zone", "now", "expected"),
    [
        ("0 0 3 * * 1", "Europe/Berlin", WINTER, "0 0 2 * * 1"),
        ("0 0 3 * * 1", "Europe/Berlin", SUMMER, "0 0 1 * * 1"),
        ("0 0 3 * * 1", "UTC", WINTER, "0 0 3 * * 1"),
        # Into the day before, and the day after.
        ("30 15 0 ? * MON", "Europe/Berlin", WINTER, "30 15 23 ? * 0"),
        ("0 0 3 * * MON-FRI", "Asia/Tokyo", WINTER, "0 0 18 * * 0,1,2,3,4"),
        ("0 0 20 * * 5,6", "America/New_York", WINTER, "0 0 1 * * 0,6"),
        ("0 0 0 15 * *", "Europe/Berlin", WINTER, "0 0 23 14 * *"),
        # Either of two days.
        ("0 0 20 27 * 1", "America/New_York", WINTER, "0 0 1 28 * 2"),
        # Every day: which one does not matter.
        ("0 0 */6 * * *", "Europe/Berlin", WINTER, "0 0 5,11,17,23 * * *"),
        ("0 */15 * * * *", "Europe/Berlin", WINTER, "0 */15 * * * *"),
        ("0 0 9 * * 1", "Asia/Kolkata", WINTER, "0 30 3 * * 1"),
        ("0 0 * * * *", "Asia/Kolkata", WINTER, "0 30 * * * *"),
        # The 29th of a month that always has one.
        ("0 0 20 28 MAR *", "America/New_York", datetime(2026, 1, 1, tzinfo=UTC), "0 0 0 29 MAR *"),
    ],
)
def test_the_same_times_in_utc(cron, zone, now, expected):
    assert in_utc(cron, zone, now).cron == expected


@pytest.mark.parametrize(
    ("cron", "zone"),
    [
        ("0 0 0 1 * *", "Europe/Berlin"),
        # The 29th of February is not always there.
        ("0 0 20 28 * *", "America/New_York"),
        ("0 0 20 31 * *", "America/New_York"),
        ("0 0 0 * JAN *", "Europe/Berlin"),
        # Midnight falls on Sunday, the others on Monday.
        ("0 0 */6 * * 1", "Europe/Berlin"),
        # 03:30 and 04:00, but neither 03:00 nor 04:30.
        ("0 0,30 9 * * *", "Asia/Kolkata"),
    ],
)
def test_what_no_one_cron_says_is_refused(cron, zone):
    with pytest.raises(StageError, match=r"^--time-zone: '0 .*' of .* cannot be written as one cron in UTC, which is "):
        in_utc(cron, zone, WINTER)


FIELD = st.one_of(
    st.just("*"), st.lists(st.integers(0, 23), min_size=1, max_size=3).map(lambda v: ",".join(map(str, v)))
)
DAYS = st.one_of(
    st.just("*"), st.lists(st.integers(1, 31), min_size=1, max_size=3).map(lambda v: ",".join(map(str, v)))
)
WEEKDAYS = st.sampled_from(["*", "?", "1", "0,3", "*/2", "MON-FRI"])
MONTHS = st.sampled_from(["*", "2", "1,3-5", "*/4"])


@given(FIELD, FIELD, DAYS, MONTHS, WEEKDAYS, st.sampled_from(sorted(FIXED)))
def test_runs_start_at_the_same_moments(minute, hour, day, month, weekday, zone):
    cron = f"7 {minute} {hour} {day} {month} {weekday}"
    with suppress(StageError):
        found = in_utc(cron, zone, WINTER).cron
        ahead = timedelta(minutes=FIXED[zone])
        there, here = WINTER + ahead, WINTER
        for _ in range(8):
            there, here = next_time(cron, there), next_time(found, here)
            assert here == there - ahead


class TestSummerTime:
    @pytest.mark.parametrize(
        ("now", "said"),
        [
            (
                WINTER,
                "The clocks of Europe/Berlin go forward 60 minutes on 2027-03-28: from then on runs start 60 minutes "
                "later there, until this command is given again.",
            ),
            (
                SUMMER,
                "The clocks of Europe/Berlin go back 60 minutes on 2026-10-25: from then on runs start 60 minutes "
                "earlier there, until this command is given again.",
            ),
        ],
    )
    def test_when_and_how_times_shift(self, now, said):
        assert in_utc("0 0 3 * * 1", "Europe/Berlin", now).shift == said

    def test_the_day_is_that_of_the_change_even_if_its_run_came_before(self):
        assert "minutes on 2027-03-28:" in in_utc("0 0 1 * * *", "Europe/Berlin", WINTER).shift

    def test_half_an_hour(self):
        said = in_utc("0 0 9 * * 1", "Australia/Lord_Howe", WINTER).shift
        assert said.startswith("The clocks of Australia/Lord_Howe go back 30 minutes on 2027-04-04: from then on ")

    def test_a_first_run_after_the_change_is_by_the_clock_of_then(self):
        found = in_utc("0 0 3 1 7 *", "Europe/Berlin", WINTER)
        assert found.cron == "0 0 1 1 7 *"
        assert "go back 60 minutes on 2027-10-31" in found.shift

    @pytest.mark.parametrize(("cron", "zone"), [("0 0 3 * * 1", "Asia/Tokyo"), ("0 0 * * * *", "Europe/Berlin")])
    def test_nothing_is_said_where_nothing_shifts(self, cron, zone):
        assert in_utc(cron, zone, WINTER).shift == ""


class TestZones:
    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("Europe/Berlim", "Did you mean Europe/Berlin?"),
            ("no such thing", "Give one such as Europe/Berlin."),
            ("../etc/passwd", "Give one such as Europe/Berlin."),
            # A folder of the database.
            ("Europe", "?"),
        ],
    )
    def test_one_that_is_not_there(self, name, hint):
        with pytest.raises(StageError) as refused:
            in_utc("0 0 3 * * 1", name, WINTER)
        assert str(refused.value).startswith(f"--time-zone: there is no zone {name!r}. ")
        assert str(refused.value).endswith(hint)

    def test_a_machine_without_any(self, monkeypatch):
        monkeypatch.setattr(time_zones, "available_timezones", lambda: set())

        def missing(name):
            raise zoneinfo.ZoneInfoNotFoundError(name)

        monkeypatch.setattr(time_zones, "ZoneInfo", missing)
        with pytest.raises(StageError, match=r"^--time-zone: this machine has no time zones\. Install the package tzd"):
            in_utc("0 0 3 * * 1", "Europe/Berlin", WINTER)


def test_schedule_gives_the_backend_utc_and_says_so(stub, free2ds):
    code, out, _ = free2ds("schedule", *REQUIRED, "--cron", "0 0 3 * * 1", "--time-zone", "Asia/Tokyo")
    assert code == 0
    body = json.loads(stub.asked(f"POST {V2}/recurringruns")[0].body)
    assert body["trigger"] == {"cron_schedule": {"cron": "0 0 18 * * 0"}}
    assert body["description"] == "0 0 3 * * 1 in Asia/Tokyo"
    assert "scheduled schedule-1 (free2ds: 0 0 18 * * 0, UTC) in experiment free2ds\n" in out
    assert "  0 0 18 * * 0 (0 0 3 * * 1 in Asia/Tokyo)  " in free2ds("schedules")[1]


def test_schedule_says_when_times_shift(free2ds):
    out = free2ds("schedule", *REQUIRED, "--cron", "0 0 3 * * 1", "--time-zone", "Europe/Berlin")[1]
    assert "\nThe clocks of Europe/Berlin go " in out


def test_a_zone_that_is_not_there_never_reaches_the_backend(stub, free2ds):
    code, _, err = free2ds("schedule", *REQUIRED, "--cron", "0 0 3 * * 1", "--time-zone", "Europe/Berlim")
    assert (code, stub.calls) == (2, [])
    assert err == "error: --time-zone: there is no zone 'Europe/Berlim'. Did you mean Europe/Berlin?\n"
