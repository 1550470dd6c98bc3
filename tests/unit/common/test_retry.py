"""What the errors of the stores' libraries mean, and how often a store is asked."""

import errno
import http
import http.client
import json

import aiohttp
import pytest
import requests
from aiohttp.client_reqrep import ConnectionKey, RequestInfo
from botocore import exceptions as boto
from fsspec.exceptions import FSTimeoutError
from gcsfs.retry import ChecksumError, HttpError, validate_response
from google.api_core import exceptions as google_api
from google.auth import exceptions as credentials
from huggingface_hub.errors import OfflineModeIsEnabled
from s3fs.errors import translate_boto_error
from yarl import URL

from free2ds_common import retry
from free2ds_common.errors import StageError
from free2ds_common.retry import Meaning, StoreError, meaning, retried

ADDRESS = URL("http://host/x")


def web(status):
    return aiohttp.ClientResponseError(RequestInfo(ADDRESS, "GET", {}, ADDRESS), (), status=status, message="said")


def hidden(error):
    """As fsspec's HTTP file system tells every failure."""
    missing = FileNotFoundError("http://host/x")
    missing.__cause__ = error
    return missing


def amazon(status, code):
    answer = {"Error": {"Code": code, "Message": "said"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return translate_boto_error(boto.ClientError(answer, "GetObject"))


def amazon_without_cause(code):
    return translate_boto_error(boto.ClientError({"Error": {"Code": code, "Message": "said"}}, "Get"), set_cause=False)


def google(status, content=b'{"error": {"message": "said"}}'):
    try:
        validate_response(status, content, "b/bucket/o/x")
    except Exception as error:
        return error
    raise AssertionError


def answered(status):
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError("said", response=response)


REFUSED_CONNECTION = aiohttp.ClientConnectorError(
    ConnectionKey("host", 80, False, True, None, None, None), ConnectionRefusedError(errno.ECONNREFUSED, "refused")
)


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (FileNotFoundError("x"), Meaning.MISSING),
        (hidden(web(404)), Meaning.MISSING),
        (web(404), Meaning.MISSING),
        (google(404), Meaning.MISSING),
        (HttpError({"code": "404", "message": "said"}), Meaning.MISSING),
        (amazon(404, "NoSuchKey"), Meaning.MISSING),
        (amazon(404, "NoSuchBucket"), Meaning.MISSING),
        (amazon_without_cause("NoSuchKey"), Meaning.MISSING),
        (answered(404), Meaning.MISSING),
        (google_api.NotFound("said"), Meaning.MISSING),
        (hidden(web(503)), Meaning.LATER),
        (hidden(web(429)), Meaning.LATER),
        (hidden(REFUSED_CONNECTION), Meaning.LATER),
        (hidden(aiohttp.ServerDisconnectedError()), Meaning.LATER),
        (aiohttp.ClientPayloadError("cut"), Meaning.LATER),
        (aiohttp.ServerTimeoutError(), Meaning.LATER),
        (FSTimeoutError(), Meaning.LATER),
        (ConnectionResetError(), Meaning.LATER),
        (http.client.IncompleteRead(b""), Meaning.LATER),
        (google(500), Meaning.LATER),
        (google(502), Meaning.LATER),
        (google(503), Meaning.LATER),
        (google(429), Meaning.LATER),
        (google(408), Meaning.LATER),
        (HttpError({"code": "503", "message": "said"}), Meaning.LATER),
        (json.JSONDecodeError("said", "{", 1), Meaning.LATER),
        (ChecksumError("said"), Meaning.LATER),
        (credentials.TransportError("said"), Meaning.LATER),
        (google_api.ServiceUnavailable("said"), Meaning.LATER),
        (requests.exceptions.ChunkedEncodingError("said"), Meaning.LATER),
        (requests.exceptions.ReadTimeout("said"), Meaning.LATER),
        (answered(503), Meaning.LATER),
        (amazon(503, "SlowDown"), Meaning.LATER),
        (amazon(500, "InternalError"), Meaning.LATER),
        (amazon_without_cause("SlowDown"), Meaning.LATER),
        (amazon_without_cause("500"), Meaning.LATER),
        (amazon(400, "RequestTimeout"), Meaning.LATER),
        (boto.EndpointConnectionError(endpoint_url="u"), Meaning.LATER),
        (boto.ReadTimeoutError(endpoint_url="u"), Meaning.LATER),
        (boto.IncompleteReadError(actual_bytes=1, expected_bytes=2), Meaning.LATER),
        (hidden(web(401)), Meaning.REFUSED),
        (hidden(web(403)), Meaning.REFUSED),
        (google(403), Meaning.REFUSED),
        (google(401, b'{"error": {"message": "Anonymous caller"}}'), Meaning.REFUSED),
        (amazon(403, "AccessDenied"), Meaning.REFUSED),
        (amazon(403, "403"), Meaning.REFUSED),
        (amazon(401, "401"), Meaning.REFUSED),
        (amazon(400, "ExpiredToken"), Meaning.REFUSED),
        (amazon_without_cause("AccessDenied"), Meaning.REFUSED),
        (credentials.DefaultCredentialsError("said"), Meaning.REFUSED),
        (credentials.RefreshError("said"), Meaning.REFUSED),
        (boto.NoCredentialsError(), Meaning.REFUSED),
        (boto.ProfileNotFound(profile="p"), Meaning.REFUSED),
        (boto.TokenRetrievalError(provider="sso", error_msg="said"), Meaning.REFUSED),
        (google_api.Forbidden("said"), Meaning.REFUSED),
        (answered(401), Meaning.REFUSED),
        (hidden(ValueError("Invalid IPv6 URL")), Meaning.WRONG_URI),
        (ValueError("Attempt to open non key-like path: "), Meaning.WRONG_URI),
        (boto.ParamValidationError(report="Invalid bucket name"), Meaning.WRONG_URI),
        (OfflineModeIsEnabled("said"), Meaning.WRONG_URI),
        (hidden(web(400)), Meaning.UNKNOWN),
        (hidden(web(302)), Meaning.UNKNOWN),
        (google(412), Meaning.UNKNOWN),
        (amazon(400, "InvalidRange"), Meaning.UNKNOWN),
        (KeyError("x"), Meaning.UNKNOWN),
    ],
    ids=repr,
)
def test_what_an_error_means(error, wanted):
    assert meaning(error) is wanted


def test_a_http_status_of_the_standard_library():
    error = OSError("said")
    error.code = http.HTTPStatus.SERVICE_UNAVAILABLE
    assert meaning(error) is Meaning.LATER


def test_an_error_that_is_its_own_cause_ends():
    error = KeyError("x")
    error.__cause__ = error
    assert meaning(error) is Meaning.UNKNOWN


class Store:
    """Fails with these errors, then answers."""

    def __init__(self, *errors):
        self.errors, self.asked = list(errors), 0

    def __call__(self):
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def test_pauses_double_with_chance(pauses, monkeypatch):
    monkeypatch.setattr(retry.random, "uniform", lambda low, high: high)
    assert retried("gs://b/x", Store(*[google(503)] * 7)) == "answer"
    assert pauses == [0.5, 1, 2, 4, 8, 16, 16]
    pauses.clear()
    monkeypatch.setattr(retry.random, "uniform", lambda low, high: low)
    retried("gs://b/x", Store(google(503)))
    assert pauses == [0.25]


def test_tries_are_bounded(pauses):
    store = Store(*[google(503)] * 20)
    with pytest.raises(StoreError, match=r"^gs://b/x: could not be read in 8 tries within 0 s \(HttpError: .*503\)$"):
        retried("gs://b/x", store)
    assert store.asked == 8


def test_time_is_bounded(pauses, monkeypatch):
    """A library that waits by itself: every try takes a minute."""
    minutes = iter(range(0, 1000, 60))
    monkeypatch.setattr(retry.time, "monotonic", lambda: next(minutes))
    store = Store(*[google(503)] * 20)
    with pytest.raises(StoreError, match="in 2 tries within 120 s"):
        retried("gs://b/x", store)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (google(404), FileNotFoundError, "gs://b/x"),
        (google(403), StageError, r"^gs://b/x: may not be read \(OSError: Forbidden: b/bucket/o/x\)\. Give cred"),
        (
            boto.NoCredentialsError(),
            StageError,
            r"may not be read \(NoCredentialsError: Unable to",
        ),
        (
            OfflineModeIsEnabled("offline"),
            StageError,
            r"cannot be read \(OfflineModeIsEnabled: offl.*\. Check",
        ),
        (google(412), StoreError, r"^gs://b/x: could not be read \(FileExistsError: b/bucket/o/x\)$"),
        (KeyError("size"), StoreError, r"^gs://b/x: could not be read \(KeyError: 'size'\)$"),
        (OSError(errno.ENOSPC, "full"), OSError, "full"),
        (IsADirectoryError("x"), IsADirectoryError, "x"),
        (MemoryError("all"), MemoryError, "all"),
        (StageError("mine."), StageError, r"^mine\.$"),
    ],
    ids=repr,
)
def test_what_is_not_tried_again(pauses, error, kind, message):
    store = Store(error)
    with pytest.raises(kind, match=message):
        retried("gs://b/x", store)
    assert store.asked == 1


def test_the_cause_is_told_not_what_hides_it():
    with pytest.raises(StageError, match=r"http://host/x: may not be read \(ClientResponseError: 403, message='said'"):
        retried("http://host/x", Store(hidden(web(403))))


def test_each_new_try_is_logged_without_credentials(pauses, caplog):
    retried("http://user:hunter2@host/x", Store(web(503)))
    assert "http://***@host/x: ClientResponseError: 503" in caplog.text
    assert "hunter2" not in caplog.text
