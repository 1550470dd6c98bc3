"""No package of a lock has a vulnerability that is known where pip-audit can ask."""

import subprocess
import sys

import pytest

from images import lock


def test_no_known_vulnerabilities():
    arguments = [option for path in lock.locks() for option in ("--requirement", str(path))]
    command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--progress-spinner", "off", *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    printed = result.stdout + result.stderr
    assert "known vulnerabilit" not in printed or "No known vulnerabilities found" in printed, printed
    assert "usage:" not in printed and "No module named" not in printed, printed
    if result.returncode or "could not be audited" in printed:
        pytest.skip(f"pip-audit does not reach its data: {printed.strip().splitlines()[-1]}")
