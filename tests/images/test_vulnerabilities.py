"""No package of the lock has a vulnerability that is known where pip-audit can ask."""

import subprocess
import sys

import pytest

from tests.support.images import CONSTRAINTS


def test_no_known_vulnerabilities():
    """The images' locks have no other versions than constraints.txt: tests/unit/images/test_locks.py."""
    options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--requirement", str(CONSTRAINTS)]
    result = subprocess.run([sys.executable, "-m", "pip_audit", *options], capture_output=True, text=True)
    printed = result.stdout + result.stderr
    no_data = ("could not be audited", "ConnectionError", "Failed to establish", "ServiceError")
    unreachable = [line for line in printed.splitlines() if any(words in line for words in no_data)]
    if unreachable and "Fix Versions" not in printed:
        pytest.skip(f"pip-audit does not reach its data: {unreachable[0]}")
    assert result.returncode == 0, printed
