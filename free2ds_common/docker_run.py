"""How a local run starts its stages in their images: what they see of this machine, and that none outlives the run."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from free2ds_common.errors import StageError

LABEL = "free2ds.run"
# Credentials, proxies and addresses that a stage reads from its environment; everything else travels as a parameter.
PASSED_ON = (
    "STORAGE_EMULATOR_HOST", "GOOGLE_CLOUD_PROJECT", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
    "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "HF_TOKEN", "HF_ENDPOINT",
    "HF_HUB_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip
CREDENTIAL_FILE = "GOOGLE_APPLICATION_CREDENTIALS"
# As on a cluster; a container's own /dev/shm is 64 MB.
SHM_SIZE = "8g"


def connect() -> Any:
    """A client of the Docker engine.

    Raises:
        StageError: No engine answers.
    """
    import docker

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
    import docker

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
    found = {value for value in values.values() if isinstance(value, str) and os.path.isabs(value)}
    found = {path for path in found if os.path.exists(path)}
    for name, value in values.items():
        # A folder of the hub's cache is nothing but links.
        if value in found and not name.endswith("_uri") and os.path.isdir(value):
            links = (path for path in Path(value).rglob("*") if path.is_symlink())
            found |= {str(path.resolve().parent) for path in links if path.exists()}
    return sorted(path for path in found if not any(str(parent) in found for parent in Path(path).parents))


def container_arguments(values: Mapping[str, Any], run: str, threads: int, network: str) -> dict[str, Any]:
    """What every container of a run is started with, as JSON values.

    Args:
        values: The pipeline's parameters, paths absolute.
        run: Name of the run, for the label.
        threads: CPU threads per stage.
        network: Docker network; empty for Docker's own.

    Raises:
        StageError: No Docker engine answers, or it has no such network.
    """
    client = connect()
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment["OMP_NUM_THREADS"] = str(threads)
    mounts = dict.fromkeys(read_only_paths(values), True)
    if credentials := os.environ.get(CREDENTIAL_FILE):
        environment[CREDENTIAL_FILE] = os.path.abspath(credentials)
        mounts[environment[CREDENTIAL_FILE]] = True
    hub_cache = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
    if os.path.isdir(hub_cache):
        # Downloads of models outlive the containers.
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
    """End what is left of a run: stopping kfp.local does not stop the containers that it started."""
    import docker

    for container in connect().containers.list(filters={"label": f"{LABEL}={run}"}):
        try:
            container.kill()
        except docker.errors.APIError:
            continue  # it ended by itself just now
