"""Command line of mgm_attention."""

import sys
from collections.abc import Callable, Sequence

from free2ds_common import defaults
from free2ds_common.attention.command import attention_main
from free2ds_common.result import StageResult


def _stage_run() -> Callable[..., StageResult]:
    # Here, not at the top: --help shall not wait for torch.
    from components.mgm_attention.stage import run

    return run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    return attention_main("mgm", "MGM", defaults.MGM_MODEL, argv, _stage_run)


if __name__ == "__main__":
    sys.exit(main())
