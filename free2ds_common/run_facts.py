"""When and how a run was made, which the command that starts it tells its stages through their environment."""

import os
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from free2ds_common.redact import redacted

STARTED, COMMAND, IMAGE = "FREE2DS_STARTED", "FREE2DS_COMMAND", "FREE2DS_IMAGE"
_THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run besides its settings.

    Attributes:
        started: Date and time of its start, UTC, ISO 8601.
        seconds: From there until the summary was put together.
        command: The command line, without credentials; empty where no command of this machine started the run.
        threads: CPU threads per stage.
    """

    started: str
    seconds: float
    command: str
    threads: int


def run_facts(stage_started: float) -> RunFacts:
    """The facts of the run that this process is a part of, from its environment.

    Args:
        stage_started: Seconds since the epoch; stands in for the run's start where nobody told it.
    """
    told = os.environ.get(STARTED, "")
    started = datetime.fromisoformat(told) if told else datetime.fromtimestamp(stage_started, UTC)
    threads = re.match(r"[1-9]\d*", os.environ.get(_THREADS, ""))
    return RunFacts(
        started=started.isoformat(timespec="seconds"),
        seconds=round(max(0.0, time.time() - started.timestamp()), 1),
        command=redacted(os.environ.get(COMMAND, "")),
        threads=int(threads[0]) if threads else os.cpu_count() or 1,
    )


def image() -> str:
    """The image that this process runs in, as the pipeline names it; empty where it does not say."""
    return os.environ.get(IMAGE, "")


def environment_of(started: float, command: str) -> dict[str, str]:
    """What the command that starts a run adds to its stages' environment.

    Args:
        started: Seconds since the epoch.
        command: The command line, without credentials.
    """
    return {STARTED: datetime.fromtimestamp(started, UTC).isoformat(), COMMAND: command}
