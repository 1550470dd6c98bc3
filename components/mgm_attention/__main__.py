"""The mgm_attention stage from a shell."""

import sys
from collections.abc import Sequence

from components.mgm_attention.config import MgmAttentionConfig
from free2ds_common.cli import stage_main


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    return stage_main("mgm_attention", MgmAttentionConfig, argv)


if __name__ == "__main__":
    sys.exit(main())
