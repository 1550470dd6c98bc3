"""The command that looks after a results store: cache list, verify, compact, delete."""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from free2ds_common.errors import StageError
from free2ds_common.inference.asked import forget_settings
from free2ds_common.launch.cache import user_cache
from free2ds_common.results_store.upkeep import Shelf, StoredPart, broken_parts, compact, remove, shelves

EXIT_BROKEN = 1


def look_after(arguments: argparse.Namespace) -> int:
    """Do what the command line of `cache` says.

    Args:
        arguments: Its options.

    Returns:
        The exit code: `EXIT_BROKEN` where verify finds parts that are not as they were written.

    Raises:
        StageError: The options do not fit together, or the store refuses something.
        StoreError: The store does not answer.
    """
    uri = arguments.cache_uri or str(user_cache())
    if arguments.action != "delete" and (arguments.older_than is not None or arguments.broken):
        raise StageError("--older-than and --broken: only cache delete takes them.")
    chosen = [shelf for shelf in shelves(uri) if not arguments.model or shelf.is_of(arguments.model)]
    if not chosen:
        print(f"{uri}: no results" + (f" of {arguments.model}" if arguments.model else ""))
        return 0
    if arguments.action == "list":
        return _list(chosen)
    if arguments.action == "verify":
        return _verify(chosen)
    if arguments.action == "compact":
        return _compact(chosen, dry_run=arguments.dry_run)
    return _delete(chosen, arguments, uri)


def _list(chosen: Sequence[Shelf]) -> int:
    rows = [("kind", "model", "number format", "results", "parts", "MB", "last written", "fingerprint")]
    for shelf in sorted(chosen, key=lambda shelf: -shelf.size):
        told = shelf.settings
        written = [stored.written for stored in shelf.parts if stored.written]
        rows.append(
            (
                shelf.kind,
                str(told.get("model", "?")),
                str(told.get("dtype", "?")),
                f"{shelf.rows:,}",
                f"{len(shelf.parts):,}",
                f"{shelf.size / 1e6:,.1f}",
                f"{max(written):%Y-%m-%d %H:%M}" if written else "?",
                str(told.get("model_fingerprint", "?")),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    print(f"{sum(shelf.rows for shelf in chosen):,} results, {sum(shelf.size for shelf in chosen) / 1e6:,.1f} MB")
    return 0


def _verify(chosen: Sequence[Shelf]) -> int:
    broken = 0
    for shelf in chosen:
        for part, problem in broken_parts(shelf):
            broken += 1
            print(f"{part.uri}: is not as it was written ({problem})")
    total = sum(len(shelf.parts) for shelf in chosen)
    print(f"{total - broken} of {total} parts are as they were written")
    if broken:
        print("Runs compute the results of the others again; `cache delete --broken` removes them.")
    return EXIT_BROKEN if broken else 0


def _compact(chosen: Sequence[Shelf], *, dry_run: bool) -> int:
    for shelf in chosen:
        name = f"{shelf.kind} of {shelf.settings.get('model', '?')}"
        if dry_run:
            print(f"{name}: {len(shelf.parts)} parts of {shelf.rows / len(shelf.parts):,.0f} results on average")
            continue
        before, after = compact(shelf)
        print(f"{name}: {before} small parts of {len(shelf.parts)} put together into {after}")
    return 0


def _delete(chosen: Sequence[Shelf], arguments: argparse.Namespace, cache_uri: str) -> int:
    """Delete parts.

    Raises:
        StageError: Nothing says which.
    """
    if not arguments.model and arguments.older_than is None and not arguments.broken:
        raise StageError("cache delete: says not what to delete. Give --model, --older-than or --broken.")
    verb = "would be deleted" if arguments.dry_run else "deleted"
    for shelf in chosen:
        parts = [stored.part for stored in shelf.parts if _is_older(stored, arguments.older_than)]
        if arguments.broken:
            broken = {part.name for part, _ in broken_parts(shelf)}
            parts = [part for part in parts if part.name in broken]
        if not arguments.dry_run:
            remove(shelf.fs, parts)
            if len(parts) == len(shelf.parts):
                forget_settings(cache_uri, shelf.folder.rpartition("/")[2])
        rows, size = sum(part.rows for part in parts), sum(part.size for part in parts)
        model = shelf.settings.get("model", "?")
        print(f"{shelf.kind} of {model}: {len(parts)} parts, {rows:,} results, {size / 1e6:,.1f} MB {verb}")
    return 0


def _is_older(stored: StoredPart, days: float | None) -> bool:
    if days is None:
        return True
    # What a store tells no time of is kept.
    return stored.written is not None and stored.written < datetime.now(UTC) - timedelta(days=days)
