"""kmeans_uri: a later run scores against the centroids of an earlier one."""

import dataclasses
import json

import fsspec
import numpy as np
import pytest

from components.cluster_scoring.config import ClusterScoringConfig
from components.cluster_scoring.stage import run
from free2ds_common.datasets import open_dataset, sha256_of_manifest
from free2ds_common.errors import StageError
from free2ds_common.schemas import TEXT_SCORES, kmeans_schema
from tests.support.selection import change_manifest, change_rows
from tests.support.text import write_features

RNG = np.random.default_rng(4)
YESTERDAY = RNG.normal(size=(400, 8)).astype(np.float32)
SAID = [[number, (7 * number) % 400] for number in range(400)]


def config_for(place, features, kmeans_uri="", clusters=5):
    return ClusterScoringConfig(
        features=[features],
        num_clusters=clusters,
        kmeans_uri=kmeans_uri,
        scores=str(place / "scores"),
        kmeans=str(place / "kmeans"),
    )


def similarities(place):
    return {row["record_key"]: row["text_similarity"] for row in open_dataset(place / "scores", TEXT_SCORES).rows()}


def manifest_of(place):
    return open_dataset(place / "scores", TEXT_SCORES).manifest


@pytest.fixture
def first(tmp_path):
    place = tmp_path / "first"
    run(config_for(place, write_features(place / "f", YESTERDAY, SAID)))
    return place


def later(tmp_path, first, new, **changes):
    """Yesterday's messages and new ones, each said in a record of its own."""
    place = tmp_path / "later"
    embeddings = np.concatenate([YESTERDAY, np.reshape(new, (-1, 8)).astype(np.float32)])
    said = [*SAID, *([number] for number in range(400, len(embeddings)))]
    run(config_for(place, write_features(place / "f", embeddings, said, **changes), str(first / "kmeans")))
    return place


def test_old_records_keep_their_similarity_to_the_last_bit(tmp_path, first):
    new = np.random.default_rng(9).normal(size=(20, 8))
    place = later(tmp_path, first, [*new, np.full(8, 50)])
    found = similarities(place)
    assert len(found) == 421
    assert {key: found[key] for key in similarities(first)} == similarities(first)
    # Far beyond the largest distance at training, which stays what it was.
    assert found["k421"] == 0
    assert manifest_of(place)["largest_squared_distance"] == manifest_of(first)["largest_squared_distance"]


def test_without_them_one_outlier_moves_everyone(tmp_path, first):
    place = tmp_path / "later"
    embeddings = np.concatenate([YESTERDAY, np.full((1, 8), 50, np.float32)])
    run(config_for(place, write_features(place / "f", embeddings, [*SAID, [400]])))
    assert all(similarities(place)[key] != similarity for key, similarity in similarities(first).items())


def test_nothing_is_trained(tmp_path, first, monkeypatch):
    monkeypatch.setattr("components.cluster_scoring.stage.keyed_training", None)
    monkeypatch.setattr("components.cluster_scoring.stage.train", None)
    place = later(tmp_path, first, [])
    old, new = (open_dataset(folder / "kmeans", kmeans_schema(8)) for folder in (first, place))
    assert new.table(["centroid"]) == old.table(["centroid"])
    assert new.manifest["objective"] == old.manifest["objective"]


def test_what_the_manifest_hands_on_from_run_to_run(tmp_path, first):
    change_manifest(first / "kmeans", normalization={"iou": [0.1, 0.5]})
    place = later(tmp_path, first, [])
    again = tmp_path / "again"
    # Other sizes of the clusters, so another content.
    change_rows(place / "kmeans", kmeans_schema(8), lambda _, row: row | {"num_turns": 1})
    run(config_for(again, str(place / "f"), str(place / "kmeans")))
    digest = open_dataset(first / "kmeans", kmeans_schema(8)).sha256
    for folder in (place, again):
        assert manifest_of(folder)["frozen_from"] == digest
        assert manifest_of(folder)["normalization"] == {"iou": [0.1, 0.5]}
        assert manifest_of(folder)["num_clusters"] == 5


def test_drift_by_hand(tmp_path):
    # One centroid at 0; squared distances 1, 1, 4, 4 at training, then 9 beside them.
    place, points = tmp_path / "first", np.array([[-1], [1], [-2], [2]], np.float32)
    run(config_for(place, write_features(place / "f", points, [[0], [1], [2], [3]]), clusters=1))
    assert (manifest_of(place)["mean_squared_distance"], manifest_of(place)["largest_squared_distance"]) == (2.5, 4)
    now = tmp_path / "now"
    features = write_features(now / "f", np.array([[-1], [1], [-2], [2], [3]], np.float32), [[0], [1], [2], [3], [4]])
    metrics = run(config_for(now, features, str(place / "kmeans"))).metrics
    manifest = manifest_of(now)
    assert metrics["largest_squared_distance"] == manifest["largest_squared_distance"] == 4
    assert manifest["mean_squared_distance_now"] == pytest.approx(3.8)
    assert (manifest["mean_squared_distance"], manifest["beyond_largest"]) == (2.5, 1)
    assert manifest["warnings"] == [
        "The messages have moved away from the centroids of kmeans_uri: mean squared distance 3.8, at training 2.5; "
        "20.0% are farther off than any was then and have similarity 0. Train anew: leave out kmeans_uri."
    ]


# Squared distances 1, 1, 4, 4 at training, mean 2.5; with 4 more it is 2.8 (12 % above), with 2.25 more it is 2.45.
@pytest.mark.parametrize(("more", "warned"), [(1.5, False), (2, True)])
def test_a_mean_that_grew_by_a_tenth_is_too_much(tmp_path, more, warned):
    place, points = tmp_path / "first", np.array([[-1], [1], [-2], [2]], np.float32)
    run(config_for(place, write_features(place / "f", points, [[0], [1], [2], [3]]), clusters=1))
    now = tmp_path / "now"
    features = write_features(
        now / "f", np.append(points, [[more]], axis=0).astype(np.float32), [[n] for n in range(5)]
    )
    run(config_for(now, features, str(place / "kmeans")))
    assert manifest_of(now)["beyond_largest"] == 0
    assert bool(manifest_of(now)["warnings"]) is warned


@pytest.mark.parametrize(("entry", "other"), [("model_fingerprint", "g"), ("dtype", "bfloat16"), ("max_tokens", 128)])
def test_embeddings_of_another_model_are_refused(tmp_path, first, entry, other):
    with pytest.raises(StageError, match=rf"^kmeans_uri: .* was trained with {entry} .*{other}.*train anew"):
        later(tmp_path, first, [], **{entry: other})


def test_a_folder_that_does_not_say_enough_is_refused(tmp_path, first):
    change_manifest(first / "kmeans", order="reference")
    with pytest.raises(StageError, match=r"was trained with order=reference, wanted key\. Train anew\.$"):
        later(tmp_path, first, [])
    path = first / "kmeans/_manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["mean_squared_distance"], manifest["order"]
    path.write_text(json.dumps({**manifest, "sha256": sha256_of_manifest(manifest)}))
    with pytest.raises(StageError, match=r"does not say its mean_squared_distance, order\. Give the kmeans folder"):
        later(tmp_path, first, [])


def test_no_folder_there(tmp_path, first):
    with pytest.raises(StageError, match=r"^kmeans_uri: /nowhere: no folder there\."):
        run(config_for(tmp_path, str(first / "f"), "/nowhere"))


def test_a_folder_of_a_store(tmp_path, first, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "downloads"))
    fsspec.filesystem("memory").put(str(first / "kmeans"), "/frozen/kmeans", recursive=True)
    config = config_for(tmp_path / "later", str(first / "f"), "memory://frozen/kmeans")
    run(config)
    assert similarities(tmp_path / "later") == similarities(first)
    assert manifest_of(tmp_path / "later")["frozen_from"] == open_dataset(first / "kmeans", kmeans_schema(8)).sha256


def test_faiss_s_own_order_does_not_go_with_it(tmp_path, first):
    config = dataclasses.replace(config_for(tmp_path, str(first / "f"), str(first / "kmeans")), order="reference")
    with pytest.raises(StageError, match=r"kmeans_uri: works with order=key only, got order=reference"):
        run(config)
