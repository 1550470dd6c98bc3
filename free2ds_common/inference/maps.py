"""From the attention of each step to one map per record (docs/method.md, section 2)."""

import torch

EPSILON = 1e-10


def aggregate_steps(steps: torch.Tensor) -> torch.Tensor | None:
    """The map of a record.

    Args:
        steps: float32, (G, num_vision_tokens): for each step, the last query row's attention on the vision tokens,
            mean over layers and heads.

    Returns:
        float32, (num_vision_tokens,), non-negative, sum 1; None for G = 1, where the method defines no map.

    Source:
        docs/method.md, section 2: each step but the last is divided by the last and normalised; their sum is
        normalised again.
    """
    if len(steps) < 2:
        return None
    relative = steps[:-1] / (steps[-1] + EPSILON)
    relative = relative / relative.sum(dim=-1, keepdim=True)
    total = relative.sum(dim=0)
    return total / total.sum()
