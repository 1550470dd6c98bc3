"""Reads a LLaVA data set, checks every record and its picture once, and numbers the usable ones."""

import json
import logging
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, NamedTuple

import pyarrow as pa

from components.ingest.config import IngestConfig
from components.ingest.pictures import FETCH_THREADS, FOUND, Pictures
from components.ingest.reader import DatasetReader, open_records
from components.ingest.records import PLACEHOLDER, CheckedRecord, check_record
from components.ingest.rejects import RejectLog
from components.ingest.values import TOO_DEEP, BrokenRecord
from free2ds_common.datasets import DatasetWriter
from free2ds_common.errors import StageError
from free2ds_common.outcomes import IMAGE_FAILURES
from free2ds_common.result import Counts, StageResult, check_reject_fraction, exceeds
from free2ds_common.runlog import Progress
from free2ds_common.schemas import RECORDS
from free2ds_common.turns import RecordProblem

logger = logging.getLogger(__name__)

NAMES_SHOWN = 3
# Records that wait for the checks of their pictures.
WINDOW = 16 * FETCH_THREADS
ROWS_PER_WRITE = 1000


class _Rejected(NamedTuple):
    """A record that cannot be used.

    Attributes:
        problem: Why.
        record: What the reject log keeps of it.
    """

    problem: RecordProblem
    record: object


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
        rows: list[tuple[object, ...]] = []
        with RejectLog(config.rejects) as rejects, Pictures(config.image_root_uri) as pictures:
            for checked in _checked_in_order(reader, pictures):
                if isinstance(checked, CheckedRecord):
                    written += 1
                    with_image += checked.image is not None
                    unnamed_pictures += checked.image is None and PLACEHOLDER in (checked.question or "")
                    without_question += checked.image is not None and checked.question is None
                    rows.append((written, read, *checked))
                    if len(rows) == ROWS_PER_WRITE:
                        writer.write(_table(rows))
                        rows = []
                else:
                    rejects.add(read, checked.problem.reason, checked.problem.detail, checked.record)
                read += 1
                progress.add()
        progress.close()
        if rows:
            writer.write(_table(rows))
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
            "pictures_checked": pictures.checked,
        }
        # Of pictures that were not opened nobody knows.
        one_colour = {} if pictures.checked == FOUND else {"pictures_of_one_colour": pictures.of_one_colour}
        if one_colour:
            details |= {**one_colour, "names_of_pictures_of_one_colour": pictures.names_of_one_colour}
        writer.manifest.update({**details, "counts": vars(counts)})
    logger.info("read %d = written %d + rejected %d %s", read, written, counts.rejected, reasons or "")
    _warn(details)
    return StageResult(
        counts=counts,
        metrics={
            "records_with_image": with_image,
            "records_text_only": written - with_image,
            **one_colour,
        },
        # Of any length; the manifest has them.
        metadata={name: value for name, value in details.items() if not name.startswith("names_of_")},
    )


def _table(rows: list[tuple[object, ...]]) -> pa.Table:
    """Rows of the two numbers and a `CheckedRecord`, as columns: half the time of a dictionary per row."""
    columns = dict(zip(("unique_id", "position", *CheckedRecord._fields), zip(*rows, strict=True), strict=True))
    schema = RECORDS.arrow
    return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def _warn(details: Mapping[str, Any]) -> None:
    """Say what is odd about the records that are used."""
    if count := details["placeholder_without_image"]:
        logger.warning("%d records ask about %s but name no picture; they count as text-only", count, PLACEHOLDER)
    if count := details["records_without_question"]:
        logger.warning(
            "%d records with a picture have no human turn that a gpt turn directly follows; no model looks at them",
            count,
        )
    if count := details.get("pictures_of_one_colour"):
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


def _checked_in_order(reader: DatasetReader, pictures: Pictures) -> Iterator[CheckedRecord | _Rejected]:
    """Each record with its check, in input order, while threads look at the pictures of the records behind it.

    Of a usable record nothing but its columns waits: the parsed objects of a window of records would keep Python's
    garbage collector busy.
    """
    waiting: deque[CheckedRecord | _Rejected] = deque()

    def oldest() -> CheckedRecord | _Rejected:
        checked = waiting.popleft()
        if isinstance(checked, CheckedRecord) and checked.image is not None:
            problem = pictures.problem(checked.image)
            return checked if problem is None else _Rejected(problem, json.loads(checked.raw))
        return checked

    for record in reader:
        checked = _check(record)
        if isinstance(checked, CheckedRecord) and checked.image is not None:
            pictures.look_at(checked.image)
        waiting.append(checked)
        if len(waiting) >= WINDOW:
            yield oldest()
    while waiting:
        yield oldest()


def _check(record: object) -> CheckedRecord | _Rejected:
    if isinstance(record, BrokenRecord):
        return _Rejected(RecordProblem(record.reason, record.detail), record.text)
    try:
        return check_record(record)
    except RecordProblem as problem:
        # One that is too deep could not be written.
        return _Rejected(problem, None if problem.reason == TOO_DEEP else record)
