"""submit over HTTP: what is uploaded, what is started, what is printed, and how it is followed to its end."""

import json
import re

import kfp_server_api
import pytest

import pipeline
from free2ds_common.launch import limits, preflight
from free2ds_common.launch.kfp_api import runs, watch
from free2ds_common.launch.kfp_api.backend import refused
from free2ds_common.launch.package import Package
from tests.support.kfp_stub import V2

REQUIRED = ["--param", "dataset_uri=gs://b/data/mix.json.gz", "--param", "image_root_uri=gs://b/i"]
IMAGES = ["--registry", "registry.example", "--tag", "1"]


def body(call):
    return json.loads(call.body)


def test_a_first_submit_makes_pipeline_version_experiment_and_run(stub, free2ds):
    code, out, _ = free2ds("submit", *REQUIRED, *IMAGES, "--param", "ratio=0.1", "--run-name", "mine")
    assert code == 0
    assert [str(call) for call in stub.calls if call.method == "POST"] == [
        f"POST {V2}/pipelines",
        f"POST {V2}/pipelines/upload_version",
        f"POST {V2}/experiments",
        f"POST {V2}/runs",
    ]
    (version,) = stub.versions.values()
    assert re.fullmatch("free2ds-[0-9a-f]{12}", version.name)
    assert body(stub.asked(f"POST {V2}/runs")[0]) == {
        "experiment_id": "id-of-free2ds",
        "display_name": "mine",
        "pipeline_version_reference": {"pipeline_id": "pipeline-1", "pipeline_version_id": "version-1"},
        "runtime_config": {
            "parameters": {"dataset_uri": "gs://b/data/mix.json.gz", "image_root_uri": "gs://b/i", "ratio": 0.1}
        },
    }
    assert out == (
        "started run run-1 (mine) in experiment free2ds\n"
        f"version {version.name} (uploaded)\n"
        f"{stub.url}/#/runs/details/run-1\n"
    )


@pytest.mark.parametrize("command", [["submit"], ["schedule", "--cron", "0 0 3 * * 1"]])
def test_a_run_that_is_too_large_never_reaches_the_backend(stub, free2ds, monkeypatch, command):
    monkeypatch.setattr(limits, "MAX_INPUT_BYTES", 1000)
    code, _, err = free2ds(*command, *REQUIRED, *IMAGES)
    assert code == 2
    assert err.startswith("error: num_shards: got 64, with which the input of joint-selection would have ")
    assert stub.versions == {}


def test_what_is_uploaded_has_the_images_that_were_named_and_the_platform(stub, free2ds):
    free2ds("submit", *REQUIRED, *IMAGES)
    (version,) = stub.versions.values()
    content = version.pipeline_spec
    image = content["pipeline_spec"]["deploymentSpec"]["executors"]["exec-ingest"]["container"]["image"]
    assert image == "registry.example/free2ds-ingest:1"
    assert content["platform_spec"] == Package.compile(pipeline.free2ds).platform


def test_an_equal_pipeline_is_not_uploaded_again(stub, free2ds):
    free2ds("submit", *REQUIRED, *IMAGES)
    _, out, _ = free2ds("submit", *REQUIRED, *IMAGES, "--param", "ratio=0.3")
    assert len(stub.versions) == len(stub.pipelines) == len(stub.experiments) == 1
    assert len(stub.runs) == 2
    assert "(as before)\n" in out


def test_another_pipeline_is_another_version_of_the_same(stub, free2ds):
    for tag in "123":
        free2ds("submit", *REQUIRED, "--registry", "registry.example", "--tag", tag)
    _, out, _ = free2ds("submit", *REQUIRED, "--registry", "registry.example", "--tag", "3")
    assert len(stub.pipelines) == 1
    assert len({version.name for version in stub.versions.values()}) == 3
    assert "(as before)\n" in out
    assert stub.runs["run-4"].pipeline_version_reference.pipeline_version_id == "version-3"


def test_a_run_is_named_by_data_set_and_time(stub, free2ds):
    free2ds("submit", *REQUIRED)
    assert re.fullmatch(r"mix \d{4}-\d\d-\d\d \d\d:\d\d", stub.runs["run-1"].display_name)


@pytest.mark.parametrize(
    ("uri", "name"),
    [("s3://b/llava_v1_5_mix665k.JSONL", "llava_v1_5_mix665k"), ("https://h/a.json?x=1", "a"), ("gs://b", "free2ds")],
)
def test_names_of_data_sets(uri, name):
    now = runs.datetime(2026, 11, 27, 23, 5, tzinfo=runs.UTC)
    assert runs.run_name({"dataset_uri": uri}, now) == f"{name} 2026-11-27 23:05"


def test_the_link_is_the_uis_where_that_is_elsewhere(free2ds):
    _, out, _ = free2ds("submit", *REQUIRED, "--ui-host", "https://ui.example/kfp/")
    assert out.endswith("\nhttps://ui.example/kfp/#/runs/details/run-1\n")


def test_a_namespace_is_told_where_there_are_several_users(stub, free2ds):
    stub.multi_user = True
    free2ds("submit", *REQUIRED, "--namespace", "team")
    assert body(stub.asked(f"POST {V2}/pipelines")[0])["namespace"] == "team"
    assert body(stub.asked(f"POST {V2}/experiments")[0])["namespace"] == "team"
    assert stub.asked(f"GET {V2}/experiments")[0].query["namespace"] == "team"


def test_no_namespace_where_there_is_one_user(stub, free2ds):
    free2ds("submit", *REQUIRED)
    assert "namespace" not in body(stub.asked(f"POST {V2}/pipelines")[0])


def test_a_token_comes_from_a_file(stub, free2ds, tmp_path):
    stub.token = "secret-1"
    (tmp_path / "token").write_text("secret-1\n")
    code, out, err = free2ds("submit", *REQUIRED, "--token-file", str(tmp_path / "token"))
    assert (code, err) == (0, "")
    assert "secret-1" not in out


def test_a_setting_that_a_stage_would_refuse_never_reaches_the_backend(stub, free2ds):
    code, _, err = free2ds("submit", *REQUIRED, "--param", "ratio=2")
    assert code == 2
    assert err == "error: ratio: got 2, wanted a number in (0, 1].\n"
    assert stub.calls == []


class TestWait:
    def test_a_run_that_succeeds(self, stub, free2ds):
        stub.next_run("RUNNING", "SUCCEEDED")
        code, out, _ = free2ds("submit", *REQUIRED, "--wait", "--run-name", "mine")
        assert code == 0
        assert out.endswith(f"run run-1 (mine): SUCCEEDED\n  {stub.url}/#/runs/details/run-1\n")

    def test_a_run_that_fails_says_why(self, stub, free2ds, tasks, monkeypatch):
        stub.next_run("RUNNING", "FAILED")
        step = tasks.step("ingest", "FAILED")
        assert step
        stub.logs["run-1", "ingest-pod"] = "error: gs://b/data/mix.json.gz: nothing there\n"
        started = runs.start

        def start(*arguments):
            run_id = started(*arguments)
            stub.runs[run_id].run_details = tasks.run_details
            return run_id

        monkeypatch.setattr(runs, "start", start)
        code, out, _ = free2ds("submit", *REQUIRED, "--wait", "--run-name", "mine")
        assert code == 1
        assert "run run-1 (mine): FAILED\n  read-data-set: gs://b/data/mix.json.gz: nothing there\n" in out

    def test_an_api_that_is_gone_for_a_while(self, stub, free2ds, monkeypatch):
        answered = runs.get_run
        answers = iter([None, 503, 503, None])

        def get_run(backend, run_id):
            if status := next(answers, None):
                raise refused(kfp_server_api.ApiException(status=status, reason="busy"), "r", "h", "n")
            return answered(backend, run_id)

        monkeypatch.setattr(watch, "get_run", get_run)
        assert free2ds("submit", *REQUIRED, "--wait")[0] == 0

    def test_an_api_that_stays_away(self, stub, free2ds, monkeypatch):
        monkeypatch.setattr(watch, "PATIENCE", 3)
        stub.fail(f"GET {V2}/runs/run-1", 500)
        code, _, err = free2ds("submit", *REQUIRED, "--wait")
        assert code == 2
        assert err.startswith(f"error: run run-1: {stub.url} failed (500 ")
        assert len(stub.asked(f"GET {V2}/runs/run-1")) == 3

    def test_a_refusal_ends_it_at_once(self, stub, free2ds):
        stub.fail(f"GET {V2}/runs/run-1", 401)
        assert free2ds("submit", *REQUIRED, "--wait")[0] == 2
        assert len(stub.asked(f"GET {V2}/runs/run-1")) == 1

    def test_an_interrupted_wait_leaves_the_run_alone(self, stub, free2ds, monkeypatch):
        def interrupted(seconds):
            raise KeyboardInterrupt

        monkeypatch.setattr(watch.time, "sleep", interrupted)
        code, out, err = free2ds("submit", *REQUIRED, "--wait")
        assert (code, err) == (130, "interrupted\n")
        assert out.endswith(f"\nThe run goes on: {stub.url}/#/runs/details/run-1\n")
        assert stub.asked(".*:terminate") == []


class TestCheck:
    def test_looks_and_starts_nothing(self, stub, free2ds, monkeypatch):
        looked = []
        monkeypatch.setattr(preflight, "check_inputs", lambda package, values: looked.append(dict(values)))
        code, out, _ = free2ds("submit", *REQUIRED, "--check")
        assert code == 0
        assert looked == [{"dataset_uri": "gs://b/data/mix.json.gz", "image_root_uri": "gs://b/i"}]
        assert out.endswith(f"and {stub.url} answers; nothing was started\n")
        assert [call for call in stub.calls if call.method == "POST"] == []

    def test_says_what_is_not_there(self, free2ds):
        code, _, err = free2ds("submit", "--param", "dataset_uri=memory://no/d.json", *REQUIRED[2:], "--check")
        assert code == 2
        assert err.startswith("error: memory://no/d.json")
