"""What goes to the nodes of a training, and what comes back."""

import json
import os
import signal
from pathlib import Path

import fsspec
import pytest

from components.finetune import node
from components.finetune.node import launch_config
from components.finetune.nodes import give_back, received
from components.finetune.own_pod import read_environment
from components.finetune.stage import run
from free2ds_common import kfp_task
from free2ds_common.datasets import DatasetWriter
from free2ds_common.errors import StageError
from free2ds_common.result import Counts, StageResult
from free2ds_common.schemas import RECORDS
from free2ds_common.stopping import Stopped

CACHE = "memory://nodes-cache"
RESULT = StageResult(Counts(read=10, written=10), {"steps": 3.0}, {"nodes": 2})


@pytest.fixture
def stored():
    """Names of what lies in the store, with the folder of the TrainJob taken off."""
    fs = fsspec.filesystem("memory")

    def names():
        fs.invalidate_cache()
        return sorted(path.split("/", 4)[-1] for path in fs.find("/nodes-cache"))

    yield names
    if fs.exists("/nodes-cache"):
        fs.rm("/nodes-cache", recursive=True)


@pytest.fixture
def several(config, cluster, stored):
    def given(**changes):
        return config(**{"nodes": 2, "cache_uri": CACHE, "image_root_uri": "memory://images", **changes})

    return given


@pytest.fixture
def nodes(cluster, tmp_path):
    """Nodes that take what they are to do, write outputs and end; what they took is in the list."""
    taken = []

    def work(job):
        uri = job["spec"]["trainer"]["command"][-1]
        scratch = tmp_path / f"node{len(taken)}"
        scratch.mkdir()
        config = received(uri, scratch)
        # The download is gone when the test looks.
        records = Path(config.selected)
        taken.append((config, records.read_bytes() if records.is_file() else sorted(os.listdir(records))))
        for port in ("tuned_model", "adapter"):
            folder = Path(getattr(config, port))
            folder.mkdir(parents=True)
            (folder / "inner").mkdir()
            (folder / "inner" / "file").write_text(port)
        Path(config.report).write_text("page")
        give_back(uri, scratch, RESULT)
        cluster.end("Complete")

    cluster.made = work
    return taken


def test_what_the_nodes_made_is_the_steps_output(several, nodes, tmp_path):
    result = run(several())
    assert (result.counts, result.metrics, result.metadata) == (RESULT.counts, RESULT.metrics, RESULT.metadata)
    assert (tmp_path / "out" / "model" / "inner" / "file").read_text() == "tuned_model"
    assert (tmp_path / "out" / "adapter" / "inner" / "file").read_text() == "adapter"
    assert (tmp_path / "out" / "report.html").read_text() == "page"
    assert sorted(os.listdir(tmp_path / "out")) == ["adapter", "model", "report.html"]


def test_nothing_is_left_behind(several, nodes, cluster, stored):
    run(several())
    assert cluster.jobs == {}
    assert stored() == []


def test_the_nodes_have_the_records_and_the_settings(several, nodes, tmp_path):
    given = several(lora_rank=3, seed=5)
    run(given)
    ((taken, records),) = nodes
    assert records == (tmp_path / "selected.json").read_bytes()
    ports = {"selected", "tuned_model", "adapter", "report", "require_gpu"}
    for name in vars(given).keys() - ports:
        assert getattr(taken, name) == getattr(given, name), name


@pytest.mark.parametrize(
    ("resources", "wanted"), [("nvidia.com/gpu=1", True), ("GPU=1", True), ("cpu=2,memory=4Gi", False), ("", False)]
)
def test_nodes_that_are_given_a_gpu_must_find_one(several, nodes, resources, wanted):
    run(several(node_resources=resources))
    assert nodes[0][0].require_gpu is wanted


def test_records_of_ingest_go_to_the_nodes_too(several, nodes, tmp_path):
    row = {"unique_id": 1, "record_key": "k", "position": 0, "id": None, "image": None, "source": "s"}
    with DatasetWriter(tmp_path / "records", RECORDS) as writer:
        writer.write([row | {"question": "q", "messages": ["q"], "raw": "{}"}])
    run(several(selected=str(tmp_path / "records")))
    assert nodes[0][1] == sorted(os.listdir(tmp_path / "records"))


def test_a_run_that_was_killed_is_followed(several, nodes, cluster):
    made = []
    work, cluster.made = cluster.made, made.append

    class Killed(BaseException):
        pass

    def kill(job, stop_requested):
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("components.finetune.train_job.TrainJob.follow", kill)
        patch.setattr("components.finetune.train_job.TrainJob.delete", lambda job: None)
        with pytest.raises(Killed):
            run(several())
    work(made[0])
    run(several())
    assert len(made) == len(cluster.asked("POST .*/trainjobs")) == 1


def test_other_settings_are_another_trainjob(several, nodes, cluster):
    for seed in (1, 2):
        run(several(seed=seed))
    names = {json.loads(call.body)["metadata"]["name"] for call in cluster.asked("POST .*/trainjobs")}
    assert len(names) == 2


def test_after_a_failure_it_is_removed(several, cluster):
    cluster.made = lambda job: cluster.end("Failed", "Because", "of that")
    with pytest.raises(StageError, match="failed: Because: of that"):
        run(several())
    assert cluster.jobs == {}


def test_when_the_step_has_to_stop_it_is_removed(several, cluster):
    cluster.made = lambda job: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped as asked to"):
        run(several())
    assert cluster.jobs == {}


def test_nodes_that_end_without_a_result(several, cluster):
    cluster.made = lambda job: cluster.end("Complete")
    with pytest.raises(StageError, match="outputs: no folder with files there"):
        run(several())
    assert cluster.jobs == {}


class TestNode:
    @pytest.fixture
    def told(self, monkeypatch):
        """The environment as the torch runtimes make it."""
        given = {
            "NNODES": "2",
            "NODE_RANK": "1",
            "NPROC_PER_NODE": "auto",
            "MASTER_ADDR": "host",
            "MASTER_PORT": "29500",
        }
        for name, value in given.items():
            monkeypatch.setenv(f"PET_{name}", value)

    def test_the_runtimes_environment_says_how_nodes_meet(self, several, told):
        launch = launch_config(several(num_processes=4))
        assert (launch.min_nodes, launch.max_nodes, launch.nproc_per_node) == (2, 2, 4)
        assert (launch.rdzv_backend, launch.rdzv_endpoint) == ("static", "host:29500")
        assert (launch.rdzv_configs["rank"], launch.max_restarts) == (1, 0)

    def test_on_a_cpu_a_node_has_one_process(self, several, told):
        """`auto` of torchrun would be one for each core."""
        assert launch_config(several()).nproc_per_node == 1

    def test_another_runtime_than_torchs(self, several):
        with pytest.raises(StageError, match=r"nodes: got 2, but the environment \(PET_NNODES\) says 1"):
            launch_config(several())

    def test_its_last_words_are_one_sentence(self, tmp_path, monkeypatch, capsys):
        words = tmp_path / "words"
        words.touch()
        monkeypatch.setattr(kfp_task, "TERMINATION_LOG", words)
        monkeypatch.setattr(node, "read_environment", lambda: None)
        assert node.main(["--job", "memory://nowhere"]) == 2
        said = "error: memory://nowhere/job: no folder with files there. Give the URI of a folder."
        assert words.read_text() == said
        assert said in capsys.readouterr().err

    def test_credentials_are_read_from_files(self, tmp_path, monkeypatch):
        for name in ("FREE2DS_TEST_ONE", "FREE2DS_TEST_TWO"):
            monkeypatch.setenv(name, "before")
        monkeypatch.delenv("FREE2DS_TEST_ONE")
        (tmp_path / "..data").mkdir()
        (tmp_path / "FREE2DS_TEST_ONE").write_text("key")
        (tmp_path / "FREE2DS_TEST_TWO").write_text("key")
        read_environment(str(tmp_path))
        assert (os.environ["FREE2DS_TEST_ONE"], os.environ["FREE2DS_TEST_TWO"]) == ("key", "before")

    def test_without_files_there_are_no_credentials(self, tmp_path):
        read_environment(str(tmp_path / "none"))
