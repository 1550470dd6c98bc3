"""Settings that few runs change, as one text: `dtype=float32 prompt=chat`. Standard library only.

The form that starts a run shows a field for every parameter, and each parameter of a step in the loop is repeated in
the Workflow for every shard. So of each model only its name is a parameter of its own; the rest travels as a text.
"""

import shlex
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from free2ds_common.errors import SettingError
from free2ds_common.settings import Settings

_WORDS: dict[type, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def split_options(where: str, text: str, known: Collection[str]) -> dict[str, str]:
    """The names and values of a text.

    Args:
        where: What holds it, for messages.
        text: name=value, separated by blanks; a value with blanks stands in quotes.
        known: The names there may be.

    Raises:
        SettingError: It is written otherwise, or a name is unknown or there twice.
    """
    try:
        words = shlex.split(text)
    except ValueError:
        raise SettingError(where, f"got {text!r}, with a quote that does not end.") from None
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise SettingError(where, f"got {word!r}, wanted name=value, separated by blanks.")
        if name not in known:
            raise SettingError(where, f"got {name!r}, wanted one of {', '.join(sorted(known))}.")
        if name in found:
            raise SettingError(where, f"has {name} twice.")
        found[name] = value
    return found


def join_options(options: Mapping[str, str]) -> str:
    """The text for names and values, in order of the names."""
    return shlex.join(f"{name}={value}" for name, value in sorted(options.items()))


def typed_options(where: str, settings: type[Settings], options: Mapping[str, str]) -> dict[str, Any]:
    """Values in the types of their settings.

    Args:
        where: What held the text, for messages.
        settings: The stage's.
        options: Some of `settings.OPTIONS`, as text.

    Raises:
        SettingError: A value is not of its type.
    """
    kinds = {field.name: field.type for field in fields(settings)}
    typed: dict[str, Any] = {}
    for name, value in options.items():
        kind = kinds[name]
        assert isinstance(kind, type)
        try:
            typed[name] = _truth(value) if kind is bool else kind(value)
        except ValueError:
            raise SettingError(where, f"{name}: got {value!r}, wanted {_WORDS[kind]}.") from None
    return typed


def _truth(value: str) -> bool:
    """Raises ValueError for anything but true and false, in whatever case."""
    return bool(("false", "true").index(value.lower()))


def read_options(settings: type[Settings], text: str) -> dict[str, Any]:
    """The settings that a stage's task was given as a text.

    Raises:
        SettingError: The text is not of `settings.OPTIONS`.
    """
    return typed_options("options", settings, split_options("options", text, settings.OPTIONS))
