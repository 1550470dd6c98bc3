"""The page of parameters: what the form asks for, what its texts of options may hold, what steps need."""

import json
from collections.abc import Iterable
from dataclasses import fields

from components.resolve.wiring import WIRING, aliases
from free2ds_common.launch.package import Package, descriptions
from free2ds_common.launch.resources import NEEDS


def parameter_page(package: Package) -> str:
    """All tables, Markdown."""
    return "\n\n".join(
        [
            parameter_table(package),
            "## Options\n\n"
            "What the texts hold, as `name=value` separated by blanks (`dtype=float32 batch_size=8`). `--param` and "
            "`--config` also\ntake each by itself, under the name on the left; one name may stand for several "
            "models.",
            option_table(),
            "## What steps ask for\n\n"
            "Written into the compiled file; `--resource STAGE.memory=64Gi` or `STAGE.cpu=8` of `compile`, `submit` "
            "and `schedule`\nchanges it, and no finished step is lost by that. A limit is as high as the request. "
            "Without the cache a step runs\nanew each time.",
            needs_table(),
        ]
    )


def parameter_table(package: Package) -> str:
    """The run parameters, in the order of the form."""
    rows = []
    for name, parameter in sorted(package.parameters.items()):
        text = parameter.default if parameter.kind is str else json.dumps(parameter.default)
        default = "required" if parameter.required else f"`{text}`" if text else "empty"
        rows.append((f"`{name}`", default, parameter.description))
    return _table(("parameter", "default", "meaning"), rows)


def option_table() -> str:
    """The options, by the name that they have on the command line."""
    rows = []
    for alias, targets in sorted(aliases().items()):
        text, name = targets[0]
        wiring = next(one for one in WIRING.values() if one.text == text and name in one.settings.OPTIONS)
        default = next(field.default for field in fields(wiring.settings) if field.name == name)
        if len(targets) > 1:
            meaning = "The same for all models."
        elif name == "model_type":
            meaning = f"{descriptions(wiring.settings)[name]} Left out, the model's own config decides."
        else:
            meaning = descriptions(wiring.settings)[name]
        places = ", ".join(f"`{text}`" for text, _ in targets)
        rows.append((f"`{alias}`", f"{places}: `{name}`", f"`{default}`" if default != "" else "empty", meaning))
    return _table(("on the command line", "in the form", "default", "meaning"), rows)


def needs_table() -> str:
    """What each step asks for, and whether it may use the cache."""
    rows = []
    for stage, needs in NEEDS.items():
        limit = "limit" if needs.limited else "request"
        cache = f"{'yes' if needs.cached else 'no'}: {needs.why_cached}"
        rows.append((f"`{stage}`", needs.cpu, f"{needs.memory} ({limit})", needs.why, f"{needs.hours} h", cache))
    return _table(("step", "cpu", "memory", "why", "ends after", "cache"), rows)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
