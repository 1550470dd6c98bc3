"""Work in a process of its own: its time and its memory, whatever this process has loaded."""

import os
import signal
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

from free2ds_common.inference.heap import resident_bytes

_STRETCH_SECONDS = 20


def alone(
    work: Callable[..., dict[str, float]], *arguments: object, between: Iterable[Callable[[], object]] = ()
) -> dict[str, float]:
    """Do work in a process of its own, so that neither what it keeps nor its heap's settings matter here.

    Args:
        work: A function of a module; its result has `start` and `end`, seconds of the monotonic clock.
        *arguments: Its arguments.
        between: Done while the process is stopped, one piece after every `_STRETCH_SECONDS`; what is left when the work
            ends is done then. So both sides meet the same drift of the machine's speed.

    Returns:
        The result, with `seconds` instead of start and end, without the stops.
    """
    stops: list[tuple[float, float]] = []
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        process = pool.submit(os.getpid).result()
        running = pool.submit(work, *arguments)
        for piece in between:
            if wait([running], _STRETCH_SECONDS).not_done:
                os.kill(process, signal.SIGSTOP)
            start = time.monotonic()
            try:
                piece()
            finally:
                os.kill(process, signal.SIGCONT)
            stops.append((start, time.monotonic()))
        result = running.result()
    start, end = result.pop("start"), result.pop("end")
    stopped = sum(max(0.0, min(last, end) - max(first, start)) for first, last in stops)
    return result | {"seconds": end - start - stopped}


def resident_peak_mb(reset: bool = False) -> float:
    """Peak resident set in MB; with `reset`, the present one, from which the peak is measured from then on."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
        return resident_bytes() / 2**20
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def show(name: str, found: dict[str, float]) -> dict[str, float]:
    """Print what was measured, and hand it on."""
    print(f"{name}: " + ", ".join(f"{what} {value:.2f}" for what, value in found.items()), flush=True)
    return found
