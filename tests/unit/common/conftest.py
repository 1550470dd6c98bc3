"""Stores that answer by script, and no waiting for them."""

import time
from types import SimpleNamespace

import pytest

from tests.support.stores import served


@pytest.fixture(scope="session")
def server():
    with served() as store:
        yield store


@pytest.fixture
def store(server):
    server.answers.clear()
    server.asked.clear()
    return server


@pytest.fixture
def pauses(monkeypatch):
    """How long was waited between tries; nobody waits."""
    found = []
    clock = SimpleNamespace(sleep=found.append, monotonic=time.monotonic)
    monkeypatch.setattr("free2ds_common.retry.time", clock)
    return found
