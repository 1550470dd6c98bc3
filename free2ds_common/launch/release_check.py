"""Whether a release is whole: its card, its files and its records."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from free2ds_common.datasets import sha256_of_file
from free2ds_common.errors import StageError
from free2ds_common.launch.release import (
    CARD,
    FILES,
    SCHEMA,
    UNIQUE_ID,
    Record,
    card_sha256,
    columns_of,
    selection_sha256,
)
from free2ds_common.turns import RecordProblem, image_of, turns_of


def check_release(folder: Path) -> dict[str, Any]:
    """Check a release.

    Args:
        folder: As `write_release` leaves it; other files in it are not looked at.

    Returns:
        The card.

    Raises:
        StageError: It is none, a file is missing or changed, or the records are not what the card says.
    """
    card = _read_card(folder)
    for file, wanted in card["files"].items():
        path = folder / file
        if not path.is_file():
            raise StageError(f"{path}: is not there, though {CARD} names it. Fetch the release again.")
        if sha256_of_file(path) != wanted["sha256"]:
            raise StageError(f"{path}: was changed since the release was made. Fetch the release again.")
    everything = []
    for name, file in FILES.items():
        records = _read_records(folder / file)
        if (found := len(records)) != (wanted := card["counts"][name]):
            raise StageError(f"{folder / file}: has {found:,} records, {CARD} says {wanted:,}.")
        if selection_sha256(records) != card["selection_sha256"][name]:
            raise StageError(f"{folder / file}: holds other records than {CARD} says.")
        everything += records
    try:
        columns = columns_of(everything)
    except (pa.ArrowException, OverflowError):
        raise StageError(f"{folder}: a field has values of several types, which tables cannot hold.") from None
    if columns != card["columns"]:
        raise StageError(f"{folder}: the records' fields have other types than {CARD} says.")
    return card


def _read_card(folder: Path) -> dict[str, Any]:
    path = folder / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise StageError(f"{path}: is not there. Give the folder that free2ds release has written.") from None
    except ValueError:
        card = None
    if not isinstance(card, dict) or card.get("schema") != SCHEMA:
        raise StageError(f"{path}: is no card of a release ({SCHEMA}).")
    if card.get("sha256") != card_sha256(card):
        raise StageError(f"{path}: was changed since the release was made. Fetch the release again.")
    return card


def _read_records(path: Path) -> list[Record]:
    """The records of a file.

    Raises:
        StageError: They are no list of records as LLaVA has them, or two are the same.
    """
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        for record in records:
            turns_of(record)
            image_of(record)
        distinct = len({record[UNIQUE_ID] for record in records})
    except (ValueError, TypeError, KeyError, AttributeError, RecordProblem) as error:
        raise StageError(f"{path}: is no list of records as LLaVA has them ({error}).") from None
    if distinct != len(records):
        raise StageError(f"{path}: holds a record twice.")
    found: list[Record] = records
    return found
