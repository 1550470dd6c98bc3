"""Starting runs and schedules on a backend: what the real client is asked for, and what a refusal looks like."""

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import kfp
import kfp_server_api
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import pipeline
from free2ds_common.errors import StageError
from free2ds_common.launch import cluster
from free2ds_common.launch.cluster import check_cron

REQUIRED = ["--param", "dataset_uri=gs://b/d.json", "--param", "image_root_uri=gs://b/i"]


class Backend:
    """A client with the real one's signatures; remembers the compiled pipeline that it was given.

    Attributes:
        client: What the commands talk to.
        package: Text of the file that the last call was given.
    """

    def __init__(self):
        self.client = create_autospec(kfp.Client, instance=True)
        self.client.create_run_from_pipeline_package.side_effect = self._run
        self.client.create_experiment.side_effect = lambda name: SimpleNamespace(experiment_id=f"id of {name}")
        self.client.create_recurring_run.side_effect = self._recurring
        self.package = ""

    def _run(self, pipeline_file, **options):
        self.package = Path(pipeline_file).read_text(encoding="utf-8")
        return SimpleNamespace(run_id="run-1")

    def _recurring(self, *, pipeline_package_path, **options):
        self.package = Path(pipeline_package_path).read_text(encoding="utf-8")
        return SimpleNamespace(recurring_run_id="job-1")

    @property
    def ingest_caching(self):
        return next(yaml.safe_load_all(self.package))["root"]["dag"]["tasks"]["ingest"]["cachingOptions"]


@pytest.fixture
def backend(monkeypatch):
    made = Backend()
    monkeypatch.setattr(cluster, "connect", lambda host, namespace: made.client)
    return made


def test_submit_starts_one_run(backend, capsys):
    options = ["--experiment", "e", "--run-name", "r", "--registry", "registry.example", "--tag", "1"]
    assert pipeline.main(["submit", *REQUIRED, "--param", "ratio=0.1", *options]) == 0
    call = backend.client.create_run_from_pipeline_package.call_args
    assert call.kwargs == {
        "arguments": {"dataset_uri": "gs://b/d.json", "image_root_uri": "gs://b/i", "ratio": 0.1},
        "run_name": "r",
        "experiment_name": "e",
    }
    assert "image: registry.example/free2ds-ingest:1\n" in backend.package
    assert backend.ingest_caching == {"enableCache": True}
    assert capsys.readouterr().out == "started run run-1 in experiment e\n"


def test_a_schedule_uses_the_cache(backend, capsys):
    assert pipeline.main(["schedule", *REQUIRED, "--cron", "0 30 3 * * MON-FRI", "--max-concurrency", "2"]) == 0
    asked = dict(backend.client.create_recurring_run.call_args.kwargs)
    del asked["pipeline_package_path"]
    assert asked == {
        "experiment_id": "id of free2ds",
        "job_name": "free2ds",
        "cron_expression": "0 30 3 * * MON-FRI",
        "max_concurrency": 2,
        "no_catchup": True,
        "params": {"dataset_uri": "gs://b/d.json", "image_root_uri": "gs://b/i"},
    }
    assert backend.ingest_caching == {"enableCache": True}
    assert capsys.readouterr().out == "scheduled job-1 (0 30 3 * * MON-FRI) in experiment free2ds\n"


@pytest.mark.parametrize("cron", ["0 0 3 * * 1", "30 */5 1-3,5 ? JAN MON-FRI", "59 0/15 * 1,15 * *"])
def test_six_field_schedules_are_accepted(cron):
    check_cron(cron)


@pytest.mark.parametrize(
    ("cron", "message"),
    [
        ("0 3 * * 1", "got '0 3 * * 1' with 5 fields, wanted six, seconds first, such as '0 0 3 * * 1' for Mondays"),
        ("@weekly", "got '@weekly' with 1 fields, wanted six"),
        ("0 0 3 * * 1;", "'1;' in '0 0 3 * * 1;' is no cron field; wanted six"),
        ("* 0 3 * * 1", "the first field of '* 0 3 * * 1' is the second, wanted a number from 0 to 59"),
        ("60 0 3 * * 1", "the first field of '60 0 3 * * 1' is the second, wanted a number from 0 to 59"),
    ],
)
def test_a_schedule_that_would_be_misread_is_refused(cron, message, backend, capsys):
    assert pipeline.main(["schedule", *REQUIRED, "--cron", cron]) == 2
    assert capsys.readouterr().err.startswith(f"error: --cron: {message}")
    assert backend.client.method_calls == []


@given(st.text(alphabet="0123456789*/,-? MONJA@L#\t\n", max_size=40))
def test_a_schedule_is_six_fields_or_refused(text):
    """Whatever is typed: a StageError, or six fields with a number of seconds in front."""
    with suppress(StageError):
        check_cron(text)
        fields = text.split()
        assert len(fields) == 6
        assert 0 <= int(fields[0]) <= 59


@pytest.mark.parametrize("number", ["0", "11"])
def test_the_backend_allows_one_to_ten_runs_at_a_time(number, backend, capsys):
    assert pipeline.main(["schedule", *REQUIRED, "--cron", "0 0 3 * * 1", "--max-concurrency", number]) == 2
    assert capsys.readouterr().err == f"error: --max-concurrency: got {number}, wanted 1 to 10.\n"


@pytest.mark.parametrize("number", ["1", "10"])
def test_the_ends_of_that_range_are_accepted(number, backend):
    assert pipeline.main(["schedule", *REQUIRED, "--cron", "0 0 3 * * 1", "--max-concurrency", number]) == 0
    assert backend.client.create_recurring_run.call_args.kwargs["max_concurrency"] == int(number)


def test_a_backend_that_does_not_answer_is_one_sentence(capsys):
    assert pipeline.main(["submit", *REQUIRED, "--host", "http://127.0.0.1:9"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --host: no Kubeflow Pipelines answers at http://127.0.0.1:9 (")


@pytest.mark.parametrize("command", [["submit"], ["schedule", "--cron", "0 0 3 * * 1"]])
def test_a_backend_that_refuses_is_one_sentence(command, backend, capsys):
    refusal = kfp_server_api.ApiException(status=403, reason="Forbidden")
    backend.client.create_run_from_pipeline_package.side_effect = refusal
    backend.client.create_recurring_run.side_effect = refusal
    assert pipeline.main([*command, *REQUIRED]) == 2
    assert capsys.readouterr().err.startswith("error: --host: the backend refused (403 Forbidden)")


@pytest.mark.parametrize("command", [["submit"], ["schedule", "--cron", "0 0 3 * * 1"]])
def test_a_setting_that_a_stage_would_refuse_never_reaches_the_backend(command, backend, capsys):
    assert pipeline.main([*command, *REQUIRED, "--param", "mgm_model_type=llava"]) == 2
    assert capsys.readouterr().err == "error: mgm_options: model_type: got 'llava', wanted one of auto, mgm.\n"
    assert backend.client.method_calls == []
