"""Runs tests/cluster against imitations of a backend: python -m tests.support.cluster_suite FOLDER '{"NAME": {...}}'.

Each entry says in which way a backend is good or bad (`Imitation`). For each, one line of JSON: its name, and how every
test ended; FOLDER/NAME.log has what the tests say. What takes this machine long is replaced: models, and runs of the
pipeline here. HOME and KUBECONFIG must name places of no cluster: the imitation's own is written there.
"""

import contextlib
import io
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import examples.make
import pipeline
from free2ds_common.launch.kfp_api import schedules
from free2ds_common.launch.package import Package
from tests.cluster import commands
from tests.support.acting_backend import ActingBackend, select

REPOSITORY = Path(__file__).resolve().parents[2]

KUBECONFIG = """
clusters: [{name: c, cluster: {server: "%s"}}]
users: [{name: u, user: {}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
"""


class Outcomes:
    """Remembers how each test ended."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("::")[2]
        if report.when == "call" or report.outcome != "passed":
            self.found[name] = report.outcome if self.found.get(name) != "failed" else "failed"


def make(folder: Path, num_records: int, seed: int) -> None:
    """A data set and models as the suite needs them: files that are there."""
    records = [{"id": str(number), "seed": seed} for number in range(num_records)]
    for name in ("images/a.png", *(f"models/{model}/config.json" for model in ("llava", "mgm", "bert"))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "dataset.json").write_text(json.dumps(records))


def run_locally(values: dict, output_dir: Path) -> None:
    """What a run here leaves."""
    output_dir.mkdir()
    (output_dir / "selected.json").write_bytes(select(Path(values["dataset_uri"]).read_bytes()))


@dataclass(frozen=True)
class Imitation:
    """A backend, and what the suite is told of it.

    Attributes:
        flaws: As of `ActingBackend`.
        kubernetes: Whether kubectl is set up.
        gpu: GPUs of a step with a model.
    """

    flaws: tuple[str, ...] = ()
    kubernetes: bool = True
    gpu: str = "1"


def outcomes(folder: Path, name: str, imitation: Imitation) -> dict[str, str]:
    """How the tests end against a backend."""
    kubeconfig = Path(os.environ["KUBECONFIG"])
    kubeconfig.unlink(missing_ok=True)
    with ActingBackend("memory://artifacts", *imitation.flaws) as backend:
        if imitation.kubernetes:
            kubeconfig.write_text(KUBECONFIG % backend.url)
        os.environ |= {
            "HOST": backend.url,
            "STORE": f"memory://{name}",
            "GPU": imitation.gpu,
            "PIPELINE_ROOT": "" if imitation.kubernetes else backend.root,
            "POLL_S": "0",
            "RUN_TIMEOUT_S": "120",
            "SHARDS": "64",
        }
        seen = Outcomes()
        with contextlib.redirect_stdout(io.StringIO()) as out:
            pytest.main([str(REPOSITORY / "tests/cluster"), "-q", "-p", "no:cacheprovider"], plugins=[seen])
    (folder / f"{name}.log").write_text(out.getvalue())
    return seen.found


def main(folder: Path, imitations: dict[str, Imitation]) -> None:
    """Print the outcomes, line by line."""
    examples.make.make = make
    commands.run_locally = run_locally
    schedules.POLL_S = 0.0
    # Half a second for each command otherwise.
    package = Package.compile(pipeline.free2ds)
    Package.compile = lambda _: package
    for name, imitation in imitations.items():
        print(json.dumps([name, outcomes(folder, name, imitation)]), flush=True)


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    main(Path(sys.argv[1]), {name: Imitation(**fields) for name, fields in given.items()})
