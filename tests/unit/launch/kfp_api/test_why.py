"""why and runs over HTTP: the failed step's own sentence, from wherever it still is, and what pods wait for."""

import base64
import gzip
import json
from datetime import UTC, datetime, timedelta

import kfp_server_api as api
import pytest
from kubernetes import client

import pipeline
from free2ds_common.launch.kfp_api.kube import Kube, said_by, step_of
from free2ds_common.launch.kfp_api.steps import step_names, steps_of
from free2ds_common.launch.kfp_api.why import sentence_in
from free2ds_common.launch.package import Package
from tests.support.kfp_stub import V2
from tests.support.kube_stub import pod

SPEC = Package.compile(pipeline.free2ds).spec
WORKFLOW = "free2ds-x7k2p"


@pytest.fixture
def failed(stub, tasks):
    """A run whose ingest failed, and nothing that says why yet."""
    tasks.step("ingest", "FAILED")
    stub.add_run("r1", "FAILED", run_details=tasks.run_details, pipeline_spec=SPEC, display_name="mix")
    return stub


def printed(stub, *lines):
    return "".join(f"{line}\n" for line in ["run r1 (mix): FAILED", *lines, f"  {stub.url}/#/runs/details/r1"])


class TestSentence:
    def test_from_the_log_of_the_pod(self, failed, free2ds):
        failed.logs["r1", "ingest-pod"] = (
            "I01 launcher\nerror: no such file\n\nF01 failed to execute component: exit status 1"
        )
        assert free2ds("why", "r1")[:2] == (0, printed(failed, "  read-data-set: no such file"))

    def test_from_the_api_where_it_knows(self, failed, free2ds):
        failed.runs["r1"].run_details.task_details[2].error = api.GoogleRpcStatus(message="error: told by the API")
        assert "  read-data-set: told by the API\n" in free2ds("why", "r1")[1]

    def test_from_an_earlier_state_of_the_task(self, failed, free2ds):
        status = api.V2beta1RuntimeStatus(
            state="FAILED", error=api.GoogleRpcStatus(message="OOMKilled (exit code 137)")
        )
        failed.runs["r1"].run_details.task_details[1].state_history = [status]
        assert "  read-data-set: OOMKilled (exit code 137)\n" in free2ds("why", "r1")[1]

    def test_an_exit_code_is_no_sentence(self, failed, free2ds):
        failed.runs["r1"].run_details.task_details[1].error = api.GoogleRpcStatus(message="Error (exit code 1)")
        failed.logs["r1", "ingest-pod"] = "error: the sentence\n"
        assert "  read-data-set: the sentence\n" in free2ds("why", "r1")[1]

    def test_from_the_termination_message_of_the_pod(self, failed, free2ds, kube, tmp_path):
        ended = client.V1ContainerStateTerminated(exit_code=1, reason="Error", message="error: left by the stage\n")
        kube.pods["r1"] = [pod("ingest-pod", f"{WORKFLOW}.root.ingest.executor", ended=ended)]
        options = ["--kubeconfig", kube.kubeconfig(tmp_path / "kubeconfig")]
        assert "  read-data-set: left by the stage\n" in free2ds("why", "r1", *options)[1]

    def test_from_argo_when_the_pod_is_gone(self, failed, free2ds, kube, tmp_path):
        nodes = {
            "a": {
                "type": "Pod",
                "name": f"{WORKFLOW}.root.ingest.executor",
                "podName": "ingest-pod",
                "phase": "Failed",
                "message": "Error (exit code 1): error: kept by Argo",
            }
        }
        packed = base64.b64encode(gzip.compress(json.dumps(nodes).encode())).decode()
        kube.workflows["r1"] = [{"status": {"compressedNodes": packed}}]
        options = ["--kubeconfig", kube.kubeconfig(tmp_path / "kubeconfig")]
        assert "  read-data-set: kept by Argo\n" in free2ds("why", "r1", *options)[1]

    def test_from_the_archived_log_when_the_pod_is_gone(self, failed, free2ds, tmp_path):
        log = tmp_path / "store/free2ds/r1/ingest/execution-1/executor-logs"
        log.parent.mkdir(parents=True)
        log.write_text("error: kept in the store\n")
        assert "  read-data-set: kept in the store\n" in free2ds("why", "r1", "--pipeline-root", f"{tmp_path}/store")[1]

    def test_nowhere(self, failed, free2ds):
        assert free2ds("why", "r1", "--pipeline-root", "memory://nowhere")[1] == printed(
            failed,
            "  read-data-set: it ended without a sentence: killed, or its log cannot be read from here; "
            "kubectl logs ingest-pod -c main may still show more",
        )

    def test_of_a_driver(self, stub, free2ds, tasks):
        tasks.add("ingest-driver", "FAILED", pod="driver-pod")
        stub.add_run("r1", "FAILED", run_details=tasks.run_details, pipeline_spec=SPEC)
        stub.logs["r1", "driver-pod"] = "error: quantities must match\n"
        assert "  read-data-set: quantities must match\n" in free2ds("why", "r1")[1]

    def test_of_a_run_without_steps(self, stub, free2ds):
        stub.add_run("r1", "FAILED", error=api.GoogleRpcStatus(message="no workflow"), pipeline_spec=SPEC)
        assert "  the run: no workflow\n" in free2ds("why", "r1")[1]

    def test_the_same_of_many_shards_is_said_once(self, stub, free2ds, tasks):
        loop = tasks.add("for-loop-1", "FAILED")
        for turn in range(5):
            iteration = tasks.add(f"iteration-{turn}", "FAILED", loop)
            tasks.step("llava-attention", "FAILED", iteration, f"pod-{turn}")
            stub.logs["r1", f"pod-{turn}"] = "error: no GPU here\n" if turn else "error: another\n"
        stub.add_run("r1", "FAILED", run_details=tasks.run_details, pipeline_spec=SPEC)
        out = free2ds("why", "r1")[1]
        assert "  LLaVA-attention (turn 1): another\n" in out
        assert "  LLaVA-attention (turn 2) and 3 more: no GPU here\n" in out

    def test_credentials_are_hidden(self, failed, free2ds):
        failed.logs["r1", "ingest-pod"] = "error: https://u:secret@h/x: refused\n"
        assert "  read-data-set: https://***@h/x: refused\n" in free2ds("why", "r1")[1]


class TestWaiting:
    """What the UI hides: a pod that nobody will ever start."""

    @pytest.fixture
    def why(self, stub, free2ds, kube, tmp_path):
        stub.add_run("r1", "RUNNING", pipeline_spec=SPEC)
        kubeconfig = kube.kubeconfig(tmp_path / "kubeconfig")
        return lambda: free2ds("why", "r1", "--kubeconfig", kubeconfig)[1]

    def test_unschedulable(self, why, kube):
        condition = client.V1PodCondition(
            type="PodScheduled",
            status="False",
            reason="Unschedulable",
            message="0/2 nodes: Insufficient nvidia.com/gpu.",
        )
        name = f"{WORKFLOW}.root.for-loop-1.iteration(3:3).score-shard.llava-attention.executor(0)"
        kube.pods["r1"] = [pod("p", name, [condition])]
        assert "  llava-attention (turn 4): Unschedulable: 0/2 nodes: Insufficient nvidia.com/gpu.\n" in why()

    def test_an_image_that_cannot_be_pulled(self, why, kube):
        waiting = client.V1ContainerStateWaiting(reason="ErrImagePull", message="manifest unknown")
        kube.pods["r1"] = [pod("p", f"{WORKFLOW}.root.ingest.executor", waiting=waiting)]
        assert "  ingest: ErrImagePull: manifest unknown\n" in why()

    def test_a_quota(self, why, kube):
        message = 'pods "x" is forbidden: exceeded quota: gpus'
        kube.workflows["r1"] = [
            {
                "status": {
                    "nodes": {
                        "a": {
                            "type": "Pod",
                            "name": f"{WORKFLOW}.root.ingest.executor",
                            "phase": "Pending",
                            "message": message,
                        }
                    }
                }
            }
        ]
        assert f"  ingest: {message}\n" in why()

    def test_a_pod_that_has_only_just_begun_is_well(self, why, kube):
        waiting = client.V1ContainerStateWaiting(reason="ContainerCreating")
        kube.pods["r1"] = [pod("p", f"{WORKFLOW}.root.ingest.executor", waiting=waiting)]
        assert "  nothing is wrong with it, as far as can be seen\n" in why()

    def test_a_cluster_that_does_not_answer_is_passed_over(self, why, kube):
        kube.fail("GET .*", 403)
        assert "nothing is wrong" in why()

    def test_one_that_is_not_there_is_asked_once(self, kube, tmp_path, monkeypatch):
        found = Kube.find(kube.kubeconfig(tmp_path / "kubeconfig"), "kubeflow")
        asked = []

        def list_objects(*arguments, **options):
            asked.append(arguments)
            raise OSError("no route")

        monkeypatch.setattr(found._objects, "list_namespaced_custom_object", list_objects)
        assert [found.notes("r1"), found.notes("r1")] == [[], []]
        assert len(asked) == 1


def test_a_kubeconfig_that_was_asked_for_must_be_one(free2ds, tmp_path):
    (tmp_path / "broken").write_text("{")
    code, _, err = free2ds("runs", "--kubeconfig", str(tmp_path / "broken"))
    assert code == 2
    assert err.startswith(f"error: --kubeconfig: {tmp_path}/broken cannot be used (")


def test_a_run_that_went_well(stub, free2ds):
    stub.add_run("r1", "SUCCEEDED", pipeline_spec=SPEC)
    assert free2ds("why", "r1")[1].endswith("  nothing is wrong with it, as far as can be seen without a kubeconfig\n")


def test_runs_are_listed_with_what_is_wrong(failed, free2ds):
    failed.logs["r1", "ingest-pod"] = "error: no such file\n"
    began = failed.runs["r1"].created_at
    failed.add_run("r2", "RUNNING", finished_at=datetime(1970, 1, 1, tzinfo=UTC))
    failed.add_run("r3", "SUCCEEDED", finished_at=began + timedelta(hours=3, minutes=9))
    _, out, _ = free2ds("runs")
    assert out == (
        "started (UTC)     took  state      name     id\n"
        "2026-11-23 03:03  3:07  SUCCEEDED  data r3  r3\n"
        "2026-11-23 03:02        RUNNING    data r2  r2\n"
        "2026-11-23 03:01        FAILED     mix      r1\n"
        "\n"
        "r1: read-data-set: no such file\n"
    )


def test_only_so_many_runs_are_listed(stub, free2ds):
    for number in range(4):
        stub.add_run(f"r{number}", "SUCCEEDED")
    out = free2ds("runs", "--limit", "1")[1]
    assert [line.split()[-1] for line in out.splitlines()] == ["id", "r3"]
    assert len(stub.asked(f"GET {V2}/runs")) == 1


def test_no_runs(free2ds):
    assert free2ds("runs", "--experiment", "e")[1] == "experiment e has no runs\n"


def test_a_run_of_an_uploaded_version_is_read_by_its_version(stub, free2ds, tasks):
    tasks.step("ingest", "FAILED")
    reference = api.V2beta1PipelineVersionReference(pipeline_id="p", pipeline_version_id="v")
    stub.versions["v"] = api.V2beta1PipelineVersion(
        pipeline_version_id="v", pipeline_spec={"pipeline_spec": SPEC, "platform_spec": {}}
    )
    stub.add_run("r1", "FAILED", run_details=tasks.run_details, pipeline_version_reference=reference)
    stub.logs["r1", "ingest-pod"] = "error: of a version\n"
    assert "  read-data-set: of a version\n" in free2ds("why", "r1")[1]


@pytest.mark.parametrize(
    ("log", "sentence"),
    [
        ("", ""),
        ("nothing here\n", ""),
        ("error: first\nerror: last\nmore\n", "last"),
        ("2026-11-27T10:00:00Z error: with a time\n", "with a time"),
        ("Traceback:\nValueError: crashed\n", "ValueError: crashed"),
        (
            "torch.OutOfMemoryError: CUDA out of memory\nmain.go: failed to execute component: exit status 1",
            "torch.OutOfMemoryError: CUDA out of memory",
        ),
        ("error: said\nTraceback:\nSystemExit: 2\n", "said"),
    ],
)
def test_the_sentence_in_a_log(log, sentence):
    assert sentence_in(log) == sentence


@pytest.mark.parametrize(
    ("message", "left"),
    [
        (None, ""),
        ("Error (exit code 1)", ""),
        ("main: Error (exit code 1): error: x", "error: x"),
        ("OOMKilled (exit code 137)", "OOMKilled (exit code 137)"),
        ("two\n lines", "two lines"),
    ],
)
def test_what_argo_says(message, left):
    assert said_by(message) == left


@pytest.mark.parametrize(
    ("name", "step"),
    [
        (f"{WORKFLOW}.root.ingest.executor", "ingest"),
        (f"{WORKFLOW}.root.ingest.executor(1)", "ingest"),
        (f"{WORKFLOW}.root.ingest-driver", "ingest"),
        (f"{WORKFLOW}.root.for-loop-1.iteration(12:12).score-shard.mgm-attention.executor", "mgm-attention (turn 13)"),
        (WORKFLOW, WORKFLOW),
    ],
)
def test_the_step_of_a_node(name, step):
    assert step_of(name) == step


def test_the_names_of_steps():
    """In the order of the work, whatever the spec's is."""
    assert [name.key for name in step_names(SPEC)] == [
        "resolve",
        "ingest",
        "bert-features",
        "reuse",
        "cluster-scoring",
        "demand",
        "split",
        "split-2",
        "llava-attention",
        "mgm-attention",
        "joint-selection",
    ]


def test_steps_of_a_run(tasks):
    """Parents told from above and from below, tries, and nodes that are no steps."""
    root = tasks.add("root", "RUNNING")
    tasks.step("ingest", "SUCCEEDED", root)
    loop = tasks.add("for-loop-1", "RUNNING", root)
    turn = tasks.add("iteration-11", "RUNNING", loop)
    step = tasks.add("mgm-attention", "RUNNING", turn)
    below = tasks.add("executor", "RUNNING", "", "second-try")
    children = [api.PipelineTaskDetailChildTask(task_id=below), api.PipelineTaskDetailChildTask(pod_name="first-try")]
    tasks.details[int(step.partition("-")[2])].child_tasks = children
    run = api.V2beta1Run(run_details=tasks.run_details)
    assert [(found.title, found.state, found.pods) for found in steps_of(run, step_names(SPEC))] == [
        ("read-data-set", "SUCCEEDED", ("ingest-pod",)),
        ("MGM-attention (turn 12)", "RUNNING", ("first-try", "second-try")),
    ]


def test_steps_with_names_for_people(tasks):
    """Nodes may bear the spec's own name or the one for people: both are the step."""
    spec = json.loads(json.dumps(SPEC))
    spec["root"]["dag"]["tasks"]["ingest"]["taskInfo"]["name"] = "Read the data set"
    tasks.step("ingest", "RUNNING")
    tasks.step("Read the data set", "FAILED")
    run = api.V2beta1Run(run_details=tasks.run_details)
    found = steps_of(run, step_names(spec))
    assert [(step.title, step.name.key, step.state) for step in found] == [
        ("Read the data set", "ingest", "RUNNING"),
        ("Read the data set", "ingest", "FAILED"),
    ]
