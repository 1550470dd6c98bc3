"""The data of the suite, in the store and here, and the runs that several tests look at."""

import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from kfp_server_api import V2beta1Run

from examples.make import make
from tests.cluster import commands
from tests.cluster.cluster import Backend, Kubernetes
from tests.cluster.settings import GROWN, RECORDS, Settings, from_environment


@pytest.fixture(scope="session")
def settings() -> Settings:
    if os.environ.get("HOST") and not os.environ.get("STORE"):
        pytest.exit("STORE is missing: a folder of an object store that pods and this machine reach", returncode=2)
    found = from_environment()
    if found is None:
        pytest.skip("needs a Kubeflow Pipelines: make test-cluster HOST=... STORE=s3://... (tests/cluster/README.md)")
    return found


@pytest.fixture(scope="session")
def backend(settings) -> Backend:
    return Backend(settings)


@pytest.fixture(scope="session")
def kubernetes(settings) -> Kubernetes:
    if not Kubernetes.is_there():
        pytest.skip("needs kubectl's configuration: only pods can tell")
    return Kubernetes(settings.namespace)


class Workplace:
    """A folder of the store for this session alone.

    Attributes:
        uri: The folder.
        folder: The same files on this machine: dataset.json, grown.json, images, models.
        schedule: Name of the session's schedule.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        token = secrets.token_hex(4)
        self.uri = f"{settings.store}/{token}"
        self.folder = folder
        self.schedule = f"free2ds-test-{token}"
        self._settings = settings
        self._fs, self._path = fsspec.url_to_fs(self.uri)

    def upload(self) -> None:
        for place in ("images", "models"):
            for file in sorted((self.folder / place).rglob("*")):
                if file.is_file():
                    self.put(file, file.relative_to(self.folder).as_posix())

    def put(self, file: Path, name: str) -> str:
        """Copy a file to the store; returns its URI."""
        self._fs.makedirs(f"{self._path}/{name}".rpartition("/")[0], exist_ok=True)
        self._fs.put_file(str(file), f"{self._path}/{name}")
        return f"{self.uri}/{name}"

    def left(self) -> list[str]:
        """What of it is in the store."""
        self._fs.invalidate_cache()
        return list(self._fs.find(self._path))

    def remove(self) -> None:
        """Take away what the session has made, its runs apart."""
        commands.unschedule(self._settings, self.schedule)
        if self.left():
            self._fs.rm(self._path, recursive=True)


@pytest.fixture(scope="session")
def workplace(settings, tmp_path_factory) -> Iterator[Workplace]:
    folder = tmp_path_factory.mktemp("demo")
    make(folder, GROWN, seed=7)
    records = json.loads((folder / "dataset.json").read_text())
    (folder / "grown.json").write_text(json.dumps(records))
    (folder / "dataset.json").write_text(json.dumps(records[:RECORDS]))
    place = Workplace(settings, folder)
    try:
        place.upload()
        yield place
    finally:
        place.remove()


def models(root: object) -> dict[str, str]:
    return {f"{name}_model": f"{root}/models/{name}" for name in ("llava", "mgm", "bert")}


@pytest.fixture(scope="session")
def data(workplace) -> Callable[[str, str], dict[str, Any]]:
    """The parameters of a data set: a file of this machine, and its name in the store."""
    there: dict[str, str] = {}

    def put(file: str, name: str) -> dict[str, Any]:
        uri = f"{workplace.uri}/{name}"
        # The same bytes once more would be a new version to the store.
        if there.get(name) != file:
            uri = workplace.put(workplace.folder / file, name)
            there[name] = file
        return {"dataset_uri": uri, "image_root_uri": f"{workplace.uri}/images", **models(workplace.uri)}

    return put


@pytest.fixture(scope="session")
def selected_here(workplace) -> Callable[[str], bytes]:
    """What this machine selects of a data set."""
    made: dict[str, bytes] = {}

    def run(file: str) -> bytes:
        if file not in made:
            output_dir = workplace.folder / f"local-{file}"
            folder = workplace.folder
            values = {"dataset_uri": f"{folder}/{file}", "image_root_uri": f"{folder}/images", **models(folder)}
            commands.run_locally(values, output_dir)
            made[file] = (output_dir / "selected.json").read_bytes()
        return made[file]

    return run


@pytest.fixture(scope="session")
def fetched(settings, workplace) -> Callable[[V2beta1Run], Path]:
    """The results of a run, brought here."""

    def bring(run: V2beta1Run) -> Path:
        output_dir = workplace.folder / f"of-{run.run_id}"
        if not output_dir.exists():
            commands.fetch(settings, run.run_id, output_dir)
        return output_dir

    return bring


@pytest.fixture(scope="session")
def start(settings, backend) -> Callable[..., V2beta1Run]:
    """Run to the end."""

    def submit(name: str, values: dict[str, Any]) -> V2beta1Run:
        run_id, _ = commands.submit(settings, values, name)
        return backend.finished(run_id)

    return submit


@pytest.fixture(scope="session")
def first(settings, backend, data) -> tuple[V2beta1Run, str]:
    """The first run, and what submitting it printed."""
    run_id, text = commands.submit(settings, data("dataset.json", "first.json"), "first")
    return backend.finished(run_id), text
