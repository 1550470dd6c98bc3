"""What `compile` writes into the pods of every run: cores and memory, pull secrets, a volume of models, a queue.

No run parameters: the backend's driver fails at an empty name, so that a parameter could not leave them out.
"""

import argparse
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from free2ds_common.errors import SettingError
from free2ds_common.launch.kubernetes_names import require_object_name, require_quantity
from free2ds_common.launch.package import Package
from free2ds_common.launch.parameters import names_model

# Where steps that load a model find the claim.
MODELS_FOLDER = "/models"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"


@dataclass(frozen=True)
class PodOptions:
    """What the command line asks for.

    Attributes:
        pull_secrets: Names of Secrets with which images are pulled.
        models_claim: Name of a PersistentVolumeClaim with folders of models; empty for none.
        queue: Name of a LocalQueue of Kueue for the steps with an accelerator; empty for none.
        resources: stage.cpu=quantity or stage.memory=quantity, for steps that need other than `NEEDS` says; all.cpu and
            all.memory for every step. The last one counts.
    """

    pull_secrets: Sequence[str]
    models_claim: str
    queue: str
    resources: Sequence[str] = ()

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "PodOptions":
        """What a command line that has `pod_options` says."""
        return cls(arguments.pull_secret, arguments.models_claim, arguments.queue, arguments.resource)

    @property
    def models_folder(self) -> str:
        """Where pods find models on a volume; empty where they have none."""
        return MODELS_FOLDER if self.models_claim else ""

    def applied(self, package: Package) -> Package:
        """The same pipeline with these in its pods.

        Raises:
            SettingError: Something is no name of an object.
        """
        for name in self.pull_secrets:
            require_object_name("--pull-secret", name)
        for option, name in (("--models-claim", self.models_claim), ("--queue", self.queue)):
            if name:
                require_object_name(option, name)
        changed = copy.deepcopy(package)
        executors: dict[str, Any] = changed.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        for task in changed.stage_tasks:
            executor = changed.spec["components"][task.component]["executorLabel"]
            pod = executors.setdefault(executor, {})
            if self.pull_secrets:
                pod["imagePullSecret"] = [
                    {"secretName": name, "secretNameParameter": _constant(name)} for name in self.pull_secrets
                ]
            if self.models_claim and any(names_model(source) for source in task.sources.values()):
                pod["pvcMount"] = [
                    {
                        "constant": self.models_claim,
                        "pvcNameParameter": _constant(self.models_claim),
                        "mountPath": MODELS_FOLDER,
                    }
                ]
            if self.queue and "accelerator" in changed.spec["deploymentSpec"]["executors"][executor]["container"].get(
                "resources", {}
            ):
                pod["podMetadata"] = {"labels": {QUEUE_LABEL: self.queue}}
        for text in self.resources:
            _give(changed, text)
        return changed


def pod_options() -> argparse.ArgumentParser:
    """What every command takes that compiles for a cluster."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--pull-secret", action="append", default=[], metavar="NAME", help="Secret to pull images; may be repeated"
    )
    options.add_argument(
        "--models-claim",
        default="",
        metavar="NAME",
        help=f"PersistentVolumeClaim with models; a model is then {MODELS_FOLDER}/<folder>",
    )
    options.add_argument(
        "--resource",
        action="append",
        default=[],
        metavar="STAGE.memory=64Gi",
        help="cores (STAGE.cpu=8) or memory of a step, or of all; may be repeated, and loses no finished step",
    )
    options.add_argument("--queue", default="", metavar="NAME", help="LocalQueue of Kueue for the steps with a GPU")
    return options


def _give(package: Package, text: str) -> None:
    """Change what a step asks for.

    Args:
        package: The pipeline, which is changed.
        text: Such as llava_attention.memory=64Gi.

    Raises:
        SettingError: It is written otherwise, there is no such step, or it is no quantity.
    """
    name, equals, quantity = text.partition("=")
    stage, _, resource = name.partition(".")
    if not equals or resource not in ("cpu", "memory"):
        raise SettingError("--resource", f"got {text!r}, wanted STAGE.cpu=... or STAGE.memory=..., such as 64Gi.")
    stages = sorted({task.stage for task in package.stage_tasks})
    if stage not in (*stages, "all"):
        raise SettingError("--resource", f"there is no step {stage!r}, wanted all or one of {', '.join(stages)}.")
    require_quantity(f"--resource {name}", quantity)
    for task in package.stage_tasks:
        if stage not in (task.stage, "all"):
            continue
        executor = package.spec["components"][task.component]["executorLabel"]
        asked: dict[str, Any] = package.spec["deploymentSpec"]["executors"][executor]["container"]["resources"]
        # What is limited stays limited, at as much as it asks for.
        for entry in (f"resource{resource.capitalize()}Request", f"resource{resource.capitalize()}Limit"):
            if entry in asked:
                asked[entry] = quantity
        # The compiler writes the same as a number, which older backends read.
        for entry in (f"{resource}Request", f"{resource}Limit"):
            asked.pop(entry, None)


def _constant(value: str) -> dict[str, Any]:
    """A value as the compiler of KFP writes one that is known."""
    return {"runtimeValue": {"constant": value}}
