"""Checks of what Kubernetes and image registries accept, by their own grammars: before a pod is asked for."""

import re
from collections.abc import Mapping

from free2ds_common.errors import SettingError, StageError

# apimachinery: pkg/api/resource/quantity.go, without a sign.
_QUANTITY = re.compile(r"(\d+\.?\d*|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?")
# apimachinery: pkg/util/validation/validation.go.
_NAME = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_SUBDOMAIN = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*"
_QUALIFIED_NAME = re.compile(rf"(?=.{{1,317}}$)({_SUBDOMAIN}/)?{_NAME}")
_OBJECT_NAME = re.compile(rf"(?=.{{1,253}}$){_SUBDOMAIN}")
_LABEL_VALUE = re.compile(rf"({_NAME})?")
_TOLERATION_FIELDS = {"key", "operator", "value", "effect", "tolerationSeconds"}
_EFFECTS = ("", "NoSchedule", "PreferNoSchedule", "NoExecute")
# distribution: reference/regexp.go.
_HOST = r"([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9a-fA-F:]+\])(:\d+)?"
_PATH_COMPONENT = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
_REGISTRY = re.compile(rf"{_HOST}(/{_PATH_COMPONENT})*/?")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)


def require_quantity(name: str, value: str) -> None:
    """Refuse what is no amount of a resource.

    Raises:
        SettingError: `value` is none, such as "32GB", or zero.
    """
    if not _QUANTITY.fullmatch(value) or not re.search("[1-9]", value):
        raise SettingError(name, f"got {value!r}, wanted a Kubernetes quantity such as 500m, 2, 8Gi.")


def require_count(name: str, value: str) -> None:
    """Refuse what is no whole number, as text.

    Raises:
        SettingError: It is none.
    """
    if not re.fullmatch(r"\d+", value, re.ASCII):
        raise SettingError(name, f"got {value!r}, wanted a whole number such as 1, or 0 for none.")


def require_resource_name(name: str, value: str) -> None:
    """Refuse what is no name of an extended resource.

    Raises:
        SettingError: It is none.
    """
    if "/" not in value or not _QUALIFIED_NAME.fullmatch(value):
        raise SettingError(name, f"got {value!r}, wanted a resource such as nvidia.com/gpu.")


def require_object_name(name: str, value: str) -> None:
    """Refuse what cannot be the name of a Secret, a ConfigMap or a claim.

    Raises:
        SettingError: It has other characters than lower-case letters, digits, dots and hyphens, or is empty.
    """
    if not _OBJECT_NAME.fullmatch(value):
        # What was given may be a credential that somebody took for its name: it is not shown.
        raise SettingError(
            name, "wanted the name of an object in the cluster, in lower-case letters, digits, dots and hyphens."
        )


def require_labels(name: str, labels: object) -> None:
    """Refuse what is no node selector.

    Raises:
        SettingError: A name or value is none of a label; values are text ("true", not true).
    """
    if not isinstance(labels, Mapping):
        raise SettingError(name, f"got {labels!r}, wanted a JSON object of labels.")
    for label, value in labels.items():
        if not (isinstance(label, str) and _QUALIFIED_NAME.fullmatch(label)):
            raise SettingError(name, f"{label!r} is no name of a label such as nvidia.com/gpu.present.")
        if not (isinstance(value, str) and _LABEL_VALUE.fullmatch(value)):
            raise SettingError(name, f"{label} has {value!r}, wanted text of at most 63 letters, digits and -_.")


def require_tolerations(name: str, tolerations: object) -> None:
    """Refuse what is no list of tolerations.

    Raises:
        SettingError: An entry is no object, or a field is unknown or of a value that Kubernetes refuses.
    """
    if not isinstance(tolerations, list | tuple):
        raise SettingError(name, f"got {tolerations!r}, wanted a JSON list of tolerations.")
    for toleration in tolerations:
        if problem := _toleration_problem(toleration):
            raise SettingError(name, f"{toleration!r}: {problem}.")


def _toleration_problem(toleration: object) -> str:
    """What is wrong with a toleration; empty where nothing is."""
    if not isinstance(toleration, Mapping):
        return "wanted an object with key, operator and effect"
    if unknown := sorted(set(toleration) - _TOLERATION_FIELDS):
        return f"unknown field {unknown[0]}, wanted some of {', '.join(sorted(_TOLERATION_FIELDS))}"
    key, operator, value = (toleration.get(field, "") for field in ("key", "operator", "value"))
    effect, seconds = toleration.get("effect", ""), toleration.get("tolerationSeconds")
    if key != "" and not (isinstance(key, str) and _QUALIFIED_NAME.fullmatch(key)):
        return f"key {key!r} is no name of a taint"
    if operator not in ("", "Equal", "Exists"):
        return f"operator {operator!r}, wanted Equal or Exists"
    if operator == "Exists" and value != "":
        return "operator Exists takes no value"
    if not (isinstance(value, str) and _LABEL_VALUE.fullmatch(value)):
        return f"value {value!r}, wanted text of at most 63 letters, digits and -_."
    if key == "" and operator != "Exists":
        return "no key: only operator Exists may leave it out"
    if effect not in _EFFECTS:
        return f"effect {effect!r}, wanted NoSchedule, PreferNoSchedule or NoExecute"
    if seconds is not None and (effect != "NoExecute" or isinstance(seconds, bool) or not isinstance(seconds, int)):
        return "tolerationSeconds, wanted a whole number, with effect NoExecute"
    return ""


def require_registry(registry: str) -> None:
    """Refuse what cannot stand in front of an image's name.

    Raises:
        StageError: It has a scheme, upper-case letters in its path, or is otherwise no registry.
    """
    if not _REGISTRY.fullmatch(registry):
        raise StageError(
            f"--registry: got {registry!r}, wanted host[:port][/path] in lower case, without https://, such as "
            "registry.example/team."
        )


def require_tag(tag: str) -> None:
    """Refuse what cannot be the tag of an image.

    Raises:
        StageError: It has other characters than letters, digits and -_. or too many.
    """
    if not _TAG.fullmatch(tag):
        raise StageError(f"--tag: got {tag!r}, wanted up to 128 letters, digits and -_. such as 1.2.3.")
