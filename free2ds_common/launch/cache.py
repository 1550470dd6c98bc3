"""The results store of local runs, and the options of the command that looks after any store."""

import argparse
import os
import sys
from pathlib import Path

from free2ds_common.errors import StageError


def user_cache() -> Path:
    """Where local runs keep results unless they are told otherwise."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The specification: what is no absolute path is not there.
    root = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
    return root / "free2ds" / "results"


def cache_of_run(given: str | None, *, off: bool) -> str:
    """The results store of a local run.

    Args:
        given: The parameter `cache_uri`; None where it is not given.
        off: Whether the command line says that there is to be none.

    Returns:
        Its location; empty for none.

    Raises:
        StageError: Both are given, or a folder that cannot be written to.
    """
    if off and given:
        raise StageError(f"--no-cache: cache_uri={given} is given, too. Leave one of them out.")
    if off:
        return ""
    if given is not None:
        path = given.removeprefix("file://")
        if os.path.isabs(path) and (problem := _problem(Path(path))):
            raise StageError(f"cache_uri: {given} cannot be written to ({problem}). Give another, or --no-cache.")
        return given
    folder = user_cache()
    if problem := _problem(folder):
        # Nobody asked for it: a run that would work without it does.
        print(f"warning: {folder} cannot be used ({problem}): this run keeps no results", file=sys.stderr)
        return ""
    return str(folder)


def _problem(folder: Path) -> str:
    """Make a folder; why it cannot be written to, or nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return error.strerror or str(error)
    return "" if os.access(folder, os.W_OK) else "no right to write"


def add_cache_options(parser: argparse.ArgumentParser) -> None:
    """The options of `cache`."""
    parser.add_argument("action", choices=["list", "verify", "compact", "delete"], help="what to do with the store")
    parser.add_argument("--cache-uri", default="", help="the store; empty for that of local runs on this machine")
    parser.add_argument(
        "--model", default="", help="only results of this model, by its name or fingerprint in the list"
    )
    parser.add_argument(
        "--older-than", type=float, default=None, metavar="DAYS", help="delete: only parts written before"
    )
    parser.add_argument("--broken", action="store_true", help="delete: only parts that are not as they were written")
    parser.add_argument("--dry-run", action="store_true", help="compact, delete: say what would be done")
