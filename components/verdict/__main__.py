"""The verdict stage from a shell."""

import sys
from collections.abc import Sequence

from components.verdict.config import VerdictConfig
from free2ds_common.cli import stage_main
from free2ds_common.result import StageResult


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    return stage_main("verdict", VerdictConfig, argv, _show)


def _show(config: VerdictConfig, result: StageResult) -> None:
    print(result.metadata["sentence"])


if __name__ == "__main__":
    sys.exit(main())
