"""Takes credentials out of what leaves a process: sentences, logs, manifests, metadata, reports. Standard library only.

What the work itself opens stays whole: redact what is shown or stored, never what is used.
"""

import re
from collections.abc import Mapping
from typing import TypeVar, cast

Value = TypeVar("Value")

HIDDEN = "***"
# user:password@ of a URI. http(s) also takes a lone token there; gs, abfs and others put a container's name there.
_USER_INFO = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)(?P<user>[^\s/?#]*)@", re.IGNORECASE)
_URI_WITH_VALUES = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s?#]*[?#]\S+", re.IGNORECASE)
_NAME = r"[\w.%-]*"
# Wide on purpose: a value too many that is hidden does no harm.
_PARTS = "token|secret|passw|pwd|signature|credential|auth|api[-_]?key|access[-_]?key|jwt|policy|cookie"
_NAMES = "pass|sig|key|code|googleaccessid|key-pair-id"
# What ends a sentence or a bracket is not its value's.
_VALUE = r"[^\s&;#\"'<>]*[^\s&;#\"'<>:.,)\]]"
_SECRET_VALUE = re.compile(
    rf"(?P<name>(?:[?&;#]|&amp;)(?:{_NAME}(?:{_PARTS}){_NAME}|{_NAMES})=){_VALUE}", re.IGNORECASE
)
# Nothing else has these names, so they need no URI around them (a path in an error of a store's library).
_SIGNED_VALUE = re.compile(
    r"(?P<name>\b(?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|GoogleAccessId|AccountKey)=)"
    + _VALUE,
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """A text without the credentials of the URIs in it: passwords, tokens, signatures of signed URLs.

    Names of parameters stay, so that one sees what was there; a second call changes nothing.
    """
    if "://" in text:
        text = _USER_INFO.sub(_without_password, text)
        text = _URI_WITH_VALUES.sub(lambda uri: _SECRET_VALUE.sub(rf"\g<name>{HIDDEN}", uri[0]), text)
    return _SIGNED_VALUE.sub(rf"\g<name>{HIDDEN}", text)


def redacted_values(value: Value) -> Value:
    """A JSON value with every string in it `redacted`; names of entries stay as they are."""
    changed: object = value
    if isinstance(value, str):
        changed = redacted(value)
    elif isinstance(value, Mapping):
        changed = {name: redacted_values(inner) for name, inner in value.items()}
    elif isinstance(value, (list, tuple)):
        changed = type(value)(redacted_values(inner) for inner in value)
    return cast(Value, changed)


def _without_password(found: re.Match[str]) -> str:
    scheme, user = found["scheme"], found["user"]
    if scheme.lower().startswith("http"):
        return f"{scheme}{HIDDEN}@"
    name, colon, _ = user.partition(":")
    return f"{scheme}{name}:{HIDDEN}@" if colon else found[0]
