"""Reading what two runs of full size have left: `lineage` and `compare` at 665,298 records, 20 % of them selected.

    python -m benchmarks.results

Scores and selections are made up: another seed, 5 % of the records exchanged. Bounds: 10 s each.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.bounds import Bounds
from free2ds_common.datasets import DatasetWriter, sha256_of_file
from free2ds_common.launch.compare import compare, lines
from free2ds_common.launch.lineage import lineage_of, tree
from free2ds_common.launch.results import Results
from free2ds_common.schemas import SCORES

RECORDS = 665_298
_BOUND_S = 10.0
_RATIO = 0.2
# Of a LLaVA record as JSON.
_RECORD_BYTES = 1_500


def write_results(folder: Path, first: int, seed: int, records: int) -> None:
    """Write scores, selection and summary of a run.

    Args:
        folder: Where to.
        first: Number of the first record; records of one number are the same in every run.
        seed: Of scores and draw.
        records: How many.
    """
    numbers = np.random.default_rng(0).permutation(np.arange(first, first + records))
    draw = np.random.default_rng(seed)
    combined = draw.random(records)
    selected = np.zeros(records, bool)
    selected[draw.choice(records, int(records * _RATIO), replace=False)] = True
    columns = {
        "unique_id": pa.array(np.arange(1, records + 1)),
        "record_key": pa.array([f"{number:064x}" for number in numbers]),
        "source": pa.array(["coco"]).take(pa.array(np.zeros(records, np.int64))),
        "combined": pa.array(np.where(combined < 0.01, np.nan, combined), from_pandas=True),
        "probability": pa.array(combined / records),
        "llava_outcome": pa.array(["ok"]).take(pa.array(np.zeros(records, np.int64))),
        "mgm_outcome": pa.array(["ok"]).take(pa.array(np.zeros(records, np.int64))),
        "selected": pa.array(selected),
        "id": pa.array([f"{number:012d}" for number in numbers]),
        "position": pa.array(np.arange(records)),
    }
    empty = {field.name: pa.nulls(records, field.type) for field in SCORES.arrow if field.name not in columns}
    with DatasetWriter(folder / "scores", SCORES) as writer:
        writer.write(pa.table({**columns, **empty}))
    with (folder / "selected.json").open("wb") as handle:
        for _ in range(int(records * _RATIO)):
            handle.write(b" " * _RECORD_BYTES)
    summary = {
        "counts": {"read": records, "written": int(records * _RATIO)},
        "parameters": {"seed": seed},
        "run": {},
        "code_version": "",
        "lineage": {"image": "", "outputs": {"selected": sha256_of_file(folder / "selected.json")}, "made_from": {}},
    }
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


def main() -> int:
    """Measure; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--records", type=int, default=RECORDS)
    records = parser.parse_args().records
    bounds = Bounds()
    with tempfile.TemporaryDirectory() as scratch:
        first, second = Path(scratch) / "first", Path(scratch) / "second"
        write_results(first, 0, 1, records)
        write_results(second, records // 20, 2, records)
        one, other = Results.at(str(first)), Results.at(str(second))
        started = time.perf_counter()
        found = compare(one, other)
        with contextlib.redirect_stdout(io.StringIO()):
            print("\n".join(lines(found, "first", "second")))
        bounds.at_most("compare_s", time.perf_counter() - started, _BOUND_S)
        started = time.perf_counter()
        tree(lineage_of(one))
        bounds.at_most("lineage_s", time.perf_counter() - started, _BOUND_S)
        print(f"{len(found.came_in)} came in, {len(found.dropped_out)} dropped out, {found.in_both} in both")
    return bounds.report()


if __name__ == "__main__":
    sys.exit(main())
