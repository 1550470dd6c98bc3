"""What a refusal looks like: one sentence for every status, and for a host that does not answer."""

import json

import kfp_server_api
import pytest

from free2ds_common.errors import StageError
from free2ds_common.launch.kfp_api.backend import Address, Backend, message_of
from tests.support.kfp_stub import V2

REQUIRED = ["--param", "dataset_uri=gs://b/d.json", "--param", "image_root_uri=gs://b/i"]


def said(text):
    return json.dumps({"error": "short", "code": 2, "message": text, "details": []}).encode()


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (401, b"", "--host: {url} does not know who asks (401 Unauthorized). Log in, or give --token-file."),
        (
            403,
            said("no rights"),
            "--host: {url} does not allow run r1 in namespace kubeflow (403 Forbidden: no rights). Ask for the right, "
            "or give another --namespace.",
        ),
        (404, said("r1 not found."), "run r1: {url} has nothing of this name or id (404 Not Found: r1 not found)."),
        (409, said("it exists"), "run r1: {url} has one of this name already (409 Conflict: it exists)."),
        (
            500,
            said("it broke"),
            "run r1: {url} failed (500 Internal Server Error: it broke). Try again; its own log says more.",
        ),
        (
            503,
            b"<html>busy</html>",
            "run r1: {url} failed (503 Service Unavailable). Try again; its own log says more.",
        ),
        (400, said("bad field"), "run r1: {url} refused it (400 Bad Request: bad field)."),
    ],
)
def test_a_refusal_is_one_sentence(stub, free2ds, status, body, sentence):
    stub.fail(f"GET {V2}/runs/r1", status, body)
    assert free2ds("why", "r1") == (2, "", f"error: {sentence.format(url=stub.url)}\n")


@pytest.mark.parametrize("command", [["runs"], ["schedules"], ["submit", *REQUIRED], ["unschedule", "n"]])
def test_every_command_says_so(stub, free2ds, command):
    stub.fail(f".* {V2}/(experiments|pipelines).*", 403)
    code, _, err = free2ds(*command)
    assert code == 2
    assert err.startswith(f"error: --host: {stub.url} does not allow the list of ")
    assert err.count("\n") == 1


def test_a_refused_health_check_is_asked_once(stub, free2ds):
    stub.fail(f"GET {V2}/healthz", 401)
    assert free2ds("runs")[0] == 2
    assert len(stub.calls) == 1


def test_a_busy_backend_is_asked_again(stub, free2ds):
    stub.fail(f"GET {V2}/runs/r1", 503)
    free2ds("why", "r1")
    assert len(stub.asked(f"GET {V2}/runs/r1")) == 4


def test_what_changes_something_is_asked_once(stub, free2ds):
    stub.fail(f"POST {V2}/runs", 503)
    code, _, err = free2ds("submit", *REQUIRED, "--run-name", "mine")
    assert (code, err) == (
        2,
        f"error: run mine: {stub.url} failed (503 Service Unavailable). Try again; its own log says more.\n",
    )
    assert len(stub.asked(f"POST {V2}/runs")) == 1


def test_a_host_that_does_not_answer():
    with pytest.raises(
        StageError, match=r"^--host: no Kubeflow Pipelines answers at http://127\.0\.0\.1:9 \(.*\)\. Give"
    ):
        Backend(Address("http://127.0.0.1:9"))


def test_a_token_file_that_is_not_there(free2ds):
    assert free2ds("runs", "--token-file", "no/file")[2].startswith("error: --token-file: no/file cannot be read (")


def test_lists_are_read_to_their_end(stub):
    for number in range(5):
        stub.add_run(f"r{number}", "SUCCEEDED")
    backend = Backend(Address(stub.url))
    listed = list(backend.every("the list", backend.client.runs.run_service_list_runs, "runs"))
    assert [run.run_id for run in listed] == ["r0", "r1", "r2", "r3", "r4"]
    assert [call.query.get("page_token", "") for call in stub.asked(f"GET {V2}/runs")] == ["", "2", "4"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (None, ""),
        ('{"message": "a\\n b."}', "a b"),
        ('{"error": "only this"}', "only this"),
        ("plain", "plain"),
        ("<html>", ""),
        ("[1]", "[1]"),
        ('{"message": "https://u:p@h/x"}', "https://***@h/x"),
        ('{"message": "' + "x" * 500 + '"}', "x" * 400 + "…"),
    ],
)
def test_what_a_body_says(body, message):
    assert message_of(body) == message


def test_the_stub_refuses_fields_that_a_model_does_not_have(stub):
    """So that a wrong body fails here and not on a cluster."""
    backend = Backend(Address(stub.url))
    with pytest.raises(kfp_server_api.ApiException) as refusal:
        backend.client.runs.run_service_create_run({"displayName": "x"})
    assert refusal.value.status == 400
