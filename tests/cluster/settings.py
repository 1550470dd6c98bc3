"""What `make test-cluster` is given, read from the environment."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
# The documented set of parameters, without the example's data and models.
_EXAMPLE: dict[str, Any] = yaml.safe_load((REPOSITORY / "examples/configs/no-gpu.yaml").read_text(encoding="utf-8"))
NO_GPU = {
    name: value for name, value in _EXAMPLE.items() if name in ("gpu_count", "gpu_node_selector", "gpu_tolerations")
}
# The tiny models need little, and a kind cluster has little.
SMALL = {"cpu": "250m", "memory": "2Gi"}
# Records of the data set, and when it has grown: more than 64 shards, with something in each.
RECORDS, GROWN = 80, 90
# Float32 and few tokens: a GPU and this machine's CPU choose the same words and records.
WORK = {"num_shards": 2, "num_clusters": 5, "max_new_tokens": 8, "dtype": "float32"}


@dataclass(frozen=True)
class Settings:
    """Where the suite runs.

    Attributes:
        host: Address of the API.
        ui_host: Address of the UI; the API's where it is not given.
        store: A folder of the object store, which pods and this machine reach by the same URI.
        registry: Where the images are; empty for free2ds-<stage>:dev, which the nodes have.
        tag: Of the images.
        namespace: Of the pods.
        gpu: How many GPUs a step with a model gets; "" for a cluster without any.
        shards: The larger number of shards to try as well; 0 for none.
        parameters: More run parameters, such as a node selector.
        pipeline_root: Where the installation keeps artifacts; empty where kubectl can tell.
        run_timeout_s: How long a run may take.
        failure_timeout_s: How soon a wrong set-up must be known.
        poll_s: Between two looks.
        cron: Of the schedule.
    """

    host: str
    ui_host: str
    store: str
    registry: str = ""
    tag: str = ""
    namespace: str = "kubeflow"
    gpu: str = "1"
    shards: int = 0
    parameters: dict[str, Any] = field(default_factory=dict)
    pipeline_root: str = ""
    run_timeout_s: float = 3600.0
    failure_timeout_s: float = 120.0
    poll_s: float = 5.0
    cron: str = "0 */2 * * * *"

    @classmethod
    def of(cls, environment: dict[str, str]) -> "Settings":
        """Read them."""

        def get(name: str, default: str = "") -> str:
            return environment.get(name) or default

        parameters = Path(get("PARAMS")).read_text(encoding="utf-8") if get("PARAMS") else "{}"
        return cls(
            host=environment["HOST"],
            ui_host=get("UI_HOST", environment["HOST"]),
            store=environment["STORE"].rstrip("/"),
            registry=get("REGISTRY"),
            tag=get("TAG") if get("REGISTRY") else "",
            namespace=get("NAMESPACE", "kubeflow"),
            gpu=environment.get("GPU", "1"),
            shards=int(get("SHARDS", "0")),
            parameters=yaml.safe_load(parameters),
            pipeline_root=get("PIPELINE_ROOT"),
            run_timeout_s=float(get("RUN_TIMEOUT_S", "3600")),
            poll_s=float(get("POLL_S", "5")),
        )

    @property
    def images(self) -> list[str]:
        """Options of the commands that name the images."""
        return ["--registry", self.registry, "--tag", self.tag] if self.registry else []

    @property
    def needs(self) -> list[str]:
        """Options of the commands that say what steps ask for."""
        return [option for name, text in SMALL.items() for option in ("--resource", f"all.{name}={text}")]

    @property
    def resources(self) -> dict[str, Any]:
        """Run parameters that say where steps run."""
        return self.parameters | {"gpu_count": self.gpu} if self.gpu else NO_GPU | self.parameters


def from_environment() -> Settings | None:
    """The settings; None without HOST."""
    return Settings.of(dict(os.environ)) if os.environ.get("HOST") else None
