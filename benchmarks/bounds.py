"""Measuring in turns, and bounds: one line each, and an exit code that says whether all hold."""

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


class Rounds:
    """Seconds of several variants that took turns, by the clock."""

    def __init__(self, seconds: dict[str, list[float]], of_processor: dict[str, list[float]] | None = None) -> None:
        """Seconds of each variant, one entry per round, by the clock and of the processor."""
        self._seconds = seconds
        self._of_processor = of_processor or {}

    @property
    def processor(self) -> "Rounds":
        """The same rounds in seconds of processor time, all threads together: work beside them hardly changes it."""
        return Rounds(self._of_processor)

    def median(self, name: str) -> float:
        """Seconds of a variant."""
        return statistics.median(self._seconds[name])

    def per_record(self, records: int) -> str:
        """Seconds per record of every variant, to print."""
        return ", ".join(f"{name} {self.median(name) / records:.3f}" for name in self._seconds)

    def ratio(self, name: str, *others: str) -> float:
        """Time of a variant over that of the others together: the median of the rounds' ratios.

        The machine's speed drifts between rounds more than within one. Over 25 rounds of two variants, the ratio of
        five rounds' medians went from 0.84 to 1.02, the median of their ratios from 0.87 to 0.99.
        """
        below = zip(*(self._seconds[other] for other in others), strict=True)
        ratios: list[float] = [over / sum(under) for over, under in zip(self._seconds[name], below, strict=True)]
        return statistics.median(ratios)


def in_turns(repeats: int, *, warm_up: bool = True, **variants: Callable[[], object]) -> Rounds:
    """Time the variants in turns, round by round.

    Args:
        repeats: Timed rounds.
        warm_up: Begin with one round that is not timed.
        **variants: What to run.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    of_processor: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(not warm_up, repeats + 1):
        for name, work in variants.items():
            gc.collect()
            start, worked = time.perf_counter(), time.process_time()
            work()
            if number:
                seconds[name].append(time.perf_counter() - start)
                of_processor[name].append(time.process_time() - worked)
    return Rounds(seconds, of_processor)
