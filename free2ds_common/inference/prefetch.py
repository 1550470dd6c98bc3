"""Loads pictures ahead of the model: threads read, decode and preprocess them; they are handed over in order."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from free2ds_common.inference.generation import PictureGroup, Question
from free2ds_common.inference.model import Pixels
from free2ds_common.pictures import (
    MAX_PIXELS,
    PictureProblem,
    PixelBudget,
    decode_picture,
    picture_pixels,
    read_picture_bytes,
)


@dataclass(frozen=True)
class PictureQuestions:
    """Questions about a picture that is not loaded yet.

    Attributes:
        image: Path below the image root.
        questions: At least one.
    """

    image: str
    questions: tuple[Question, ...]


def prefetch(
    groups: Iterable[PictureQuestions],
    image_root_uri: str,
    preprocess: Callable[[Image.Image], Pixels],
    max_pictures: int,
    on_problem: Callable[[PictureQuestions, PictureProblem], None],
) -> Iterator[PictureGroup]:
    """Load pictures in the background.

    Args:
        groups: In the order wanted; `max_pictures` of them are read ahead.
        image_root_uri: Where the pictures are.
        preprocess: A picture in RGB to named tensors; called in several threads.
        max_pictures: Pictures in memory or in work at a time.
        on_problem: Called for a picture that cannot be used; its questions are left out.

    Yields:
        The groups in order, with pixels.
    """
    budget = PixelBudget(MAX_PIXELS)

    def load(image: str) -> Pixels:
        data = read_picture_bytes(image_root_uri, image)
        # Decoding and preprocessing hold several copies of a picture.
        with budget.taken(picture_pixels(data, image)):
            return preprocess(decode_picture(data, image))

    source = iter(groups)
    pending: deque[tuple[PictureQuestions, Future[Pixels]]] = deque()
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1), thread_name_prefix="pictures") as pool:
        try:
            while True:
                while len(pending) < max_pictures and (group := next(source, None)) is not None:
                    pending.append((group, pool.submit(load, group.image)))
                if not pending:
                    return
                group, future = pending.popleft()
                try:
                    pixels = future.result()
                except PictureProblem as problem:
                    on_problem(group, problem)
                    continue
                yield PictureGroup(pixels, group.questions)
        finally:
            for _, future in pending:
                future.cancel()
