"""The distinct messages of all records as a stream, and the table of who said them."""

import hashlib
from collections.abc import Iterator

import pyarrow as pa

from free2ds_common.datasets import Dataset, DatasetWriter
from free2ds_common.schemas import TEXT_TURNS

# Of a message's hash. That two of 100 million messages share these bytes has a probability of 1e-23.
_SEEN_BYTES = 16


class MessageSource:
    """Yields each distinct message once; on the way it writes the table of who said them.

    Only a message's hash is kept once it has been seen, so memory does not grow with the texts.

    Attributes:
        num_records: Records read so far.
        num_turns: Turns of the part so far.
    """

    def __init__(self, records: Dataset, turns: DatasetWriter | None, part: int, parts: int) -> None:
        """Prepare.

        Args:
            records: records/2.
            turns: Gets a text_turns/1 row per turn of the part; None where only the messages are of interest.
            part: Which messages to take: those whose hash falls into this part.
            parts: Number of parts.
        """
        self._records, self._turns, self._part, self._parts = records, turns, part, parts
        self._seen: set[bytes] = set()
        self.num_records = self.num_turns = 0

    @property
    def total_records(self) -> int:
        """Records to read."""
        return self._records.num_rows

    @property
    def num_distinct(self) -> int:
        """Distinct messages so far."""
        return len(self._seen)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Key (hex sha256) and text of every message not seen before."""
        for batch in self._records.batches(["unique_id", "record_key", "messages"]):
            owners: list[int] = []
            numbers: list[int] = []
            keys: list[str] = []
            for row, said in enumerate(batch.column(2).to_pylist()):
                for turn, message in enumerate(said):
                    digest = hashlib.sha256(message.encode())
                    key = digest.hexdigest()
                    if int(key[:15], 16) % self._parts != self._part:
                        continue
                    owners.append(row)
                    numbers.append(turn)
                    keys.append(key)
                    short = digest.digest()[:_SEEN_BYTES]
                    if short not in self._seen:
                        self._seen.add(short)
                        yield key, message
                self.num_records += 1
            self.num_turns += len(keys)
            if self._turns is None:
                continue
            picked = pa.array(owners, pa.int64())
            columns = [batch.column(0).take(picked), batch.column(1).take(picked), pa.array(numbers, pa.int32())]
            self._turns.write(pa.table([*columns, pa.array(keys, pa.string())], names=TEXT_TURNS.arrow.names))
