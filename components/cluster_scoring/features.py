"""The stage's input: embeddings of all distinct messages, which stay on disk, and the tables of who said them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from free2ds_common.datasets import Dataset, first_difference, open_dataset, open_parts
from free2ds_common.errors import StageError
from free2ds_common.schemas import TEXT_TURNS, text_messages_schema

BLOCK_ROWS = 16_384
# Manifest entries in which the parts of one input must agree.
SAME_IN_ALL_PARTS = ("model_fingerprint", "dtype", "max_tokens", "records_sha256")


@dataclass(frozen=True)
class Features:
    """The output of bert_features, all parts together. A message's row number counts through the parts in order.

    Attributes:
        messages: text_messages/1, one per part.
        turns: text_turns/1, one per part.
    """

    messages: list[Dataset]
    turns: list[Dataset]

    @property
    def num_messages(self) -> int:
        """Number of distinct messages."""
        return sum(part.num_rows for part in self.messages)

    @property
    def manifest(self) -> dict[str, object]:
        """What the scores keep of the parts' manifests."""
        kept = {name: self.messages[0].manifest[name] for name in ("model", "revision", *SAME_IN_ALL_PARTS)}
        # Messages, and seconds of devices: of all parts together.
        for name in ("reused", "computed", "device_seconds"):
            if all(name in part.manifest for part in self.messages):
                kept[name] = sum(part.manifest[name] for part in self.messages)
        return kept

    def blocks(self) -> Iterator[np.ndarray]:
        """Embeddings in row order: float32, (rows, dimensions), `BLOCK_ROWS` rows or fewer at a time."""
        for part in self.messages:
            for batch in part.batches(["embedding"], BLOCK_ROWS):
                column = batch.column(0)
                yield column.flatten().to_numpy().reshape(len(column), -1)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Embeddings of some messages, reading each block once.

        Args:
            rows: int64, (n,), row numbers in any order, repeats allowed.

        Returns:
            float32, (n, dimensions), in the order of `rows`.
        """
        order = np.argsort(rows, kind="stable")
        points: np.ndarray | None = None
        start = done = 0
        for block in self.blocks():
            if points is None:
                points = np.empty((len(rows), block.shape[1]), dtype=np.float32)
            stop = done + int(np.searchsorted(rows[order[done:]], start + len(block)))
            points[order[done:stop]] = block[rows[order[done:stop]] - start]
            start, done = start + len(block), stop
        assert points is not None
        return points

    def keys(self, rows: np.ndarray) -> list[str]:
        """Message keys of some messages.

        Args:
            rows: int64, (n,), row numbers, ascending.
        """
        found: list[str] = []
        start = done = 0
        for part in self.messages:
            for batch in part.batches(["message_key"], BLOCK_ROWS):
                stop = int(np.searchsorted(rows, start + len(batch)))
                found += batch.column(0).take(pa.array(rows[done:stop] - start)).to_pylist()
                start, done = start + len(batch), stop
        return found

    def texts(self, rows: set[int]) -> dict[int, str]:
        """The texts of some messages by row number."""
        texts: dict[int, str] = {}
        start = 0
        for part in self.messages:
            for batch in part.batches(["message"], BLOCK_ROWS):
                for row in rows & set(range(start, start + len(batch))):
                    texts[row] = batch.column(0)[row - start].as_py()
                start += len(batch)
        return texts


def open_features(folders: Sequence[str]) -> Features:
    """Open every part of bert_features' output.

    Args:
        folders: One folder per part, in any order.

    Raises:
        StageError: A folder is unfinished or damaged, the parts come from different runs, or one is missing.
    """
    messages = open_parts(
        [Path(folder) / "messages" for folder in folders], text_messages_schema(1), SAME_IN_ALL_PARTS, "features"
    )
    turns = [open_dataset(Path(folder) / "turns", TEXT_TURNS) for folder in folders]
    for part, of_part in zip(messages, turns, strict=True):
        if name := first_difference(of_part.manifest, part.manifest, (*SAME_IN_ALL_PARTS, "part")):
            raise StageError(
                f"features: {of_part.folder} is not of the run of {part.folder}, {name} {of_part.manifest.get(name)!r} "
                f"but theirs is {part.manifest.get(name)!r}. Give whole folders of bert_features."
            )
    given = sorted(part.manifest["part"] for part in messages)
    wanted = sorted(f"{number}/{len(messages)}" for number in range(len(messages)))
    if given != wanted:
        raise StageError(f"features: got parts {', '.join(given)}, wanted {', '.join(wanted)}. Give every part once.")
    return Features(messages, turns)
