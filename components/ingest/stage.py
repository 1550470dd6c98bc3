"""Reads a LLaVA data set, checks every record and its picture once, and numbers the usable ones."""

import logging
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from components.ingest.config import IngestConfig
from components.ingest.reader import BrokenLine, DatasetReader, open_records
from components.ingest.records import PLACEHOLDER, TOO_DEEP, CheckedRecord, RecordProblem, check_record
from components.ingest.rejects import RejectLog
from free2ds_common.datasets import DatasetWriter
from free2ds_common.errors import StageError
from free2ds_common.outcomes import IMAGE_FAILURES
from free2ds_common.pictures import PictureProblem, decode_picture, read_picture_bytes
from free2ds_common.result import Counts, StageResult, check_reject_fraction, exceeds
from free2ds_common.runlog import Progress
from free2ds_common.schemas import RECORDS
from free2ds_common.storage import require_folder

logger = logging.getLogger(__name__)

# Pictures on an object store take tens of milliseconds each, most of it waiting.
FETCH_THREADS = 32
# A picture of the largest accepted size takes 700 MB while it is decoded, so few at a time.
DECODE_THREADS = min(8, os.cpu_count() or 1)
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
        read = written = with_image = unnamed_pictures = 0
        rows: list[dict[str, Any]] = []
        with RejectLog(config.rejects) as rejects:
            for record, checked in _checked_in_order(reader, config.image_root_uri):
                if isinstance(checked, CheckedRecord):
                    written += 1
                    with_image += checked.image is not None
                    unnamed_pictures += checked.image is None and PLACEHOLDER in (checked.question or "")
                    rows.append({"unique_id": written, **vars(checked)})
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
        _require_usable(config, counts, reasons, with_image)
        details = {
            "dataset_uri": config.dataset_uri,
            "dataset_sha256": reader.sha256,
            "image_root_uri": config.image_root_uri,
            "max_reject_fraction": config.max_reject_fraction,
            "reject_reasons": reasons,
            "records_with_image": with_image,
            "records_text_only": written - with_image,
            "placeholder_without_image": unnamed_pictures,
        }
        writer.manifest.update({**details, "counts": vars(counts)})
    logger.info("read %d = written %d + rejected %d %s", read, written, counts.rejected, reasons or "")
    if unnamed_pictures:
        logger.warning(
            "%d records ask about %s but name no picture; they count as text-only", unnamed_pictures, PLACEHOLDER
        )
    return StageResult(
        counts=counts,
        metrics={"records_with_image": with_image, "records_text_only": written - with_image},
        metadata=details,
    )


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
            f"{config.dataset_uri} name is there (see {config.rejects}). image_root_uri must be the folder that the "
            f"records' `image` is relative to.",
            asdict(counts),
        )
    check_reject_fraction(counts, config.max_reject_fraction, reasons, config.dataset_uri)
    if not counts.written:
        raise StageError(
            f"{config.dataset_uri}: none of its {counts.read} records can be used (see {config.rejects}).",
            asdict(counts),
        )


def _checked_in_order(
    reader: DatasetReader, image_root_uri: str
) -> Iterator[tuple[object, CheckedRecord | RecordProblem]]:
    """Each record with its check, in input order, while threads look at the pictures of the records behind it."""
    waiting: deque[tuple[object, CheckedRecord | RecordProblem]] = deque()
    with ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="picture") as pool:
        pictures = _Pictures(image_root_uri, pool)

        def oldest() -> tuple[object, CheckedRecord | RecordProblem]:
            record, checked = waiting.popleft()
            if isinstance(checked, CheckedRecord) and checked.image is not None:
                checked = pictures.problem(checked.image) or checked
            return record, checked

        try:
            for record in reader:
                checked = _check(record)
                if isinstance(checked, CheckedRecord) and checked.image is not None:
                    pictures.look_at(checked.image)
                waiting.append((record, checked))
                if len(waiting) >= WINDOW:
                    yield oldest()
            while waiting:
                yield oldest()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _as_it_came(record: object, problem: RecordProblem) -> object:
    """What the reject log keeps of a record: all of it, unless it is too deep to be written."""
    if isinstance(record, BrokenLine):
        return record.text
    return None if problem.reason == TOO_DEEP else record


def _check(record: object) -> CheckedRecord | RecordProblem:
    if isinstance(record, BrokenLine):
        return RecordProblem("not_json", record.detail)
    try:
        return check_record(record)
    except RecordProblem as problem:
        return problem


class _Pictures:
    """Every distinct picture is read and decoded once; what is wrong with it is remembered."""

    def __init__(self, image_root_uri: str, pool: ThreadPoolExecutor) -> None:
        self._root, self._pool = image_root_uri, pool
        self._decoding = threading.BoundedSemaphore(DECODE_THREADS)
        self._results: dict[str, Future[RecordProblem | None] | RecordProblem | None] = {}

    def look_at(self, image: str) -> None:
        """Start to check a picture, unless it is known."""
        if not self._results:
            require_folder("image_root_uri", self._root)
        if image not in self._results:
            self._results[image] = self._pool.submit(self._try, image)

    def problem(self, image: str) -> RecordProblem | None:
        """What is wrong with a picture that `look_at` was given."""
        result = self._results[image]
        if isinstance(result, Future):
            result = self._results[image] = result.result()
        return result

    def _try(self, image: str) -> RecordProblem | None:
        try:
            data = read_picture_bytes(self._root, image)
            with self._decoding:
                decode_picture(data, image)
        except PictureProblem as problem:
            return RecordProblem(problem.reason, problem.detail)
        return None
