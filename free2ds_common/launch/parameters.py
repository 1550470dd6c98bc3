"""Run parameters from a file and the command line: typed, and checked by every stage that gets one before it starts."""

import difflib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from components.resolve.wiring import aliases, options_of, texts
from free2ds_common.errors import SettingError, StageError
from free2ds_common.launch.package import Package
from free2ds_common.launch.resources import LoopSettings, ResourceSettings
from free2ds_common.options import join_options, split_options, typed_options
from free2ds_common.settings import Settings

WORDS: dict[type, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a JSON object",
    list: "a JSON list",
}


def read_mapping(option: str, path: str) -> dict[str, Any]:
    """A JSON or YAML file that holds names and values.

    Args:
        option: The command line's option, for the message.
        path: The file.

    Raises:
        StageError: The file is missing or holds something else.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise StageError(f"{option}: {path} cannot be read ({error.strerror}). Give a JSON or YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise StageError(f"{option}: {path} is neither JSON nor YAML. Give a file of names and values.") from None
    if not isinstance(content, dict):
        raise StageError(f"{option}: {path} holds no names and values. Write it as name: value, one a line.")
    return content


def read_parameters(package: Package, file: str, assignments: Sequence[str]) -> dict[str, Any]:
    """The run parameters that a user gives.

    Args:
        package: The pipeline.
        file: JSON or YAML file of parameters; empty for none.
        assignments: name=value each; they win over the file.

    Returns:
        Typed values, those left at their defaults left out.

    Raises:
        StageError: A parameter is unknown, missing, of another type or refused by a stage.
    """
    known = package.parameters
    given = read_mapping("--config", file) if file else {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals:
            raise StageError(f"--param: got {text!r}, wanted name=value.")
        given[name] = value
    for name in given:
        if name not in known and name not in aliases():
            close = difflib.get_close_matches(str(name), [*known, *aliases()], n=1)
            hint = f"Did you mean {close[0]}?" if close else "free2ds run --help lists them."
            raise StageError(f"{name}: there is no parameter of this name. {hint}")
    given = _gathered(given)
    values = {name: typed_value(name, value, known[name].kind) for name, value in given.items()}
    for name, parameter in known.items():
        if parameter.required and name not in values:
            raise StageError(f"{name}: is missing. Add --param {name}=... ({parameter.description})")
    check_parameters(package, values)
    return values


def _gathered(given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with options that were given by themselves (llava_prompt, sampler) in the texts they belong to.

    Raises:
        SettingError: A text of options is not as it must be.
    """
    known = aliases()
    gathered = {name: value for name, value in given.items() if name not in known}
    for alias, value in given.items():
        for text, name in known.get(alias, ()):
            if value is None or isinstance(value, dict | list):
                raise SettingError(alias, f"got {value!r}, wanted text or a number.")
            options = split_options(text, str(gathered.get(text, "")), options_of(text))
            gathered[text] = join_options({**options, name: str(value)})
    return gathered


def typed_value(name: str, value: object, kind: type) -> object:
    """A parameter's value in its own type.

    Args:
        name: The parameter, for the message.
        value: Text from the command line, or a value from a file.
        kind: One of `WORDS`.

    Raises:
        SettingError: The value is not of that type.
    """
    problem = SettingError(name, f"got {value!r}, wanted {WORDS[kind]}.")
    if isinstance(value, str) and kind is not str:
        try:
            value = kind(value) if kind in (int, float) else json.loads(value)
        except ValueError:
            raise problem from None
    if kind is float and type(value) is int:
        value = float(value)
    if kind is str and isinstance(value, int | float):
        raise SettingError(name, f"got {value!r}, wanted {WORDS[kind]}. Write it in quotes.")
    if isinstance(value, str) and "{{$" in value:
        # It is replaced before any stage sees it.
        raise SettingError(name, f"got {value!r}, which holds {{{{$, a placeholder of Kubeflow Pipelines. Rename it.")
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        raise SettingError(name, f"got {value!r}, wanted {WORDS[kind]}.")
    return value


def check_parameters(package: Package, values: Mapping[str, Any]) -> None:
    """Let every stage check its settings now, rather than hours later when its turn comes.

    Args:
        package: The pipeline; its graph says which parameter becomes which setting.
        values: The parameters that are not left at their defaults.

    Raises:
        SettingError: A stage does not accept a setting; named as the run parameter that it comes from.
    """
    every = package.with_defaults(values)
    _of(ResourceSettings, every).check()
    _of(LoopSettings, every).check()
    for task in package.stage_tasks:
        known = dict(task.constants) | {name: every[source] for name, source in task.sources.items()}
        settings = task.settings_class()
        # A step's task makes this setting of its number of accelerators.
        if count := task.sources.get("gpu_count", ""):
            known["require_gpu"] = every[count] != "0"
        # Where resolve hands them over, it checks them.
        if text := task.sources.get("options", ""):
            known |= typed_options(text, settings, split_options(text, every[text], settings.OPTIONS))
        try:
            _of(settings, known).check()
        except SettingError as error:
            if text and error.setting in settings.OPTIONS:
                raise SettingError(text, f"{error.setting}: {error.problem}") from None
            raise SettingError(task.sources.get(error.setting, error.setting), error.problem) from None


def refuse_local_paths(values: Mapping[str, Any], models_folder: str = "") -> None:
    """Refuse parameters that name a file or folder of this machine: no pod sees it.

    Args:
        values: Parameters by name.
        models_folder: Where pods find models on a volume; empty where they have none.

    Raises:
        SettingError: One is a path.
    """
    for name, value in each_place(values):
        if not value:
            continue
        scheme, found, _ = value.partition("://")
        if models_folder and names_model(name) and value.startswith(f"{models_folder}/"):
            continue
        local_uri = scheme in ("file", "local") if found else name.endswith(("_uri", "_uris"))
        local_model = not found and names_model(name) and (value[0] in "/.~" or os.path.exists(value))
        if local_uri or local_model:
            raise SettingError(
                name, f"{value} is a path of this machine, which no pod sees. Give a URI such as gs:// or s3://."
            )


def names_model(name: str) -> bool:
    """Whether a parameter names a model or an encoder: a folder, a URI or a hub id."""
    return name.endswith(("_model", "vision_tower", "vision_tower_aux"))


def _of(settings: type[Settings], known: Mapping[str, Any]) -> Settings:
    """Settings with those of their fields whose value is known."""
    return settings(**{field.name: known[field.name] for field in fields(settings) if field.name in known})


def with_absolute_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with this machine's paths made absolute: the stages run in another folder.

    Args:
        values: Parameters by name.
    """
    absolute = dict(values)
    for name, value in values.items():
        if isinstance(value, str) and name in texts():
            options = split_options(name, value, options_of(name))
            absolute[name] = join_options({option: _absolute(option, place) for option, place in options.items()})
        elif isinstance(value, str):
            absolute[name] = _absolute(name, value)
    return absolute


def _absolute(name: str, value: str) -> str:
    if not value or ("://" in value and not name.endswith("_uris")):
        return value
    if name.endswith("_uris"):
        return ",".join(_absolute("_uri", one.strip()) for one in value.split(","))
    path = os.path.abspath(os.path.expanduser(value))
    # A hub id looks like a relative path: only what exists is one.
    return path if name.endswith("_uri") or (names_model(name) and os.path.exists(path)) else value


def places(values: Mapping[str, Any]) -> dict[str, str]:
    """Every text among the parameters, those in texts of options by names of their own.

    Args:
        values: Parameters by name.
    """
    found = {name: value for name, value in values.items() if isinstance(value, str)}
    for text in texts():
        options = split_options(text, found.pop(text, ""), options_of(text))
        found |= {f"{text}: {name}": value for name, value in options.items()}
    return found


def each_place(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """As `places`, a parameter that holds several (benchmark_uris) once for each.

    Args:
        values: Parameters by name.
    """
    found = places(values).items()
    return [
        (name, one.strip()) for name, text in found for one in (text.split(",") if name.endswith("_uris") else [text])
    ]
