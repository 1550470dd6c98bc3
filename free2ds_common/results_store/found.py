"""Results taken from the store: on this machine's disk, mapped into memory, found by key."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from free2ds_common.results_store.parts import KEY
from free2ds_common.storage import room_on_disk

_FILE = "results.arrow"


class Found:
    """Results by key.

    Attributes:
        broken: Names of the parts that could not be used.
    """

    def __init__(
        self, batches: Sequence[pa.RecordBatch], places: Mapping[bytes, tuple[int, int]], broken: Sequence[str]
    ) -> None:
        """Hold the batches; `places` says batch and row of each key."""
        self._batches, self._places, self.broken = batches, places, broken

    def __contains__(self, key: bytes) -> bool:
        """Whether there is a result of this key."""
        return key in self._places

    def __len__(self) -> int:
        """How many results there are."""
        return len(self._places)

    def row(self, key: bytes) -> dict[str, Any]:
        """A result's columns; a list is an array, in memory that belongs to the file."""
        batch, row = self._places[key]
        return {
            name: _value(column[row])
            for name, column in zip(self._batches[batch].schema.names, self._batches[batch].columns, strict=True)
        }

    def table(self, keys: Sequence[bytes]) -> pa.Table:
        """The results of these keys in their order, all columns, copied; at least one."""
        starts = np.concatenate([[0], np.cumsum([batch.num_rows for batch in self._batches])])
        places = np.array([self._places[key] for key in keys])
        return pa.Table.from_batches(self._batches).take(pa.array(starts[places[:, 0]] + places[:, 1]))


def _value(scalar: pa.Scalar) -> object:
    if isinstance(scalar, pa.FixedSizeListScalar):
        values: np.ndarray | None = scalar.values.to_numpy() if scalar.is_valid else None
        return values
    return scalar.as_py()


class Spill:
    """Collects results in a file.

    Attributes:
        broken: Names of the parts that could not be used.
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        """Begin a file in a folder."""
        self.broken: list[str] = []
        self._path = folder / _FILE
        self._places: dict[bytes, tuple[int, int]] = {}
        self._num_batches = 0
        self._writer = pa.ipc.new_file(str(self._path), schema)

    def add(self, table: pa.Table, wanted: set[bytes]) -> None:
        """Keep the rows of a table that are wanted, and whose key is not there yet.

        Raises:
            StageError: The disk is full.
        """
        rows: list[int] = []
        for row, key in enumerate(table.column(KEY).to_pylist()):
            if key in wanted and key not in self._places:
                self._places[key] = (self._num_batches, len(rows))
                rows.append(row)
        if not rows:
            return
        kept = table.take(pa.array(rows)).combine_chunks()
        with room_on_disk(self._path.parent):
            for batch in kept.to_batches():
                self._writer.write_batch(batch)
        self._num_batches += 1

    def found(self) -> Found:
        """End the file and map it into memory."""
        with room_on_disk(self._path.parent):
            self._writer.close()
        with pa.memory_map(str(self._path)) as source:
            file = pa.ipc.open_file(source)
            batches = [file.get_batch(number) for number in range(file.num_record_batches)]
        return Found(batches, self._places, self.broken)
