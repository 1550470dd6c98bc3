"""Keeps results as they are computed: a part every so many, or so often."""

import logging
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from free2ds_common.errors import StageError, first_line
from free2ds_common.results_store.parts import BUCKET, KEY
from free2ds_common.results_store.store import ResultsStore
from free2ds_common.retry import StoreError

logger = logging.getLogger(__name__)

# A part ends at whichever comes first. What a killed worker loses is at most the part that it had not ended.
ROWS_PER_PART = 2000
SECONDS_PER_PART = 60.0


class PartWriter:
    """Writes parts; the last one when its `with` block ends, with or without an error.

    A part that cannot be written is named in a warning and counted, and the work goes on: its results are in the
    stage's output all the same, and a later run computes them again.

    Attributes:
        saved: Results written.
        lost: Results that could not be written.
    """

    def __init__(self, store: ResultsStore) -> None:
        """Write to a store."""
        self.saved = self.lost = 0
        self._store = store
        self._rows: list[dict[str, Any]] = []
        # Of the part's first result. The clock that never jumps.
        self._since = 0.0

    def add(self, key: bytes, bucket: int, result: Mapping[str, Any]) -> None:
        """Keep a result.

        Args:
            key: Its key.
            bucket: Of its record.
            result: The columns of the store's kind.
        """
        if not self._rows:
            self._since = time.monotonic()
        self._rows.append({KEY: key, BUCKET: bucket, **result})
        if len(self._rows) >= ROWS_PER_PART or time.monotonic() - self._since >= SECONDS_PER_PART:
            self.flush()

    def flush(self) -> None:
        """Write what is held as a part."""
        rows, self._rows = self._rows, []
        if not rows:
            return
        try:
            self._store.write(rows)
        except (StageError, StoreError, OSError) as error:
            self.lost += len(rows)
            logger.warning("%s: %d results could not be kept: %s", self._store.uri, len(rows), first_line(error))
        else:
            self.saved += len(rows)

    def __enter__(self) -> "PartWriter":
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the last part."""
        self.flush()
