"""The results of a run, wherever they are: a local run's folder, a fetched one, or the folder of a step in a store."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from free2ds_common.errors import StageError
from free2ds_common.launch.kfp_api.artifacts import RunStore, find_outputs, read_text, readable
from free2ds_common.launch.kfp_api.backend import Backend
from free2ds_common.launch.kfp_api.fetch import download
from free2ds_common.launch.kfp_api.kube import Kube
from free2ds_common.launch.kfp_api.runs import get_run
from free2ds_common.launch.kfp_api.steps import SUCCEEDED
from free2ds_common.launch.kfp_api.versions import spec_of
from free2ds_common.redact import redacted
from free2ds_common.retry import retried
from free2ds_common.storage import filesystem

SELECTED, SUMMARY, SCORES = "selected", "summary", "scores"
# What each is called in a local run's folder, and in a step's folder on a cluster.
_FILES = {SELECTED: ("selected.json", "selected"), SUMMARY: ("summary.json", "summary"), SCORES: ("scores",)}


@dataclass(frozen=True)
class Results:
    """Where a run's results are.

    Attributes:
        title: What a person calls the run.
        uris: Path or URI of each by name: `SELECTED`, `SUMMARY`, `SCORES`.
    """

    title: str
    uris: Mapping[str, str]

    @classmethod
    def at(cls, place: str) -> "Results":
        """The results in a folder.

        Args:
            place: The folder, or the selection in it; a path or a URI.

        Raises:
            StageError: They are not there, or the store refuses.
            StoreError: The store does not answer.
        """
        uri = readable(place).rstrip("/")
        folder, _, last = uri.rpartition("/")
        if last in _FILES[SELECTED]:
            uri = folder or "."
        uris = {name: _first_there(uri, files) for name, files in _FILES.items()}
        if missing := [files[0] for name, files in _FILES.items() if not uris[name]]:
            raise StageError(
                f"{redacted(uri)}: {' and '.join(missing)} not there. Give a folder with the results of a run, the "
                "selection in it, or with --host the id of a run."
            )
        return cls(place, uris)

    @classmethod
    def of_run(cls, backend: Backend, run_id: str, pipeline_root: str, kube: Kube | None) -> "Results":
        """The results of a run on a cluster, in its store.

        Args:
            backend: Where it ran.
            run_id: The run.
            pipeline_root: See `RunStore.of`.
            kube: See `RunStore.of`.

        Raises:
            StageError: It has none, or backend or store refuse.
            StoreError: The store does not answer.
        """
        run = get_run(backend, run_id)
        if run.state != SUCCEEDED:
            raise StageError(f"run {run_id}: is {run.state}, so it has no results. free2ds why {run_id} says more.")
        spec = spec_of(backend, run)
        found = find_outputs(backend, run, spec, RunStore.of(run, spec, pipeline_root, kube))
        return cls(f"run {run_id}", {name: found[name] for name in _FILES})

    def summary(self) -> dict[str, Any]:
        """The content of summary.json.

        Raises:
            StageError: It is none, or the store refuses.
            StoreError: The store does not answer.
        """
        uri = self.uris[SUMMARY]
        try:
            found = json.loads(read_text(uri))
        except FileNotFoundError:
            raise StageError(f"{redacted(uri)}: is not there. Was it deleted?") from None
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise StageError(f"{redacted(uri)}: is no summary of a run.")
        return found

    @contextmanager
    def scores(self) -> Iterator[Path]:
        """The folder of scores on this machine, copied there for as long as the block lasts if it is in a store.

        Raises:
            StageError: The store refuses.
            StoreError: It does not answer.
        """
        fs, path = filesystem(self.uris[SCORES])
        if isinstance(fs, LocalFileSystem):
            yield Path(path)
            return
        with tempfile.TemporaryDirectory() as scratch:
            download(self.uris[SCORES], Path(scratch) / SCORES)
            yield Path(scratch) / SCORES


def _first_there(folder: str, names: tuple[str, ...]) -> str:
    """The URI of the first of several names that a folder has; empty if it has none."""
    for name in names:
        uri = f"{folder}/{name}"
        fs, path = filesystem(uri)
        try:
            retried(uri, partial(fs.info, path))
        except FileNotFoundError:
            continue
        return uri
    return ""
