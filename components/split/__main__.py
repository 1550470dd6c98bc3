"""The split stage from a shell: prints the shards, one a line, and then the counts."""

import sys
from collections.abc import Sequence

from components.split.config import SplitConfig
from free2ds_common.cli import print_counts, stage_main
from free2ds_common.redact import redacted
from free2ds_common.result import StageResult


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    return stage_main("split", SplitConfig, argv, _show)


def _show(config: SplitConfig, result: StageResult) -> None:
    for name in result.metadata["shards"]:
        print(f"{redacted(config.shards).rstrip('/')}/{name}")
    print_counts(config, result)


if __name__ == "__main__":
    sys.exit(main())
