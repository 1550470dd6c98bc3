"""Ending at a good place when the system asks to: SIGTERM, before a pod is taken away or after Ctrl-C."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):
    """The work ended early because the system asked for it: EXIT_STOPPED, one sentence. A rerun goes on from there."""


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Take SIGTERM as a request for the length of a block; a second one ends the process as ever.

    Yields:
        Whether it has come. Never outside the main thread, which alone is told of signals.
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested.is_set
        return

    def request(number: int, frame: FrameType | None) -> None:
        requested.set()
        signal.signal(signal.SIGTERM, before)

    before = signal.signal(signal.SIGTERM, request)
    try:
        yield requested.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
