"""joint_selection at full size against the plain way, and ten times that.

    python -m benchmarks.selection [--records 665298] [--quick] [--chance]

Two plain ways: one whose time was given when this stage was built (1,840 s for 665,298 records; the bound), and one
that is timed here on the rows of one part: rows as Python objects, the top positions sorted and put into sets. The maps
are synthetic. Each size runs in a process of its own, so that its peak memory is its own.

What chance makes of a setting is timed on scores alone, and its numbers are held against simulated draws.
"""

import argparse
import dataclasses
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
from PIL import Image

from benchmarks.bounds import Bounds, in_turns
from components.joint_selection.chance import Chance, chance
from components.joint_selection.config import DrawSettings, JointSelectionConfig
from components.joint_selection.report.page import write_report
from components.joint_selection.selection import Candidates, Selection, select
from components.joint_selection.stage import run
from free2ds_common.datasets import DatasetWriter, open_dataset
from free2ds_common.inference.asked import CAPTURE_VERSION
from free2ds_common.schemas import RECORDS, TEXT_SCORES, attention_schema, kmeans_schema

POSITIONS = 576
PARTS = 64
SOURCES = ("coco", "gqa", "ocr_vqa", "textvqa", "vg", "text-only")
# Of the records, as in LLaVA-665K: without a picture.
TEXT_ONLY = 40_688 / 665_298
PLAIN_SAMPLE = 3_000
TOP_K = 172
PICTURES, CLUSTERS = 20, 1000
SIMULATED = 200
STATED_PLAIN_S = 1840 / 665_298


def write_inputs(folder: Path, records: int, templates: int) -> None:
    """Synthetic input folders of the stage.

    Args:
        folder: Where.
        records: How many.
        templates: Different maps; 0 makes every map a new one.
    """
    rng = np.random.default_rng(0)
    keys = [f"{number:064x}" for number in range(records)]
    text_only = rng.random(records) < TEXT_ONLY
    sources = rng.integers(0, len(SOURCES) - 1, records)
    with DatasetWriter(folder / "records", RECORDS) as writer:
        for start in range(0, records, 50_000):
            rows = range(start, min(start + 50_000, records))
            said = [f"What is in picture {number}?" for number in rows]
            columns = [
                pa.array([number + 1 for number in rows], pa.int64()),
                pa.array(keys[start : start + 50_000]),
                pa.array(list(rows)),
                pa.array([str(number) for number in rows]),
                pa.array([None if text_only[number] else f"{number % PICTURES}.jpg" for number in rows], pa.string()),
                pa.array([SOURCES[-1] if text_only[number] else SOURCES[sources[number]] for number in rows]),
                pa.array(said),
                pa.array([[text] for text in said]),
                pa.array(
                    [
                        json.dumps({"id": str(number), "conversations": [{"from": "human", "value": text}]})
                        for number, text in zip(rows, said, strict=True)
                    ]
                ),
            ]
            writer.write(pa.table(columns, names=RECORDS.arrow.names))
    for number in range(PICTURES):
        Image.effect_noise((640, 480), 60).convert("RGB").save(folder / f"{number}.jpg", quality=90)
    with DatasetWriter(folder / "kmeans", kmeans_schema(8)) as writer:
        writer.write(
            [
                {
                    "cluster": number,
                    "num_turns": records // CLUSTERS,
                    "typical_message": f"What is that? {number}",
                    "centroid": [0.0] * 8,
                }
                for number in range(CLUSTERS)
            ]
        )
    pool = rng.dirichlet(np.ones(POSITIONS), size=templates).astype(np.float32) if templates else None
    for side in ("llava", "mgm"):
        for part in range(PARTS):
            write_part(folder / f"{side}{part:02d}", np.arange(part, records, PARTS), keys, text_only, rng, pool)
    with DatasetWriter(folder / "text", TEXT_SCORES) as writer:
        columns = [
            pa.array(np.arange(1, records + 1)),
            pa.array(keys),
            pa.array(np.full(records, 5, np.int32)),
            pa.array(rng.beta(4, 2, records)),
            pa.array(np.arange(records, dtype=np.int32) % CLUSTERS),
        ]
        writer.write(pa.table(columns, names=TEXT_SCORES.arrow.names))


def write_part(
    folder: Path,
    numbers: np.ndarray,
    keys: Sequence[str],
    text_only: np.ndarray,
    rng: np.random.Generator,
    pool: np.ndarray | None,
) -> None:
    """One attention/1 folder."""
    with DatasetWriter(folder, attention_schema(), 10_000) as writer:
        for start in range(0, len(numbers), 10_000):
            rows = numbers[start : start + 10_000]
            if pool is None:
                maps = rng.exponential(size=(len(rows), POSITIONS)).astype(np.float32)
                maps /= maps.sum(axis=1, keepdims=True)
            else:
                # Runs of one template are small on disk, and as large as any in memory.
                maps = pool[np.repeat(rng.integers(0, len(pool), len(rows) // 50 + 1), 50)[: len(rows)]]
            missing = text_only[rows]
            column = pa.FixedSizeListArray.from_arrays(pa.array(maps.reshape(-1)), POSITIONS, mask=pa.array(missing))
            columns = [
                pa.array(rows + 1),
                pa.array([keys[number] for number in rows]),
                pa.array(np.where(missing, 0, 4).astype(np.int32)),
                pa.array(np.where(missing, "text_only", "ok").tolist()),
                column,
            ]
            writer.write(pa.table(columns, names=attention_schema().arrow.names))
        writer.manifest.update(grid=24, capture_version=CAPTURE_VERSION, model="synthetic", model_fingerprint="none")


class Timed:
    """A function that notes how long its last call took."""

    def __init__(self, function: Callable[..., None]) -> None:
        """Wrap it."""
        self._function = function
        self.seconds = 0.0

    def __call__(self, *arguments: object) -> None:
        """Call it."""
        start = time.perf_counter()
        self._function(*arguments)
        self.seconds = time.perf_counter() - start


def measure(folder: Path) -> None:
    """Child process: run the stage and print seconds, seconds of the report and peak MB as JSON."""
    config = JointSelectionConfig(
        records=str(folder / "records"),
        llava_attention=[str(folder / f"llava{part:02d}") for part in range(PARTS)],
        mgm_attention=[str(folder / f"mgm{part:02d}") for part in range(PARTS)],
        text_scores=str(folder / "text"),
        image_root_uri=str(folder),
        kmeans=str(folder / "kmeans"),
        selected=str(folder / "selected.json"),
        scores=str(folder / "scores"),
        report=str(folder / "report.html"),
        summary=str(folder / "summary.json"),
        random=str(folder / "random.json"),
    )
    report = Timed(write_report)
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    with mock.patch("components.joint_selection.stage.write_report", report):
        run(config)
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text().splitlines()
    peak = int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024
    megabytes = (folder / "report.html").stat().st_size / 1e6
    print(json.dumps({"seconds": seconds, "report_s": report.seconds, "peak_mb": peak, "report_mb": megabytes}))


def measured(records: int, templates: int, *, with_plain: bool = False) -> dict[str, float]:
    """Write inputs of a size and measure the stage on them in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        start = time.perf_counter()
        write_inputs(Path(place), records, templates)
        print(f"{records} records written in {time.perf_counter() - start:.0f} s", flush=True)
        found = {"plain_s": plain_seconds_per_record(Path(place)) * records} if with_plain else {}
        command = [sys.executable, "-m", "benchmarks.selection", "--measure", place]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found |= json.loads(printed.splitlines()[-1])
        print(f"{records} records: " + ", ".join(f"{name} {value:.1f}" for name, value in found.items()), flush=True)
        return found


def plain_seconds_per_record(folder: Path) -> float:
    """Row by row through one part of each side: top positions of both maps as Python sets, and their IoU."""
    sides = [open_dataset(folder / f"{side}00", attention_schema()).rows() for side in ("llava", "mgm")]
    start = time.perf_counter()
    count = 0
    for one, other in itertools.islice(zip(*sides, strict=True), PLAIN_SAMPLE):
        count += 1
        if one["map"] is not None and other["map"] is not None:
            a, b = (set(sorted(range(POSITIONS), key=row["map"].__getitem__)[-TOP_K:]) for row in (one, other))
            len(a & b) / len(a | b)
    return (time.perf_counter() - start) / count


def measure_chance(bounds: Bounds, records: int) -> None:
    """Time of all that is said of chance, curve and sources included, and its numbers against simulated draws."""
    rng = np.random.default_rng(1)
    codes = np.where(rng.random(records) < TEXT_ONLY, len(SOURCES) - 1, rng.integers(0, len(SOURCES) - 1, records))
    candidates = Candidates(
        iou=np.where(codes == len(SOURCES) - 1, np.nan, rng.beta(2, 5, records)),
        text_similarity=rng.beta(4, 2, records),
        rejected=np.zeros(records, bool),
        source=pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(SOURCES)),
        noise=_words(rng, records),
    )
    slowest, furthest, spreads = 0.0, 0.0, []
    for settings in (
        DrawSettings(),
        DrawSettings(temperature=0.1),
        DrawSettings(temperature=0.001),
        DrawSettings(temperature=0.1, stratify="source"),
    ):
        selection = select(settings, candidates)
        found = chance(settings, candidates.source, selection)
        work = partial(chance, settings, candidates.source, selection)
        seconds = in_turns(3, chance=work).median("chance")
        slowest = max(slowest, seconds)
        off, spread = _simulated(settings, candidates, found)
        furthest = max(furthest, off)
        spreads.append(spread)
        print(
            f"temperature {settings.temperature:g} {settings.stratify}: {found.overlap.expected:.4%} "
            f"({found.overlap.low:.4%} to {found.overlap.high:.4%}), random {found.overlap_random.expected:.2%} "
            f"({found.overlap_random.low:.2%} to {found.overlap_random.high:.2%}), half at "
            f"{found.wanted_temperature}: {seconds:.2f} s; {SIMULATED} draws: mean {off:.2f} standard errors off, "
            f"spread over theirs {spread:.3f}",
            flush=True,
        )
    bounds.at_most("chance_s", slowest, 1)
    bounds.at_most("chance_mean_off_in_standard_errors", furthest, 4)
    bounds.at_least("chance_spread_over_simulated", min(spreads), 0.8)
    bounds.at_most("chance_spread_over_simulated", max(spreads), 1.25)


def _words(rng: np.random.Generator, records: int) -> np.ndarray:
    """Noise as `record_noise` makes it, without records to hash."""
    return rng.integers(0, 2**64, (records, 3), dtype=np.uint64)


def _simulated(settings: DrawSettings, candidates: Candidates, found: Chance) -> tuple[float, float]:
    """How many standard errors of simulated draws their mean is from the expected overlap, and both spreads' ratio."""
    overlaps = []
    for seed in range(SIMULATED):
        noise = _words(np.random.default_rng(seed), len(candidates.iou))
        drawn: Selection = select(
            dataclasses.replace(settings, seed=seed), dataclasses.replace(candidates, noise=noise)
        )
        overlaps.append(drawn.tilt.overlap_with_top)
    deviation = float(np.std(overlaps))
    off = abs(found.overlap.expected - float(np.mean(overlaps))) / (deviation / SIMULATED**0.5)
    return off, found.overlap.spread / 1.96 / deviation


def main() -> int:
    """Run everything; returns 1 when a bound is not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=665_298)
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it runs")
    parser.add_argument("--chance", action="store_true", help="only what chance makes of a setting")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure)
        return 0
    records = 20_000 if options.quick else options.records
    bounds = Bounds()
    measure_chance(bounds, records)
    if options.chance:
        return bounds.report()
    full = measured(records, 0, with_plain=True)
    print(f"over the plain way timed here: {full['plain_s'] / full['seconds']:.1f} times")
    bounds.at_least("joint_selection_over_stated_plain", STATED_PLAIN_S * records / full["seconds"], 60)
    bounds.at_most("joint_selection_peak_mb", full["peak_mb"], 2048)
    bounds.at_most("report_s", full["report_s"], 60)
    bounds.at_most("report_mb", full["report_mb"], 8)
    one, ten = (measured(times * records, 1000) for times in (1, 10))
    bounds.at_most("ten_times_the_records_over_ten_times_the_time", ten["seconds"] / (10 * one["seconds"]), 1.15)
    return bounds.report()


if __name__ == "__main__":
    sys.exit(main())
