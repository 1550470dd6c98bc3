"""order=key: scores that depend on what was said, not on where, in which parts, or on how many threads."""

import os
import subprocess
import sys

import numpy as np
import pytest

from components.cluster_scoring import lloyd
from components.cluster_scoring.config import ClusterScoringConfig
from components.cluster_scoring.stage import run
from free2ds_common.datasets import DatasetWriter, open_dataset
from free2ds_common.errors import StageError
from free2ds_common.schemas import TEXT_SCORES, TEXT_TURNS, kmeans_schema, text_messages_schema
from tests.support.text import MANIFEST_ENTRIES, key_of, write_features

RECORDS, MESSAGES = 700, 900


@pytest.fixture(scope="module")
def embeddings():
    """Around a far point, where float32 products are off by more than some distances differ; the last two are equal."""
    rng = np.random.default_rng(5)
    points = (20 + rng.normal(size=(MESSAGES, 24))).astype(np.float32)
    points[-1] = points[-2]
    return points


@pytest.fixture(scope="module")
def said():
    """More turns than 256 for each of 3 clusters, so that some are drawn."""
    rng = np.random.default_rng(6)
    return [rng.integers(0, MESSAGES, size=rng.integers(1, 4)).tolist() for _ in range(RECORDS)]


def write(folder, embeddings, said, *, records=None, messages=None, parts=1):
    """Features with records and messages in the order given; returns the folder of each part."""
    records = range(len(said)) if records is None else records
    messages = range(len(embeddings)) if messages is None else messages
    for part in range(parts):
        entries = MANIFEST_ENTRIES | {"part": f"{part}/{parts}"}
        with DatasetWriter(folder / str(part) / "messages", text_messages_schema(embeddings.shape[1])) as writer:
            rows = [number for number in messages if number % parts == part]
            writer.write(
                [{"message_key": key_of(row), "message": f"text {row}", "embedding": embeddings[row]} for row in rows]
            )
            writer.manifest.update(entries)
        with DatasetWriter(folder / str(part) / "turns", TEXT_TURNS) as writer:
            writer.write(
                [
                    {"unique_id": place, "record_key": f"k{record}", "turn": turn, "message_key": key_of(message)}
                    for place, record in enumerate(records, start=1)
                    for turn, message in enumerate(said[record])
                    if message % parts == part
                ]
            )
            writer.manifest.update(entries)
    return [str(folder / str(part)) for part in range(parts)]


def score(tmp_path, features, clusters=3, seed=42, name="out"):
    """Text similarity and cluster by record key, and the centroids' bytes."""
    config = ClusterScoringConfig(
        features=features,
        num_clusters=clusters,
        num_iterations=30,
        seed=seed,
        scores=str(tmp_path / name / "scores"),
        kmeans=str(tmp_path / name / "kmeans"),
    )
    run(config)
    return read(tmp_path / name)


def read(folder):
    scores = open_dataset(folder / "scores", TEXT_SCORES).rows()
    centroids = open_dataset(folder / "kmeans", kmeans_schema(1)).table()["centroid"].to_pylist()
    found = {row["record_key"]: (row["text_similarity"], row["cluster"]) for row in scores}
    return found, centroids


@pytest.mark.parametrize("clusters", [3, 40])
def test_neither_order_nor_parts_change_a_bit(tmp_path, embeddings, said, clusters):
    wanted = score(tmp_path, write(tmp_path / "f", embeddings, said), clusters)
    assert len({similarity for similarity, _ in wanted[0].values()}) > RECORDS / 2
    rng = np.random.default_rng(8)
    for parts in (1, 3, 7):
        features = write(
            tmp_path / f"{parts}",
            embeddings,
            said,
            records=rng.permutation(RECORDS).tolist(),
            messages=rng.permutation(MESSAGES).tolist(),
            parts=parts,
        )
        assert score(tmp_path, features, clusters) == wanted


def test_neither_threads_nor_blocks_change_a_bit(tmp_path, embeddings, said, monkeypatch):
    features = write(tmp_path / "f", embeddings, said)
    wanted = score(tmp_path, features, 40)
    program = "import sys; from components.cluster_scoring.__main__ import main; sys.exit(main(sys.argv[1:]))"
    for threads in ("1", "2", "4"):
        folder = tmp_path / threads
        subprocess.run(
            [
                sys.executable,
                "-c",
                program,
                "--features",
                *features,
                "--num-clusters",
                "40",
                "--num-iterations",
                "30",
                "--scores",
                str(folder / "scores"),
                "--kmeans",
                str(folder / "kmeans"),
            ],
            env=os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
            check=True,
            capture_output=True,
        )
        assert read(folder) == wanted
    monkeypatch.setattr(lloyd, "_BLOCK_ROWS", 17)
    assert score(tmp_path, features, 40) == wanted


def test_other_turns_train_with_another_seed(tmp_path, embeddings, said):
    features = write(tmp_path / "f", embeddings, said)
    assert score(tmp_path, features, seed=42) != score(tmp_path, features, seed=7)


def test_equal_records_are_interchangeable(tmp_path, embeddings, said):
    twice = [*said, *said]
    keys = [*range(RECORDS), *range(RECORDS)]
    order = np.random.default_rng(9).permutation(2 * RECORDS).tolist()

    def scored(name, places):
        features = write(
            tmp_path / name,
            embeddings,
            [twice[keys[place]] for place in range(2 * RECORDS)],
            records=[keys[place] for place in places],
        )
        return score(tmp_path, features)

    assert scored("a", range(2 * RECORDS)) == scored("b", order)


def brute_force(points, centroids):
    distances = ((points[:, None].astype(np.float64) - centroids[None]) ** 2).sum(axis=2)
    return distances.argmin(axis=1), distances.min(axis=1)


@pytest.mark.parametrize("shift", [0, 100, 10_000])
def test_float64_decides_whatever_the_product_says(shift):
    """One far centroid, so that the middle of all is no help."""
    rng = np.random.default_rng(1)
    points = (shift + rng.normal(size=(500, 40))).astype(np.float32)
    centroids = (shift + rng.normal(size=(30, 40))).astype(np.float32)
    centroids[-1] = -50 * shift
    with lloyd.threads() as pool:
        distances, numbers = lloyd.nearest_centroids([points[:300], points[300:]], centroids, pool)
    wanted, squared = brute_force(points, centroids)
    assert numbers.tolist() == wanted.tolist()
    np.testing.assert_allclose(distances, squared, rtol=1e-12)


def test_the_first_of_equally_near_centroids():
    points = np.array([[0.0], [2.0]], np.float32)
    centroids = np.array([[5.0], [1.0], [-1.0], [1.0]], np.float32)
    with lloyd.threads() as pool:
        distances, numbers = lloyd.nearest_centroids([points], centroids, pool)
    assert (numbers.tolist(), distances.tolist()) == ([1, 1], [1.0, 1.0])


def trained(points, weights, clusters, iterations):
    with lloyd.threads() as pool:
        return lloyd.train(np.array(points, np.float32), np.array(weights, float), clusters, iterations, pool)


def test_training_by_hand():
    # From 0 and 1: {0} and {1, 9, 11}, means 0 and 7; {0, 1} and {9, 11}, means 0.5 and 10; then nothing changes.
    training = trained([[0], [1], [9], [11]], [1, 1, 1, 1], 2, 50)
    assert training.centroids.tolist() == [[0.5], [10]]
    # 0 + 0 + 64 + 100; 0 + 36 + 4 + 16, where 1 is nearer to 0: 0 + 1 + 4 + 16; 0.25 + 0.25 + 1 + 1.
    assert training.objectives == [164, 21, 2.5]


def test_weights_pull_the_mean():
    assert trained([[0], [4]], [3, 1], 1, 5).centroids.tolist() == [[1]]


def test_an_empty_cluster_moves_to_the_farthest_point(monkeypatch):
    # From 0, 1, 2: three clusters {0}, {1} and {2, 8, 12}, mean 22/3. Then 2 is nearer to 1: {0}, {1, 2}, {8, 12}.
    # With the first centroids replaced by 0, 50, 51 the last two are empty and move to 12 and 8.
    real = lloyd._assignment
    calls = []

    def first_far(centroids):
        calls.append(centroids.copy())
        if len(calls) == 1:
            centroids[1:] = [[50], [51]]
        return real(centroids)

    monkeypatch.setattr(lloyd, "_assignment", first_far)
    training = trained([[0], [1], [2], [8], [12]], [1] * 5, 3, 2)
    # All five are in the first cluster, whose mean is 4.6; the farthest from 0 are 12 and 8.
    assert calls[1].tolist() == [[np.float32(4.6)], [12], [8]]
    assert training.centroids.tolist() == [[1], [12], [8]]


def test_equal_embeddings_are_one_point(tmp_path):
    features = write(tmp_path / "f", np.array([[0.0, 1], [-0.0, 1], [3, 1]], np.float32), [[0], [1], [2]])
    found, centroids = score(tmp_path, features)
    assert sorted(centroids) == [[0, 1], [3, 1]]
    assert {similarity for similarity, _ in found.values()} == {1.0}
    assert open_dataset(tmp_path / "out/scores", TEXT_SCORES).manifest["warnings"] == [
        "3 distinct messages, 2 distinct embeddings of those that train: 2 clusters instead of 3.",
        "2 clusters for 3 distinct messages, fewer than 39 for each: many messages are a centroid of their own, and "
        "the text scores say little. num_clusters=0 takes 1.",
    ]


def test_embeddings_that_are_not_finite_are_refused(tmp_path):
    features = write(tmp_path / "f", np.array([[0], [np.nan]], np.float32), [[0], [1]])
    with pytest.raises(StageError, match=r"features: an embedding is not finite\. Rerun bert_features"):
        score(tmp_path, features)


def test_zero_clusters_are_as_many_as_the_data_allow(tmp_path):
    points = np.random.default_rng(2).normal(size=(78, 2)).astype(np.float32)
    features = write_features(tmp_path / "f", points, [[number] for number in range(78)])
    _, centroids = score(tmp_path, [features], clusters=0)
    manifest = open_dataset(tmp_path / "out/scores", TEXT_SCORES).manifest
    # 78 / 39.
    assert len(centroids) == 2
    assert (manifest["num_clusters"], manifest["num_clusters_asked"], manifest["warnings"]) == (2, 0, [])
