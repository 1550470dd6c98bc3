"""Records to a batch: pictures loaded, tokens padded, labels on answers alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from components.finetune.samples import Sample
from free2ds_common.pictures import PictureProblem, load_picture

# No label: torch's cross entropy leaves it out.
IGNORED = -100
# Of a batch: what could not be loaded.
PROBLEMS = "problems"


@dataclass(frozen=True)
class Collator:
    """Makes batches; goes to the processes that load pictures.

    Attributes:
        image_root_uri: Where the pictures are.
        preprocess: A picture in RGB to float32, (3, side, side).
        picture_shape: Of what `preprocess` returns.
        image_token: Stands for a picture, and for each of its tokens.
        vision_tokens: Tokens that a picture becomes.
        pad_token: Fills the end of shorter records.
    """

    image_root_uri: str
    preprocess: Callable[[Image.Image], torch.Tensor]
    picture_shape: tuple[int, ...]
    image_token: int
    vision_tokens: int
    pad_token: int

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """A batch.

        Returns:
            `input_ids`, `attention_mask` and `labels`, int64, (n, longest); `pixel_values`, float32, one row per record
            with a picture in order, where there is one; and `problems`, pairs of reason and detail: the records of
            such pictures have a blank one and no labels.

        Raises:
            StageError: A store refuses to give a picture.
            StoreError: It does not answer.
        """
        rows = [self._expanded(sample) for sample in samples]
        width = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), width), self.pad_token)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
        pixels, problems = [], []
        for row, (sample, (tokens, learnt)) in enumerate(zip(samples, rows, strict=True)):
            ids[row, : len(tokens)] = torch.from_numpy(tokens)
            mask[row, : len(tokens)] = 1
            labels[row, : len(tokens)] = torch.from_numpy(np.where(learnt, tokens, IGNORED))
            if sample.image is None:
                continue
            try:
                pixels.append(self.preprocess(load_picture(self.image_root_uri, sample.image)))
            except PictureProblem as problem:
                problems.append((problem.reason, problem.detail))
                pixels.append(torch.zeros(self.picture_shape))
                labels[row] = IGNORED
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels, PROBLEMS: problems}
        if pixels:
            batch["pixel_values"] = torch.stack(pixels)
        return batch

    def _expanded(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and what is learnt of them, with the picture's one token for each that it becomes."""
        ids, learnt = sample.ids.astype(np.int64), sample.learnt
        if sample.image is None:
            return ids, learnt
        times = np.where(ids == self.image_token, self.vision_tokens, 1)
        return np.repeat(ids, times), np.repeat(learnt, times)
