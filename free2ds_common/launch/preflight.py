"""What a run looks at before it starts: the same that its first step looks at."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from components.resolve.config import ResolveSettings
from components.resolve.stage import look
from free2ds_common.launch.package import Package


def check_inputs(package: Package, values: Mapping[str, Any], *, only_local: bool = False) -> None:
    """Look whether data set, pictures, models and old clusters are there and fit, and whether records are enough.

    Args:
        package: The pipeline.
        values: The parameters that are not left at their defaults, paths absolute.
        only_local: Look at files and folders alone: containers in a network of their own reach other stores than this.

    Raises:
        StageError: Something is not there or cannot be read.
        StoreError: A store does not answer.
    """
    look(resolve_settings(package, values), only_local=only_local)


def resolve_settings(package: Package, values: Mapping[str, Any]) -> ResolveSettings:
    """What the first step of a run is given.

    Args:
        package: The pipeline.
        values: The parameters that are not left at their defaults.
    """
    every = package.with_defaults(values)
    # A selection has no parameters of the loop.
    return ResolveSettings(
        **{field.name: every[field.name] for field in fields(ResolveSettings) if field.name in every}
    )
