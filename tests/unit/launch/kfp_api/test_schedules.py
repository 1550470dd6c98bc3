"""Schedules over HTTP: what is created, and that nothing is deleted while a run of it goes on."""

import json
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from free2ds_common.errors import StageError
from free2ds_common.launch.kfp_api import schedules
from free2ds_common.launch.kfp_api.cron import check_cron, next_time
from tests.support.http_stub import Reply
from tests.support.kfp_stub import V2

REQUIRED = ["--param", "dataset_uri=gs://b/d.json", "--param", "image_root_uri=gs://b/i"]
WEEKLY = ["--cron", "0 0 3 * * 1"]


def changes(stub):
    """The requests that change schedules or runs, in order."""
    return [str(call).replace(f"{V2}/", "") for call in stub.calls if call.method in ("POST", "DELETE")]


def test_schedule_creates_one(stub, free2ds):
    code, out, _ = free2ds("schedule", *REQUIRED, "--cron", "0 30 3 * * MON-FRI", "--max-concurrency", "2")
    assert code == 0
    assert json.loads(stub.asked(f"POST {V2}/recurringruns")[0].body) == {
        "experiment_id": "id-of-free2ds",
        "display_name": "free2ds",
        "mode": "ENABLE",
        "pipeline_version_reference": {"pipeline_id": "pipeline-1", "pipeline_version_id": "version-1"},
        "runtime_config": {"parameters": {"dataset_uri": "gs://b/d.json", "image_root_uri": "gs://b/i"}},
        "trigger": {"cron_schedule": {"cron": "0 30 3 * * MON-FRI"}},
        "max_concurrency": "2",
        "no_catchup": True,
    }
    first = next_time("0 30 3 * * MON-FRI", datetime.now(UTC))
    assert out == (
        "scheduled schedule-1 (free2ds: 0 30 3 * * MON-FRI, UTC) in experiment free2ds\n"
        f"The first run starts at {first:%Y-%m-%d %H:%M:%S} UTC, {first.astimezone():%Y-%m-%d %H:%M:%S %Z} here.\n"
        "Times are UTC. A trigger while 2 runs of it goes on is skipped; missed ones are not made up for.\n"
    )


def test_a_schedule_uses_the_cache(stub, free2ds):
    free2ds("schedule", *REQUIRED, *WEEKLY)
    spec = stub.versions["version-1"].pipeline_spec["pipeline_spec"]
    assert spec["root"]["dag"]["tasks"]["ingest"]["cachingOptions"] == {"enableCache": True}


def test_a_schedule_of_the_same_name_is_replaced(stub, free2ds):
    stub.add_schedule("old", "free2ds")
    stub.add_schedule("other", "another")
    code, out, _ = free2ds("schedule", *REQUIRED, *WEEKLY)
    assert code == 0
    assert changes(stub)[-3:] == ["POST recurringruns/old:disable", "POST recurringruns", "DELETE recurringruns/old"]
    assert {schedule.display_name for schedule in stub.schedules.values()} == {"free2ds", "another"}
    assert "deleted schedule free2ds (old)\n" in out


def test_replacing_waits_for_a_run(stub, free2ds):
    stub.add_schedule("old", "free2ds")
    stub.add_run("r1", "RUNNING", "RUNNING", "RUNNING", "SUCCEEDED", recurring_run_id="old", display_name="weekly 1")
    stub.add_run("r2", "RUNNING", recurring_run_id="another")
    code, out, _ = free2ds("schedule", *REQUIRED, *WEEKLY)
    assert code == 0
    assert out.count("waiting for its run r1 (weekly 1); --running terminate ends it\n") == 1
    assert stub.ghosts == []
    assert "old" not in stub.schedules


def test_replacing_may_terminate_a_run(stub, free2ds):
    stub.add_schedule("old", "free2ds")
    stub.add_run("r1", "RUNNING", recurring_run_id="old")
    code, out, _ = free2ds("schedule", *REQUIRED, *WEEKLY, "--running", "terminate")
    assert code == 0
    assert changes(stub)[-4:] == [
        "POST recurringruns/old:disable",
        "POST runs/r1:terminate",
        "POST recurringruns",
        "DELETE recurringruns/old",
    ]
    assert "terminating its run r1 (data r1)\n" in out
    assert stub.ghosts == []


def test_a_run_that_does_not_end_is_not_waited_for_forever(stub, free2ds, monkeypatch):
    monkeypatch.setattr(schedules, "TERMINATE_LOOKS", 3)
    stub.add_schedule("old", "free2ds")
    stub.add_run("r1", "RUNNING", recurring_run_id="old")
    stub.route_first(f"POST {V2}/runs/r1:terminate", lambda call: Reply())
    code, _, err = free2ds("schedule", *REQUIRED, *WEEKLY, "--running", "terminate")
    assert (code, err) == (
        2,
        "error: run r1: does not end although it was terminated. Delete it in the UI, then try again.\n",
    )
    assert stub.schedules["old"].status == "ENABLED"
    assert len(stub.asked(".*:terminate")) == 1


def test_when_the_new_one_is_refused_the_old_one_goes_on(stub, free2ds):
    stub.add_schedule("old", "free2ds")
    stub.add_schedule("paused", "free2ds", "DISABLED")
    stub.fail(f"POST {V2}/recurringruns", 500)
    code, out, _ = free2ds("schedule", *REQUIRED, *WEEKLY)
    assert code == 2
    assert {key: schedule.status for key, schedule in stub.schedules.items()} == {
        "old": "ENABLED",
        "paused": "DISABLED",
    }
    assert out == "schedule free2ds (old) is enabled again\n"


def test_unschedule_disables_waits_and_deletes(stub, free2ds):
    stub.add_schedule("old", "weekly")
    stub.add_run("r1", "RUNNING", "RUNNING", "FAILED", recurring_run_id="old")
    assert free2ds("unschedule", "weekly")[0] == 0
    assert changes(stub) == ["POST recurringruns/old:disable", "DELETE recurringruns/old"]
    assert stub.ghosts == []


@pytest.mark.parametrize(
    ("command", "verb", "status"), [("pause", "disable", "DISABLED"), ("resume", "enable", "ENABLED")]
)
def test_pause_and_resume(stub, free2ds, command, verb, status):
    stub.add_schedule("it", "weekly", "ENABLED" if command == "pause" else "DISABLED")
    code, out, _ = free2ds(command, "weekly")
    assert code == 0
    assert changes(stub) == [f"POST recurringruns/it:{verb}"]
    assert stub.schedules["it"].status == status
    assert out.startswith(f"{command}d weekly (it); ")


@pytest.mark.parametrize("command", ["pause", "resume", "unschedule"])
def test_a_schedule_that_is_not_there(free2ds, command):
    assert free2ds(command, "weekly") == (
        2,
        "",
        "error: schedule weekly: experiment free2ds has none of this name. free2ds schedules lists them.\n",
    )


def test_schedules_are_listed(stub, free2ds):
    stub.add_schedule("s1", "weekly")
    stub.add_schedule("s2", "nightly run", "DISABLED")
    stub.add_schedule("s3", "third")
    _, out, _ = free2ds("schedules")
    assert out == (
        "name         state    cron (UTC)   at once  since             id\n"
        "weekly       enabled  0 0 3 * * 1  1        2026-11-23 03:01  s1\n"
        "nightly run  paused   0 0 3 * * 1  1        2026-11-23 03:02  s2\n"
        "third        enabled  0 0 3 * * 1  1        2026-11-23 03:03  s3\n"
    )


def test_no_schedules(free2ds):
    assert free2ds("schedules", "--experiment", "e")[1] == "experiment e has no schedules\n"


@pytest.mark.parametrize("cron", ["0 0 3 * * 1", "30 */5 1-3,5 ? JAN MON-FRI", "59 0/15 * 1,15 * *"])
def test_six_field_schedules_are_accepted(cron):
    check_cron(cron)


@pytest.mark.parametrize(
    ("cron", "message"),
    [
        ("0 3 * * 1", "got '0 3 * * 1' with 5 fields, wanted six, seconds first, such as '0 0 3 * * 1' for Mondays"),
        ("@weekly", "got '@weekly' with 1 fields, wanted six"),
        ("0 0 3 * * 1;", "'1;' in '0 0 3 * * 1;' is no cron field; wanted six"),
        ("* 0 3 * * 1", "the first field of '* 0 3 * * 1' is the second, wanted a number from 0 to 59"),
        ("0 60 3 * * 1", "'60' in '0 60 3 * * 1' is no minute, wanted numbers from 0 to 59"),
        ("0 0 3 * * 7", "'7' in '0 0 3 * * 7' is no day of the week, wanted numbers from 0 to 6"),
        ("0 0 3 * FOO *", "'FOO' in '0 0 3 * FOO *' is no month, wanted numbers from 1 to 12"),
        ("0 0 5-3 * * *", "'5-3' in '0 0 5-3 * * *' is no hour, wanted numbers from 0 to 23"),
        ("0 */0 3 * * *", "'*/0' in '0 */0 3 * * *' is no minute"),
        ("0 0 3 0 * *", "'0' in '0 0 3 0 * *' is no day of the month, wanted numbers from 1 to 31"),
        ("0 0 3 30 2 *", "'0 0 3 30 2 *' never comes up. Give days that its months have."),
        ("60 0 3 * * 1", "the first field of '60 0 3 * * 1' is the second, wanted a number from 0 to 59"),
    ],
)
def test_a_schedule_that_would_be_misread_is_refused(cron, message, stub, free2ds):
    code, _, err = free2ds("schedule", *REQUIRED, "--cron", cron)
    assert code == 2
    assert err.startswith(f"error: --cron: {message}")
    assert stub.calls == []


# A Monday.
MONDAY = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("cron", "time"),
    [
        ("0 0 3 * * 1", "2026-11-30 03:00:00"),
        ("1 0 3 * * 1", "2026-11-23 03:00:01"),
        ("0 0 3 * * SUN", "2026-11-29 03:00:00"),
        ("0 */20 * * * *", "2026-11-23 03:20:00"),
        ("0 5/20 3 * * *", "2026-11-23 03:05:00"),
        ("0 0 2 ? * MON-FRI", "2026-11-24 02:00:00"),
        ("0 0 0 1,15 * *", "2026-12-01 00:00:00"),
        ("0 0 0 29 FEB *", "2028-02-29 00:00:00"),
        # Either of two days.
        ("0 0 0 28 * FRI", "2026-11-27 00:00:00"),
        ("0 0 0 26 * FRI", "2026-11-26 00:00:00"),
    ],
)
def test_when_a_schedule_starts_its_next_run(cron, time):
    assert f"{next_time(cron, MONDAY):%Y-%m-%d %H:%M:%S}" == time


@given(st.text(alphabet="0123456789*/,-? MONJA@L#\t\n", max_size=40))
def test_a_schedule_is_six_fields_or_refused(text):
    """Whatever is typed: a StageError, or six fields with a number of seconds in front."""
    with suppress(StageError):
        check_cron(text)
        fields = text.split()
        assert len(fields) == 6
        assert 0 <= int(fields[0]) <= 59


@pytest.mark.parametrize("number", ["0", "11"])
def test_the_backend_allows_one_to_ten_runs_at_a_time(number, stub, free2ds):
    code, _, err = free2ds("schedule", *REQUIRED, *WEEKLY, "--max-concurrency", number)
    assert (code, err) == (2, f"error: --max-concurrency: got {number}, wanted 1 to 10.\n")
    assert stub.calls == []


@pytest.mark.parametrize("number", ["1", "10"])
def test_the_ends_of_that_range_are_accepted(number, stub, free2ds):
    assert free2ds("schedule", *REQUIRED, *WEEKLY, "--max-concurrency", number)[0] == 0
    assert stub.schedules["schedule-1"].max_concurrency == number
