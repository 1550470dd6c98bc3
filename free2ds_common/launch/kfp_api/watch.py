"""Follows a run to its end and shows where it stands."""

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TextIO

from kfp_server_api import V2beta1Run

from free2ds_common.launch.kfp_api.backend import Backend, Refusal
from free2ds_common.launch.kfp_api.runs import get_run, is_finished
from free2ds_common.launch.kfp_api.steps import Step, StepName, steps_of

logger = logging.getLogger(__name__)

# Between two looks.
POLL_S = 10.0
# Looks in a row that may fail: a run of many hours outlives a restart of the API.
PATIENCE = 30
_UP, _CLEAR = "\x1b[{}A", "\x1b[K"


class View:
    """The steps of a run: on a terminal one line each, rewritten in place; elsewhere a line for every change."""

    def __init__(self, names: Sequence[StepName], stream: TextIO) -> None:
        """Begin with nothing shown.

        Args:
            names: Of all steps, in their order.
            stream: Gets the lines.
        """
        self._names, self._stream = names, stream
        self._shown: dict[str, str] = {}
        self._notes: set[str] = set()
        self._in_place = stream.isatty()

    def show(self, steps: Iterable[Step], notes: Iterable[str] = ()) -> None:
        """Show where the run stands now.

        Args:
            steps: Those that have begun.
            notes: What is said of waiting pods, a line each; every one is shown once.
        """
        now = progress(self._names, steps)
        fresh = [note for note in notes if note not in self._notes]
        self._notes.update(fresh)
        if self._in_place:
            self._rewrite(now, fresh)
        else:
            clock = time.strftime("%H:%M:%S")
            for name, text in now.items():
                if self._shown.get(name) != text:
                    print(f"{clock} {name}: {text}", file=self._stream, flush=True)
            for note in fresh:
                print(f"{clock} {note}", file=self._stream, flush=True)
        self._shown = now

    def _rewrite(self, now: dict[str, str], fresh: Sequence[str]) -> None:
        if self._shown:
            self._stream.write(_UP.format(len(self._shown)))
        width = max(map(len, now), default=0)
        for line in [*fresh, *(f"  {name:<{width}}  {text}" for name, text in now.items())]:
            self._stream.write(f"{line}{_CLEAR}\n")
        self._stream.flush()


def progress(names: Sequence[StepName], steps: Iterable[Step]) -> dict[str, str]:
    """Where each step that has begun stands: its state, or in a loop how many turns are in which.

    Args:
        names: Of all steps, in their order.
        steps: Those that have begun.
    """
    states: dict[str, list[str]] = {}
    for step in steps:
        states.setdefault(step.name.title, []).append(step.state.lower() or "pending")
    shown = {}
    for name in sorted(states, key=[known.title for known in names].index):
        counts = Counter(states[name])
        total = counts.total()
        several = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        shown[name] = states[name][0] if total == 1 else f"{several} of {total}"
    return shown


def follow(
    backend: Backend,
    run_id: str,
    names: Sequence[StepName],
    waiting: Callable[[V2beta1Run], Iterable[str]],
    stream: TextIO | None = None,
) -> V2beta1Run:
    """Wait for a run's end.

    Args:
        backend: Where it runs.
        run_id: The run.
        names: Of all its steps.
        waiting: Says of a V2beta1Run what its pods wait for.
        stream: Gets the view; None for stdout.

    Returns:
        V2beta1Run at its end.

    Raises:
        StageError: The backend does not answer for as long as `PATIENCE` looks take, or refuses.
    """
    view = View(names, stream or sys.stdout)
    while True:
        run = _patiently(backend, run_id)
        view.show(steps_of(run, names), () if is_finished(run) else waiting(run))
        if is_finished(run):
            return run
        time.sleep(POLL_S)


def _patiently(backend: Backend, run_id: str) -> V2beta1Run:
    for _ in range(PATIENCE - 1):
        try:
            return get_run(backend, run_id)
        except Refusal as refusal:
            if not refusal.may_pass:
                raise
            logger.debug("%s", refusal)
        time.sleep(POLL_S)
    return get_run(backend, run_id)
