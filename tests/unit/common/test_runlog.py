"""Lines and tracebacks, without credentials."""

import logging
import subprocess
import sys

import pytest

from free2ds_common.runlog import RedactingFormatter, print_redacted_traceback

URI = "https://user:hunter2@host/x?token=hunter3"


def raised():
    try:
        raise ValueError(f"cannot read {URI}")
    except ValueError:
        return sys.exc_info()


@pytest.mark.parametrize(("message", "values"), [("reading %s", (URI,)), (f"reading {URI}", ())])
def test_a_line(message, values):
    record = logging.makeLogRecord({"name": "n", "msg": message, "args": values})
    line = RedactingFormatter("%(name)s: %(message)s").format(record)
    assert line == "n: reading https://***@host/x?token=***"


def test_the_traceback_of_a_line():
    line = RedactingFormatter().format(logging.makeLogRecord({"msg": "failed", "exc_info": raised()}))
    assert "ValueError: cannot read https://***@host/x?token=***" in line
    assert "hunter" not in line


def test_an_uncaught_exception(capsys):
    print_redacted_traceback(*raised())
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last):")
    assert shown.endswith("ValueError: cannot read https://***@host/x?token=***\n")
    assert "hunter" not in shown


def test_a_process_that_configures_its_log():
    program = f"""
import logging
from free2ds_common.runlog import configure_logging
configure_logging()
configure_logging()
logging.getLogger("components.x").info("reading %s", {URI!r})
raise ValueError({URI!r})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.endswith(" INFO components.x: reading https://***@host/x?token=***\n")
    assert done.stdout.count("reading") == 1
    assert done.stderr.endswith("ValueError: https://***@host/x?token=***\n")
