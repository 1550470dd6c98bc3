"""The command line of every stage, made from the dataclass of its settings and ports."""

import importlib
import json
from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro

from free2ds_common.failure import run_reported
from free2ds_common.result import StageResult
from free2ds_common.runlog import configure_logging

Config = TypeVar("Config")


def parse(config: type[Config], argv: Sequence[str] | None, command: str) -> Config:
    """Read a config from the command line; `--help` shows every option with its description and default.

    Args:
        config: A dataclass; the first line of its docstring describes the command, `Attributes` each option.
        argv: Arguments; None takes the process's.
        command: How the command is called.

    Raises:
        SystemExit: 2 for wrong arguments, 0 after `--help`.
    """
    summary = (config.__doc__ or "").partition("\n")[0]
    return tyro.cli(config, args=argv, prog=command, description=summary)


def print_counts(config: object, result: StageResult) -> None:
    """Print a stage's counts and metrics as one JSON line."""
    print(json.dumps({**vars(result.counts), **result.metrics}))


def stage_main(
    stage: str,
    config: type[Config],
    argv: Sequence[str] | None,
    show: Callable[[Config, StageResult], None] = print_counts,
) -> int:
    """Run a stage from a shell.

    Args:
        stage: Its name.
        config: Its settings and ports.
        argv: Arguments; None takes the process's.
        show: Prints the result.

    Returns:
        0; with one sentence on stderr 2 when the set-up is wrong, 1 when a store does not answer. Other errors keep
        their traceback.
    """
    parsed = parse(config, argv, f"python -m components.{stage}")

    def work() -> None:
        configure_logging()
        # Here, not at the top: --help does not wait for torch or pyarrow.
        run = importlib.import_module(f"components.{stage}.stage").run
        show(parsed, run(parsed))

    return run_reported(stage, work)
