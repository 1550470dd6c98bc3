"""records/2 folders made by hand."""

from pathlib import Path

from free2ds_common.datasets import DatasetWriter
from free2ds_common.schemas import RECORDS


def record_row(number: int, **columns: object) -> dict[str, object]:
    """A row of records/2: text-only, without a question, saying "m"."""
    return {
        "unique_id": number,
        "record_key": f"k{number}",
        "position": number - 1,
        "id": None,
        "image": None,
        "source": "s",
        "question": None,
        "messages": ["m"],
        "raw": "{}",
        **columns,
    }


def write_records(folder: Path, rows: list[dict[str, object]], rows_per_part: int = 50_000) -> str:
    """A sealed records/2 folder."""
    with DatasetWriter(folder, RECORDS, rows_per_part) as writer:
        writer.write(rows)
    return str(folder)
