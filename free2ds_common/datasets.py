"""Sealed Parquet folders: parts, then `_manifest.json` last. Reading trusts nothing the manifest does not confirm."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from free2ds_common import __version__
from free2ds_common.errors import StageError
from free2ds_common.redact import redacted_values
from free2ds_common.run_facts import image
from free2ds_common.schemas import Schema
from free2ds_common.storage import atomic_writer, room_on_disk

MANIFEST = "_manifest.json"
ROWS_PER_PART = 50_000


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Hex sha256 of a local file."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class DatasetWriter:
    """Writes rows into parts of `rows_per_part` and seals the folder if the `with` block ends without an error.

    `manifest` may be filled until the block ends (parameters, model, counts, sources); it is stored without the
    credentials of the URIs in it.
    """

    def __init__(self, folder: str | os.PathLike[str], schema: Schema, rows_per_part: int = ROWS_PER_PART) -> None:
        """Prepare an empty folder.

        Args:
            folder: Local folder; parts and manifest of an earlier run in it are removed.
            schema: The table to write.
            rows_per_part: Rows per Parquet file.

        Raises:
            StageError: There is a file where the folder should be, or no room for it.
        """
        self.folder = Path(folder)
        try:
            with room_on_disk(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise StageError(f"{folder}: is or lies below a file, wanted a folder to write to.") from None
        (self.folder / MANIFEST).unlink(missing_ok=True)
        for stale in self.folder.glob("part-*.parquet"):
            stale.unlink()
        self.manifest: dict[str, Any] = {}
        self._schema, self._rows_per_part = schema, rows_per_part
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self._parts: list[dict[str, Any]] = []

    def write(self, rows: list[dict[str, Any]] | pa.Table) -> None:
        """Append rows.

        Raises:
            pa.ArrowInvalid: A value does not fit the schema.
            StageError: The disk is full.
        """
        arrow = self._schema.arrow
        table = (
            pa.Table.from_pylist(rows, schema=arrow) if isinstance(rows, list) else rows.select(arrow.names).cast(arrow)
        )
        for column in arrow:
            if not column.nullable and table.column(column.name).null_count:
                raise pa.ArrowInvalid(f"{self._schema.name}: null in column {column.name}")
        self._pending.append(table)
        self._pending_rows += table.num_rows
        while self._pending_rows >= self._rows_per_part:
            merged = pa.concat_tables(self._pending)
            self._write_part(merged.slice(0, self._rows_per_part))
            rest = merged.slice(self._rows_per_part)
            self._pending, self._pending_rows = [rest], rest.num_rows

    def _write_part(self, table: pa.Table) -> None:
        name = f"part-{len(self._parts):05d}.parquet"
        path = self.folder / name
        with room_on_disk(self.folder):
            pq.write_table(table, path, compression="zstd")
        self._parts.append({"file": name, "rows": table.num_rows, "sha256": sha256_of_file(path)})

    def __enter__(self) -> "DatasetWriter":
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the last part and the manifest, unless the block failed; then check what was written.

        Raises:
            StageError: A part has changed since it was written, or the disk is full.
        """
        if kind is not None:
            return
        if self._pending_rows or not self._parts:
            self._write_part(pa.concat_tables(self._pending) if self._pending else self._schema.arrow.empty_table())
        manifest = {
            **redacted_values(self.manifest),
            "schema": self._schema.name,
            "rows": sum(part["rows"] for part in self._parts),
            "parts": self._parts,
            "code_version": __version__,
        }
        if name := image():
            manifest["image"] = name
        manifest["sha256"] = sha256_of_manifest(manifest)
        with atomic_writer(self.folder / MANIFEST, "w") as handle:
            json.dump(manifest, handle, indent=1, sort_keys=True)
        open_dataset(self.folder, self._schema)


@dataclass(frozen=True)
class Dataset:
    """A sealed folder that passed its checks.

    Attributes:
        folder: The local folder.
        manifest: Parsed `_manifest.json`.
    """

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        rows: int = self.manifest["rows"]
        return rows

    @property
    def sha256(self) -> str:
        """Hex sha256 of the content: over those of the parts."""
        parts = [part["sha256"] for part in self.manifest["parts"]]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def paths(self) -> list[Path]:
        """The Parquet files in row order."""
        return [self.folder / Path(part["file"]).name for part in self.manifest["parts"]]

    def batches(self, columns: list[str] | None = None, batch_rows: int = 4096) -> Iterator[pa.RecordBatch]:
        """Record batches in row order, one file open at a time."""
        for path in self.paths():
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(batch_size=batch_rows, columns=columns)

    def rows(self, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
        """Rows as dictionaries, in row order, streamed."""
        for batch in self.batches(columns):
            yield from batch.to_pylist()

    def take(self, rows: Sequence[int], columns: list[str]) -> pa.Table:
        """A few rows; only the files that hold one are read.

        Args:
            rows: Row numbers from 0, ascending.
            columns: Columns to read.
        """
        tables, first = [], 0
        for path, part in zip(self.paths(), self.manifest["parts"], strict=True):
            inside = [row - first for row in rows if first <= row < first + part["rows"]]
            if inside:
                tables.append(pq.read_table(path, columns=columns, partitioning=None).take(pa.array(inside)))
            first += part["rows"]
        if not tables:
            return pq.read_schema(self.paths()[0]).empty_table().select(columns)
        return pa.concat_tables(tables)

    def table(self, columns: list[str] | None = None) -> pa.Table:
        """The whole table in memory."""
        return pa.concat_tables([pq.read_table(path, columns=columns, partitioning=None) for path in self.paths()])


def open_dataset(folder: str | os.PathLike[str], schema: Schema) -> Dataset:
    """Open a sealed folder.

    Args:
        folder: Local folder written by `DatasetWriter`.
        schema: The table that must be there.

    Raises:
        StageError: No manifest or an altered one, another schema, or a part that is missing, altered or of another row
            count.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        name, rows = manifest["schema"], manifest["rows"]
        parts = [(folder / Path(part["file"]).name, part["rows"], part["sha256"]) for part in manifest["parts"]]
        rows_of_parts = sum(part_rows for _, part_rows, _ in parts)
        is_as_written = manifest["sha256"] == sha256_of_manifest(manifest)
    except FileNotFoundError:
        raise StageError(
            f"{folder}: no {MANIFEST}, wanted a finished {schema.name} folder. Rerun the stage that writes it."
        ) from None
    except (ValueError, KeyError, TypeError, NotADirectoryError):
        raise StageError(f"{folder}: {MANIFEST} cannot be read. Rerun the stage that writes it.") from None
    if not is_as_written:
        raise StageError(
            f"{folder}: {MANIFEST} is not the file that was written (checksum differs). Rerun the stage that writes it."
        )
    if name != schema.name:
        raise StageError(f"{folder}: holds {name}, wanted {schema.name}. Give the folder of another stage.")
    for path, part_rows, sha256 in parts:
        if not path.is_file():
            raise StageError(f"{folder}: {path.name} is missing. Copy the whole folder or rerun the stage.")
        if sha256_of_file(path) != sha256:
            raise StageError(
                f"{folder}: {path.name} is not the file that was written (checksum differs). Rerun the stage."
            )
        found = pq.read_metadata(path).num_rows
        if found != part_rows:
            raise StageError(f"{folder}: {path.name} has {found} rows, {MANIFEST} says {part_rows}. Rerun the stage.")
        if not _same_columns(pq.read_schema(path), schema.arrow):
            raise StageError(
                f"{folder}: columns of {path.name} differ from {schema.name}. "
                f"Rerun the stage with this version, {__version__}."
            )
    if rows != rows_of_parts:
        raise StageError(f"{folder}: {MANIFEST} says {rows} rows, its parts hold {rows_of_parts}. Rerun the stage.")
    return Dataset(folder, manifest)


def sha256_of_manifest(manifest: Mapping[str, Any]) -> str:
    """Hex sha256 of a manifest's entries, its own checksum left out, as JSON keeps them."""
    entries = json.loads(json.dumps({name: value for name, value in manifest.items() if name != "sha256"}))
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def open_parts(
    folders: Sequence[str | os.PathLike[str]], schema: Schema, same: Sequence[str], label: str
) -> list[Dataset]:
    """Open the folders of one table that several runs of a stage wrote.

    Args:
        folders: As for `open_dataset`; at least one.
        schema: The table that must be in each.
        same: Manifest entries that must be the same in all. A folder without rows that has none of them is of a run
            that had nothing to put there, and is left out.
        label: Begins the message.

    Raises:
        StageError: As `open_dataset`, no folder, or parts of different models or settings.
    """
    if not folders:
        raise StageError(f"{label}: no {schema.name} folder given, wanted at least one.")
    every = [open_dataset(folder, schema) for folder in folders]
    parts = [part for part in every if part.num_rows or not same or any(name in part.manifest for name in same)]
    if not parts:
        raise StageError(f"{label}: all {schema.name} folders are empty, wanted one with rows or settings.")
    first = parts[0]
    for part in parts[1:]:
        if name := first_difference(part.manifest, first.manifest, same):
            raise StageError(
                f"{label}: parts of different runs, {name} {first.manifest.get(name)!r} in {first.folder} but "
                f"{part.manifest.get(name)!r} in {part.folder}. Make all parts with the same model and settings."
            )
    return parts


def first_difference(one: Mapping[str, Any], other: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of these entries that differs between two manifests, or None if all agree."""
    return next((name for name in names if one.get(name) != other.get(name)), None)


def _same_columns(found: pa.Schema, wanted: pa.Schema) -> bool:
    """Whether names and types agree.

    Fixed-size lists may differ in length (another grid, embeddings of another model), and lists in the name of their
    items, which Parquet writes its own way.
    """

    def shape(kind: pa.DataType) -> str:
        if pa.types.is_fixed_size_list(kind):
            return f"fixed list of {kind.value_type}"
        return f"list of {kind.value_type}" if pa.types.is_list(kind) else str(kind)

    return [(field.name, shape(field.type)) for field in found] == [(field.name, shape(field.type)) for field in wanted]
