"""How a stage's failure is told: exit code, one sentence, a file."""

import pytest

from free2ds_common.errors import SettingError, StageError
from free2ds_common.failure import EXIT_CRASH, EXIT_STOPPED, EXIT_WRONG_SETUP, Failure, run_reported
from free2ds_common.retry import StoreError
from free2ds_common.stopping import Stopped

COUNTS = {"read": 20, "written": 18, "dropped": 0, "rejected": 2}


def refuse():
    raise StageError("data.json: 2 of 20 records rejected.", COUNTS)


def crash():
    raise ZeroDivisionError("division\nby zero")


def test_exit_codes():
    assert (EXIT_CRASH, EXIT_WRONG_SETUP, EXIT_STOPPED) == (1, 2, 143)


def test_a_stage_that_was_asked_to_stop_says_so_and_exits_as_stopped(tmp_path, capsys):
    def stop():
        raise Stopped("stopped as asked to; 7 new results are in gs://b: run again to go on")

    assert run_reported("llava_attention", stop) == 143
    assert capsys.readouterr().err == "error: stopped as asked to; 7 new results are in gs://b: run again to go on\n"


def test_success_is_silent(capsys):
    assert run_reported("ingest", lambda: None) == 0
    assert capsys.readouterr() == ("", "")


def test_a_wrong_set_up_is_one_sentence_and_exit_code_2(capsys):
    assert run_reported("ingest", refuse) == 2
    assert capsys.readouterr() == ("", "error: data.json: 2 of 20 records rejected.\n")


def test_a_crash_keeps_its_traceback_and_says_nothing_itself(capsys):
    with pytest.raises(ZeroDivisionError):
        run_reported("ingest", crash)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("work", [KeyboardInterrupt, SystemExit])
def test_a_stop_from_outside_is_no_failure(work):
    def stop():
        raise work

    with pytest.raises(work):
        run_reported("ingest", stop)


def test_what_is_written_is_read_again(tmp_path):
    failure = Failure("split", "no „records“.", 2, COUNTS)
    failure.write(tmp_path / "error.json")
    assert Failure.read(tmp_path / "error.json") == failure


def test_a_setting_error_names_its_setting():
    error = SettingError("num_shards", "got 65, wanted 1 to 64.")
    assert str(error) == "num_shards: got 65, wanted 1 to 64."
    assert (error.setting, error.problem) == ("num_shards", "got 65, wanted 1 to 64.")
    assert error.counts == {}


def test_a_store_that_does_not_answer_is_one_line_and_exit_code_1(capsys):
    def unanswered():
        raise StoreError("gs://b/x: could not be read in 8 tries within 47 s (503)")

    assert run_reported("ingest", unanswered) == 1
    assert capsys.readouterr() == ("", "error: gs://b/x: could not be read in 8 tries within 47 s (503)\n")
    assert Failure.of("ingest", StoreError("x")).exit_code == 1


@pytest.mark.parametrize("kind", [StageError, StoreError, ValueError])
def test_no_credentials_in_a_failure(kind):
    failure = Failure.of("ingest", kind("http://user:hunter2@host/x?token=hunter3: no"))
    assert failure.sentence.endswith("http://***@host/x?token=***: no")
