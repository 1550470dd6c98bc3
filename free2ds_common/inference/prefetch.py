"""Loads pictures ahead of the model: many threads read, one per core decodes and preprocesses; order is kept.

A store answers after tens of milliseconds, whatever the machine does meanwhile, so that far more threads read than
there are cores.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

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

# Files on their way or waiting to be decoded.
READERS = 32
# Of them together, as far as the largest one so far tells.
MAX_BYTES_AHEAD = 256 << 20
_DECODERS = 8


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
        groups: In the order wanted; `READERS` files are read ahead of the pictures, fewer where they are large.
        image_root_uri: Where the pictures are.
        preprocess: A picture in RGB to named tensors; called in several threads.
        max_pictures: Decoded pictures in memory or in work at a time.
        on_problem: Called for a picture that cannot be used; its questions are left out.

    Yields:
        The groups in order, with pixels.
    """
    budget = PixelBudget(MAX_PIXELS)
    cores = min(_DECODERS, os.cpu_count() or 1)
    with (
        ThreadPoolExecutor(READERS, thread_name_prefix="reading") as readers,
        ThreadPoolExecutor(cores, thread_name_prefix="decoding") as decoders,
    ):
        files = _Files(groups, partial(read_picture_bytes, image_root_uri), readers)

        def load(group: PictureQuestions, file: Future[bytes]) -> Pixels:
            data = file.result()
            # Decoding and preprocessing hold several copies of a picture.
            with budget.taken(picture_pixels(data, group.image)):
                return preprocess(decode_picture(data, group.image))

        pending: deque[tuple[PictureQuestions, Future[Pixels]]] = deque()
        try:
            while True:
                while len(pending) < max_pictures and (found := files.take()):
                    pending.append((found[0], decoders.submit(load, *found)))
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
            # Those who decode wait for those who read.
            files.cancel()
            for _, future in pending:
                future.cancel()


class _Files:
    """Files read ahead, in order."""

    def __init__(
        self, groups: Iterable[PictureQuestions], read: Callable[[str], bytes], pool: ThreadPoolExecutor
    ) -> None:
        """Read the groups' pictures in the threads of a pool."""
        self._groups, self._read, self._pool = iter(groups), read, pool
        self._reading: deque[tuple[PictureQuestions, Future[bytes]]] = deque()
        self._largest = 0

    def take(self) -> tuple[PictureQuestions, Future[bytes]] | None:
        """The next group and its file, which may still be on its way; None at the end."""
        while len(self._reading) < self._ahead() and (group := next(self._groups, None)) is not None:
            self._reading.append((group, self._pool.submit(self._file, group.image)))
        return self._reading.popleft() if self._reading else None

    def _ahead(self) -> int:
        """How many files to read ahead, by the largest one so far; at least one."""
        return max(1, min(READERS, MAX_BYTES_AHEAD // max(1, self._largest)))

    def _file(self, image: str) -> bytes:
        data = self._read(image)
        self._largest = max(self._largest, len(data))
        return data

    def cancel(self) -> None:
        """Read no more."""
        for _, file in self._reading:
            file.cancel()
