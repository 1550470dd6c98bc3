"""The compiled pipeline, read back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

import pipeline


@dataclass(frozen=True)
class Compiled:
    """The two documents of a compiled pipeline, by the names that tests ask for."""

    spec: dict[str, Any]
    platform: dict[str, Any]

    def container(self, task: str) -> dict[str, Any]:
        return self.spec["deploymentSpec"]["executors"][f"exec-{task}"]["container"]

    def kubernetes(self, task: str) -> dict[str, Any]:
        executors = self.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        return executors.get(f"exec-{task}", {})

    def component(self, name: str) -> dict[str, Any]:
        return self.spec["components"][f"comp-{name}"]

    def tasks(self, pipeline_name: str) -> dict[str, Any]:
        dag = self.spec["root"] if pipeline_name == "root" else self.component(pipeline_name)
        return dag["dag"]["tasks"]


@pytest.fixture(scope="session")
def compile_pipeline(tmp_path_factory) -> Callable[..., Compiled]:
    def compiled_with(*options: str) -> Compiled:
        package = tmp_path_factory.mktemp("compiled") / "free2ds.yaml"
        assert pipeline.main(["compile", "--output", str(package), *options]) == 0
        return Compiled(*yaml.safe_load_all(package.read_text()))

    return compiled_with


@pytest.fixture(scope="session")
def compiled(compile_pipeline) -> Compiled:
    return compile_pipeline()
