"""What containers see of this machine; no engine is needed for that."""

import json
import os
from types import SimpleNamespace

import docker
import pytest

from free2ds_common.errors import StageError
from free2ds_common.launch import containers


class Engine:
    """An engine with one image and one network."""

    def __init__(self, runtimes=("runc",)):
        self.info = lambda: {"Runtimes": {key: {} for key in runtimes}}
        self.networks = SimpleNamespace(list=lambda: [SimpleNamespace(name="bridge"), SimpleNamespace(name="mine")])
        self.images = self
        self.pulled = []

    def get(self, name):
        if name != "here:1":
            raise docker.errors.ImageNotFound("no such image")

    def pull(self, name):
        if name == "refused:1":
            raise docker.errors.APIError("x", explanation="pull access denied")
        self.pulled.append(name)


@pytest.fixture
def engine(monkeypatch):
    made = Engine()
    monkeypatch.setattr(containers, "connect", lambda: made)
    for name in (*containers.PASSED_ON, containers.CREDENTIAL_FILE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", "/nowhere")
    return made


def test_paths_that_parameters_name_are_mounted_once(tmp_path):
    (tmp_path / "data/images").mkdir(parents=True)
    (tmp_path / "data/d.json").write_text("[]")
    (tmp_path / "model").mkdir()
    values = {
        "dataset_uri": f"{tmp_path}/data/d.json",
        "image_root_uri": f"{tmp_path}/data",
        "llava_model": f"{tmp_path}/model",
        "mgm_model": "org/hub-id",
        "bert_model": f"{tmp_path}/is/not/there",
        "num_shards": 2,
        "gpu_node_selector": {"a": "b"},
        "gpu_tolerations": [],
        "mgm_options": f"prompt=method vision_tower_aux=file://{tmp_path}/tower",
    }
    (tmp_path / "tower").mkdir()
    assert containers.read_only_paths(values) == [f"{tmp_path}/data", f"{tmp_path}/model", f"{tmp_path}/tower"]


def test_what_a_model_folder_links_to_is_mounted_too(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "blobs/abc").write_text("{}")
    (tmp_path / "snapshot/config.json").symlink_to("../blobs/abc")
    (tmp_path / "snapshot/gone").symlink_to("../blobs/gone")
    found = containers.read_only_paths({"llava_model": f"{tmp_path}/snapshot"})
    assert found == [f"{tmp_path}/blobs", f"{tmp_path}/snapshot"]


def test_container_arguments(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://gcs:9023")
    monkeypatch.setenv("SECRET_OF_ANOTHER_PROGRAM", "x")
    arguments = containers.container_arguments(
        {"dataset_uri": str(tmp_path)}, "run-1", 3, "mine", {"FREE2DS_COMMAND": "free2ds run"}
    )
    assert json.loads(json.dumps(arguments)) == arguments
    assert arguments["mounts"] == [{"Type": "bind", "Source": str(tmp_path), "Target": str(tmp_path), "ReadOnly": True}]
    assert arguments["environment"] == {
        "STORAGE_EMULATOR_HOST": "http://gcs:9023",
        "OMP_NUM_THREADS": "3",
        "FREE2DS_COMMAND": "free2ds run",
    }
    assert arguments["user"] == f"{os.getuid()}:{os.getgid()}"
    assert (arguments["network"], arguments["labels"]) == ("mine", {"free2ds.run": "run-1"})
    assert "device_requests" not in arguments


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_the_results_store_can_be_written_to(engine, tmp_path, prefix):
    values = {"cache_uri": f"{prefix}{tmp_path}/store", "dataset_uri": str(tmp_path)}
    (tmp_path / "store").mkdir()
    mounts = containers.container_arguments(values, "r", 1, "", {})["mounts"]
    assert {mount["Source"]: mount["ReadOnly"] for mount in mounts} == {str(tmp_path): True, f"{tmp_path}/store": False}


def test_a_results_store_elsewhere_needs_no_mount(engine):
    assert containers.container_arguments({"cache_uri": "gs://b/c"}, "r", 1, "", {})["mounts"] == []


def test_gpus_are_passed_on_where_the_engine_has_them(monkeypatch, engine):
    monkeypatch.setattr(containers, "connect", lambda: Engine(runtimes=("nvidia", "runc")))
    arguments = containers.container_arguments({}, "r", 1, "", {})
    request = docker.types.DeviceRequest(**arguments["device_requests"][0])
    assert (request.count, request.capabilities) == (-1, [["gpu"]])
    assert "network" not in arguments


def test_credentials_and_the_hub_cache_come_along(engine, tmp_path, monkeypatch):
    (tmp_path / "key.json").write_text("{}")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", f"{tmp_path}/key.json")
    monkeypatch.setenv("HF_HOME", f"{tmp_path}/hub")
    arguments = containers.container_arguments({"mgm_model": "org/name"}, "r", 1, "", {})
    assert {mount["Source"]: mount["ReadOnly"] for mount in arguments["mounts"]} == {
        f"{tmp_path}/key.json": True,
        f"{tmp_path}/hub": False,
    }
    assert arguments["environment"]["HF_HOME"] == f"{tmp_path}/hub"


def test_credentials_that_are_not_there(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", f"{tmp_path}/none.json")
    with pytest.raises(StageError, match=r"GOOGLE_APPLICATION_CREDENTIALS: .*none.json is not there"):
        containers.container_arguments({}, "r", 1, "", {})


class Running:
    """A container, and what is asked of it."""

    def __init__(self, name, calls, *, runs=True):
        self.name, self.calls, self.runs = name, calls, runs

    def exec_run(self, command):
        if not self.runs:
            raise docker.errors.APIError("is not running")
        self.calls.append((self.name, *command))

    def stop(self, timeout):
        self.calls.append((self.name, "stop", timeout))

    def remove(self, force):
        self.calls.append((self.name, "remove", force))
        raise docker.errors.NotFound("gone")


def test_containers_are_asked_to_end_and_then_removed(monkeypatch):
    calls = []
    # The second is about to start when the first is stopped.
    left = [[Running("one", calls)], [Running("two", calls, runs=False)], []]

    class Containers:
        def list(self, **options):
            # One that goes away while they are listed is no error.
            assert options == {"all": True, "filters": {"label": "free2ds.run=r"}, "ignore_removed": True}
            return left.pop(0)

    monkeypatch.setattr(containers, "connect", lambda: SimpleNamespace(containers=Containers()))
    containers.stop_containers("r")
    assert calls == [
        ("one", "sh", "-c", "kill -TERM -1"),
        ("one", "stop", 15),
        ("one", "remove", True),
        ("two", "remove", True),
    ]


def test_an_unknown_network_is_refused(engine):
    with pytest.raises(
        StageError, match=r"--network: there is no Docker network other. Make it: docker network create"
    ):
        containers.container_arguments({}, "r", 1, "other", {})


def test_images_must_be_here_or_in_the_registry(engine):
    containers.require_images(["here:1"], local_only=True)
    with pytest.raises(StageError, match=r"there is no image free2ds-split:dev. Build all of them: make images"):
        containers.require_images(["here:1", "free2ds-split:dev"], local_only=True)
    containers.require_images(["here:1", "far:1"], local_only=False)
    assert engine.pulled == ["far:1"]
    with pytest.raises(StageError, match=r"refused:1 cannot be pulled .pull access denied."):
        containers.require_images(["refused:1"], local_only=False)


def test_no_engine_is_one_sentence(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(StageError, match=r"--runner docker: no Docker engine answers .*use --runner subprocess"):
        containers.connect()
