"""CUDA graphs of the decode step.

A decode step of a 7B model is some 1,400 small kernels. Launched one by one from Python they take twice as long as the
GPU needs for them; a graph launches all at once. A graph's shapes are fixed, so rows and lengths are rounded up.
"""

import logging
from collections import Counter
from collections.abc import Callable

import torch

logger = logging.getLogger(__name__)

# Tokens and rows are rounded up to multiples of these: finer steps waste less work and take more graphs.
LENGTH_STEP = 64
ROW_STEP = 8
# Capturing takes as long as some five steps gain; the first runs also get the libraries ready for it.
RUNS_BEFORE_CAPTURE = 4

Step = Callable[[int, int], None]


class DecodeGraphs:
    """Replays a step whose inputs and outputs stay where they are.

    The step is given to every call rather than kept: kept, it would hold its owner, and the owner's memory, in a cycle.
    """

    def __init__(self) -> None:
        """Start without graphs."""
        self._usable = True
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._runs: Counter[tuple[int, int]] = Counter()

    def forget(self) -> None:
        """Drop all graphs: a tensor that they use is elsewhere now."""
        self._graphs.clear()

    def run(self, step: Step, rows: int, total: int) -> None:
        """Run a step, from a graph if its shape is a frequent one.

        Args:
            step: Called with `rows` and `total`. Reads and writes the same tensors in every call, and never waits for
                the device.
            rows: Rounded up.
            total: Tokens to attend to, rounded up.
        """
        shape = (rows, total)
        self._runs[shape] += 1
        if self._usable and shape not in self._graphs and self._runs[shape] > RUNS_BEFORE_CAPTURE:
            self._capture(step, shape)
        if graph := self._graphs.get(shape):
            graph.replay()
        else:
            step(rows, total)

    def _capture(self, step: Step, shape: tuple[int, int]) -> None:
        """Record the step at a shape; it does not run."""
        graph = torch.cuda.CUDAGraph()
        # One pool for all: no graph reads what another one left.
        pool = next((other.pool() for other in self._graphs.values()), None)
        try:
            # Other threads may go on using the device.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                step(*shape)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # A decoder that decides on the host what to launch, as some mixtures of experts do.
            logger.warning("decode steps run without CUDA graphs: %s", str(error).partition("\n")[0])
            self._usable = False
            self._graphs.clear()
        else:
            self._graphs[shape] = graph


def rounded_rows(rows: int, limit: int) -> int:
    """Rows of the graph for some rows, at most `limit`."""
    return min(limit, -(-rows // ROW_STEP) * ROW_STEP)


def rounded_length(length: int) -> int:
    """Tokens of the graph for some tokens."""
    return -(-length // LENGTH_STEP) * LENGTH_STEP
