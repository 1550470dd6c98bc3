"""The cluster_scoring stage from a shell."""

import sys
from collections.abc import Sequence

from components.cluster_scoring.config import ClusterScoringConfig
from free2ds_common.cli import stage_main


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    return stage_main("cluster_scoring", ClusterScoringConfig, argv)


if __name__ == "__main__":
    sys.exit(main())
