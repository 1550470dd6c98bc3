"""The reuse stage at full size: both models' results of 95 % of 665,298 records, and the rest left over.

    python -m benchmarks.reuse [--records 665298] [--quick]

Two records on a picture; the pictures are files of a few bytes, since none is decoded here.
"""

import argparse
import hashlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from benchmarks.alone import alone, resident_peak_mb, show
from benchmarks.bounds import Bounds
from components.llava_attention.config import LlavaAttentionSettings
from components.mgm_attention.config import MgmAttentionSettings
from components.reuse.config import ReuseConfig
from components.reuse.stage import run
from free2ds_common.datasets import DatasetWriter
from free2ds_common.inference.asked import remember_settings
from free2ds_common.inference.attention_results import attention_kind, result_keys, results_store
from free2ds_common.results_store.parts import encoded, part_schema, publish
from free2ds_common.results_store.writer import ROWS_PER_PART
from free2ds_common.schemas import GRID, POSITIONS, RECORDS
from free2ds_common.settings import AttentionSettings

NUM_RECORDS = 665_298
# Of 20 records one has no result.
NEW = 20
VERSION = "3 files " + "0" * 32
SETTINGS = {
    "model_fingerprint": "sha256 0",
    "prompt": {"style": "method"},
    "preprocessing": {},
    "max_new_tokens": 100,
    "dtype": "float32",
    "grid": GRID,
    "capture_version": 1,
}
# As long as a record of LLaVA-665K is on average.
_RAW = '{"conversations": "' + "word " * 250 + '"}'


def rows_of(first: int, last: int) -> list[dict[str, Any]]:
    """Rows of records/2."""
    return [
        {
            "unique_id": number + 1,
            "record_key": hashlib.sha256(str(number).encode()).hexdigest(),
            "position": number,
            "id": str(number),
            "image": f"{number // 2 % 100:02d}/{number // 2}.png",
            "source": "s",
            "question": f"What is number {number} about, and how many of them are there?",
            "messages": ["m"],
            "raw": _RAW,
        }
        for number in range(first, last)
    ]


def batches(records: int) -> Iterator[list[dict[str, Any]]]:
    """All rows, some at a time."""
    for first in range(0, records, 10_000):
        yield rows_of(first, min(first + 10_000, records))


def make(folder: Path, records: int) -> None:
    """Child process: pictures, records, and a store whose parts are of one range of places each."""
    with DatasetWriter(folder / "records", RECORDS) as writer:
        for rows in batches(records):
            for row in rows[::2]:
                path = folder / "images" / row["image"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(row["image"])
            writer.write(rows)
    for kind in (LlavaAttentionSettings, MgmAttentionSettings):
        _fill(folder, kind, records)


def _fill(folder: Path, kind: type[AttentionSettings], records: int) -> None:
    common: dict[str, Any] = {"model": kind.SHORT_NAME, "revision": VERSION, "cache_uri": str(folder / "store")}
    settings = kind(**common, image_root_uri="")
    remember_settings(settings, SETTINGS, [Path(settings.model)], on_gpu=False)
    store = results_store(settings, SETTINGS)
    found: list[tuple[bytes, int]] = []
    for rows in batches(records):
        images = {row["image"] for row in rows}
        identities = {image: ("sha256", hashlib.sha256(image.encode()).hexdigest()) for image in images}
        keys = result_keys(store, identities, rows)
        found += [key for index, key in keys.items() if rows[index]["position"] % NEW]
    found.sort(key=lambda key: key[1])
    schema, rng = part_schema(attention_kind(POSITIONS).columns), np.random.default_rng(0)
    target = folder / "store" / store.uri.removeprefix(f"{folder}/store/")
    for first in range(0, len(found), ROWS_PER_PART):
        some = found[first : first + ROWS_PER_PART]
        maps = rng.random((len(some), POSITIONS), np.float32)
        columns = [
            pa.array([key for key, _ in some], pa.binary(32)),
            pa.array([bucket for _, bucket in some], pa.int32()),
            pa.array(["ok"] * len(some)),
            *(pa.array(np.full(len(some), number, np.int32)) for number in (40, 12, 0)),
            pa.FixedSizeListArray.from_arrays(pa.array(maps.reshape(-1)), POSITIONS),
        ]
        name, data = encoded(pa.table(columns, schema=schema), SETTINGS)
        publish(LocalFileSystem(), str(target), store.uri, name, data)


def divide(folder: Path) -> dict[str, float]:
    """Child process: the stage."""
    names = ("llava_finished", "mgm_finished", "llava_missing", "mgm_missing")
    ports: dict[str, Any] = {name: str(folder / name) for name in names}
    config = ReuseConfig(
        records=str(folder / "records"),
        image_root_uri=str(folder / "images"),
        cache_uri=str(folder / "store"),
        llava_model=LlavaAttentionSettings.SHORT_NAME,
        llava_revision=VERSION,
        mgm_model=MgmAttentionSettings.SHORT_NAME,
        mgm_revision=VERSION,
        **ports,
    )
    start, before = time.monotonic(), resident_peak_mb()
    found = run(config).metrics
    return {"start": start, "end": time.monotonic(), **found, "peak_mb": resident_peak_mb(), "before_mb": before}


def main() -> int:
    """Run everything; returns 1 when a bound is not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=NUM_RECORDS)
    parser.add_argument("--quick", action="store_true", help="a small size: to see that it runs")
    options = parser.parse_args()
    records = 40_000 if options.quick else options.records
    bounds = Bounds()
    with tempfile.TemporaryDirectory() as place:
        make(Path(place), records)
        found = show("reuse", alone(divide, Path(place)))
    for model in ("llava", "mgm"):
        bounds.at_most(f"{model}_missing", found[f"{model}_missing"], -(-records // NEW))
    bounds.at_most("reuse_peak_mb", found["peak_mb"], 1024)
    return bounds.report()


if __name__ == "__main__":
    raise SystemExit(main())
