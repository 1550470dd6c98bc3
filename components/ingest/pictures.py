"""Checks the records' pictures, each once, while the records go on.

On this machine a picture is read and decoded. In a store it is looked up: 350,000 pictures are not downloaded to say
that they are there; what does not decode is found by the attention stages, which read every picture anyway.
"""

import logging
import os
import posixpath
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from free2ds_common.listing import LIST_AFTER, list_pictures
from free2ds_common.pictures import (
    MAX_BYTES,
    MAX_PIXELS,
    PictureProblem,
    PixelBudget,
    check_picture,
    is_http,
    picture_location,
    read_picture_bytes,
)
from free2ds_common.redact import redacted
from free2ds_common.retry import retried
from free2ds_common.storage import filesystem, is_local, require_folder
from free2ds_common.turns import RecordProblem

logger = logging.getLogger(__name__)

# Pictures on an object store take tens of milliseconds each, most of it waiting.
FETCH_THREADS = 32
# Threads of their own: glibc keeps what a thread has freed for that thread, and decoded pictures are large.
DECODE_THREADS = min(8, os.cpu_count() or 1)
# One of the largest accepted size, which takes 0.1 to 1.2 GB, or several smaller ones.
PIXELS_AT_A_TIME = MAX_PIXELS
# Of the pictures of one colour.
NAMES_KEPT = 20

DECODED, FOUND, NONE = "decoded", "found", "none"


class Pictures:
    """Every distinct picture is checked once; what was found is remembered. Use as a context manager.

    Attributes:
        of_one_colour: Usable pictures so far that have one colour only, of those that were decoded.
        names_of_one_colour: The first `NAMES_KEPT` of them, in input order.
    """

    def __init__(self, image_root_uri: str) -> None:
        """Check pictures below a folder; it is not looked at before the first picture."""
        self.of_one_colour = 0
        self.names_of_one_colour: list[str] = []
        self._root = image_root_uri
        self._fetching = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="fetch")
        self._decoding = ThreadPoolExecutor(DECODE_THREADS, thread_name_prefix="decode")
        self._budget = PixelBudget(PIXELS_AT_A_TIME)
        self._results: dict[str, Future[RecordProblem | bool] | RecordProblem | None] = {}
        self._store: _Store | None = None

    def __enter__(self) -> "Pictures":
        """Return the checks."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop what is under way."""
        # First those that hand over to the others.
        self._fetching.shutdown(cancel_futures=True)
        self._decoding.shutdown(cancel_futures=True)

    @property
    def checked(self) -> str:
        """How the pictures were checked: `DECODED`, `FOUND` (their bytes were not read), or `NONE` had to be."""
        if not self._results and self._store is None:
            return NONE
        return DECODED if self._store is None else FOUND

    def look_at(self, image: str) -> None:
        """Start to check a picture, unless it is known.

        Args:
            image: Path below the root in normal form.

        Raises:
            StageError: The root is no folder.
        """
        if self.checked == NONE:
            require_folder("image_root_uri", self._root)
            if not is_local(self._root):
                self._store = _Store(self._root, self._fetching)
        if self._store is not None:
            self._store.look_at(image)
        elif image not in self._results:
            self._results[image] = self._fetching.submit(self._try, image)

    def problem(self, image: str) -> RecordProblem | None:
        """What is wrong with a picture that `look_at` was given.

        Raises:
            StageError: The store refuses to say.
            StoreError: The store does not answer.
        """
        if self._store is not None:
            return self._store.problem(image)
        result = self._results[image]
        if isinstance(result, Future):
            found = result.result()
            if found is True:
                self.of_one_colour += 1
                self.names_of_one_colour += [image] if len(self.names_of_one_colour) < NAMES_KEPT else []
            result = self._results[image] = None if isinstance(found, bool) else found
        return result

    def _try(self, image: str) -> RecordProblem | bool:
        """What is wrong with a picture, or whether it has one colour only."""
        try:
            data = read_picture_bytes(self._root, image)
            return self._decoding.submit(check_picture, data, image, self._budget).result()
        except PictureProblem as problem:
            return RecordProblem(problem.reason, problem.detail)


class _Store:
    """Looks pictures up in a store, many at a time: one by one, and by listings of the folders that have many."""

    def __init__(self, image_root_uri: str, threads: ThreadPoolExecutor) -> None:
        """Look below a folder.

        Args:
            image_root_uri: URI of the folder.
            threads: Ask the store.
        """
        self._root, self._threads = image_root_uri, threads
        self._fs, self._path = filesystem(image_root_uri)
        self._may_list = not is_http(self._fs)
        self._singles: dict[str, Future[RecordProblem | None] | RecordProblem | None] = {}
        self._singles_in: Counter[str] = Counter()
        # By folder: names and sizes, first on their way; None where the store does not list it.
        self._listed: dict[str, Mapping[str, int] | None] = {}
        self._listings: dict[str, Future[Mapping[str, int] | None]] = {}
        # Not asked for, since a listing was under way.
        self._waiting: dict[str, list[str]] = {}

    def look_at(self, image: str) -> None:
        """Ask for a picture, unless it is known or its folder is being listed."""
        folder = image.rpartition("/")[0]
        if self._listed.get(folder) is not None or image in self._singles:
            return
        waiting = self._waiting.get(folder)
        if waiting is None and self._may_list and folder not in self._listed and self._singles_in[folder] >= LIST_AFTER:
            self._listings[folder] = self._threads.submit(self._list, folder)
            waiting = self._waiting[folder] = []
        if waiting is None:
            self._ask_for(image)
        else:
            waiting.append(image)

    def problem(self, image: str) -> RecordProblem | None:
        """See `Pictures.problem`."""
        folder, _, name = image.rpartition("/")
        if image not in self._singles and folder in self._listings:
            self._listed[folder] = self._listings.pop(folder).result()
            waiting = self._waiting.pop(folder)
            if self._listed[folder] is None:
                for other in {*waiting, image}:
                    self._ask_for(other)
        sizes = self._listed.get(folder)
        if sizes is not None and image not in self._singles:
            return self._judged(image, sizes.get(name))
        result = self._singles[image]
        if isinstance(result, Future):
            result = self._singles[image] = result.result()
        return result

    def _ask_for(self, image: str) -> None:
        self._singles[image] = self._threads.submit(self._single, image)
        self._singles_in[posixpath.dirname(image)] += 1

    def _single(self, image: str) -> RecordProblem | None:
        """Look one picture up."""
        try:
            fs, path, uri = picture_location(self._root, image)
            info = retried(uri, lambda: fs.info(path))
        except PictureProblem as problem:
            return RecordProblem(problem.reason, problem.detail)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return self._judged(image, None)
        return self._judged(image, None if info.get("type") == "directory" else info.get("size", 1))

    def _list(self, folder: str) -> Mapping[str, int] | None:
        """Names and sizes of the files in a folder; None if the store does not say."""
        files = list_pictures(self._fs, self._path, self._root, folder)
        return None if files is None else {name: int(file.get("size", 1)) for name, file in files.items()}

    def _judged(self, image: str, size: int | None) -> RecordProblem | None:
        """What its size says of a picture; None: it is not there."""
        if size is not None and 0 < size <= MAX_BYTES:
            return None
        uri = redacted(posixpath.join(self._root.rstrip("/"), image))
        if size is None:
            return RecordProblem("image_missing", f"no file at {uri}")
        if not size:
            return RecordProblem("image_unreadable", f"{uri} is empty")
        return RecordProblem("image_too_large", f"{uri} has more than {MAX_BYTES} bytes")
