"""How commands and tasks fail: one sentence for a wrong set-up, and a file that says what went wrong."""

import json
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from free2ds_common.errors import StageError, first_line
from free2ds_common.redact import redacted
from free2ds_common.retry import StoreError, is_full_disk
from free2ds_common.stopping import Stopped

EXIT_CRASH = 1
EXIT_WRONG_SETUP = 2
# What a shell says of a process that SIGTERM ended; whoever runs stages again after a lost machine does so after this.
EXIT_STOPPED = 128 + signal.SIGTERM
# Lies beside a task's outputs.
ERROR_FILE = "error.json"


@dataclass(frozen=True)
class Failure:
    """Why a stage failed.

    Attributes:
        stage: Its name.
        sentence: What a person reads, without credentials.
        exit_code: EXIT_WRONG_SETUP where the user can fix it, EXIT_STOPPED where the system asked for the end,
            EXIT_CRASH otherwise.
        counts: Records read, written, dropped and rejected; empty where none were counted.
    """

    stage: str
    sentence: str
    exit_code: int
    counts: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, stage: str, error: Exception) -> "Failure":
        """The failure that an exception means."""
        if isinstance(error, StageError):
            return cls(stage, redacted(str(error)), EXIT_WRONG_SETUP, error.counts)
        if isinstance(error, Stopped):
            return cls(stage, redacted(str(error)), EXIT_STOPPED)
        name = "" if isinstance(error, StoreError) else f"{type(error).__name__}: "
        return cls(stage, redacted(f"{name}{first_line(error)}"), EXIT_CRASH)

    @classmethod
    def read(cls, path: Path) -> "Failure":
        """Read `ERROR_FILE`."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def write(self, path: Path) -> None:
        """Write `ERROR_FILE`, or nothing where the disk is full: the sentence is on stderr too."""
        try:
            path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        except OSError as error:
            if not is_full_disk(error):
                raise
            path.unlink(missing_ok=True)


def run_reported(name: str, work: Callable[[], object], shown: Callable[[str], str] = str) -> int:
    """Run a command.

    Args:
        name: Of the stage or command.
        work: What to do.
        shown: What is done with the sentence.

    Returns:
        0, or after one sentence on stderr EXIT_WRONG_SETUP, EXIT_STOPPED, or EXIT_CRASH for a store that does not
        answer.

    Raises:
        Exception: Whatever else `work` raises, so that its traceback is seen.
    """
    try:
        work()
    except Exception as error:
        failure = Failure.of(name, error)
        if not isinstance(error, (StageError, StoreError, Stopped)):
            raise
        print(f"error: {shown(failure.sentence)}", file=sys.stderr)
        return failure.exit_code
    return 0
