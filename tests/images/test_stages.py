"""Every stage in its image, on a read-only root without network; and the whole pipeline through Docker."""

import os
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import pytest

import pipeline
from free2ds_common.launch import containers, local
from images import build
from tests.images.conftest import BASE_IMAGE, REPOSITORY, docker

EMULATOR_PORT = 9023


def run_pipeline(output_dir, parameters, *options):
    given = [option for name, value in parameters.items() for option in ("--param", f"{name}={value}")]
    return pipeline.main(["run", "--output-dir", str(output_dir), *given, *options])


@pytest.fixture(scope="module")
def by_processes(parameters, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("processes")
    assert run_pipeline(output_dir, parameters) == 0
    return output_dir


def test_every_stage_alone_on_a_read_only_root_without_network(example, by_processes, tmp_path):
    """The commands of the READMEs, each in its image, give the selection that the pipeline gives."""
    tmp_path.chmod(0o777)
    options = ["--rm", "--read-only", "--tmpfs", "/tmp", "--network", "none", "--user", f"{os.getuid()}:{os.getgid()}"]
    mounts = ["-v", f"{example}:/in:ro", "-v", f"{tmp_path}:/out"]

    def run(stage, **ports):
        """Run a stage with its options, --like-this for like_this; a list is an option with several values."""
        arguments = []
        for name, value in ports.items():
            arguments += [f"--{name.replace('_', '-')}", *(value if isinstance(value, list) else [value])]
        return docker("run", *options, *mounts, build.image_name(stage, "", "dev"), *arguments).stdout

    data = {"records": "/out/records", "image_root_uri": "/in/images"}
    run("ingest", dataset_uri="/in/dataset.json", rejects="/out/rejects.jsonl", **data)
    left = {f"{side}_{kind}": f"/out/{side}_{kind}" for side in ("llava", "mgm") for kind in ("finished", "missing")}
    run("reuse", **data, llava_model="/in/models/llava", mgm_model="/in/models/mgm", **left)
    printed = run("split", records="/out/llava_missing", num_shards=2, shards="/out/shards")
    shards = [line for line in printed.splitlines() if line.startswith("/out/shards/")]
    assert len(shards) == 2
    attention = {side: [f"/out/{side}{number}" for number in range(2)] for side in ("llava", "mgm")}
    for side, folders in attention.items():
        for shard, folder in zip(shards, folders, strict=True):
            run(
                f"{side}_attention",
                shard=shard,
                image_root_uri="/in/images",
                model=f"/in/models/{side}",
                max_new_tokens=8,
                attention=folder,
            )
    run("bert_features", records="/out/records", model="/in/models/bert", features="/out/features")
    run("cluster_scoring", features="/out/features", num_clusters=5, scores="/out/text", kmeans="/out/kmeans")
    run(
        "joint_selection",
        **data,
        llava_attention=attention["llava"],
        mgm_attention=attention["mgm"],
        text_scores="/out/text",
        kmeans="/out/kmeans",
        selected="/out/selected.json",
        random="/out/random.json",
        scores="/out/scores",
        report="/out/report.html",
        summary="/out/summary.json",
    )
    assert (tmp_path / "selected.json").read_bytes() == (by_processes / "selected.json").read_bytes()
    assert "data:image/jpeg;base64," in (tmp_path / "report.html").read_text()


def running_containers():
    return docker("ps", "--quiet", "--filter", "label=free2ds.run").stdout


def test_the_pipeline_through_docker_selects_the_same(parameters, by_processes, tmp_path):
    assert run_pipeline(tmp_path / "out", parameters, "--runner", "docker") == 0
    for name in ("selected.json", "random.json", "rejects.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (by_processes / name).read_bytes()
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in (tmp_path / "out").rglob("*")}
    assert owners == {(os.getuid(), os.getgid())}
    assert running_containers() == ""


def test_outputs_belong_to_a_caller_who_is_not_root(parameters, by_processes, tmp_path, monkeypatch):
    """The folder of the tasks is given to somebody; what the containers write there is theirs."""
    caller = 54321
    seen = set()

    def run_graph(work, log_path, threads, facts):
        tasks = work / local.TASKS
        os.chown(tasks, caller, caller)
        started(work, log_path, threads, facts)
        seen.update((path.stat().st_uid, path.stat().st_gid) for path in tasks.rglob("*") if path.is_file())

    started = local.run_graph
    monkeypatch.setattr(local, "run_graph", run_graph)
    monkeypatch.setattr(containers.os, "getuid", lambda: caller)
    monkeypatch.setattr(containers.os, "getgid", lambda: caller)
    assert run_pipeline(tmp_path / "out", parameters, "--runner", "docker") == 0
    assert seen == {(caller, caller)}


def test_a_stage_that_fails_in_its_container_is_one_sentence(parameters, tmp_path, capsys):
    """One that no look beforehand finds: the model's weights are cut off."""
    shutil.copytree(parameters["mgm_model"], tmp_path / "broken")
    weights = next((tmp_path / "broken").glob("*.safetensors"))
    os.truncate(weights, weights.stat().st_size // 2)
    parameters = {**parameters, "mgm_model": tmp_path / "broken"}
    assert run_pipeline(tmp_path / "out", parameters, "--runner", "docker") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {weights}: ")
    assert "Traceback" not in error
    assert running_containers() == ""


def test_interrupting_a_run_stops_its_containers(parameters, tmp_path):
    given = [option for name, value in parameters.items() for option in ("--param", f"{name}={value}")]
    command = [sys.executable, "pipeline.py", "run", "--runner", "docker", "--output-dir", str(tmp_path), *given]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not running_containers() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert running_containers(), "no container was started"
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; every stage was stopped" in error
    assert running_containers() == ""


@pytest.fixture
def bucket(example):
    """The example in a bucket of a storage emulator, in a container on a Docker network of its own."""
    name = f"free2ds-test-{os.getpid()}"
    arguments = ["--network", "host", "--build-arg", f"BASE_IMAGE={BASE_IMAGE}", "--tag", "free2ds-test-gcs"]
    docker("build", "--quiet", *arguments, REPOSITORY / "tests/images/gcs")
    docker("network", "create", name)
    try:
        docker("run", "--detach", "--rm", "--name", name, "--network", name, "free2ds-test-gcs")
        address = docker(
            "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name
        ).stdout.strip()
        upload(example, f"http://{address}:{EMULATOR_PORT}")
        yield name, f"http://{name}:{EMULATOR_PORT}"
    finally:
        docker("rm", "--force", name, check=False)
        docker("network", "rm", name, check=False)


def upload(example, endpoint):
    def post(path, content, kind):
        request = urllib.request.Request(f"{endpoint}{path}", content, {"Content-Type": kind})
        urllib.request.urlopen(request, timeout=10).close()

    deadline = time.monotonic() + 60
    while True:
        try:
            post("/storage/v1/b?project=test", b'{"name": "data"}', "application/json")
            break
        except OSError:
            assert time.monotonic() < deadline, "the storage emulator does not answer"
            time.sleep(0.2)
    for path in example.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            name = urllib.parse.quote(str(path.relative_to(example)), safe="")
            post(
                f"/upload/storage/v1/b/data/o?uploadType=media&name={name}",
                path.read_bytes(),
                "application/octet-stream",
            )


def test_input_and_models_from_an_object_store(parameters, by_processes, bucket, tmp_path, monkeypatch):
    network, endpoint = bucket
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
    parameters = {
        **parameters,
        "dataset_uri": "gs://data/dataset.json",
        "image_root_uri": "gs://data/images",
        "bert_model": "gs://data/models/bert",
    }
    assert run_pipeline(tmp_path / "out", parameters, "--runner", "docker", "--network", network) == 0
    assert (tmp_path / "out/selected.json").read_bytes() == (by_processes / "selected.json").read_bytes()
