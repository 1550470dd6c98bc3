"""How every benchmark ends: one line per bound, and an exit code that says whether all hold."""

import gc
import statistics
import time
from collections.abc import Callable


class Bounds:
    """Collects measured values and the bounds they must keep."""

    def __init__(self) -> None:
        """Start with no bound."""
        self._lines: list[str] = []
        self._short = False

    def at_most(self, name: str, measured: float, bound: float) -> None:
        """`measured` must not exceed `bound`."""
        self._add(name, measured, f"<={bound:g}", measured <= bound)

    def at_least(self, name: str, measured: float, bound: float) -> None:
        """`measured` must reach `bound`."""
        self._add(name, measured, f">={bound:g}", measured >= bound)

    def _add(self, name: str, measured: float, bound: str, holds: bool) -> None:
        self._lines.append(f"{name} {measured:.4g} {bound} {'ok' if holds else 'short'}")
        self._short |= not holds
        print(self._lines[-1], flush=True)

    def report(self) -> int:
        """Print all lines once more, together; returns the exit code."""
        print("\nbounds: name measured bound ok|short")
        print("\n".join(self._lines))
        return int(self._short)


def medians(repeats: int, *, warm_up: bool = True, **variants: Callable[[], object]) -> dict[str, float]:
    """Seconds of each variant, median of `repeats`; the variants take turns, so that noise meets all alike.

    Args:
        repeats: Timed rounds.
        warm_up: Begin with one round that is not timed.
        **variants: What to run.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(not warm_up, repeats + 1):
        for name, work in variants.items():
            gc.collect()
            start = time.perf_counter()
            work()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
