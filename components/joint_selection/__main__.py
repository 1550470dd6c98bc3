"""The joint_selection stage from a shell, and its sweep, which tries other settings on the scores of an earlier run."""

import sys
from collections.abc import Sequence

from components.joint_selection.config import JointSelectionConfig, SweepConfig
from free2ds_common.cli import parse, run_command, stage_main

SWEEP = "sweep"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage, or the sweep where that is the first argument; returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    return _sweep(given[1:]) if given[:1] == [SWEEP] else stage_main("joint_selection", JointSelectionConfig, given)


def _sweep(argv: Sequence[str]) -> int:
    config = parse(SweepConfig, argv, f"python -m components.joint_selection {SWEEP}")

    def work(local: SweepConfig) -> str:
        # Here, not at the top: --help does not wait for pyarrow.
        from components.joint_selection.sweep import as_markdown, run

        return as_markdown(run(local))

    return run_command(SWEEP, config, work, print)


if __name__ == "__main__":
    sys.exit(main())
