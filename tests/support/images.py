"""The locks of the project and of its images, as tests read them."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from packaging.dependency_groups import resolve_dependency_groups
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from images import build

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGES = REPOSITORY / "images"
CONSTRAINTS = REPOSITORY / "constraints.txt"
STAGES = build.stages()
WITH_MODELS = ("bert_features", "evaluate", "finetune", "llava_attention", "mgm_attention")
# Dependency groups beside the stages' that something in an image is installed from.
SHARED_GROUPS = ("cluster_scoring_gpu", "evaluate_lmms", "kfp", "torch")
# What torch's CUDA build brings and its CPU build does not.
CUDA_ONLY = re.compile("triton$|nvidia-|cuda-")


@dataclass(frozen=True)
class Pin:
    """One entry of a lock: `direct` if pyproject.toml itself asks for the package, otherwise another package does."""

    version: str
    hashes: tuple[str, ...]
    direct: bool


def read_pyproject() -> dict:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def lock_path(group: str) -> Path:
    """What is installed in an image from a dependency group."""
    return IMAGES / group / "requirements.txt"


def read_lock(path: Path) -> dict[str, Pin]:
    """Every pin of a file that uv pip compile wrote, by the package's name."""
    entries = re.split(r"^(?=[a-z0-9])", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    pins = {}
    for entry in entries:
        name, version = re.match(r"([a-z0-9-]+)==([^\s;]+)", entry).groups()
        pins[name] = Pin(version, tuple(re.findall(r"--hash=(\S+)", entry)), "free2ds (pyproject.toml" in entry)
    return pins


def by_name(requirements: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(found.name): found for found in map(Requirement, requirements)}


def project_requirements() -> dict[str, Requirement]:
    """What the project needs to run, by name."""
    return by_name(read_pyproject()["project"]["dependencies"])


def extra_requirements() -> dict[str, Requirement]:
    """What the extras add, by name."""
    extras = read_pyproject()["project"]["optional-dependencies"]
    return by_name([line for lines in extras.values() for line in lines])


def group_requirements(group: str) -> dict[str, Requirement]:
    """What a dependency group asks for, with the groups that it includes, by name."""
    return by_name(list(resolve_dependency_groups(read_pyproject()["dependency-groups"], group)))
