"""A selection to hand on: its records, its random control and a card, as one folder that loads as it is."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from free2ds_common.datasets import sha256_of_file
from free2ds_common.errors import StageError
from free2ds_common.launch.kfp_api.artifacts import read_text
from free2ds_common.launch.release_page import release_page
from free2ds_common.launch.results import RANDOM, SELECTED, Results
from free2ds_common.redact import redacted
from free2ds_common.turns import HUMAN, SYSTEM, image_of, turns_of

SCHEMA = "release/1"
CARD, PAGE = "card.json", "README.md"
FILES = {SELECTED: "selected.json", RANDOM: "random.json"}
UNIQUE_ID, TURNS = "unique_id", "conversations"

Record = dict[str, Any]


def write_release(results: Results, folder: Path) -> dict[str, Any]:
    """Write a release.

    Args:
        results: Of the run.
        folder: Where to; it must not exist, or be empty.

    Returns:
        The card.

    Raises:
        StageError: The folder is in use, or the results are not those that the run wrote.
        StoreError: The store does not answer.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StageError(f"--output-dir: {folder} is there already and not empty. Give another folder.")
    summary = results.summary()
    written = summary.get("lineage", {}).get("outputs", {})
    lists = {name: _read(results, name, written.get(name, "")) for name in FILES}
    converted = sum(_as_llava(record) for records in lists.values() for record in records)
    as_text = _make_consistent([record for records in lists.values() for record in records])
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            draft = Path(scratch) / "release"
            draft.mkdir()
            for name, file in FILES.items():
                _write(draft / file, lists[name])
            card = _card(summary, lists, draft) | {"converted": converted, "as_text": as_text}
            (draft / PAGE).write_text(release_page(card), encoding="utf-8")
            card["files"][PAGE] = _file(draft / PAGE)
            card["sha256"] = card_sha256(card)
            (draft / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
            os.replace(draft, folder)
    except OSError as error:
        raise StageError(f"--output-dir: {folder} cannot be written ({error.strerror}).") from None
    return card


def card_sha256(card: Mapping[str, Any]) -> str:
    """The checksum of a card without its own entry."""
    content = {name: value for name, value in card.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def selection_sha256(records: Sequence[Record]) -> str:
    """The checksum of which records are chosen: their unique_ids in order, one a line.

    However the records are written, the same choice from the same data set has the same checksum.
    """
    return hashlib.sha256("".join(f"{record[UNIQUE_ID]}\n" for record in records).encode()).hexdigest()


def columns_of(records: Sequence[Record]) -> dict[str, str]:
    """Type by field, as Arrow infers it of all records; that is how the `datasets` package reads a list.

    Raises:
        pa.ArrowException: A field has no single type.
    """
    return {name: str(pa.array([record.get(name) for record in records]).type) for name in _names(records)}


def not_for_llava(records: Sequence[Record]) -> int:
    """Records whose turns LLaVA's trainer refuses: people and models have to take turns, a person first."""
    return sum(not _take_turns(turns_of(record)) for record in records)


def _take_turns(turns: Sequence[tuple[str, str]]) -> bool:
    speakers = [speaker for speaker, _ in turns]
    # It leaves out a first turn that is no person's.
    if speakers[0] not in (HUMAN, SYSTEM):
        speakers = speakers[1:]
    return SYSTEM not in speakers and all((speaker == HUMAN) == (n % 2 == 0) for n, speaker in enumerate(speakers))


def _read(results: Results, name: str, wanted: str) -> list[Record]:
    """One of the lists of a run.

    Raises:
        StageError: It is not there, or not what the run wrote.
        StoreError: The store does not answer.
    """
    uri = results.uris.get(name, "")
    if not uri:
        raise StageError(f"{results.title}: has no {FILES[name]}, which a release holds. Give the run's own folder.")
    content = read_text(uri)
    if hashlib.sha256(content.encode()).hexdigest() != wanted:
        raise StageError(f"{redacted(uri)}: is not the file that this run wrote. Take the run's own.")
    records: list[Record] = json.loads(content)
    return records


def _as_llava(record: Record) -> bool:
    """Give a record the keys that LLaVA's trainer reads, if it has others; returns whether anything was changed."""
    before = dict(record)
    if "messages" in record or any(not {"from", "value"} <= turn.keys() for turn in record[TURNS]):
        turns = [{"from": speaker, "value": value} for speaker, value in turns_of(record)]
        record.pop("messages", None)
        record[TURNS] = turns
    image = image_of(record)
    record.pop("images", None)
    if image is None:
        record.pop("image", None)
    elif not record.get("image"):
        record["image"] = image
    return record != before


def _make_consistent(records: Sequence[Record]) -> list[str]:
    """Write values of fields that have several types as JSON texts; returns the fields' names."""
    turns = [turn for record in records for turn in record[TURNS]]
    return [*_as_text(records), *(f"{TURNS}.{name}" for name in _as_text(turns))]


def _as_text(rows: Sequence[Record]) -> list[str]:
    changed = []
    for name in _names(rows):
        if name == TURNS or _has_one_type([row.get(name) for row in rows]):
            continue
        changed.append(name)
        for row in rows:
            if not isinstance(row.get(name), str | None):
                row[name] = json.dumps(row[name], ensure_ascii=False, allow_nan=False)
    return changed


def _has_one_type(values: Sequence[Any]) -> bool:
    try:
        kind = pa.array(values).type
    except (pa.ArrowException, OverflowError):
        return False
    # Of structs without a field Arrow knows nothing that Parquet could keep.
    return not (pa.types.is_struct(kind) and kind.num_fields == 0)


def _names(rows: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _write(path: Path, records: Sequence[Record]) -> None:
    with path.open("w", encoding="utf-8") as handle:
        handle.write("[\n" + ",\n".join(json.dumps(record, allow_nan=False) for record in records) + "\n]\n")


def _file(path: Path) -> dict[str, Any]:
    return {"sha256": sha256_of_file(path), "bytes": path.stat().st_size}


def _card(summary: Mapping[str, Any], lists: Mapping[str, Sequence[Record]], folder: Path) -> dict[str, Any]:
    """What there is to say of a release, but for its page."""
    everything = [record for records in lists.values() for record in records]
    told = summary["lineage"]
    return {
        "schema": SCHEMA,
        "dataset": {"uri": summary["ingest"]["dataset_uri"], "sha256": summary["ingest"]["dataset_sha256"]},
        "models": summary["models"],
        "parameters": summary["parameters"],
        "counts": {
            "data_set": summary["ingest"]["counts"],
            "selection": summary["counts"],
            "pool": summary["pool"],
            **{name: len(records) for name, records in lists.items()},
            "in_both": len({one[UNIQUE_ID] for one in lists[SELECTED]} & {one[UNIQUE_ID] for one in lists[RANDOM]}),
            "not_for_llava": not_for_llava(everything),
        },
        "versions": {"free2ds": summary["code_version"], "image": told["image"]},
        "run": summary["run"],
        "made_from": told["made_from"],
        "written_by_run": {name: told["outputs"][name] for name in FILES},
        "selection_sha256": {name: selection_sha256(records) for name, records in lists.items()},
        "columns": columns_of(everything),
        "files": {file: {**_file(folder / file), "records": len(lists[name])} for name, file in FILES.items()},
    }
