"""fetch over HTTP and from a store: what lies where, steps from the cache, and what is not there."""

import json

import kfp_server_api as api
import pyarrow as pa
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

import pipeline
from free2ds_common.datasets import DatasetWriter, sha256_of_file
from free2ds_common.launch.kfp_api.artifacts import RunStore, readable
from free2ds_common.launch.kfp_api.metadata import encoded, fields
from free2ds_common.launch.package import Package
from free2ds_common.schemas import SCORES
from tests.support.http_stub import Reply

SPEC = Package.compile(pipeline.free2ds).spec
SERVICE = "/ml_metadata.MetadataStoreService"


def put(folder, run_id="r1"):
    """The store of a run, as the launcher lays it out."""
    chosen = folder / "free2ds" / run_id / "joint-selection" / "e1"
    with DatasetWriter(chosen / "scores", SCORES) as writer:
        writer.write(pa.table({field.name: pa.array([], field.type) for field in SCORES.arrow}))
    for name in ("selected", "random", "report", "summary"):
        (chosen / name).write_text(f"{name} of {run_id}")
    (chosen / "baseline").mkdir()
    (chosen / "baseline/part").write_text("clusters")
    (chosen / "executor-logs").write_text("joined\n")
    ingested = folder / "free2ds" / run_id / "ingest" / "e2"
    ingested.mkdir(parents=True)
    (ingested / "rejects").write_text("")
    (ingested / "executor-logs").write_text("read https://u:secret@h/x\n")


@pytest.fixture
def run(stub, tmp_path):
    config = api.V2beta1RuntimeConfig(parameters={"ratio": 0.2}, pipeline_root=f"{tmp_path}/store")
    return stub.add_run("r1", "SUCCEEDED", pipeline_spec=SPEC, runtime_config=config, display_name="mix")


def test_a_runs_results_look_like_a_local_runs(run, stub, free2ds, tmp_path):
    put(tmp_path / "store")
    code, out, err = free2ds("fetch", "r1", "--output-dir", str(tmp_path / "out"))
    assert (code, err) == (0, "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".free2ds.json",
        ".free2ds.lock",
        "kmeans",
        "random.json",
        "rejects.jsonl",
        "report.html",
        "run.log",
        "scores",
        "selected.json",
        "summary.json",
    ]
    assert (tmp_path / "out/selected.json").read_text() == "selected of r1"
    assert (tmp_path / "out/run.log").read_text() == (
        f"run r1 (mix) on {stub.url}/#/runs/details/r1\n"
        'parameters: {"ratio": 0.2}\n'
        "== read-data-set\n"
        "read https://***@h/x\n"
        "== select-and-report\n"
        "joined\n"
    )
    assert out.startswith(f"Results of run r1 in {tmp_path}/out:\n  selected.json ")


def test_the_loops_verdict_is_brought_too(stub, free2ds, tmp_path):
    config = api.V2beta1RuntimeConfig(parameters={}, pipeline_root=f"{tmp_path}/store")
    spec = Package.compile(pipeline.free2ds_loop).spec
    stub.add_run("r1", "SUCCEEDED", pipeline_spec=spec, runtime_config=config, display_name="mix")
    put(tmp_path / "store")
    (tmp_path / "store/free2ds").rename(tmp_path / "store/free2ds-loop")
    compared = tmp_path / "store/free2ds-loop/r1/verdict/e3"
    compared.mkdir(parents=True)
    for name in ("comparison", "report"):
        (compared / name).write_text(f"{name} of the loop")
    code, out, err = free2ds("fetch", "r1", "--output-dir", str(tmp_path / "out"))
    assert (code, err) == (0, "")
    assert (tmp_path / "out/comparison.json").read_text() == "comparison of the loop"
    assert (tmp_path / "out/verdict.html").read_text() == "report of the loop"
    assert (tmp_path / "out/report.html").read_text() == "report of r1"
    assert "  verdict.html    whether selecting helped" in out


def test_a_second_fetch_replaces_the_first(run, free2ds, tmp_path):
    put(tmp_path / "store")
    options = ["--output-dir", str(tmp_path / "out")]
    free2ds("fetch", "r1", *options)
    (tmp_path / "store/free2ds/r1/joint-selection/e1/selected").write_text("another")
    assert free2ds("fetch", "r1", *options)[0] == 0
    assert (tmp_path / "out/selected.json").read_text() == "another"


def test_foreign_files_stay(run, free2ds, tmp_path):
    put(tmp_path / "store")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/selected.json").write_text("mine")
    code, _, err = free2ds("fetch", "r1", "--output-dir", str(tmp_path / "out"))
    assert code == 2
    assert err.endswith("is of no earlier run. Move it away, or give another folder.\n")
    assert (tmp_path / "out/selected.json").read_text() == "mine"


def test_of_several_tries_the_last_counts(run, free2ds, tmp_path):
    put(tmp_path / "store")
    again = tmp_path / "store/free2ds/r1/joint-selection/a-later-one"
    again.mkdir()
    (again / "selected").write_text("of the later try")
    free2ds("fetch", "r1", "--output-dir", str(tmp_path / "out"))
    assert (tmp_path / "out/selected.json").read_text() == "of the later try"


def test_an_altered_table_is_refused(run, free2ds, tmp_path):
    put(tmp_path / "store")
    manifest = tmp_path / "store/free2ds/r1/joint-selection/e1/scores/_manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"rows": 5}))
    code, _, err = free2ds("fetch", "r1", "--output-dir", str(tmp_path / "out"))
    assert code == 2
    assert "_manifest.json is not the file that was written (checksum differs)." in err
    assert not (tmp_path / "out/selected.json").exists()


def test_steps_that_are_nested_and_named_for_people(stub, free2ds, tmp_path):
    """A step's folder has its name for people; the outputs of a nested pipeline are those of its steps."""
    put(tmp_path / "store")
    folder = tmp_path / "store/free2ds/r1"
    (folder / "joint-selection").rename(folder / "select-and-report")
    stub.add_run("r1", "SUCCEEDED", pipeline_spec=SPEC)
    options = ["--output-dir", str(tmp_path / "out"), "--pipeline-root", f"{tmp_path}/store"]
    assert free2ds("fetch", "r1", *options)[0] == 0
    assert (tmp_path / "out/selected.json").read_text() == "selected of r1"


@pytest.mark.parametrize("state", ["RUNNING", "FAILED"])
def test_a_run_without_results(stub, free2ds, tmp_path, state):
    stub.add_run("r1", state, pipeline_spec=SPEC)
    assert free2ds("fetch", "r1", "--output-dir", str(tmp_path)) == (
        2,
        "",
        f"error: run r1: is {state}, so it has no results. free2ds why r1 says more.\n",
    )


def test_results_that_are_nowhere(run, stub, free2ds, tmp_path):
    stub.route(f"POST {SERVICE}/.*", lambda call: Reply(body=b"", content_type="application/grpc-web+proto"))
    code, _, err = free2ds("fetch", "r1", "--output-dir", str(tmp_path / "out"))
    assert code == 2
    assert err == (
        "error: run r1: nothing of baseline, random, rejects, report, scores, selected, summary lies in "
        f"{tmp_path}/store/free2ds/r1, and the metadata store of {stub.url} knows no other place. Give --ui-host for "
        "steps that came from the cache, or --pipeline-root.\n"
    )


@pytest.mark.parametrize(
    ("option", "of_run", "of_spec", "root"),
    [
        ("gs://o/x/", "gs://r", "gs://s", "gs://o/x"),
        ("", "gs://r", "gs://s", "gs://r"),
        ("", "", "gs://s", "gs://s"),
        ("", "", "", "s3://mlpipeline/v2/artifacts"),
    ],
)
def test_where_a_run_keeps_its_artifacts(option, of_run, of_spec, root):
    run = api.V2beta1Run(run_id="r1", runtime_config=api.V2beta1RuntimeConfig(pipeline_root=of_run or None))
    spec = {"pipelineInfo": {"name": "free2ds"}, "defaultPipelineRoot": of_spec}
    assert RunStore.of(run, spec, option, None).root == f"{root}/free2ds/r1"


def test_kubeflows_own_store_is_read_as_s3():
    assert readable("minio://bucket/a?endpoint=x") == "s3://bucket/a"
    assert readable("gs://bucket/a") == "gs://bucket/a"


class Metadata:
    """The metadata store behind the UI; its messages are those of protobuf itself, not of the code under test."""

    def __init__(self, stub):
        file = descriptor_pb2.FileDescriptorProto(name="m.proto", package="m", syntax="proto2")
        text, number, inner = (
            descriptor_pb2.FieldDescriptorProto.Type.Value(f"TYPE_{kind}") for kind in ("STRING", "INT64", "MESSAGE")
        )
        shapes = {
            "Ask": [("first", 1, text, ""), ("second", 2, text, "")],
            "Ids": [("ids", 1, number, "*")],
            "Context": [("id", 1, number, "")],
            "ContextAnswer": [("context", 1, inner, "Context")],
            "Value": [("string_value", 3, text, "")],
            "Entry": [("key", 1, text, ""), ("value", 2, inner, "Value")],
            "Execution": [("id", 1, number, ""), ("custom_properties", 5, inner, "*Entry")],
            "Executions": [("executions", 1, inner, "*Execution")],
            "Step": [("index", 1, number, ""), ("key", 2, text, "")],
            "Path": [("steps", 1, inner, "*Step")],
            "Event": [
                ("artifact_id", 1, number, ""),
                ("execution_id", 2, number, ""),
                ("path", 3, inner, "Path"),
                ("type", 4, number, ""),
            ],
            "Events": [("events", 1, inner, "*Event")],
            "Artifact": [("id", 1, number, ""), ("type_id", 2, number, ""), ("uri", 3, text, "")],
            "Artifacts": [("artifacts", 1, inner, "*Artifact")],
        }
        for name, parts in shapes.items():
            message = file.message_type.add(name=name)
            for part, place, kind, of in parts:
                field = message.field.add(name=part, number=place, type=kind, label=3 if "*" in of else 1)
                if of.strip("*"):
                    field.type_name = f".m.{of.strip('*')}"
        pool = descriptor_pool.DescriptorPool()
        pool.Add(file)
        self._classes = {
            name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"m.{name}")) for name in shapes
        }
        self.asked = []
        self.outputs = {}
        for method in (
            "GetContextByTypeAndName",
            "GetExecutionsByContext",
            "GetEventsByExecutionIDs",
            "GetArtifactsByID",
        ):
            stub.route(f"POST {SERVICE}/{method}", getattr(self, f"_{method}"))

    def _read(self, call, kind):
        assert call.headers["content-type"] == "application/grpc-web+proto"
        assert call.body[0] == 0
        assert int.from_bytes(call.body[1:5], "big") == len(call.body) - 5
        message = self._classes[kind].FromString(call.body[5:])
        self.asked.append(str(message).split())
        return message

    def _answer(self, kind, **content):
        body = self._classes[kind](**content).SerializeToString()
        trailer = b"grpc-status:0\r\n"
        framed = b"\0" + len(body).to_bytes(4, "big") + body + b"\x80" + len(trailer).to_bytes(4, "big") + trailer
        return Reply(body=framed, content_type="application/grpc-web+proto")

    def _GetContextByTypeAndName(self, call):
        asked = self._read(call, "Ask")
        assert (asked.first, asked.second) == ("system.PipelineRun", "r1")
        return self._answer("ContextAnswer", context={"id": 300})

    def _GetExecutionsByContext(self, call):
        assert list(self._read(call, "Ids").ids) == [300]
        executions = [
            {"id": number, "custom_properties": [{"key": "task_name", "value": {"string_value": task}}]}
            for number, task in enumerate(self.outputs, 1)
        ]
        return self._answer("Executions", executions=executions)

    def _GetEventsByExecutionIDs(self, call):
        events = []
        for execution in self._read(call, "Ids").ids:
            task = list(self.outputs)[execution - 1]
            for place, port in enumerate(self.outputs[task]):
                path = {"steps": [{"key": port}, {"index": 0}]}
                events.append(
                    {"artifact_id": execution * 1000 + place, "execution_id": execution, "path": path, "type": 4}
                )
            # An input of the same name is none of its outputs.
            events.append({"artifact_id": 9, "execution_id": execution, "path": {"steps": [{"key": port}]}, "type": 3})
        return self._answer("Events", events=events)

    def _GetArtifactsByID(self, call):
        artifacts = []
        for number in self._read(call, "Ids").ids:
            ports = self.outputs[list(self.outputs)[number // 1000 - 1]]
            artifacts.append({"id": number, "type_id": 1, "uri": list(ports.values())[number % 1000]})
        return self._answer("Artifacts", artifacts=artifacts)


def test_what_came_from_the_cache_is_where_the_metadata_store_says(run, stub, free2ds, tmp_path):
    put(tmp_path / "store", "r0")
    earlier = tmp_path / "store/free2ds/r0"
    metadata = Metadata(stub)
    ports = ("selected", "random", "report", "summary", "scores", "baseline")
    metadata.outputs = {
        "split": {"Output": "nowhere"},
        "joint-selection": {port: f"{earlier}/joint-selection/e1/{port}" for port in ports},
        "ingest": {"records": "nowhere", "rejects": f"{earlier}/ingest/e2/rejects"},
    }
    code, _, err = free2ds("fetch", "r1", "--output-dir", str(tmp_path / "out"))
    assert (code, err) == (0, "")
    assert (tmp_path / "out/selected.json").read_text() == "selected of r0"
    assert (tmp_path / "out/rejects.jsonl").exists()


def test_the_metadata_store_is_the_uis(run, stub, free2ds, tmp_path):
    code, _, err = free2ds("fetch", "r1", "--output-dir", str(tmp_path / "out"), "--ui-host", "http://127.0.0.1:9")
    assert code == 2
    assert err.startswith("error: --host: no Kubeflow Pipelines answers at ")


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 2**40])
def test_numbers_are_read_as_they_are_written(number):
    assert list(fields(encoded(7 << 3) + encoded(number))) == [(7, number)]


def test_fields_of_every_kind_are_passed_over():
    message = b"\x09" + bytes(8) + b"\x15" + bytes(4) + b"\x1a\x02hi"
    assert list(fields(message)) == [(1, bytes(8)), (2, bytes(4)), (3, b"hi")]


@pytest.mark.parametrize("message", [b"\x0a\x05hi", b"\x80", b"\x08", b"\x0b"])
def test_what_is_no_message_is_an_error(message):
    with pytest.raises(ValueError, match="no protocol buffer"):
        list(fields(message))


def test_a_runs_lineage_is_read_by_its_id(run, stub, free2ds, tmp_path):
    put(tmp_path / "store")
    chosen = tmp_path / "store/free2ds/r1/joint-selection/e1"
    told = {"image": "", "outputs": {"selected": sha256_of_file(chosen / "selected")}, "made_from": {}}
    counts = {"read": 4, "written": 2}
    content = {"lineage": told, "counts": counts, "run": {}, "parameters": {"seed": 1}, "code_version": "0.1.0"}
    (chosen / "summary").write_text(json.dumps(content))
    code, out, _ = free2ds("lineage", "r1")
    assert code == 0
    assert out.startswith("selected: 2 of 4 records, ")
    assert f"│   {chosen}/selected\n" in out


def test_two_runs_are_compared_by_their_ids(run, stub, free2ds, tmp_path):
    for name, seed in (("r1", 1), ("r2", 2)):
        put(tmp_path / "store", name)
        chosen = tmp_path / f"store/free2ds/{name}/joint-selection/e1"
        (chosen / "summary").write_text(json.dumps({"parameters": {"seed": seed}}))
    stub.add_run("r2", "SUCCEEDED", pipeline_spec=SPEC, runtime_config=run.runtime_config)
    code, out, _ = free2ds("compare", "r1", "r2")
    assert code == 0
    assert out.startswith("first: r1\nsecond: r2\n\nparameters.seed: 1 -> 2\n")


@pytest.mark.parametrize("command", [["lineage", "r1"], ["compare", "r1", "r1"]])
def test_a_run_that_has_not_succeeded_has_no_lineage(stub, free2ds, command):
    stub.add_run("r1", "FAILED", pipeline_spec=SPEC)
    assert free2ds(*command)[2] == "error: run r1: is FAILED, so it has no results. free2ds why r1 says more.\n"


@pytest.mark.parametrize(("store", "root"), [("s3", "minio://data"), ("s3", "s3://data"), ("gcs", "gs://data")])
def test_results_come_from_a_real_store(store, root, stub, free2ds, tmp_path, request):
    """By S3, also under the name that Kubeflow has for it, and by Google's."""
    bucket = request.getfixturevalue(store)
    place = tmp_path.name
    put(tmp_path / "store")
    for path in sorted((tmp_path / "store").rglob("*")):
        if path.is_file():
            bucket.put(f"{place}/{path.relative_to(tmp_path / 'store')}", path.read_bytes())
    bucket.put(f"{place}/free2ds/r1/joint-selection/d9/executor-logs", b"a later try that failed\n")
    stub.add_run("r1", "SUCCEEDED", pipeline_spec=SPEC)
    options = ["--pipeline-root", f"{root}/{place}", "--output-dir", str(tmp_path / "out")]
    code, _, err = free2ds("fetch", "r1", *options)
    assert (code, err) == (0, "")
    assert (tmp_path / "out/selected.json").read_text() == "selected of r1"
    log = (tmp_path / "out/run.log").read_text()
    # In either order: S3 tells times to the second.
    assert "== select-and-report\njoined\n" in log
    assert "== select-and-report\na later try that failed\n" in log
