"""A stage as a task of Kubeflow Pipelines: what its artifacts say, and how it fails."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from kfp import dsl

from components.bert_features.component import bert_features
from components.cluster_scoring.component import cluster_scoring
from components.evaluate.component import evaluate
from components.finetune.component import finetune
from components.ingest.component import ingest
from components.reuse.component import reuse
from components.split.component import split
from free2ds_common import __version__, kfp_task
from free2ds_common.datasets import DatasetWriter, open_dataset
from free2ds_common.errors import StageError
from free2ds_common.kfp_task import run_task
from free2ds_common.result import Counts, StageResult
from free2ds_common.schemas import SCORES
from free2ds_common.versions import folder_version

RESULT = StageResult(Counts(read=6, written=3, dropped=2, rejected=1), {"tilt": 0.5}, {"model": "m", "seed": 7})


@pytest.fixture(autouse=True)
def log_set_up(monkeypatch):
    """The calls that set up logging, which would take pytest's handlers away."""
    calls = []
    monkeypatch.setattr(kfp_task, "configure_logging", lambda **options: calls.append(options))
    return calls


@pytest.fixture
def artifact(tmp_path):
    def make(name, kind=dsl.Dataset):
        (tmp_path / "task").mkdir(exist_ok=True)
        return kind(name, uri=str(tmp_path / "task" / name))

    return make


def refuse():
    raise StageError("records: no such folder.", {"read": 2, "written": 0, "dropped": 0, "rejected": 2})


def test_every_artifact_is_described(artifact):
    ports = {"records": artifact("records"), "rejects": artifact("rejects", dsl.Artifact)}
    result = run_task("ingest", lambda: RESULT, {"dataset_version": "v1"}, **ports)
    assert result is RESULT
    for name, described in (("records", ports["records"]), ("rejected records", ports["rejects"])):
        assert described.metadata == {
            "display_name": name,
            "dataset_version": "v1",
            "code_version": __version__,
            "image": "",
            "model": "m",
            "seed": 7,
            "read": 6,
            "written": 3,
            "dropped": 2,
            "rejected": 1,
        }


def test_an_artifact_that_is_collected_carries_no_more_than_it_must(artifact):
    attention = artifact("attention")
    terse = StageResult(RESULT.counts, RESULT.metrics, RESULT.metadata, {"display_name": "A, shard 1 of 2", "rows": 3})
    run_task("llava_attention", lambda: terse, {"code_version": "0.1"}, attention=attention)
    assert attention.metadata == {"display_name": "A, shard 1 of 2", "rows": 3}


def test_metadata_that_kfp_put_there_stays(artifact):
    records = artifact("records")
    records.metadata["of kfp"] = 1
    run_task("ingest", lambda: RESULT, {}, records=records)
    assert records.metadata["of kfp"] == 1


def test_an_artifact_says_what_lies_there(artifact):
    """A sealed folder, a folder of those, a file."""
    sealed, folders, file = (artifact(name) for name in ("scores", "features", "selected"))
    table = pa.table({field.name: pa.array([], field.type) for field in SCORES.arrow})
    with DatasetWriter(sealed.path, SCORES) as writer:
        writer.write(table)
        writer.manifest["made_from"] = {"a": {"sha256": "1"}, "b": {"sha256": ["3", "2"]}}
    for name in ("one", "two"):
        with DatasetWriter(f"{folders.path}/{name}", SCORES) as writer:
            writer.write(table)
    Path(file.path).write_text("[]")
    run_task("joint_selection", lambda: RESULT, {}, scores=sealed, features=folders, selected=file)
    digest = open_dataset(sealed.path, SCORES).sha256
    assert {name: sealed.metadata[name] for name in ("schema", "rows", "sha256", "made_from")} == {
        "schema": "scores/2",
        "rows": 0,
        "sha256": digest,
        "made_from": {"a": "1", "b": hashlib.sha256(b"2 3").hexdigest()},
    }
    assert folders.metadata["sha256"] == hashlib.sha256(f"{digest} {digest}".encode()).hexdigest()
    assert file.metadata["sha256"] == hashlib.sha256(b"[]").hexdigest()
    assert file.metadata["display_name"] == "selected records"


def test_an_artifact_says_its_image(artifact, monkeypatch):
    monkeypatch.setenv("FREE2DS_IMAGE", "r/free2ds-ingest@sha256:0")
    records = artifact("records")
    run_task("ingest", lambda: RESULT, {}, records=records)
    assert records.metadata["image"] == "r/free2ds-ingest@sha256:0"


class Logged(dsl.Metrics):
    """Remembers what is logged as a metric."""

    def log_metric(self, metric, value):
        self.__dict__.setdefault("logged", {})[metric] = value


def test_a_metrics_artifact_gets_counts_and_metrics(artifact):
    summary = artifact("summary", Logged)
    run_task("joint_selection", lambda: RESULT, {}, records=artifact("records"), summary=summary)
    assert summary.logged == {"tilt": 0.5, "read": 6, "written": 3, "dropped": 2, "rejected": 1}


def test_a_metrics_artifact_has_numbers_alone(artifact):
    """The page that compares runs shows all there is."""
    summary = artifact("summary", dsl.Metrics)
    result = replace(RESULT, highlights={"01_selected": 3.0})
    run_task("joint_selection", lambda: result, {"image_root_version": "v"}, summary=summary)
    assert summary.metadata == {"display_name": "summary in numbers", "01_selected": 3.0}


def test_a_metrics_artifact_gets_a_file(artifact):
    """Without one at its path, a local task is not cached."""
    summary = artifact("summary", dsl.Metrics)
    run_task("joint_selection", lambda: RESULT, {}, summary=summary)
    with open(summary.path, encoding="utf-8") as handle:
        assert json.load(handle) == {}


def test_a_file_that_the_stage_wrote_for_its_metrics_stays(artifact):
    summary = artifact("summary", dsl.Metrics)
    with open(summary.path, "w", encoding="utf-8") as handle:
        handle.write('{"mine": 1}')
    run_task("joint_selection", lambda: RESULT, {}, summary=summary)
    with open(summary.path, encoding="utf-8") as handle:
        assert handle.read() == '{"mine": 1}'


def test_success_leaves_no_error_file(artifact, tmp_path):
    run_task("ingest", lambda: RESULT, {}, records=artifact("records"))
    assert list((tmp_path / "task").iterdir()) == []


def test_the_stages_log_replaces_that_of_kfp(artifact, log_set_up):
    run_task("ingest", lambda: RESULT, {}, records=artifact("records"))
    assert log_set_up == [{"replace": True}]


def test_a_refused_stage_ends_its_pod_with_exit_code_2(artifact, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_task("ingest", refuse, {}, records=artifact("records"))
    assert stopped.value.code == 2
    # Set apart from what the launcher prints around it.
    assert capsys.readouterr().err == "\n\nerror: records: no such folder.\n\n\n"


def test_a_refused_stage_leaves_its_sentence_and_counts(artifact, tmp_path):
    with pytest.raises(SystemExit):
        run_task("ingest", refuse, {}, records=artifact("records"), rejects=artifact("rejects"))
    assert json.loads((tmp_path / "task" / "error.json").read_text()) == {
        "stage": "ingest",
        "sentence": "records: no such folder.",
        "exit_code": 2,
        "counts": {"read": 2, "written": 0, "dropped": 0, "rejected": 2},
    }


def test_the_last_words_are_left_where_kubernetes_reads_them(artifact, tmp_path, monkeypatch):
    place = tmp_path / "termination-log"
    monkeypatch.setattr(kfp_task, "TERMINATION_LOG", place)
    with pytest.raises(SystemExit):
        run_task("ingest", refuse, {}, records=artifact("records"))
    # There in a pod alone.
    assert not place.exists()
    place.touch()
    with pytest.raises(SystemExit):
        run_task("ingest", refuse, {}, records=artifact("records"))
    assert place.read_text() == "error: records: no such folder."

    def refuse_at_length():
        raise StageError("é" * 5000)

    with pytest.raises(SystemExit):
        run_task("ingest", refuse_at_length, {}, records=artifact("records"))
    assert len(place.read_bytes()) == 4096


def test_a_crash_keeps_its_traceback_and_leaves_its_sentence(artifact, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_task("split", lambda: 1 / 0, {}, shards=artifact("shards"))
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("Traceback (most recent call last):\n")
    assert error.endswith("\n\nerror: ZeroDivisionError: division by zero\n\n\n")
    assert json.loads((tmp_path / "task" / "error.json").read_text()) == {
        "stage": "split",
        "sentence": "ZeroDivisionError: division by zero",
        "exit_code": 1,
        "counts": {},
    }


@pytest.mark.parametrize(
    ("component", "inputs", "outputs", "parameters"),
    [
        (
            ingest,
            (),
            ("records", "rejects"),
            {
                "dataset_uri": "/nowhere",
                "dataset_version": "",
                "image_root_uri": "",
                "image_root_version": "",
                "max_reject_fraction": 0.05,
            },
        ),
        (split, ("records",), ("shards",), {"num_shards": 2, "records_per_shard": 10}),
        (
            reuse,
            ("records",),
            ("llava_finished", "mgm_finished", "llava_missing", "mgm_missing"),
            {
                "image_root_uri": "",
                "image_root_version": "",
                "llava_model": "m",
                "llava_revision": "main",
                "llava_options": "batch_size=2",
                "mgm_model": "m",
                "mgm_revision": "main",
                "mgm_options": "",
                "on_gpu": False,
                "cache_uri": "",
            },
        ),
        (
            bert_features,
            ("records",),
            ("features",),
            {
                "model": "m",
                "revision": "main",
                "options": "batch_tokens=64",
                "cache_uri": "",
                "gpu_count": "0",
            },
        ),
        (
            cluster_scoring,
            ("features",),
            ("scores", "kmeans"),
            {
                "num_clusters": 3,
                "options": "num_iterations=2",
                "kmeans_uri": "",
                "kmeans_version": "",
                "seed": 42,
            },
        ),
        (
            evaluate,
            (),
            ("evaluation", "metrics"),
            {
                "benchmarks": "/nowhere/benchmark",
                "benchmark_versions": "",
                "revision": "main",
                "model": "m",
                "label": "untuned",
                "options": "max_new_tokens=8",
                "resamples": 10,
                "seed": 42,
                "gpu_count": "0",
            },
        ),
        (
            finetune,
            ("selected", "random", "everything"),
            ("tuned_model", "adapter", "report", "training"),
            {
                "image_root_uri": "",
                "image_root_version": "",
                "arm": "everything:42",
                "model": "m",
                "revision": "main",
                "max_reject_fraction": 0.05,
                "options": "lora_rank=8",
                "cache_uri": "",
                "gpu_count": "0",
            },
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_every_component_without_its_input_ends_with_exit_code_2(
    artifact, tmp_path, component, inputs, outputs, parameters
):
    given = {port: dsl.Dataset(port, uri=f"/nowhere/{port}") for port in inputs}
    ports = given | {port: artifact(port) for port in outputs}
    with pytest.raises(SystemExit) as stopped:
        component.python_func(**ports, **parameters)
    assert stopped.value.code == 2
    failure = json.loads((tmp_path / "task" / "error.json").read_text())
    assert failure["stage"] == component.python_func.__name__
    assert "/nowhere" in failure["sentence"]


def test_too_many_rejects_reach_the_file_with_their_counts(artifact, tmp_path):
    good = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    (tmp_path / "data.json").write_text(json.dumps([good, good, good, {}]))
    with pytest.raises(SystemExit):
        ingest.python_func(
            records=artifact("records"),
            rejects=artifact("rejects", dsl.Artifact),
            dataset_uri=str(tmp_path / "data.json"),
            dataset_version="",
            image_root_uri="",
            image_root_version="",
            max_reject_fraction=0.2,
        )
    failure = json.loads((tmp_path / "task" / "error.json").read_text())
    assert failure["counts"] == {"read": 4, "written": 3, "dropped": 0, "rejected": 1}


@pytest.fixture
def measured(artifact, tmp_path):
    """Run the evaluate task on a small benchmark; returns why it failed."""
    benchmark = tmp_path / "benchmark"
    benchmark.mkdir()
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    (benchmark / "questions.json").write_text(json.dumps([{"id": "1", "conversations": turns}]))
    described = {"schema": "benchmark/1", "name": "b", "metric": "gqa", "source": "s", "revision": "r"}
    (benchmark / "benchmark.json").write_text(json.dumps({**described, "questions": "questions.json"}))

    def run(**given):
        parameters = {
            "benchmarks": str(benchmark),
            "benchmark_versions": folder_version(str(benchmark)),
            "model": "m",
            "revision": "main",
            "label": "",
            "options": "max_new_tokens=8",
            "resamples": 10,
            "seed": 42,
            "gpu_count": "0",
        }
        with pytest.raises(SystemExit):
            evaluate.python_func(evaluation=artifact("evaluation"), metrics=artifact("metrics"), **parameters | given)
        return json.loads((tmp_path / "task" / "error.json").read_text())["sentence"]

    return run


NO_SUCH_VERSION = f"1 files {32 * '0'}"


def test_a_tuned_model_takes_the_place_of_the_setting(measured):
    """Whatever the version of the model that it began from."""
    sentence = measured(tuned=dsl.Model("tuned", uri="/nowhere/tuned"), revision=NO_SUCH_VERSION)
    assert sentence.startswith("model: /nowhere/tuned is no folder.")


def test_a_model_that_changed_since_the_run_began_is_not_measured(measured, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_text("{}")
    assert measured(model=str(tmp_path / "m"), revision=NO_SUCH_VERSION).startswith(
        f"model: {tmp_path}/m has changed since the run began."
    )


def test_a_benchmark_that_changed_since_the_run_began_is_not_asked(measured, tmp_path):
    assert measured(benchmark_versions=NO_SUCH_VERSION).startswith(
        f"benchmarks: {tmp_path}/benchmark has changed since the run began."
    )
