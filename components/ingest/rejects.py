"""Unusable records, counted and kept with their reasons."""

import json
import os
from collections import Counter
from types import TracebackType

from free2ds_common.storage import atomic_writer

# Rejected records that are told with a refusal, and characters of what was wrong with each.
_FIRST, _DETAIL_LENGTH = 5, 120


class RejectLog:
    """Writes one JSON line per rejected record and counts the reasons. Use as a context manager.

    Attributes:
        reasons: Rejected records per reason.
        first: The first rejected records in words: position, reason, detail.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Write to `path`, which appears when the block ends, even with an error."""
        self.reasons: Counter[str] = Counter()
        self.first: list[str] = []
        self._writer = atomic_writer(path, "w")

    def __enter__(self) -> "RejectLog":
        """Open the file."""
        self._handle = self._writer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Publish the file, after an error too: it shows what was wrong."""
        self._writer.__exit__(None, None, None)

    def add(self, index: int, reason: str, detail: str, record: object) -> None:
        """Reject one record.

        Args:
            index: Position in the input, from 0.
            reason: A short fixed word such as "image_missing".
            detail: What exactly was wrong.
            record: The record as it came in, any JSON value.
        """
        self.reasons[reason] += 1
        if len(self.first) < _FIRST:
            short = detail if len(detail) <= _DETAIL_LENGTH else f"{detail[: _DETAIL_LENGTH - 1]}…"
            self.first.append(f"record {index} {reason} ({short})")
        self._handle.write(json.dumps({"index": index, "reason": reason, "detail": detail, "record": record}) + "\n")
