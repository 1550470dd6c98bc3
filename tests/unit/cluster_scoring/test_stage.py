import dataclasses
import shutil

import faiss
import numpy as np
import pytest

from components.cluster_scoring.config import ClusterScoringConfig
from components.cluster_scoring.features import open_features
from components.cluster_scoring.kmeans import nearest_centroids, similarity, training_rows
from components.cluster_scoring.stage import run
from free2ds_common.datasets import DatasetWriter, open_dataset
from free2ds_common.errors import StageError
from free2ds_common.schemas import TEXT_SCORES, TEXT_TURNS, kmeans_schema
from tests.support.text import MANIFEST_ENTRIES, write_features


def config_for(tmp_path, *features, clusters=3, iterations=20, seed=42, order="key"):
    return ClusterScoringConfig(
        features=features,
        num_clusters=clusters,
        num_iterations=iterations,
        seed=seed,
        order=order,
        scores=str(tmp_path / "scores"),
        kmeans=str(tmp_path / "kmeans"),
    )


def scores_of(config):
    rows = open_dataset(config.scores, TEXT_SCORES).table().to_pylist()
    return {row["unique_id"]: row["text_similarity"] for row in rows}


def centroids_of(config, dimensions):
    rows = open_dataset(config.kmeans, kmeans_schema(dimensions)).table()["centroid"].to_pylist()
    return np.array(rows, np.float32)


def test_by_hand(tmp_path):
    # One cluster: said are (0,0) (2,0) (1,2) (1,0) (1,-2) (1,0), whose mean is (1, 0). Squared distances of the five
    # messages: 1, 1, 4, 0, 4; similarities 1 - d / 4: 3/4, 3/4, 0, 1, 0.
    embeddings = np.array([[0, 0], [2, 0], [1, 2], [1, 0], [1, -2]], dtype=np.float32)
    config = config_for(tmp_path, write_features(tmp_path / "f", embeddings, [[0, 1], [2], [3], [4, 3]]), clusters=1)
    result = run(config)
    assert scores_of(config) == pytest.approx({1: 0.75, 2: 0.0, 3: 1.0, 4: 0.5})
    rows = open_dataset(config.scores, TEXT_SCORES).table().to_pylist()
    assert [(row["record_key"], row["num_turns"]) for row in rows] == [("k1", 2), ("k2", 1), ("k3", 1), ("k4", 2)]
    # The objective is over the turns: 1 + 1 + 4 + 0 + 4 + 0. Mean similarity: (0.75 + 0 + 1 + 0.5) / 4.
    assert result.metrics == pytest.approx(
        {
            "turns": 6,
            "distinct_messages": 5,
            "clusters": 1,
            "objective": 10,
            "largest_squared_distance": 4,
            "mean_text_similarity": 0.5625,
        }
    )
    assert (result.counts.read, result.counts.written) == (4, 4)


def test_the_cluster_of_a_record_is_that_of_its_first_turn(tmp_path):
    # Two clusters: 0 and 1 near 0, and 100. The second record begins with 100 and goes on with 0.
    embeddings = np.array([[0], [1], [100]], dtype=np.float32)
    config = config_for(tmp_path, write_features(tmp_path / "f", embeddings, [[0, 2], [2, 0], [1]]), clusters=2)
    run(config)
    first, second, third = open_dataset(config.scores, TEXT_SCORES).table().column("cluster").to_pylist()
    # Said near 0: 0, 0 and 1.
    assert centroids_of(config, 1)[[first, second], 0].tolist() == pytest.approx([1 / 3, 100])
    assert third == first


def test_a_repeated_message_weighs_as_often_as_it_is_said(tmp_path):
    # (0) three times and (4) once: the mean is 1, not 2. Squared distances 1 and 9, similarities 8/9 and 0.
    embeddings = np.array([[0], [4]], dtype=np.float32)
    config = config_for(tmp_path, write_features(tmp_path / "f", embeddings, [[0], [0], [0], [1]]), clusters=1)
    run(config)
    assert scores_of(config) == pytest.approx({1: 8 / 9, 2: 8 / 9, 3: 8 / 9, 4: 0.0})


@pytest.mark.parametrize("seed", [42, 7])
def test_equals_faiss_on_the_full_duplicated_matrix(tmp_path, seed):
    """More turns than 256 K, so that FAISS draws its training points, too, by the seed."""
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(900, 8)).astype(np.float32)
    said = [rng.integers(0, 900, size=rng.integers(1, 5)).tolist() for _ in range(800)]
    full = embeddings[np.concatenate(said)]
    assert len(full) > 256 * 3
    kmeans = faiss.Kmeans(8, 3, niter=20, seed=seed)
    kmeans.train(full)
    distances, _ = kmeans.index.search(full, 1)
    wanted = similarity(distances[:, 0])
    bounds = np.cumsum([0, *map(len, said)])
    config = config_for(tmp_path, write_features(tmp_path / "f", embeddings, said), seed=seed, order="reference")
    run(config)
    found = scores_of(config)
    for record in range(800):
        assert found[record + 1] == pytest.approx(wanted[bounds[record] : bounds[record + 1]].mean(), abs=1e-6)
    np.testing.assert_array_equal(centroids_of(config, 8), kmeans.centroids)


def test_training_rows_are_faiss_s_own():
    points = np.random.default_rng(1).normal(size=(2000, 4)).astype(np.float32)
    full, ours = (faiss.Kmeans(4, 2, niter=5, seed=7) for _ in range(2))
    full.train(points)
    ours.train(points[training_rows(2000, 2, 7)])
    np.testing.assert_array_equal(full.centroids, ours.centroids)


def test_up_to_256_points_per_cluster_all_train():
    assert training_rows(512, 2, 7).tolist() == list(range(512))
    assert len(training_rows(513, 2, 7)) == 512
    assert training_rows(513, 2, 7).tolist() != list(range(512))


@pytest.fixture
def features(tmp_path):
    embeddings = np.random.default_rng(3).normal(size=(60, 4)).astype(np.float32)
    return write_features(tmp_path / "f", embeddings, [[number] for number in range(60)])


def test_num_clusters_is_the_number_of_centroids(tmp_path, features):
    for clusters in (3, 4):
        config = config_for(tmp_path, features, clusters=clusters)
        assert run(config).metadata["num_clusters"] == clusters
        assert centroids_of(config, 4).shape == (clusters, 4)


def test_num_iterations_is_the_number_of_objectives(tmp_path, features):
    for iterations in (1, 2):
        config = config_for(tmp_path, features, iterations=iterations)
        assert run(config).metadata["num_iterations"] == iterations
        assert len(open_dataset(config.kmeans, kmeans_schema(4)).manifest["objective"]) == iterations


def test_seed_decides_the_centroids_and_nothing_else_does(tmp_path, features):
    found = []
    for seed in (42, 42, 7):
        config = config_for(tmp_path, features, seed=seed)
        assert run(config).metadata["seed"] == seed
        found.append(centroids_of(config, 4))
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 0.01


def test_without_a_kmeans_port_only_scores_are_written(tmp_path, features, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    run(dataclasses.replace(config_for(tmp_path, features), kmeans=""))
    assert list(work.iterdir()) == []
    assert open_dataset(tmp_path / "scores", TEXT_SCORES).num_rows == 60


@pytest.fixture
def halves(tmp_path):
    """One input, whole and as two parts."""
    embeddings = np.random.default_rng(2).normal(size=(40, 4)).astype(np.float32)
    said = [[n, (n * 7) % 40] for n in range(40)]
    whole = write_features(tmp_path / "whole", embeddings, said)
    return whole, [write_features(tmp_path / f"part{part}", embeddings, said, part=(part, 2)) for part in (0, 1)]


def test_what_the_parts_took_is_added_up(tmp_path):
    embeddings = np.eye(4, dtype=np.float32)
    parts = [
        write_features(tmp_path / f"f{n}", embeddings, [[0, 1], [2, 3]], part=(n, 2), device_seconds=seconds)
        for n, seconds in enumerate((1.5, 2.0))
    ]
    config = config_for(tmp_path, *parts, clusters=1)
    run(config)
    assert open_dataset(config.scores, TEXT_SCORES).manifest["device_seconds"] == 3.5


def test_parts_equal_the_whole(tmp_path, halves):
    whole, parts = halves
    config = config_for(tmp_path, whole)
    run(config)
    wanted = scores_of(config)
    run(dataclasses.replace(config, features=parts))
    assert scores_of(config) == pytest.approx(wanted, abs=1e-6)


def test_every_part_is_wanted_once(tmp_path, halves):
    _, parts = halves
    with pytest.raises(StageError, match=r"features: got parts 0/2, wanted 0/1\. Give every part once"):
        run(config_for(tmp_path, parts[0]))
    with pytest.raises(StageError, match="got parts 0/2, 0/2, wanted 0/2, 1/2"):
        run(config_for(tmp_path, parts[0], parts[0]))


# By hand, not from the stage: an entry that is dropped there is missed here.
@pytest.mark.parametrize(
    ("entry", "value", "other"),
    [
        ("model_fingerprint", "f", "g"),
        ("dtype", "float32", "bfloat16"),
        ("max_tokens", 512, 128),
        ("records_sha256", "r", "s"),
    ],
)
def test_parts_of_different_runs_are_refused(tmp_path, entry, value, other):
    embeddings = np.eye(2, dtype=np.float32)
    one = write_features(tmp_path / "one", embeddings, [[0], [1]], part=(0, 2))
    two = write_features(tmp_path / "two", embeddings, [[0], [1]], part=(1, 2), **{entry: other})
    with pytest.raises(StageError) as caught:
        run(config_for(tmp_path, one, two))
    assert str(caught.value) == (
        f"features: parts of different runs, {entry} {value!r} in {one}/messages but {other!r} in {two}/messages. "
        "Make all parts with the same model and settings."
    )


@pytest.mark.parametrize(("entry", "other"), [("records_sha256", "s"), ("model_fingerprint", "g")])
def test_turns_of_another_run_are_refused(tmp_path, entry, other):
    """Both parts are whole folders, but one folder's turns were copied from elsewhere."""
    embeddings = np.eye(2, dtype=np.float32)
    parts = [write_features(tmp_path / str(i), embeddings, [[0], [1]], part=(i, 2)) for i in range(2)]
    stranger = write_features(tmp_path / "stranger", embeddings, [[0], [1]], part=(0, 2), **{entry: other})
    shutil.rmtree(tmp_path / "0" / "turns")
    shutil.copytree(f"{stranger}/turns", tmp_path / "0" / "turns")
    with pytest.raises(StageError, match=rf"^features: .*, {entry} .*{other}"):
        run(config_for(tmp_path, *parts))


# The part too: turns of another part beside the messages of this one.
@pytest.mark.parametrize(
    ("entry", "own", "other"), [("records_sha256", "r", "s"), ("dtype", "float32", "float16"), ("part", "0/1", "0/2")]
)
def test_turns_of_another_run_than_the_messages_are_refused(tmp_path, entry, own, other):
    """With one folder there is no other part to compare with."""
    folder = write_features(tmp_path / "f", np.eye(1, dtype=np.float32), [[0]])
    change = {"part": (0, 2)} if entry == "part" else {entry: other}
    stranger = write_features(tmp_path / "s", np.eye(1, dtype=np.float32), [[0]], **change)
    shutil.rmtree(tmp_path / "f" / "turns")
    shutil.copytree(f"{stranger}/turns", tmp_path / "f" / "turns")
    with pytest.raises(StageError) as caught:
        run(config_for(tmp_path, folder))
    assert str(caught.value) == (
        f"features: {folder}/turns is not of the run of {folder}/messages, {entry} {other!r} but theirs is {own!r}. "
        "Give whole folders of bert_features."
    )


def test_a_turn_without_an_embedding_is_refused(tmp_path):
    embeddings = np.eye(3, dtype=np.float32)
    with pytest.raises(StageError, match=r"1 turns without an embedding\. Rerun bert_features"):
        run(config_for(tmp_path, write_features(tmp_path / "f", embeddings, [[0], [1, 7]])))


@pytest.mark.parametrize("change", [lambda rows: rows[:1] + rows[2:], lambda rows: rows + rows[-1:]])
def test_a_record_that_lacks_a_turn_or_has_one_twice_is_refused(tmp_path, change):
    folder = write_features(tmp_path / "f", np.eye(3, dtype=np.float32), [[0], [1, 2]])
    rows = list(open_dataset(tmp_path / "f/turns", TEXT_TURNS).rows())
    with DatasetWriter(tmp_path / "f/turns", TEXT_TURNS) as writer:
        writer.write(change(rows))
        writer.manifest.update(MANIFEST_ENTRIES)
    with pytest.raises(StageError, match="turns of record 2 are missing or there twice"):
        run(config_for(tmp_path, folder))


@pytest.mark.parametrize("key", ["a1", "a1" * 33, "z" * 64, "a1" * 32 + "é"])
def test_keys_that_are_no_sha256_are_refused(tmp_path, key):
    folder = write_features(tmp_path / "f", np.eye(1, dtype=np.float32), [[0]], key_of=lambda _: key)
    with pytest.raises(StageError, match=r"a message_key is not a hex sha256\. Rerun bert_features"):
        run(config_for(tmp_path, folder))


def test_fewer_messages_than_clusters(tmp_path, caplog):
    embeddings = np.array([[0, 0], [5, 5]], dtype=np.float32)
    config = config_for(tmp_path, write_features(tmp_path / "f", embeddings, [[0], [1], [0]]), clusters=10)
    result = run(config)
    assert result.metadata["num_clusters"] == 2
    assert result.metadata["num_clusters_asked"] == 10
    assert "2 distinct messages: 2 clusters instead of 10" in caplog.text
    assert scores_of(config) == {1: 1.0, 2: 1.0, 3: 1.0}


def test_all_messages_alike_are_all_typical(tmp_path):
    config = config_for(tmp_path, write_features(tmp_path / "f", np.ones((1, 3), np.float32), [[0], [0, 0]]))
    run(config)
    assert scores_of(config) == {1: 1.0, 2: 1.0}


def test_similarity_by_hand():
    np.testing.assert_array_equal(similarity(np.array([0, 1, 4], np.float32)), np.array([1, 0.75, 0], np.float32))
    assert similarity(np.array([0, 1, 4], np.float32)).dtype == np.float32
    np.testing.assert_array_equal(similarity(np.zeros(2, np.float32)), np.ones(2, np.float32))


def test_a_distance_that_rounding_makes_negative_is_zero():
    class RoundedIndex:
        def search(self, block, count):
            assert count == 1
            return np.array([[-1e-6], [2.0]], np.float32), np.array([[0], [1]])

    distances, nearest = nearest_centroids(RoundedIndex(), [np.zeros((2, 3), np.float32)])
    assert distances.tolist() == [0.0, 2.0]
    assert nearest.tolist() == [0, 1]


def test_model_artifact(tmp_path):
    embeddings = np.array([[0, 0], [0, 1], [0, -1], [9, 9]], dtype=np.float32)
    config = config_for(tmp_path, write_features(tmp_path / "f", embeddings, [[0, 1, 2], [3], [3]]), clusters=2)
    run(config)
    dataset = open_dataset(config.kmeans, kmeans_schema(2))
    rows = {row["typical_message"]: (row["num_turns"], row["centroid"]) for row in dataset.rows()}
    assert rows == {"text 0": (3, [0, 0]), "text 3": (2, [9, 9])}
    objective = dataset.manifest["objective"]
    assert objective == sorted(objective, reverse=True)
    # Training points are the turns: (0, 1) and (0, -1) lie 1 from their centroid.
    assert objective[-1] == pytest.approx(2)


def test_gathered_rows_come_in_the_order_asked_for_across_blocks_and_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("components.cluster_scoring.features.BLOCK_ROWS", 3)
    embeddings = np.arange(20, dtype=np.float32).reshape(10, 2)
    folders = [write_features(tmp_path / f"{part}", embeddings, [[0]], part=(part, 2)) for part in (0, 1)]
    features = open_features(folders)
    # Rows 0 to 4 are messages 0, 2, 4, 6, 8, rows 5 to 9 are 1, 3, 5, 7, 9; message n is [2n, 2n + 1].
    found = features.gather(np.array([9, 0, 4, 5, 0]))
    assert found.tolist() == [[18, 19], [0, 1], [16, 17], [2, 3], [0, 1]]
    assert features.texts({3, 8}) == {3: "text 6", 8: "text 7"}


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("num_clusters", -1, "num_clusters: got -1, wanted a number of at least 0"),
        ("order", "file", "order: got 'file', wanted one of key, reference"),
        ("num_iterations", 0, "num_iterations: got 0"),
        ("seed", -1, "seed: got -1"),
        ("features", ["/nowhere"], "no _manifest.json"),
        ("features", [], "features: no text_messages/1 folder given"),
    ],
)
def test_wrong_settings(tmp_path, features, setting, value, message):
    with pytest.raises(StageError, match=message):
        run(dataclasses.replace(config_for(tmp_path, features), **{setting: value}))


def test_no_turns(tmp_path):
    with pytest.raises(StageError, match="no turns in them"):
        run(config_for(tmp_path, write_features(tmp_path / "f", np.eye(3, dtype=np.float32), [])))


def test_clusters_without_a_message_are_kept_and_say_so(tmp_path, monkeypatch):
    """FAISS rarely leaves one, so the centroids are given: the first and the last are far from every message."""
    centroids = np.array([[100], [0], [4], [200]], dtype=np.float32)
    index = faiss.IndexFlatL2(1)
    index.add(centroids)
    monkeypatch.setattr("components.cluster_scoring.stage.train", lambda *_: (index, [1.0]))
    embeddings = np.array([[0], [4], [1]], dtype=np.float32)
    config = config_for(tmp_path, write_features(tmp_path / "f", embeddings, [[0], [0, 1], [2]]), clusters=3)
    run(dataclasses.replace(config, order="reference"))
    rows = open_dataset(config.kmeans, kmeans_schema(1)).table().to_pylist()
    assert [row["num_turns"] for row in rows] == [0, 3, 1, 0]
    assert [bool(row["typical_message"]) for row in rows] == [False, True, True, False]
    assert [row["centroid"] for row in rows] == centroids.tolist()


def test_the_manifest_says_what_computed_it_also_where_numpy_finds_nothing(tmp_path, features, monkeypatch):
    config = config_for(tmp_path, features)
    run(config)
    assert open_dataset(config.scores, TEXT_SCORES).manifest["numpy_version"] == np.__version__
    monkeypatch.setattr("numpy.show_config", lambda mode: {"SIMD Extensions": {"baseline": ["X86_V2"]}})
    run(config)
    assert open_dataset(config.scores, TEXT_SCORES).manifest["instruction_sets"] == ["X86_V2"]
