"""No package of a lock has a vulnerability that is known where pip-audit can ask."""

import subprocess
import sys

import pytest

from tests.support.images import CONSTRAINTS, SHARED_GROUPS, STAGES, lock_path


def test_no_known_vulnerabilities():
    locks = [CONSTRAINTS, *(lock_path(group) for group in (*STAGES, *SHARED_GROUPS))]
    arguments = [option for path in locks for option in ("--requirement", str(path))]
    command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--progress-spinner", "off", *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    printed = result.stdout + result.stderr
    assert "known vulnerabilit" not in printed or "No known vulnerabilities found" in printed, printed
    assert "usage:" not in printed, printed
    assert "No module named" not in printed, printed
    if result.returncode or "could not be audited" in printed:
        pytest.skip(f"pip-audit does not reach its data: {printed.strip().splitlines()[-1]}")
