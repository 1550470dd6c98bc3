"""How a local run starts its stages in their images: what they see of this machine, and that none outlives the run."""

import contextlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import docker

from free2ds_common.errors import StageError
from free2ds_common.launch.graph_process import STOP_TIMEOUT_S
from free2ds_common.launch.parameters import places

LABEL = "free2ds.run"
# Credentials, proxies and addresses that a stage reads from its environment; everything else travels as a parameter.
PASSED_ON = (
    "STORAGE_EMULATOR_HOST",
    "GOOGLE_CLOUD_PROJECT",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "HF_TOKEN",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
)
CREDENTIAL_FILE = "GOOGLE_APPLICATION_CREDENTIALS"
# As on a cluster; a container's own /dev/shm is 64 MB.
SHM_SIZE = "8g"


def connect() -> docker.DockerClient:
    """A client of the Docker engine.

    Raises:
        StageError: No engine answers.
    """
    try:
        client = docker.from_env()
        client.ping()
    except (docker.errors.DockerException, OSError) as error:
        raise StageError(
            f"--runner docker: no Docker engine answers ({error}). Start it, or use --runner subprocess."
        ) from None
    return client


def require_images(images: Iterable[str], *, local_only: bool) -> None:
    """See that every stage's image is here before the first one starts.

    Args:
        images: Names with tag or digest.
        local_only: They were built here and are in no registry.

    Raises:
        StageError: One is missing or cannot be pulled.
    """
    client = connect()
    for image in images:
        try:
            client.images.get(image)
        except docker.errors.ImageNotFound:
            if local_only:
                raise StageError(
                    f"--runner docker: there is no image {image}. Build all of them: make images VARIANT=cpu"
                ) from None
            print(f"pulling {image}", flush=True)
            try:
                client.images.pull(image)
            except docker.errors.APIError as error:
                raise StageError(f"--runner docker: {image} cannot be pulled ({error.explanation}).") from None


def read_only_paths(values: Mapping[str, Any]) -> list[str]:
    """This machine's files and folders that the parameters name, and what links in model folders lead to.

    Args:
        values: Parameters, paths absolute.

    Returns:
        Existing paths, none below another.
    """
    texts = {name: value.removeprefix("file://") for name, value in places(values).items()}
    if earlier := texts.get("previous_selected_uri"):
        # The scores lie beside it.
        texts["previous_selected_uri"] = os.path.dirname(earlier)
    found = {path for path in texts.values() if os.path.isabs(path) and os.path.exists(path)}
    for name, path in texts.items():
        # A folder of the hub's cache is nothing but links.
        if path in found and not name.endswith("_uri") and os.path.isdir(path):
            targets = (link.resolve() for link in Path(path).rglob("*") if link.is_symlink() and link.exists())
            found |= {str(target if target.is_dir() else target.parent) for target in targets}
    return sorted(path for path in found if not any(str(parent) in found for parent in Path(path).parents))


def _may_be_hub_id(name: str, value: object) -> bool:
    return name.endswith("_model") and "://" not in str(value) and not os.path.exists(str(value))


def container_arguments(
    values: Mapping[str, Any], run: str, threads: int, network: str, facts: Mapping[str, str]
) -> dict[str, Any]:
    """What every container of a run is started with, as JSON values.

    Args:
        values: The pipeline's parameters, paths absolute.
        run: Name of the run, for the label.
        threads: CPU threads per stage.
        network: Docker network; empty for Docker's own.
        facts: Environment variables that tell the stages of the run.

    Raises:
        StageError: No Docker engine answers, it has no such network, or the credentials are not there.
    """
    client = connect()
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ} | dict(facts)
    environment["OMP_NUM_THREADS"] = str(threads)
    mounts = dict.fromkeys(read_only_paths({**values, "cache_uri": ""}), True)
    if os.path.isabs(cache := values.get("cache_uri", "").removeprefix("file://")):
        mounts[cache] = False
    if credentials := os.environ.get(CREDENTIAL_FILE):
        if not os.path.isfile(credentials):
            raise StageError(f"{CREDENTIAL_FILE}: {credentials} is not there. Mend the variable, or unset it.")
        environment[CREDENTIAL_FILE] = os.path.abspath(credentials)
        mounts[environment[CREDENTIAL_FILE]] = True
    hub_cache = os.path.abspath(os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface"))
    if any(_may_be_hub_id(name, value) for name, value in values.items()):
        # Downloads of models outlive the containers.
        os.makedirs(hub_cache, exist_ok=True)
        environment["HF_HOME"] = hub_cache
        mounts[hub_cache] = False
    arguments: dict[str, Any] = {
        "mounts": [
            {"Type": "bind", "Source": path, "Target": path, "ReadOnly": read_only}
            for path, read_only in mounts.items()
        ],
        # Outputs belong to the caller.
        "user": f"{os.getuid()}:{os.getgid()}",
        "environment": environment,
        "labels": {LABEL: run},
        # The command of a task is complete; the images' own entry point is for people.
        "entrypoint": [""],
        "shm_size": SHM_SIZE,
    }
    if "nvidia" in client.info().get("Runtimes", {}):
        arguments["device_requests"] = [{"Driver": "", "Count": -1, "Capabilities": [["gpu"]]}]
    if network:
        if network not in {known.name for known in client.networks.list()}:
            raise StageError(
                f"--network: there is no Docker network {network}. Make it: docker network create {network}"
            )
        arguments["network"] = network
    return arguments


def stop_containers(run: str) -> None:
    """End what is left of a run: first by request, as `stop_group`. Stopping kfp.local stops none of its containers."""
    client = connect()
    # Again until there is none: one may be just about to start.
    while found := client.containers.list(all=True, filters={"label": f"{LABEL}={run}"}, ignore_removed=True):
        with ThreadPoolExecutor(len(found)) as pool:
            list(pool.map(_stop, found))


def _stop(container: docker.models.containers.Container) -> None:
    with contextlib.suppress(docker.errors.APIError):  # it does not run
        # To the stage. The first process is the shell that started it: it heeds no SIGTERM and hands none on.
        container.exec_run(["sh", "-c", "kill -TERM -1"])
        container.stop(timeout=int(STOP_TIMEOUT_S))
    with contextlib.suppress(docker.errors.APIError):  # it is gone by itself just now
        container.remove(force=True)
