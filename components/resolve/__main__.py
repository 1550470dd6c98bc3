"""The resolve stage from a shell: prints every location's version."""

import json
import sys
from collections.abc import Sequence

from components.resolve.config import ResolveConfig
from free2ds_common.cli import stage_main
from free2ds_common.result import StageResult


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    return stage_main("resolve", ResolveConfig, argv, _show)


def _show(config: ResolveConfig, result: StageResult) -> None:
    print(json.dumps(result.metadata, sort_keys=True))


if __name__ == "__main__":
    sys.exit(main())
