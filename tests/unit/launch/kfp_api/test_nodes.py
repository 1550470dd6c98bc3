"""submit looks at the cluster where a kubeconfig leads to it: nodes, images, and the objects that pods need."""

import pytest
from kubernetes import client

from tests.support.kfp_stub import V2
from tests.support.kube_stub import node

GPU = {"nvidia.com/gpu.present": "true"}
TAINT = client.V1Taint(key="nvidia.com/gpu", effect="NoSchedule")
REQUIRED = ["--param", "dataset_uri=gs://b/d.json", "--param", "image_root_uri="]
# Takes every step without an accelerator.
CPU_NODE = node({}, cpu="8", memory="16Gi")
GPU_NODE = node(GPU, [TAINT], name="gpu-1", cpu="8", memory="64Gi", nvidia_com__gpu="1")
ATTENTION = "llava_attention, mgm_attention and bert_features"
IGNORE = " Add a node or ask for less; --ignore-nodes submits all the same, and the step waits.\n"


def taint(key, value="", effect="NoSchedule"):
    return client.V1Taint(key=key, value=value, effect=effect)


@pytest.fixture
def submit(free2ds, kube, tmp_path):
    """Runs submit, or another command, with a kubeconfig."""

    def run(*options, command="submit"):
        return free2ds(command, *REQUIRED, *options, "--kubeconfig", kube.kubeconfig(tmp_path / "kubeconfig"))

    return run


@pytest.mark.parametrize(
    ("nodes", "options"),
    [
        ([], []),
        ([CPU_NODE, GPU_NODE], []),
        ([node(GPU, cpu="32", memory="64Gi", nvidia_com__gpu="1")], []),
        # A node that says nothing of cores and memory.
        ([node(GPU, nvidia_com__gpu="1")], []),
        ([node({}, cpu="8", memory="64Gi")], ["gpu_count=0", "gpu_node_selector={}"]),
        (
            [CPU_NODE, node(GPU, [taint("k", "v")], nvidia_com__gpu="1")],
            ['gpu_tolerations=[{"key": "k", "operator": "Equal", "value": "v"}]'],
        ),
        ([CPU_NODE, node(GPU, [taint("k", effect="PreferNoSchedule")], nvidia_com__gpu="1")], []),
    ],
)
def test_nodes_that_take_every_step(submit, kube, nodes, options):
    kube.nodes = nodes
    given = [part for option in options for part in ("--param", option)]
    assert submit(*given)[::2] == (0, "")


@pytest.mark.parametrize(
    ("nodes", "options", "sentence"),
    [
        (
            [CPU_NODE, node({"a": "b"})],
            [],
            f"{ATTENTION}: gpu_node_selector wants nodes with nvidia.com/gpu.present=true, and none of the 2 nodes has "
            "that.",
        ),
        # The selector counts without an accelerator too.
        (
            [CPU_NODE],
            ["--param", "gpu_count=0"],
            f"{ATTENTION}: gpu_node_selector wants nodes with nvidia.com/gpu.present=true, and none of the 1 nodes has "
            "that.",
        ),
        (
            [CPU_NODE, node(GPU, [taint("k", "v", "NoExecute")], nvidia_com__gpu="4")],
            [],
            f"{ATTENTION}: each of the 1 nodes with the labels of gpu_node_selector has a taint that the step does not "
            "tolerate, such as k=v:NoExecute. Add it to gpu_tolerations.",
        ),
        (
            [CPU_NODE, node(GPU, [taint("nvidia.com/gpu", effect="NoExecute")], nvidia_com__gpu="4")],
            [],
            f"{ATTENTION}: each of the 1 nodes with the labels of gpu_node_selector has a taint that the step does not "
            "tolerate, such as nvidia.com/gpu=:NoExecute. Add it to gpu_tolerations.",
        ),
        (
            [GPU_NODE],
            [],
            "resolve, ingest, reuse, demand, split, cluster_scoring and joint_selection: each of the 1 nodes has a "
            "taint that the step does not tolerate, such as nvidia.com/gpu=:NoSchedule.",
        ),
        (
            [CPU_NODE, GPU_NODE],
            ["--param", "gpu_count=2", "--resource", "all.cpu=1", "--resource", "all.memory=1Gi"],
            f"{ATTENTION}: the step asks for 1 cores, 1Gi of memory and 2 nvidia.com/gpu, and none of the 1 nodes that "
            "may run it has as much; the largest, gpu-1, has 8 cores, 64Gi of memory and 1 nvidia.com/gpu.",
        ),
        (
            [
                node({}, name="small", cpu="3500m", memory="16Gi"),
                node({}, name="smaller", cpu="8", memory="7Gi"),
                GPU_NODE,
            ],
            ["--resource", "cluster_scoring.memory=8Gi", "--resource", "ingest.cpu=1"],
            "cluster_scoring: the step asks for 4 cores, 8Gi of memory, and none of the 2 nodes that may run it has as "
            "much; the largest, small, has 3500m cores, 16Gi of memory.",
        ),
    ],
)
def test_a_step_that_no_node_takes(submit, kube, stub, nodes, options, sentence):
    kube.nodes = nodes
    assert submit(*options) == (2, "", f"error: {sentence}{IGNORE}")
    assert stub.runs == {}


@pytest.mark.parametrize("autoscaler", ["cluster-autoscaler", "karpenter"])
def test_where_nodes_are_added_it_is_a_warning(submit, kube, stub, autoscaler):
    kube.nodes, kube.autoscaler = [CPU_NODE], autoscaler
    code, _, err = submit()
    assert (code, len(stub.runs)) == (0, 1)
    assert err.startswith(f"warning: {ATTENTION}: gpu_node_selector wants nodes with ")


def test_whether_nodes_are_added_may_not_be_known(submit, kube):
    kube.nodes = [CPU_NODE]
    kube.fail("GET /api/v1/namespaces/kube-system/.*", 403)
    assert submit()[0] == 0


@pytest.mark.parametrize(
    ("command", "options"), [("submit", ["--ignore-nodes"]), ("schedule", ["--cron", "0 0 3 * * 1"])]
)
def test_nodes_may_be_ignored_and_a_schedule_does_so(submit, kube, command, options):
    kube.nodes = [CPU_NODE]
    code, _, err = submit(*options, command=command)
    assert (code, err.count("warning: ")) == (0, 1)


def test_nodes_of_another_platform(submit, kube):
    arm = node({}, name="arm-1", platform="linux/arm64", cpu="8", memory="16Gi")
    # Takes no step, so that its platform does not matter.
    small = node({}, platform="windows/amd64", cpu="500m", memory="1Gi")
    kube.nodes = [CPU_NODE, GPU_NODE, arm, small]
    assert submit()[2] == (
        "warning: 1 of the 3 nodes that may run steps, such as arm-1, is linux/arm64, but the images are made for "
        "linux/amd64: there they start only if they were built on such a machine.\n"
    )


class TestImages:
    STAGES = ("resolve", "ingest", "reuse", "split", "cluster-scoring", "joint-selection")

    def test_those_that_no_node_has_are_named(self, submit, kube, monkeypatch):
        monkeypatch.setattr("free2ds_common.launch.preflight.check_inputs", lambda *arguments: None)
        there = [f"registry.example/free2ds-{stage}:1" for stage in self.STAGES[:5]]
        kube.nodes = [
            node({}, images=there, cpu="8", memory="16Gi"),
            # The wrong node for it.
            node(GPU, [TAINT], images=["registry.example/free2ds-joint-selection:1"], nvidia_com__gpu="1"),
        ]
        code, out, err = submit("--check", "--registry", "registry.example", "--tag", "1")
        assert (code, err) == (0, "")
        assert out.startswith(
            "to be pulled: registry.example/free2ds-bert-features:1, registry.example/free2ds-joint-selection:1, "
            "registry.example/free2ds-llava-attention:1, registry.example/free2ds-mgm-attention:1\n"
        )

    @pytest.mark.parametrize("count", [0, 50])
    def test_a_node_that_does_not_report_all_says_nothing_of_the_others(self, submit, kube, count):
        kube.nodes = [node(GPU, images=[f"other:{number}" for number in range(count)], nvidia_com__gpu="1")]
        assert submit()[2] == ""

    def test_those_without_a_registry_have_to_be_there(self, submit, kube):
        present = [f"registry.example/library/free2ds-{stage}:dev" for stage in (*self.STAGES, "mgm-attention")]
        kube.nodes = [node(GPU, images=present, nvidia_com__gpu="1")]
        assert submit()[2] == (
            "warning: 2 images without a registry, such as free2ds-bert-features:dev, are on none of the nodes that "
            "may run their steps, and cannot be pulled. Push them, and give --registry.\n"
        )


class TestObjects:
    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            (
                ["--pull-secret", "there", "--pull-secret", "mine"],
                "--pull-secret: namespace kubeflow has no Secret mine. kubectl create secret docker-registry makes "
                "one.",
            ),
            (["--models-claim", "mine"], "--models-claim: namespace kubeflow has no PersistentVolumeClaim mine."),
        ],
    )
    def test_one_that_is_missing(self, submit, kube, stub, options, sentence):
        kube.secrets = {"there"}
        assert submit(*options) == (2, "", f"error: {sentence}\n")
        assert stub.asked(f"POST {V2}/.*") == []

    def test_a_secret_is_asked_for_without_its_content(self, submit, kube):
        kube.secrets, kube.claims = {"mine"}, {"models"}
        assert submit("--pull-secret", "mine", "--models-claim", "models")[0] == 0
        (call,) = kube.asked("GET /api/v1/namespaces/kubeflow/secrets/mine")
        assert call.headers["accept"] == "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"

    def test_one_that_may_not_be_seen_is_no_reason_to_refuse(self, submit, kube):
        kube.fail("GET .*/secrets/.*", 403)
        assert submit("--pull-secret", "mine")[::2] == (0, "")

    def test_a_cluster_that_does_not_answer_is_no_reason_to_refuse(self, free2ds, tmp_path, kube):
        kubeconfig = kube.kubeconfig(tmp_path / "kubeconfig")
        text = (tmp_path / "kubeconfig").read_text()
        (tmp_path / "kubeconfig").write_text(text.replace(kube.url, "http://127.0.0.1:9"))
        assert free2ds("submit", *REQUIRED, "--pull-secret", "mine", "--kubeconfig", kubeconfig)[::2] == (0, "")
