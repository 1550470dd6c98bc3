"""cluster_scoring with order=key: against bare FAISS, and with what changes about the machine.

    python -m benchmarks.keyed [--dataset FILE] [--quick] [--only PART ...]

"faiss": time, memory and objective on one matrix, same K and iterations. "kernels": the records that a selection has in
common with the one of this machine's own kernels, by text alone, when libraries are told to use others.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np

from benchmarks.alone import alone, resident_peak_mb
from benchmarks.bounds import Bounds
from benchmarks.text import minilm_folder
from benchmarks.text_data import read_messages, sample_of, write_records
from components.cluster_scoring import lloyd
from components.joint_selection.draw import DRAW, gumbel, record_noise
from free2ds_common.datasets import open_dataset
from free2ds_common.schemas import TEXT_SCORES

_SEED = 42
PARTS = ("faiss", "kernels")
# Told to numpy's BLAS, numpy and FAISS, which work on given embeddings.
_SCORING = {
    "OpenBLAS for AVX": {"OPENBLAS_CORETYPE": "Sandybridge"},
    "numpy without AVX2 and AVX-512": {"NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL"},
    "FAISS generic": {"FAISS_OPT_LEVEL": "generic"},
    "FAISS AVX2": {"FAISS_OPT_LEVEL": "avx2"},
}
# Told to torch, which makes the embeddings.
_EMBEDDING = {
    "ATen AVX2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "ATen generic": {"ATEN_CPU_CAPABILITY": "default"},
    "oneDNN AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
}


def matrix(rows: int, dimensions: int) -> np.ndarray:
    """Points like embeddings: a long common part, and a few directions in which they differ most."""
    scales = np.exp(-np.arange(dimensions, dtype=np.float32) / (dimensions / 12))
    points = np.random.default_rng(0).standard_normal((rows, dimensions), np.float32)
    points *= scales
    points += 0.5
    return points


def train(which: str, rows: int, dimensions: int, clusters: int, iterations: int) -> dict[str, float]:
    """Train once: seconds, peak in MB above the matrix, objective and iterations, for `alone`."""
    points = matrix(rows, dimensions)
    before = resident_peak_mb(reset=True)
    start = time.monotonic()
    if which == "faiss":
        kmeans = faiss.Kmeans(dimensions, clusters, niter=iterations, seed=_SEED)
        kmeans.train(points)
        objectives = [float(value) for value in kmeans.obj]
    else:
        with lloyd.threads() as pool:
            objectives = lloyd.train(points, np.ones(rows), clusters, iterations, pool).objectives
    end = time.monotonic()
    peak = resident_peak_mb() - before
    return {"start": start, "end": end, "peak_mb": peak, "objective": objectives[-1], "iterations": len(objectives)}


def against_faiss(bounds: Bounds, rounds: int, *size: int) -> None:
    """Ours over bare FAISS: the median of the rounds' ratios."""
    found = [{which: alone(train, which, *size) for which in ("faiss", "key")} for _ in range(rounds)]

    def ratio(name: str) -> float:
        return float(np.median([row["key"][name] / row["faiss"][name] for row in found]))

    for row in found:
        print({which: {name: round(value, 1) for name, value in run.items()} for which, run in row.items()}, flush=True)
    bounds.at_least("key_iterations_of_faiss_s", ratio("iterations"), 1)
    bounds.at_most("key_seconds_over_faiss", ratio("seconds"), 1.15)
    bounds.at_most("key_peak_mb_over_faiss", ratio("peak_mb"), 1)
    bounds.at_most("key_objective_over_faiss", ratio("objective"), 1.02)


def stage(name: str, arguments: list[str], changes: dict[str, str]) -> None:
    """Run a stage in a process of its own, with some environment variables changed."""
    done = subprocess.run(
        [sys.executable, "-m", f"components.{name}", *arguments],
        env=os.environ | changes,
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr)


def scores(place: Path, features: str, order: str, changes: dict[str, str]) -> dict[str, np.ndarray]:
    """Text similarities, and who is selected at a ratio of 0.2 by each sampler."""
    folder = tempfile.mkdtemp(dir=place)
    stage(
        "cluster_scoring",
        ["--features", features, "--num-clusters", "0", "--order", order, "--scores", folder],
        changes,
    )
    table = open_dataset(folder, TEXT_SCORES).table(["record_key", "text_similarity"])
    similarity = table.column("text_similarity").to_numpy()
    score = 1 - (similarity - similarity.min()) / np.ptp(similarity)
    count = len(score) // 5
    keys = score + gumbel(record_noise(table.column("record_key"), _SEED)[:, DRAW])
    chances = np.exp(score) / np.exp(score).sum()
    return {
        "similarity": similarity,
        "top": np.argsort(-score, kind="stable")[:count],
        "gumbel": np.argsort(-keys, kind="stable")[:count],
        "reference": np.random.RandomState(_SEED).choice(len(score), count, replace=False, p=chances),
    }


def embedded(place: Path, records: str, changes: dict[str, str]) -> str:
    """A folder of bert_features."""
    folder = tempfile.mkdtemp(dir=place)
    arguments = ["--records", records, "--model", str(minilm_folder()), "--dtype", "float32", "--features", folder]
    stage("bert_features", arguments, changes)
    return folder


def kernels(bounds: Bounds, dataset: Path, turns: int) -> None:
    """Selections with other kernels, of the libraries that score and of those that embed."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        records = write_records(place / "records", sample_of(read_messages(dataset), turns))
        features = embedded(place, records, {})
        other = {label: embedded(place, records, changes) for label, changes in _EMBEDDING.items()}
        for order in ("key", "reference"):
            own = scores(place, features, order, {})
            found = {label: scores(place, features, order, changes) for label, changes in _SCORING.items()}
            if order == "key":
                equal = all(row["similarity"].tobytes() == own["similarity"].tobytes() for row in found.values())
                bounds.at_least("key_scores_equal_with_other_kernels", float(equal), 1)
            found |= {label: scores(place, folder, order, {}) for label, folder in other.items()}
            threads = {f"{count} threads": {"OMP_NUM_THREADS": str(count)} for count in (1, 4)}
            found |= {label: scores(place, features, order, changes) for label, changes in threads.items()}
            for label, row in found.items():
                common = {
                    sampler: len(np.intersect1d(own[sampler], row[sampler])) / len(own[sampler])
                    for sampler in ("top", "gumbel", "reference")
                }
                moved = float(np.abs(own["similarity"] - row["similarity"]).max())
                shares = ", ".join(f"{sampler} {share:.1%}" for sampler, share in common.items())
                print(
                    f"order={order}, {label}: similarity moves by at most {moved:.2g}; in common: {shares}", flush=True
                )


def main() -> int:
    """Run everything; returns 1 if a bound is not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", type=Path, default=Path("../shared/data/texts/dataset.json.gz"))
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it runs")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="some parts only")
    options = parser.parse_args()
    quick, bounds = options.quick, Bounds()
    size = (20_000, 256, 250, 5) if quick else (256_000, 768, 1000, 5)
    parts: dict[str, Callable[[], None]] = {
        "faiss": lambda: against_faiss(bounds, 1 if quick else 3, *size),
        "kernels": lambda: kernels(bounds, options.dataset, 300 if quick else 2000),
    }
    for name in options.only:
        parts[name]()
    return bounds.report()


if __name__ == "__main__":
    sys.exit(main())
