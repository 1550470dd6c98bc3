"""In which order records are learnt from: steps of one kind each, passes of like length."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler


def epoch_order(lengths: np.ndarray, has_picture: np.ndarray, batch_size: int, generator: torch.Generator) -> list[int]:
    """All records once, in random steps of pictures or of text alone.

    The records of a step are sorted by length, the longest first, so that those that pass together need little padding.
    What is left over of both kinds comes last.

    Args:
        lengths: int64, (N,): tokens.
        has_picture: bool, (N,).
        batch_size: Records of a step.
        generator: Decides.

    Source:
        LLaVA's `group_by_modality_length`. Differs: whole steps are sorted, not dealt out.
    """

    def sorted_by_length(indices: np.ndarray) -> np.ndarray:
        return indices[np.argsort(-lengths[indices], kind="stable")]

    steps, rest = [], []
    for kind in (True, False):
        indices = np.flatnonzero(has_picture == kind)
        shuffled = indices[torch.randperm(len(indices), generator=generator).numpy()]
        whole = len(shuffled) - len(shuffled) % batch_size
        steps += [sorted_by_length(shuffled[start : start + batch_size]) for start in range(0, whole, batch_size)]
        rest.append(sorted_by_length(shuffled[whole:]))
    order = [steps[place] for place in torch.randperm(len(steps), generator=generator).tolist()]
    return [int(index) for step in (*order, *rest) for index in step]


class GroupedSampler(Sampler[int]):
    """`epoch_order` with a generator of its own for each epoch: nothing else that is random can change it.

    Attributes:
        epoch: From 0; decides the order together with the seed.
    """

    def __init__(self, lengths: np.ndarray, has_picture: np.ndarray, batch_size: int, seed: int) -> None:
        """Keep what decides the order; the first three as in `epoch_order`."""
        self._lengths, self._has_picture = lengths, has_picture
        self._batch_size, self._seed = batch_size, seed
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        """The records of the epoch."""
        generator = torch.Generator().manual_seed(self._seed + self.epoch)
        return iter(epoch_order(self._lengths, self._has_picture, self._batch_size, generator))

    def __len__(self) -> int:
        """Records of an epoch."""
        return len(self._lengths)
