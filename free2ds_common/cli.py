"""The command line that every stage shares: help, logging, exit codes."""

import argparse
import json
import sys
from collections.abc import Callable

from free2ds_common.errors import StageError
from free2ds_common.result import StageResult
from free2ds_common.runlog import configure_logging

EXIT_WRONG_SETUP = 2


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults where there are any: a required option has none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def stage_parser(stage: str, description: str) -> argparse.ArgumentParser:
    """A parser whose help shows every default.

    Args:
        stage: The stage's name, "cluster_scoring".
        description: One sentence.
    """
    return argparse.ArgumentParser(
        prog=f"python -m components.{stage}",
        description=description,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )


def run_stage(work: Callable[[], StageResult | None]) -> int:
    """Run a stage from the shell and print its counts as one JSON line.

    Args:
        work: The stage with its settings bound.

    Returns:
        0, or 2 with one sentence on stderr when the set-up is wrong. Other errors keep their traceback.
    """
    configure_logging()
    try:
        result = work()
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_WRONG_SETUP
    if result is not None:
        print(json.dumps({**vars(result.counts), **result.metrics}))
    return 0
