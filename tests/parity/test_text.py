"""Embeddings, clusters and text scores against ../shared/parity/text."""

import json

import faiss
import numpy as np
import pytest

from components.bert_features.config import BertFeaturesConfig
from components.bert_features.stage import run as run_bert
from components.cluster_scoring.config import ClusterScoringConfig
from components.cluster_scoring.kmeans import similarity, train
from components.cluster_scoring.stage import run as run_scoring
from components.ingest.config import IngestConfig
from components.ingest.stage import run as run_ingest
from free2ds_common.datasets import DatasetWriter, open_dataset
from free2ds_common.schemas import TEXT_SCORES, TEXT_TURNS, text_messages_schema
from tests.support.text import minilm_folder


@pytest.fixture(scope="session")
def text(shared):
    return shared / "parity/text"


@pytest.fixture(scope="session")
def minilm() -> str:
    return str(minilm_folder())


@pytest.fixture(scope="session")
def features(text, minilm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    records = json.loads((text / "records.json").read_text())
    for record in records:
        record.pop("image", None)
    (folder / "dataset.json").write_text(json.dumps(records))
    run_ingest(
        IngestConfig(
            dataset_uri=str(folder / "dataset.json"),
            image_root_uri="",
            max_reject_fraction=0.0,
            records=str(folder / "records"),
            rejects=str(folder / "rejects.jsonl"),
        )
    )
    run_bert(
        BertFeaturesConfig(
            records=str(folder / "records"), model=minilm, dtype="float32", features=str(folder / "features")
        )
    )
    return folder / "features"


def embeddings_of(features):
    messages = open_dataset(features / "messages", text_messages_schema(384)).table()
    table = dict(zip(messages["message_key"].to_pylist(), messages["embedding"].to_pylist(), strict=True))
    turns = open_dataset(features / "turns", TEXT_TURNS).table().to_pylist()
    return {(turn["unique_id"], turn["turn"]): table[turn["message_key"]] for turn in turns}


def test_embeddings(text, features):
    wanted = np.load(text / "embeddings.npz")
    found = embeddings_of(features)
    assert len(found) == 2000
    # The parity set counts positions in the conversation, we count human turns.
    position: dict[int, int] = {}
    for unique_id, embedding in zip(wanted["unique_id"].tolist(), wanted["embedding"], strict=True):
        number = position.get(unique_id, 0)
        position[unique_id] = number + 1
        np.testing.assert_allclose(found[unique_id, number], embedding, rtol=0, atol=1e-5)


def test_text_scores_exactly_from_the_given_distances(text):
    distances = np.load(text / "kmeans_50.npz")["squared_distance"]
    unique_id = np.load(text / "embeddings.npz")["unique_id"]
    wanted = {
        int(number): score for number, score in json.loads((text / "text_similarity_50.json").read_text()).items()
    }
    found = similarity(distances).astype(np.float64)
    for number, score in wanted.items():
        assert found[unique_id == number].mean() == score


def test_clusters_of_the_given_embeddings(text):
    wanted = np.load(text / "kmeans_50.npz")
    embeddings = np.load(text / "embeddings.npz")["embedding"]
    index, objectives = train(embeddings, 50, 100, 42)
    distances, nearest = index.search(embeddings, 1)
    assert faiss.__version__ == "1.15.1"
    assert 1 < len(objectives) <= 100
    assert objectives[-1] < objectives[0]
    np.testing.assert_allclose(similarity(distances[:, 0]), similarity(wanted["squared_distance"]), rtol=1e-4)
    assert (nearest[:, 0] == wanted["nearest"]).all()


def test_stage_on_the_given_embeddings(text, features, tmp_path):
    """The stage, duplicates taken apart, on the parity embeddings themselves."""
    given = np.load(text / "embeddings.npz")
    turns = open_dataset(features / "turns", TEXT_TURNS).table().to_pylist()
    by_key = {turn["message_key"]: row for turn, row in zip(turns, given["embedding"], strict=True)}
    manifest = dict(open_dataset(features / "turns", TEXT_TURNS).manifest)
    keep = {
        name: manifest[name]
        for name in ("model", "revision", "model_fingerprint", "dtype", "max_tokens", "records_sha256", "part")
    }
    with DatasetWriter(tmp_path / "features/messages", text_messages_schema(384)) as writer:
        writer.write([{"message_key": key, "message": "", "embedding": row} for key, row in by_key.items()])
        writer.manifest.update(keep)
    with DatasetWriter(tmp_path / "features/turns", TEXT_TURNS) as writer:
        writer.write(turns)
        writer.manifest.update(keep)
    run_scoring(
        ClusterScoringConfig(
            features=[str(tmp_path / "features")],
            num_clusters=50,
            num_iterations=100,
            seed=42,
            order="reference",
            scores=str(tmp_path / "scores"),
        )
    )
    wanted = json.loads((text / "text_similarity_50.json").read_text())
    found = open_dataset(tmp_path / "scores", TEXT_SCORES).table().to_pylist()
    assert len(found) == len(wanted) == 926
    for row in found:
        assert row["text_similarity"] == pytest.approx(wanted[str(row["unique_id"])], rel=1e-4)
