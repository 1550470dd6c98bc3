"""Brings a run's results from its store into a folder that looks like a local run's."""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from kfp_server_api import V2beta1Run

from free2ds_common.datasets import open_dataset
from free2ds_common.errors import StageError
from free2ds_common.launch.kfp_api.artifacts import RunStore, find_outputs
from free2ds_common.launch.kfp_api.backend import Backend
from free2ds_common.launch.kfp_api.kube import Kube
from free2ds_common.launch.kfp_api.runs import get_run
from free2ds_common.launch.kfp_api.steps import SUCCEEDED, step_names
from free2ds_common.launch.kfp_api.versions import spec_of
from free2ds_common.launch.local import RESULTS, results_of
from free2ds_common.launch.output_folder import OutputFolder
from free2ds_common.redact import redacted
from free2ds_common.retry import StoreError, retried
from free2ds_common.schemas import SCORES
from free2ds_common.storage import filesystem


def fetch(backend: Backend, run_id: str, output_dir: Path, pipeline_root: str, kube: Kube | None) -> V2beta1Run:
    """Bring a run's results; what an earlier run or fetch left there is replaced when all are there.

    Args:
        backend: Where it ran.
        run_id: The run.
        output_dir: Gets what a local run leaves.
        pipeline_root: See `RunStore.of`.
        kube: See `RunStore.of`.

    Returns:
        V2beta1Run.

    Raises:
        StageError: The run has no results, one cannot be found or read, or the folder holds other files.
        StoreError: The store does not answer.
    """
    run = get_run(backend, run_id)
    if run.state != SUCCEEDED:
        raise StageError(f"run {run_id}: is {run.state}, so it has no results. free2ds why {run_id} says more.")
    spec = spec_of(backend, run)
    store = RunStore.of(run, spec, pipeline_root, kube)
    found = find_outputs(backend, run, spec, store)
    missing = RESULTS.keys() - found.keys()
    if missing:
        raise StageError(f"run {run_id}: its pipeline has no output {', '.join(sorted(missing))}; another version's?")
    wanted = results_of(found)
    with OutputFolder(output_dir.resolve(), [name for name, _ in wanted.values()]) as output:
        results = {file: output.work / file for file, _ in wanted.values()}
        for name, (file, _) in wanted.items():
            download(found[name], results[file])
        open_dataset(results[RESULTS["scores"][0]], SCORES)
        with output.log_path.open("w", encoding="utf-8") as log:
            log.writelines(f"{line}\n" for line in _log(backend, run, spec, store))
        output.publish(results)
    return run


def download(uri: str, target: Path) -> None:
    """Copy a file or folder of a store.

    Args:
        uri: What.
        target: Its place here; there is nothing yet.

    Raises:
        StageError: Nothing is there, or the store refuses.
        StoreError: It does not answer.
    """
    fs, path = filesystem(uri)
    try:
        files = retried(uri, lambda: fs.find(path))
        if not files:
            raise FileNotFoundError(uri)
        for file in files:
            rest = file.removeprefix(path.rstrip("/")).lstrip("/")
            place = target / rest if rest else target
            place.parent.mkdir(parents=True, exist_ok=True)
            retried(uri, partial(fs.get_file, file, str(place)))
    except FileNotFoundError:
        raise StageError(f"{redacted(uri)}: is not there. Was it deleted from the store?") from None


def _log(backend: Backend, run: V2beta1Run, spec: Mapping[str, Any], store: RunStore) -> Iterator[str]:
    """What run.log says: the run, its parameters, and what its steps printed."""
    parameters = dict((run.runtime_config.parameters if run.runtime_config else None) or {})
    yield f"run {run.run_id} ({run.display_name}) on {redacted(backend.run_link(run.run_id))}"
    yield f"parameters: {redacted(json.dumps(parameters, sort_keys=True))}"
    for name in step_names(spec):
        try:
            logs = list(store.logs(name))
        except (StageError, StoreError, FileNotFoundError) as error:
            yield f"== {name.title}: its log cannot be read ({redacted(str(error))})"
            continue
        for text in reversed(logs):
            yield f"== {name.title}"
            yield redacted(text.rstrip("\n"))
