"""Reads a LLaVA data set, checks every record and its picture once, and numbers the usable ones."""

import logging
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from types import TracebackType
from typing import Any

from components.ingest.config import IngestConfig
from components.ingest.reader import DatasetReader, open_records
from components.ingest.records import PLACEHOLDER, CheckedRecord, RecordProblem, check_record
from components.ingest.rejects import RejectLog
from components.ingest.values import TOO_DEEP, BrokenRecord
from free2ds_common.datasets import DatasetWriter
from free2ds_common.errors import StageError
from free2ds_common.outcomes import IMAGE_FAILURES
from free2ds_common.pictures import MAX_PIXELS, PictureProblem, PixelBudget, check_picture, read_picture_bytes
from free2ds_common.result import Counts, StageResult, check_reject_fraction, exceeds
from free2ds_common.runlog import Progress
from free2ds_common.schemas import RECORDS
from free2ds_common.storage import require_folder

logger = logging.getLogger(__name__)

# Pictures on an object store take tens of milliseconds each, most of it waiting.
FETCH_THREADS = 32
# Threads of their own: glibc keeps what a thread has freed for that thread, and decoded pictures are large.
DECODE_THREADS = min(8, os.cpu_count() or 1)
# One of the largest accepted size, which takes 0.1 to 1.2 GB, or several smaller ones.
PIXELS_AT_A_TIME = MAX_PIXELS
# Of the pictures of one colour.
NAMES_KEPT, NAMES_SHOWN = 20, 3
# Records that wait for the checks of their pictures.
WINDOW = 16 * FETCH_THREADS
ROWS_PER_WRITE = 1000


def run(config: IngestConfig) -> StageResult:
    """Write the usable records and the rejected ones.

    Args:
        config: Settings.

    Returns:
        The counts; per reason the rejected records.

    Raises:
        StageError: A wrong setting, no data set, no usable record, or more rejects than allowed.
    """
    config.check()
    with open_records(config.dataset_uri) as reader, DatasetWriter(config.records, RECORDS) as writer:
        logger.info("reading %s (%s)", config.dataset_uri, "JSON list" if reader.is_list else "JSON lines")
        progress = Progress(None, "records", logger)
        read = written = with_image = unnamed_pictures = without_question = 0
        rows: list[dict[str, Any]] = []
        with RejectLog(config.rejects) as rejects, _Pictures(config.image_root_uri) as pictures:
            for record, checked in _checked_in_order(reader, pictures):
                if isinstance(checked, CheckedRecord):
                    written += 1
                    with_image += checked.image is not None
                    unnamed_pictures += checked.image is None and PLACEHOLDER in (checked.question or "")
                    without_question += checked.image is not None and checked.question is None
                    rows.append({"unique_id": written, "position": read, **vars(checked)})
                    if len(rows) == ROWS_PER_WRITE:
                        writer.write(rows)
                        rows = []
                else:
                    rejects.add(read, checked.reason, checked.detail, _as_it_came(record, checked))
                read += 1
                progress.add()
        progress.close()
        if rows:
            writer.write(rows)
        reasons = dict(sorted(rejects.reasons.items()))
        counts = Counts(read=read, written=written, rejected=sum(reasons.values()))
        with _told_with_rejects(rejects):
            _require_usable(config, counts, reasons, with_image)
        details: dict[str, Any] = {
            "dataset_uri": config.dataset_uri,
            "dataset_sha256": reader.sha256,
            "image_root_uri": config.image_root_uri,
            "max_reject_fraction": config.max_reject_fraction,
            "reject_reasons": reasons,
            "records_with_image": with_image,
            "records_text_only": written - with_image,
            "placeholder_without_image": unnamed_pictures,
            "records_without_question": without_question,
            "pictures_of_one_colour": pictures.of_one_colour,
            "names_of_pictures_of_one_colour": pictures.names_of_one_colour,
        }
        writer.manifest.update({**details, "counts": vars(counts)})
    logger.info("read %d = written %d + rejected %d %s", read, written, counts.rejected, reasons or "")
    _warn(details)
    return StageResult(
        counts=counts,
        metrics={
            "records_with_image": with_image,
            "records_text_only": written - with_image,
            "pictures_of_one_colour": pictures.of_one_colour,
        },
        # Of any length; the manifest has them.
        metadata={name: value for name, value in details.items() if not name.startswith("names_of_")},
    )


def _warn(details: Mapping[str, Any]) -> None:
    """Say what is odd about the records that are used."""
    if count := details["placeholder_without_image"]:
        logger.warning("%d records ask about %s but name no picture; they count as text-only", count, PLACEHOLDER)
    if count := details["records_without_question"]:
        logger.warning(
            "%d records with a picture have no human turn that a gpt turn directly follows; no model looks at them",
            count,
        )
    if count := details["pictures_of_one_colour"]:
        names = [repr(name) for name in details["names_of_pictures_of_one_colour"][:NAMES_SHOWN]]
        shown = ", ".join(names) + (", ..." if count > len(names) else "")
        logger.warning("%d pictures have one colour only, where no model can look at anything: %s", count, shown)


@contextmanager
def _told_with_rejects(rejects: RejectLog) -> Iterator[None]:
    """Tell the first rejected records with a refusal: a failed step of Kubeflow hands no file on.

    Raises:
        StageError: That of the block.
    """
    try:
        yield
    except StageError as error:
        if not rejects.first:
            raise
        raise StageError(f"{error} The first: {'; '.join(rejects.first)}.", error.counts) from None


def _require_usable(config: IngestConfig, counts: Counts, reasons: dict[str, int], with_image: int) -> None:
    """Stop if the input as a whole is of no use.

    Args:
        config: Settings.
        counts: Records read, written, rejected.
        reasons: Rejected records per reason.
        with_image: Records written that have a picture.

    Raises:
        StageError: It carries the counts.
    """
    if not counts.read:
        raise StageError(f"{config.dataset_uri}: the list is empty, wanted records.", asdict(counts))
    # If not one picture was found, good or bad, the folder is wrong, not the records.
    none_there = not with_image and {"image_missing"} == reasons.keys() & {*IMAGE_FAILURES} - {"image_outside_root"}
    if none_there and exceeds(counts, config.max_reject_fraction):
        raise StageError(
            f"{config.image_root_uri}: none of the {reasons['image_missing']} pictures that the records of "
            f"{config.dataset_uri} name is there. image_root_uri must be the folder that the "
            f"records' `image` is relative to.",
            asdict(counts),
        )
    check_reject_fraction(counts, config.max_reject_fraction, reasons, config.dataset_uri)
    if not counts.written:
        raise StageError(
            f"{config.dataset_uri}: none of its {counts.read} records can be used.",
            asdict(counts),
        )


def _checked_in_order(
    reader: DatasetReader, pictures: "_Pictures"
) -> Iterator[tuple[object, CheckedRecord | RecordProblem]]:
    """Each record with its check, in input order, while threads look at the pictures of the records behind it."""
    waiting: deque[tuple[object, CheckedRecord | RecordProblem]] = deque()

    def oldest() -> tuple[object, CheckedRecord | RecordProblem]:
        record, checked = waiting.popleft()
        if isinstance(checked, CheckedRecord) and checked.image is not None:
            checked = pictures.problem(checked.image) or checked
        return record, checked

    for record in reader:
        checked = _check(record)
        if isinstance(checked, CheckedRecord) and checked.image is not None:
            pictures.look_at(checked.image)
        waiting.append((record, checked))
        if len(waiting) >= WINDOW:
            yield oldest()
    while waiting:
        yield oldest()


def _as_it_came(record: object, problem: RecordProblem) -> object:
    """What the reject log keeps of a record: all of it, unless it is too deep to be written."""
    if isinstance(record, BrokenRecord):
        return record.text
    return None if problem.reason == TOO_DEEP else record


def _check(record: object) -> CheckedRecord | RecordProblem:
    if isinstance(record, BrokenRecord):
        return RecordProblem(record.reason, record.detail)
    try:
        return check_record(record)
    except RecordProblem as problem:
        return problem


class _Pictures:
    """Every distinct picture is read and decoded once; what was found is remembered. Use as a context manager.

    Attributes:
        of_one_colour: Usable pictures so far that have one colour only.
        names_of_one_colour: The first `NAMES_KEPT` of them, in input order.
    """

    def __init__(self, image_root_uri: str) -> None:
        self.of_one_colour = 0
        self.names_of_one_colour: list[str] = []
        self._root = image_root_uri
        self._fetching = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="fetch")
        self._decoding = ThreadPoolExecutor(DECODE_THREADS, thread_name_prefix="decode")
        self._budget = PixelBudget(PIXELS_AT_A_TIME)
        self._results: dict[str, Future[RecordProblem | bool] | RecordProblem | None] = {}

    def __enter__(self) -> "_Pictures":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # First those that hand over to the others.
        self._fetching.shutdown(cancel_futures=True)
        self._decoding.shutdown(cancel_futures=True)

    def look_at(self, image: str) -> None:
        """Start to check a picture, unless it is known."""
        if not self._results:
            require_folder("image_root_uri", self._root)
        if image not in self._results:
            self._results[image] = self._fetching.submit(self._try, image)

    def problem(self, image: str) -> RecordProblem | None:
        """What is wrong with a picture that `look_at` was given."""
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
