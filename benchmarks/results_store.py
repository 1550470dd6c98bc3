"""The results store at full size: the maps of 665,298 records, and one shard of 64 that is looked up in it.

    python -m benchmarks.results_store [--records 665298] [--quick]

Once in a folder, once in a store that takes 20 ms an answer. Then the attention stage on tiny models, twice: what the
second run takes of the first one's time, models loaded once.
"""

import argparse
import hashlib
import importlib
import logging
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from fsspec.implementations.local import LocalFileSystem

from benchmarks.alone import alone, resident_peak_mb, show
from benchmarks.bounds import Bounds
from components.ingest.config import IngestConfig
from components.ingest.stage import run as run_ingest
from components.llava_attention.config import LlavaAttentionConfig
from components.llava_attention.model import load_llava
from examples.make import make
from free2ds_common.inference.attention_results import attention_kind
from free2ds_common.inference.attention_stage import run_attention
from free2ds_common.inference.prompts import LLAVA_SYSTEM
from free2ds_common.results_store.key import BUCKETS
from free2ds_common.results_store.parts import encoded, part_schema, publish
from free2ds_common.results_store.store import ResultsStore
from free2ds_common.results_store.writer import ROWS_PER_PART

RECORDS, SHARDS, POSITIONS = 665_298, 64, 576
LATENCY_S = 0.02
SETTINGS = {"model_fingerprint": "sha256 0", "dtype": "bfloat16"}
STAGE_RECORDS = 120


def key_of(record: int) -> bytes:
    """A key for each record."""
    return hashlib.sha256(str(record).encode()).digest()


def buckets_of(records: int) -> np.ndarray:
    """int32, (records,), ascending: the buckets of records in the order of their places."""
    buckets: np.ndarray = (np.arange(records) * BUCKETS // records).astype(np.int32)
    return buckets


def open_store(uri: str) -> ResultsStore:
    """The store that the benchmark writes and reads."""
    return ResultsStore(uri, attention_kind(POSITIONS), SETTINGS, {"model": "synthetic"})


def write_store(folder: Path, records: int) -> None:
    """Parts as shards leave them: each of consecutive places, `ROWS_PER_PART` or the rest of a shard."""
    store = open_store(str(folder))
    target = folder / store.uri.removeprefix(f"{folder}/")
    buckets, rng = buckets_of(records), np.random.default_rng(0)
    schema = part_schema(attention_kind(POSITIONS).columns)
    for shard in range(SHARDS):
        first, last = shard * records // SHARDS, (shard + 1) * records // SHARDS
        for start in range(first, last, ROWS_PER_PART):
            rows = np.arange(start, min(start + ROWS_PER_PART, last))
            maps = rng.exponential(size=(len(rows), POSITIONS)).astype(np.float32)
            maps /= maps.sum(axis=1, keepdims=True)
            columns = [
                pa.array([key_of(row) for row in rows.tolist()], pa.binary(32)),
                pa.array(buckets[rows]),
                pa.array(["ok"] * len(rows)),
                *(pa.array(np.full(len(rows), number, np.int32)) for number in (40, 12, 0)),
                pa.FixedSizeListArray.from_arrays(pa.array(maps.reshape(-1)), POSITIONS),
            ]
            name, data = encoded(pa.table(columns, schema=schema), SETTINGS)
            publish(LocalFileSystem(), str(target), store.uri, name, data)


def look_up(uri: str, records: int, shard: int) -> dict[str, float]:
    """Child process: open the store, take a shard's results, and read each of them."""
    # By its name: fsspec has no types, and mypy would say so of an import.
    importlib.import_module("tests.support.faulty").install().delay_s = LATENCY_S
    own = range(shard * records // SHARDS, (shard + 1) * records // SHARDS)
    before = resident_peak_mb()
    with tempfile.TemporaryDirectory() as scratch:
        start = time.monotonic()
        keys = [key_of(record) for record in own]
        found = open_store(uri).take(keys, buckets_of(records)[own].tolist(), Path(scratch))
        total = sum(float(found.row(key)["map"].sum()) for key in keys)
        end = time.monotonic()
    assert len(found) == len(own)
    assert abs(total - len(own)) < 1
    return {"start": start, "end": end, "results": len(found), "peak_mb": resident_peak_mb(), "before_mb": before}


def second_run(folder: Path) -> dict[str, float]:
    """Child process: the attention stage on tiny models, twice; its counts and seconds."""
    logging.basicConfig(level=logging.WARNING)
    make(folder, STAGE_RECORDS, seed=7)
    config = IngestConfig(
        dataset_uri=str(folder / "dataset.json"),
        image_root_uri=str(folder / "images"),
        records=str(folder / "records"),
        rejects=str(folder / "rejects.jsonl"),
    )
    run_ingest(config)
    model = load_llava(folder / "models/llava", torch.device("cpu"), torch.float32)
    attention = LlavaAttentionConfig(
        shard=config.records,
        image_root_uri=config.image_root_uri,
        model=str(folder / "models/llava"),
        cache_uri=str(folder / "store"),
        attention=str(folder / "attention"),
    )
    start = time.monotonic()
    found: dict[str, float] = {}
    for name in ("first", "second"):
        began = time.monotonic()
        result = run_attention(attention, LLAVA_SYSTEM, lambda *_: model, logging.getLogger(__name__))
        found |= {f"{name}_s": time.monotonic() - began, f"{name}_computed": result.metrics["computed"]}
    return {"start": start, "end": time.monotonic(), **found}


def main() -> int:
    """Run everything; returns 1 when a bound is not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument("--quick", action="store_true", help="a small size: to see that it runs")
    options = parser.parse_args()
    records = 40_000 if options.quick else options.records
    bounds = Bounds()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "store"
        began = time.monotonic()
        write_store(folder, records)
        sizes = [path.stat().st_size for path in folder.rglob("*.parquet")]
        print(f"{len(sizes)} parts, {sum(sizes) / 1e6:.0f} MB, {time.monotonic() - began:.0f} s to write", flush=True)
        for name, uri in (("folder", str(folder)), ("slow_store", f"faulty://{folder}")):
            found = show(name, alone(look_up, uri, records, SHARDS // 3))
            bounds.at_most(f"{name}_one_shard_of_64_s", found["seconds"], 20)
            bounds.at_most(f"{name}_one_shard_of_64_peak_mb", found["peak_mb"], 1024)
        shutil.rmtree(folder)
        found = show("attention stage", alone(second_run, Path(place)))
        bounds.at_most("second_run_over_first", found["second_s"] / found["first_s"], 0.05)
        bounds.at_most("second_run_computed", found["second_computed"], 0)
    return bounds.report()


if __name__ == "__main__":
    raise SystemExit(main())
