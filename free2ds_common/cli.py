"""The command line of every stage, made from the dataclass of its settings and ports."""

import importlib
import json
from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro

from free2ds_common.failure import run_reported
from free2ds_common.result import StageResult
from free2ds_common.runlog import configure_logging
from free2ds_common.settings import Dataclass

Config = TypeVar("Config", bound=Dataclass)
Result = TypeVar("Result")


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

    def work(local: Config) -> StageResult:
        # Here, not at the top: --help does not wait for torch or pyarrow.
        result: StageResult = importlib.import_module(f"components.{stage}.stage").run(local)
        return result

    return run_command(stage, parsed, work, lambda result: show(parsed, result))


def run_command(name: str, config: Config, work: Callable[[Config], Result], show: Callable[[Result], None]) -> int:
    """Run a command whose ports may be URIs.

    Args:
        name: Of the stage or command.
        config: Its settings and ports, as they were given.
        work: Does the work, on ports of this machine.
        show: Prints the result, once the outputs are where they belong.

    Returns:
        As `stage_main`.
    """
    # Here, not at the top: as above.
    from free2ds_common.ports import Ports

    ports = Ports(config)

    def whole() -> None:
        configure_logging(shown=ports.as_given)
        with ports:
            result = work(ports.fetched())
            ports.publish()
        show(result)

    return run_reported(name, whole, ports.as_given)
