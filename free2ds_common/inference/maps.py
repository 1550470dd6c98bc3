"""From the attention of single steps to one map per record (method section 2)."""

import torch

EPSILON = 1e-10


def aggregate_steps(steps: torch.Tensor) -> torch.Tensor | None:
    """The map of a record.

    Args:
        steps: float32, (G, positions), step t's mean attention of its last query row on the vision tokens.

    Returns:
        float32, (positions,), non-negative, sum 1; None where G = 1, for which the method defines no map.

    Source:
        method.md section 2: every step but the last is divided by the last, normalised, summed, normalised again.
    """
    if len(steps) < 2:
        return None
    relative = steps[:-1] / (steps[-1] + EPSILON)
    relative = relative / relative.sum(dim=-1, keepdim=True)
    total = relative.sum(dim=0)
    return total / total.sum()
