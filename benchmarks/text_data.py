"""What the text benchmark runs on: messages of a data set, and synthetic features of any size."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from free2ds_common.datasets import DatasetWriter
from free2ds_common.schemas import RECORDS, TEXT_TURNS, text_messages_schema

PLACEHOLDERS = ("<image>", "<Image>")


def read_messages(dataset: Path) -> list[list[str]]:
    """Human messages per record, cleaned."""
    with gzip.open(dataset, "rt", encoding="utf-8") as handle:
        records = json.load(handle)
    cleaned = []
    for record in records:
        said = [turn["value"] for turn in record["conversations"] if turn["from"] == "human"]
        for placeholder in PLACEHOLDERS:
            said = [message.replace(placeholder, "") for message in said]
        cleaned.append([message.strip() for message in said])
    return cleaned


def sample_of(records: list[list[str]], turns: int | None, seed: int = 0) -> list[list[str]]:
    """Whole records drawn at random until they hold `turns` human turns; all of them, shuffled, for None."""
    chosen, count = [], 0
    for index in np.random.default_rng(seed).permutation(len(records)):
        if turns is not None and count >= turns:
            break
        chosen.append(records[index])
        count += len(records[index])
    return chosen


def write_records(folder: Path, messages: list[list[str]]) -> str:
    """A records/2 folder of nothing but messages."""
    with DatasetWriter(folder, RECORDS) as writer:
        writer.write(
            [
                {
                    "unique_id": number,
                    "record_key": f"{number:064d}",
                    "position": number - 1,
                    "image": None,
                    "source": "bench",
                    "question": None,
                    "messages": said,
                    "raw": "{}",
                }
                for number, said in enumerate(messages, start=1)
            ]
        )
    return str(folder)


def write_synthetic(place: Path, rng: np.random.Generator, distinct: int, turns: int, dimensions: int) -> np.ndarray:
    """Features of random messages around a few centres; returns each turn's message, in order."""
    settings = {
        "model": "synthetic",
        "revision": "",
        "model_fingerprint": "",
        "dtype": "float32",
        "max_tokens": 512,
        "records_sha256": "",
        "part": "0/1",
    }
    centres = rng.normal(size=(200, dimensions)).astype(np.float32)
    with DatasetWriter(place / "messages", text_messages_schema(dimensions)) as writer:
        for start in range(0, distinct, 50_000):
            rows = min(50_000, distinct - start)
            values = centres[rng.integers(0, 200, rows)] + rng.normal(size=(rows, dimensions)).astype(np.float32)
            keys = [f"{number:064d}" for number in range(start, start + rows)]
            column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), dimensions)
            writer.write(
                pa.table([pa.array(keys), pa.array(keys), column], names=["message_key", "message", "embedding"])
            )
        writer.manifest.update(settings)
    said = np.concatenate([np.arange(distinct), rng.integers(0, distinct, turns - distinct)])
    with DatasetWriter(place / "turns", TEXT_TURNS) as writer:
        for start in range(0, turns, 200_000):
            numbers = np.arange(start, min(start + 200_000, turns))
            columns = [
                pa.array(numbers // 5 + 1),
                pa.array([f"{number:064d}" for number in numbers // 5 + 1]),
                pa.array((numbers % 5).astype(np.int32)),
                pa.array([f"{number:064d}" for number in said[numbers]]),
            ]
            writer.write(pa.table(columns, names=TEXT_TURNS.arrow.names))
        writer.manifest.update(settings)
    return said
