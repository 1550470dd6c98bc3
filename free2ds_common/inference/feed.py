"""Pictures ahead of the model: read, decoded and preprocessed by threads, handed over in order."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from free2ds_common.inference.decode import PictureGroup, Question
from free2ds_common.inference.model import Pixels
from free2ds_common.pictures import PictureProblem, load_picture


@dataclass(frozen=True)
class PictureQuestions:
    """Questions about one picture that is still on disk.

    Attributes:
        image: Path below the image root.
        questions: At least one.
    """

    image: str
    questions: tuple[Question, ...]


def feed(
    groups: Iterable[PictureQuestions],
    image_root_uri: str,
    preprocess: Callable[..., Pixels],
    ahead: int,
    on_problem: Callable[[PictureQuestions, PictureProblem], None],
) -> Iterator[PictureGroup]:
    """Load pictures in the background.

    Args:
        groups: In the order wanted; read `ahead` of what was taken.
        image_root_uri: Where the pictures are.
        preprocess: A picture in RGB to named tensors; called in several threads.
        ahead: Most pictures held or in work at a time.
        on_problem: Told of a picture that cannot be used; its questions are left out.

    Yields:
        The groups in order, with pixels.
    """

    def load(image: str) -> Pixels:
        return preprocess(load_picture(image_root_uri, image))

    source = iter(groups)
    pending: deque[tuple[PictureQuestions, Future[Pixels]]] = deque()
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1), thread_name_prefix="pictures") as pool:
        try:
            while True:
                while len(pending) < ahead and (group := next(source, None)) is not None:
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
