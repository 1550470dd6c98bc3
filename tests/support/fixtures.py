"""Stores that answer by script, buckets of real servers, and no waiting for them: fixtures every test may use."""

import time
from types import SimpleNamespace

import fsspec
import pytest

from tests.support.buckets import GCS, S3, served_bucket
from tests.support.commands import run_all
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


@pytest.fixture(scope="session")
def s3_server():
    with served_bucket(S3) as bucket:
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield bucket
        fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture(scope="session")
def gcs_server():
    with served_bucket(GCS) as bucket:
        yield bucket


@pytest.fixture
def s3(s3_server, monkeypatch):
    """A bucket of S3, whose libraries try once."""
    for name, value in (
        ("AWS_ENDPOINT_URL", s3_server.url),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_MAX_ATTEMPTS", "1"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    s3_server.forget()
    return s3_server


@pytest.fixture
def gcs(gcs_server, monkeypatch):
    """A bucket of GCS, whose library waits for nothing."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server.url)
    # Else its library looks for a machine of Google's.
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setattr("gcsfs.retry.asyncio", SimpleNamespace(sleep=no_sleep))
    gcs_server.forget()
    return gcs_server


@pytest.fixture(scope="session")
def chain(tmp_path_factory):
    """All stages, run once on example data with tiny models."""
    return run_all(tmp_path_factory.mktemp("chain"))


async def no_sleep(seconds):
    pass
