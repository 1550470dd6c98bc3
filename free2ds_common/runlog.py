"""Logging and progress of a stage."""

import logging
import sys
import time
import traceback
from collections.abc import Callable
from types import TracebackType

from tqdm import tqdm

from free2ds_common.redact import redacted

PROGRESS_INTERVAL_S = 30.0


class RedactingFormatter(logging.Formatter):
    """Writes lines, tracebacks included, without the credentials of URIs."""

    def __init__(self, line: str | None = None, shown: Callable[[str], str] = str) -> None:
        """Write lines of a format, each as `shown` makes it."""
        super().__init__(line)
        self._shown = shown

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        return redacted(self._shown(super().format(record)))


def configure_logging(*, replace: bool = False, shown: Callable[[str], str] = str) -> None:
    """Send INFO and above to stdout, and an uncaught exception's traceback to stderr, both without credentials.

    A second call changes nothing.

    Args:
        replace: Drop what another library has set up (the KFP executor's lines name no module).
        shown: What else is done with every line.
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s", shown))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=replace)
    quiet_libraries()
    sys.excepthook = print_redacted_traceback


def quiet_libraries() -> None:
    """Keep libraries from logging what is no news of the run's."""
    for chatty in ("httpx", "urllib3", "google", "fsspec", "PIL", "transformers"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # They log the traceback of a request that failed; what the failure means is said by free2ds_common.retry.
    for chatty in ("gcsfs", "httpx2", "aiobotocore", "botocore"):
        logging.getLogger(chatty).setLevel(logging.CRITICAL)


def print_redacted_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What Python does with an uncaught exception, without the credentials of URIs."""
    print(redacted("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


class Progress:
    """A tqdm bar on a terminal, otherwise one log line at most every 30 s: done/total, rate, ETA."""

    def __init__(self, total: int | None, unit: str, logger: logging.Logger) -> None:
        """Start counting.

        Args:
            total: Number of units to come; None if it is not known.
            unit: What is counted, in the plural ("records").
            logger: Where the lines go if stdout is not a terminal.
        """
        self._total, self._unit, self._logger = total, unit, logger
        self._done = 0
        self._start = self._last = time.monotonic()
        self._bar = tqdm(total=total, unit=f" {unit}") if sys.stdout.isatty() else None

    def add(self, count: int = 1) -> None:
        """Report `count` more units as done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self._last >= PROGRESS_INTERVAL_S:
            self._last = now
            rate = self._done / (now - self._start)
            if self._total is None:
                self._logger.info("%d %s, %.2f per second", self._done, self._unit, rate)
                return
            progress = f"{self._done}/{self._total} {self._unit}"
            seconds_left = (self._total - self._done) / rate
            self._logger.info("%s, %.2f per second, about %.0f s left", progress, rate, seconds_left)

    def close(self) -> None:
        """End the bar, or log the final count and seconds."""
        if self._bar is not None:
            self._bar.close()
        else:
            seconds = time.monotonic() - self._start
            total = self._done if self._total is None else self._total
            self._logger.info("%d/%d %s done in %.1f s", self._done, total, self._unit, seconds)
