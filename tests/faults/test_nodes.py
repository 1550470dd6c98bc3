"""Two nodes, which are processes that share an object store alone, train as two processes of one machine do."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import fsspec
import pytest

from components.finetune import train_job
from components.finetune.checkpoints import COMPLETE, Checkpoints
from components.finetune.stage import run
from components.finetune.training import Work, train_in_processes
from free2ds_common.errors import StageError
from tests.faults.conftest import FULL
from tests.support.buckets import BUCKET
from tests.support.trainer_stub import OWN_POD, TrainerStub, ended, node_pod
from tests.support.training import history, small_llava, training, write_records

STEPS = 6


class Nodes:
    """What Kubeflow Trainer and Kubernetes make of a TrainJob, here as processes.

    Attributes:
        cluster: What tells of them.
        kill_after: Step of whose checkpoint the second node is killed once; 0 for none.
        killed: Whether that happened.
    """

    def __init__(self, cluster, folder, kill_after=0):
        self.cluster, self.folder, self.kill_after, self.killed = cluster, folder, kill_after, False
        cluster.made = lambda job: threading.Thread(target=self.run, args=(job,), daemon=True).start()

    def run(self, job):
        """Start the nodes, again where one was killed, and say how they ended."""
        while True:
            nodes = self.start(job["spec"]["trainer"]["command"])
            if self.kill_after and not self.killed:
                self.kill(nodes[1])
            codes = [node.wait() for node in nodes]
            if not self.killed or self.kill_after == 0:
                break
            self.kill_after = 0
        name = job["metadata"]["name"]
        if not any(codes):
            self.cluster.end("Complete")
            return
        texts = [(self.folder / f"{number}.log").read_text().strip().splitlines()[-1] for number in (0, 1)]
        states = [ended(code, text) for code, text in zip(codes, texts, strict=True)]
        self.cluster.pods = [node_pod(name, number, state) for number, state in enumerate(states) if codes[number]]
        self.cluster.end("Failed")

    def start(self, command):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        nodes = []
        for rank in (0, 1):
            told = {
                "NNODES": 2,
                "NODE_RANK": rank,
                "NPROC_PER_NODE": 1,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            environment = {**os.environ, "OMP_NUM_THREADS": "1", **{f"PET_{name}": str(told[name]) for name in told}}
            with (self.folder / f"{rank}.log").open("w") as log:
                arguments = [sys.executable, *command[1:]]
                nodes.append(
                    subprocess.Popen(arguments, stdout=log, stderr=log, env=environment, start_new_session=True)
                )
        return nodes

    def kill(self, node):
        """Kill all processes of a node as soon as there is the checkpoint."""
        fs = fsspec.filesystem("s3")
        while not fs.glob(f"{BUCKET}/cache/finetune/*/checkpoint-{self.kill_after}/{COMPLETE}"):
            fs.invalidate_cache()
            assert node.poll() is None
            time.sleep(0.02)
        os.killpg(node.pid, signal.SIGKILL)
        self.killed = True


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    monkeypatch.setattr(train_job, "POLL_S", 0.1)
    monkeypatch.setenv("KFP_POD_NAME", OWN_POD)
    with TrainerStub() as stub:
        monkeypatch.setenv("KUBECONFIG", stub.kubeconfig(tmp_path / "kubeconfig"))
        yield stub


@pytest.fixture
def made(tmp_path, s3):
    """Where the records are, and the model; the pictures are in the store."""
    write_records(tmp_path)
    for path in (tmp_path / "images").iterdir():
        s3.put(f"images/{path.name}", path.read_bytes())
    return tmp_path, small_llava(tmp_path / "llava")


def several(made, out, **changes):
    """Settings for two nodes without GPUs, with dropout: each process has random numbers of its own."""
    given = {"num_epochs": 2, "lora_dropout": 0.2, "nodes": 2, "node_resources": "cpu=1", "checkpoint_steps": 1}
    given |= {"cache_uri": f"s3://{BUCKET}/cache", "image_root_uri": f"s3://{BUCKET}/images"}
    return training(*made, out, **{**given, **changes})


def test_two_nodes_one_of_which_is_killed(made, cluster, s3, tmp_path):
    nodes = Nodes(cluster, tmp_path, kill_after=2)
    result = run(several(made, "nodes"))
    assert nodes.killed
    config = training(*made, "one", num_epochs=2, lora_dropout=0.2, num_processes=2)
    alone = train_in_processes(Work(config, made[1], "cpu", 2, Checkpoints("", {}, tmp_path), None))
    found = history(tmp_path, "nodes")
    assert len(found) == result.metrics["steps"] == STEPS
    for name in ("loss", "tokens"):
        assert [step[name] for step in found] == pytest.approx([step[name] for step in alone.history], abs=1e-6)
    assert (result.metadata["nodes"], result.metadata["processes"]) == (2, 2)
    assert cluster.jobs == {}
    # The first node alone writes, but for the other's random numbers.
    written = [path.rpartition("/")[2] for method, path in s3.asked if method == "PUT" and "/checkpoint-6/" in path]
    assert {name: written.count(name) for name in ("optimizer.pt", "rng_state_0.pth", "rng_state_1.pth")} == {
        "optimizer.pt": 1,
        "rng_state_0.pth": 1,
        "rng_state_1.pth": 1,
    }
    assert [path for method, path in s3.asked if path.endswith("/outputs/report.html") and method == "PUT"] != []


@pytest.mark.skipif(not FULL, reason="slow: make faults")
def test_what_a_node_cannot_do_is_its_own_sentence(made, cluster, tmp_path):
    Nodes(cluster, tmp_path)
    with pytest.raises(StageError, match=r"node \d: .* has no module connector \(projector\)"):
        run(several(made, "nodes", projector="connector"))
