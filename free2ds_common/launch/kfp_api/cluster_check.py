"""What submit looks at in the cluster itself, where a kubeconfig is there: nodes, and objects that pods need."""

from collections.abc import Sequence
from dataclasses import dataclass

from free2ds_common.errors import SettingError, StageError
from free2ds_common.launch.kfp_api.kube import Kube
from free2ds_common.launch.kfp_api.nodes import image_warnings, images_to_pull, misfits
from free2ds_common.launch.pod_options import PodOptions
from free2ds_common.launch.step_requests import StepRequest


@dataclass(frozen=True)
class Looked:
    """What was seen.

    Attributes:
        warnings: A sentence each.
        to_pull: Images that no node has yet which may run their steps.
    """

    warnings: Sequence[str] = ()
    to_pull: Sequence[str] = ()


def check_cluster(kube: Kube | None, steps: Sequence[StepRequest], options: PodOptions, ignore_nodes: bool) -> Looked:
    """Refuse a run whose pods could never start; where nodes may still be added, warn of it.

    Args:
        kube: None where there is no kubeconfig: nothing is looked at.
        steps: What the steps ask for.
        options: Names of objects that pods need.
        ignore_nodes: Only warn of steps that no node takes.

    Raises:
        StageError: No node can take a step, or an object is not there.
    """
    if kube is None:
        return Looked()
    for name in options.pull_secrets:
        if kube.lacks("secrets", name):
            raise SettingError(
                "--pull-secret",
                f"namespace {kube.namespace} has no Secret {name}. kubectl create secret docker-registry makes one.",
            )
    if options.models_claim and kube.lacks("persistentvolumeclaims", options.models_claim):
        raise SettingError(
            "--models-claim", f"namespace {kube.namespace} has no PersistentVolumeClaim {options.models_claim}."
        )
    nodes = kube.nodes()
    unfit = misfits(steps, nodes)
    if unfit and not ignore_nodes and not kube.may_grow():
        raise StageError(
            f"{' '.join(unfit)} Add a node or ask for less; --ignore-nodes submits all the same, and the step waits."
        )
    return Looked([*unfit, *image_warnings(steps, nodes)], images_to_pull(steps, nodes))
