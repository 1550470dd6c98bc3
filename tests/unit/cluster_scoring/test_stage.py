import dataclasses
import hashlib

import faiss
import numpy as np
import pytest

from components.cluster_scoring.config import ClusterScoringConfig
from components.cluster_scoring.stage import run, similarity, training_rows
from free2ds_common.datasets import DatasetWriter, open_dataset
from free2ds_common.errors import StageError
from free2ds_common.schemas import TEXT_SCORES, TEXT_TURNS, kmeans_schema, text_messages_schema

SETTINGS = {
    "model": "m", "revision": "", "model_fingerprint": "f", "dtype": "float32", "max_tokens": 512,
    "records_sha256": "r", "part": "0/1",
}  # fmt: skip


def key_of(number):
    return hashlib.sha256(f"text {number}".encode()).hexdigest()


def write_features(folder, embeddings, said, key_of=key_of, **settings):
    """`said[i]` lists record i + 1's messages as rows of `embeddings`."""
    with DatasetWriter(folder / "messages", text_messages_schema(embeddings.shape[1])) as writer:
        writer.write(
            [{"message_key": key_of(n), "message": f"text {n}", "embedding": row} for n, row in enumerate(embeddings)]
        )
        writer.manifest.update(SETTINGS | settings)
    with DatasetWriter(folder / "turns", TEXT_TURNS) as writer:
        writer.write(
            [
                {"unique_id": record, "record_key": f"k{record}", "turn": turn, "message_key": key_of(message)}
                for record, messages in enumerate(said, start=1)
                for turn, message in enumerate(messages)
            ]
        )
        writer.manifest.update(SETTINGS | settings)
    return str(folder)


def config_for(tmp_path, *features, clusters=3):
    return ClusterScoringConfig(
        features=features,
        num_clusters=clusters,
        num_iterations=20,
        scores=str(tmp_path / "scores"),
        kmeans=str(tmp_path / "kmeans"),
    )


def scores_of(config):
    rows = open_dataset(config.scores, TEXT_SCORES).table().to_pylist()
    return {row["unique_id"]: row["text_similarity"] for row in rows}


def test_by_hand(tmp_path):
    # One cluster: said once each, the centroid is (1, 0); squared distances 1, 1, 4, 0 -> similarity 3/4, 3/4, 0, 1.
    embeddings = np.array([[0, 0], [2, 0], [1, 2], [1, 0], [1, -2]], dtype=np.float32)
    config = config_for(tmp_path, write_features(tmp_path / "f", embeddings, [[0, 1], [2], [3], [4, 3]]), clusters=1)
    # (0,0) (2,0) (1,2) (1,0) (1,-2) (1,0): mean (1, 0)
    result = run(config)
    assert scores_of(config) == pytest.approx({1: 0.75, 2: 0.0, 3: 1.0, 4: 0.5})
    rows = open_dataset(config.scores, TEXT_SCORES).table().to_pylist()
    assert [(row["record_key"], row["num_turns"]) for row in rows] == [("k1", 2), ("k2", 1), ("k3", 1), ("k4", 2)]
    assert result.metrics["turns"] == 6 and result.metrics["distinct_messages"] == 5


def test_equals_faiss_on_the_full_duplicated_matrix(tmp_path):
    """More turns than 256 K, so that FAISS subsamples; several parts in another order than the records."""
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(900, 8)).astype(np.float32)
    said = [rng.integers(0, 900, size=rng.integers(1, 5)).tolist() for _ in range(800)]
    full = embeddings[np.concatenate(said)]
    assert len(full) > 256 * 3
    kmeans = faiss.Kmeans(8, 3, niter=20, seed=42)
    kmeans.train(full)
    distances, _ = kmeans.index.search(full, 1)
    wanted = similarity(distances[:, 0])
    bounds = np.cumsum([0, *map(len, said)])
    config = config_for(tmp_path, write_features(tmp_path / "f", embeddings, said))
    run(config)
    found = scores_of(config)
    for record in range(800):
        assert found[record + 1] == pytest.approx(wanted[bounds[record] : bounds[record + 1]].mean(), abs=1e-6)
    centroids = np.array(open_dataset(config.kmeans, kmeans_schema(8)).table()["centroid"].to_pylist())
    np.testing.assert_array_equal(centroids.astype(np.float32), kmeans.centroids)


def test_training_rows_are_faiss_s_own():
    points = np.random.default_rng(1).normal(size=(2000, 4)).astype(np.float32)
    full, ours = (faiss.Kmeans(4, 2, niter=5, seed=7) for _ in range(2))
    full.train(points)
    ours.train(points[training_rows(2000, 2, 7)])
    np.testing.assert_array_equal(full.centroids, ours.centroids)
    assert training_rows(512, 2, 7).tolist() == list(range(512))


def test_parts_equal_the_whole(tmp_path):
    rng = np.random.default_rng(2)
    embeddings = rng.normal(size=(40, 4)).astype(np.float32)
    said = [[n, (n * 7) % 40] for n in range(40)]
    config = config_for(tmp_path, write_features(tmp_path / "whole", embeddings, said))
    run(config)
    wanted = scores_of(config)
    folders = []
    for part in (0, 1):
        folder = tmp_path / f"part{part}"
        folders.append(str(folder))
        with DatasetWriter(folder / "messages", text_messages_schema(4)) as writer:
            writer.write(
                [
                    {"message_key": key_of(n), "message": "", "embedding": embeddings[n]}
                    for n in range(40)
                    if n % 2 == part
                ]
            )
            writer.manifest.update(SETTINGS | {"part": f"{part}/2"})
        with DatasetWriter(folder / "turns", TEXT_TURNS) as writer:
            writer.write(
                [
                    {"unique_id": r + 1, "record_key": f"k{r + 1}", "turn": t, "message_key": key_of(n)}
                    for r, messages in enumerate(said)
                    for t, n in enumerate(messages)
                    if n % 2 == part
                ]
            )
            writer.manifest.update(SETTINGS | {"part": f"{part}/2"})
    run(dataclasses.replace(config, features=folders))
    assert scores_of(config) == pytest.approx(wanted, abs=1e-6)
    with pytest.raises(StageError, match="features: got parts 0/2, wanted 0/1. Give every part once"):
        run(dataclasses.replace(config, features=folders[:1]))
    with pytest.raises(StageError, match="got parts 0/2, 0/2, wanted 0/2, 1/2"):
        run(dataclasses.replace(config, features=[folders[0], folders[0]]))


def test_turns_that_do_not_fit_the_messages(tmp_path):
    embeddings = np.eye(3, dtype=np.float32)
    with pytest.raises(StageError, match="1 turns without an embedding. Rerun bert_features"):
        run(config_for(tmp_path, write_features(tmp_path / "f", embeddings, [[0], [1, 7]])))
    folder = write_features(tmp_path / "g", embeddings, [[0], [1, 2]])
    rows = [
        row
        for row in open_dataset(tmp_path / "g/turns", TEXT_TURNS).rows()
        if (row["unique_id"], row["turn"]) != (2, 0)
    ]
    with DatasetWriter(tmp_path / "g/turns", TEXT_TURNS) as writer:
        writer.write(rows)
        writer.manifest.update(SETTINGS)
    with pytest.raises(StageError, match="turns of record 2 are missing or there twice"):
        run(config_for(tmp_path, folder))


@pytest.mark.parametrize("key", ["a1", "a1" * 33, "z" * 64, "a1" * 32 + "é"])
def test_keys_that_are_no_sha256_are_refused(tmp_path, key):
    folder = write_features(tmp_path / "f", np.eye(1, dtype=np.float32), [[0]], key_of=lambda _: key)
    with pytest.raises(StageError, match="a message_key is not a hex sha256. Rerun bert_features"):
        run(config_for(tmp_path, folder))


def test_fewer_messages_than_clusters(tmp_path, caplog):
    embeddings = np.array([[0, 0], [5, 5]], dtype=np.float32)
    config = config_for(tmp_path, write_features(tmp_path / "f", embeddings, [[0], [1], [0]]), clusters=10)
    result = run(config)
    assert result.metadata["num_clusters"] == 2 and result.metadata["num_clusters_asked"] == 10
    assert "2 distinct messages: 2 clusters instead of 10" in caplog.text
    assert all(0 <= score <= 1 for score in scores_of(config).values())


def test_all_messages_alike_are_all_typical(tmp_path):
    config = config_for(tmp_path, write_features(tmp_path / "f", np.ones((1, 3), np.float32), [[0], [0, 0]]))
    run(config)
    assert scores_of(config) == {1: 1.0, 2: 1.0}


def test_model_artifact(tmp_path):
    embeddings = np.array([[0, 0], [0, 1], [0, -1], [9, 9]], dtype=np.float32)
    config = config_for(tmp_path, write_features(tmp_path / "f", embeddings, [[0, 1, 2], [3], [3]]), clusters=2)
    run(config)
    dataset = open_dataset(config.kmeans, kmeans_schema(2))
    rows = {row["typical_message"]: row["num_turns"] for row in dataset.rows()}
    assert rows == {"text 0": 3, "text 3": 2}
    objective = dataset.manifest["objective"]
    assert objective and objective == sorted(objective, reverse=True)


def test_parts_of_different_models_are_refused(tmp_path):
    embeddings = np.eye(3, dtype=np.float32)
    one = write_features(tmp_path / "one", embeddings, [[0], [1]])
    other = write_features(tmp_path / "other", embeddings, [[2]], model_fingerprint="g")
    with pytest.raises(StageError, match="parts of different runs, model_fingerprint 'f' in .* but 'g'"):
        run(config_for(tmp_path, one, other))


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("num_clusters", 0, "num_clusters: got 0"),
        ("num_iterations", 0, "num_iterations: got 0"),
        ("seed", -1, "seed: got -1"),
        ("features", ["/nowhere"], "no _manifest.json"),
        ("features", [], "features: no text_messages/1 folder given"),
    ],
)
def test_wrong_settings(tmp_path, setting, value, message):
    config = config_for(tmp_path, write_features(tmp_path / "f", np.eye(3, dtype=np.float32), [[0], [1], [2]]))
    with pytest.raises(StageError, match=message):
        run(dataclasses.replace(config, **{setting: value}))


def test_no_turns(tmp_path):
    with pytest.raises(StageError, match="no turns in them"):
        run(config_for(tmp_path, write_features(tmp_path / "f", np.eye(3, dtype=np.float32), [])))
