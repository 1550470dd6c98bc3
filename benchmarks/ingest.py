"""ingest and split at full size: 665,298 records, 1 GB of JSON, 350,000 pictures in a store that takes 20 ms an answer.

    python -m benchmarks.ingest [--records 665298] [--quick]

Speed is in records per second of processor time, all threads together: what one core does. Peak memory is that of the
whole process. Each stage runs in a process of its own.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from fsspec.implementations.memory import MemoryFileSystem

from benchmarks.alone import alone, resident_peak_mb, show
from benchmarks.bounds import Bounds
from components.ingest.config import IngestConfig
from components.ingest.stage import run as run_ingest
from components.split.config import SplitConfig
from components.split.stage import run as run_split
from free2ds_common.listing import PAGE

# As in LLaVA-665K: records, those without a picture, pictures, and human turns a record.
RECORDS, TEXT_ONLY, PICTURES, TURNS = 665_298, 40_688 / 665_298, 350_000, 5.2
FOLDERS = ("coco/train2017", "gqa/images", "ocr_vqa/images", "textvqa/train_images", "vg/VG_100K", "vg/VG_100K_2")
TEXTS, VOCABULARY = 5_000, 20_000
QUESTION_WORDS, ANSWER_WORDS = (3, 16), (2, 39)
LATENCY_S = 0.02


class SlowStore:
    """Has every picture, answers after `LATENCY_S` and lists `PAGE` names an answer. Takes fsspec's place.

    Attributes:
        requests: Answers given.
    """

    def __init__(self) -> None:
        """Count from 0."""
        self.requests = 0

    def info(self, path: str, **_: object) -> dict[str, object]:
        """What it says of one picture."""
        self._answer(1)
        return {"name": path, "size": 100_000, "type": "file"}

    def ls(self, path: str, **_: object) -> list[dict[str, object]]:
        """The pictures of a folder."""
        own = FOLDERS.index("/".join(path.rstrip("/").split("/")[-2:]))
        numbers = range(own, PICTURES, len(FOLDERS))
        self._answer(-(-len(numbers) // PAGE))
        return [{"name": f"{path}/{number:012d}.jpg", "size": 100_000, "type": "file"} for number in numbers]

    def _answer(self, answers: int) -> None:
        time.sleep(LATENCY_S * answers)
        self.requests += answers


def write_dataset(path: Path, records: int) -> None:
    """A data set of the shape of LLaVA-665K, as one JSON list."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 10))) for _ in range(VOCABULARY)]

    def texts(bounds: tuple[int, int]) -> list[str]:
        return [" ".join(rng.choices(words, k=rng.randint(*bounds))) for _ in range(TEXTS)]

    questions, answers = texts(QUESTION_WORDS), texts(ANSWER_WORDS)

    def all_records() -> Iterator[dict[str, Any]]:
        for number in range(records):
            record: dict[str, Any] = {"id": f"{number:012d}"}
            if rng.random() >= TEXT_ONLY:
                picture = rng.randrange(PICTURES)
                record["image"] = f"{FOLDERS[picture % len(FOLDERS)]}/{picture:012d}.jpg"
            turns = []
            for turn in range(1 + int(rng.expovariate(1 / (TURNS - 0.7)))):
                placeholder = "<image>\n" if not turn and "image" in record else ""
                turns.append({"from": "human", "value": f"{placeholder}{rng.choice(questions)} {number}?"})
                turns.append({"from": "gpt", "value": rng.choice(answers)})
            yield {**record, "conversations": turns}

    with path.open("w") as file:
        for number, record in enumerate(all_records()):
            file.write(("," if number else "[") + "\n" + json.dumps(record))
        file.write("\n]\n")


def ingest(folder: Path) -> dict[str, float]:
    """Child process: the first stage."""
    store = SlowStore()
    config = IngestConfig(
        dataset_uri=str(folder / "data.json"),
        image_root_uri="memory://pictures",
        records=str(folder / "records"),
        rejects=str(folder / "rejects.jsonl"),
    )
    start, before = time.monotonic(), time.process_time()
    with mock.patch.multiple(MemoryFileSystem, info=store.info, ls=store.ls):
        counts = run_ingest(config).counts
    end, after = time.monotonic(), time.process_time()
    return {
        "start": start,
        "end": end,
        "records": counts.written,
        "processor_s": after - before,
        "peak_mb": resident_peak_mb(),
        "requests": store.requests,
    }


def split(folder: Path, num_shards: int) -> dict[str, float]:
    """Child process: the second stage."""
    config = SplitConfig(records=str(folder / "records"), num_shards=num_shards, shards=str(folder / "shards"))
    start, before = time.monotonic(), time.process_time()
    counts = run_split(config).counts
    end, after = time.monotonic(), time.process_time()
    return {
        "start": start,
        "end": end,
        "records": counts.written,
        "processor_s": after - before,
        "peak_mb": resident_peak_mb(),
    }


def main() -> int:
    """Run everything; returns 1 when a bound is not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument("--quick", action="store_true", help="a small size: to see that it runs")
    options = parser.parse_args()
    records = 40_000 if options.quick else options.records
    bounds = Bounds()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_dataset(folder / "data.json", records)
        megabytes = (folder / "data.json").stat().st_size / 1e6
        print(f"{records} records in {megabytes:.0f} MB", flush=True)
        found = show("ingest", alone(ingest, folder))
        bounds.at_least("ingest_records_per_processor_second", found["records"] / found["processor_s"], 20_000)
        bounds.at_most("ingest_peak_mb", found["peak_mb"], 1024)
        bounds.at_most("ingest_requests_per_picture", found["requests"] / min(records, PICTURES), 0.2)
        for num_shards in (4, 64):
            found = show(f"split into {num_shards}", alone(split, folder, num_shards))
            bounds.at_most(f"split_{num_shards}_peak_mb", found["peak_mb"], 1024)
    return bounds.report()


if __name__ == "__main__":
    raise SystemExit(main())
