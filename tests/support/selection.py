"""Small inputs for joint_selection, and readers of what it writes."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from PIL import Image

from components.joint_selection.config import JointSelectionConfig
from components.joint_selection.stage import run
from free2ds_common.datasets import MANIFEST, DatasetWriter, open_dataset, sha256_of_manifest
from free2ds_common.schemas import RECORDS, SCORES, TEXT_SCORES, attention_schema, kmeans_schema

COUNT = 40
POSITIONS = 576


class Inputs:
    """The stage's input folders: 40 records, three of them without a picture and one with an empty answer.

    A test may change the attributes before it calls `write`. Number `n` of the original order has id `n` in its raw
    JSON and key(n) as its key, wherever `order` puts it; its unique_id is its place from 1.
    """

    def __init__(self, folder, order=None, shards=2):
        self.folder = Path(folder)
        self.order = list(order) if order is not None else list(range(COUNT))
        self.shards = shards
        rng = np.random.default_rng(5)
        self.maps = rng.dirichlet(np.ones(POSITIONS), size=(2, COUNT)).astype(np.float32)
        self.similarity = rng.random(COUNT)
        self.outcomes = [["ok"] * COUNT, ["ok"] * COUNT]
        self.without_picture = ()
        self.text_only(3, 4, 5)
        self.outcomes[0][7] = "eos_only"
        self.sources = ["x", "y", "z"]
        self.question = "<image>\nQuestion {}?"
        self.records_manifest = {}
        self.manifest = {"grid": 24, "model": "m", "model_fingerprint": "f", "dtype": "float32"}
        self.text_manifest = {}

    @staticmethod
    def key(record):
        return f"{record:064x}"

    def text_only(self, *records):
        """These records have no picture, and no others."""
        for outcomes in self.outcomes:
            for record in self.without_picture:
                outcomes[record] = "ok"
            for record in records:
                outcomes[record] = "text_only"
        self.without_picture = records

    def write(self):
        (self.folder / "images").mkdir(exist_ok=True)
        for name in ("a", "b"):
            Image.effect_noise((50, 40), 80).convert("RGB").save(self.folder / f"images/{name}.png")
        places = list(enumerate(self.order, start=1))
        with DatasetWriter(self.folder / "records", RECORDS) as writer:
            writer.write([self.record_row(place, record) for place, record in places])
            writer.manifest.update(self.records_manifest)
        for side, name in enumerate(("llava", "mgm")):
            for shard in range(self.shards):
                with DatasetWriter(self.folder / f"{name}{shard}", attention_schema()) as writer:
                    own = [(place, record) for place, record in places if place % self.shards == shard]
                    writer.write([self.attention_row(side, place, record) for place, record in own])
                    writer.manifest.update(self.manifest)
        with DatasetWriter(self.folder / "text", TEXT_SCORES) as writer:
            writer.write([self.text_row(place, record) for place, record in places])
            writer.manifest.update(self.text_manifest)
        return self

    def record_row(self, place, record):
        image = None if record in self.without_picture else "ab"[record % 2] + ".png"
        return {
            "unique_id": place,
            "record_key": self.key(record),
            "position": 2 * place,
            "id": str(record),
            "image": image,
            "source": self.sources[record % len(self.sources)],
            "question": self.question.format(record),
            "messages": [f"Question {record}?"],
            "raw": json.dumps({"id": str(record), "image": image, "note": "ü \ud800"}),
        }

    def attention_row(self, side, place, record):
        outcome = self.outcomes[side][record]
        values = self.maps[side][record] if outcome == "ok" else None
        return {
            "unique_id": place,
            "record_key": self.key(record),
            "num_steps": 3,
            "outcome": outcome,
            "map": values,
        }

    def text_row(self, place, record):
        return {
            "unique_id": place,
            "record_key": self.key(record),
            "num_turns": 1 + record % 3,
            "text_similarity": self.similarity[record],
            "cluster": record % 7,
        }

    def write_kmeans(self, sizes, messages=None, **manifest):
        """A k-means model with clusters of these sizes; returns its folder."""
        messages = messages or [f"message {number}" if size else "" for number, size in enumerate(sizes)]
        with DatasetWriter(self.folder / "kmeans", kmeans_schema(2)) as writer:
            writer.write(
                [
                    {"cluster": number, "num_turns": size, "typical_message": message, "centroid": [0.0, 0.0]}
                    for number, (size, message) in enumerate(zip(sizes, messages, strict=True))
                ]
            )
            writer.manifest.update(manifest)
        return str(self.folder / "kmeans")

    def config(self, **changes):
        folder = self.folder
        config = JointSelectionConfig(
            records=str(folder / "records"),
            llava_attention=[str(folder / f"llava{shard}") for shard in range(self.shards)],
            mgm_attention=[str(folder / f"mgm{shard}") for shard in range(self.shards)],
            text_scores=str(folder / "text"),
            selected=str(folder / "selected.json"),
            random=str(folder / "random.json"),
            scores=str(folder / "scores"),
            report=str(folder / "report.html"),
            summary=str(folder / "summary.json"),
            image_root_uri=str(folder / "images"),
            ratio=0.25,
        )
        return dataclasses.replace(config, **changes)


def change_manifest(folder, **changes):
    """Change entries of a folder's manifest, as a stage that writes them would."""
    path = Path(folder) / MANIFEST
    manifest = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({**manifest, "sha256": sha256_of_manifest(manifest)}))


def change_rows(folder, schema, change, written_as=None):
    """Write a folder again, each row as `change(number, row)` returns it; the manifest stays."""
    dataset = open_dataset(folder, schema)
    kept = {name: value for name, value in dataset.manifest.items() if name not in ("schema", "rows", "parts")}
    rows = [change(number, row) for number, row in enumerate(dataset.rows())]
    with DatasetWriter(folder, written_as or schema) as writer:
        writer.write(rows)
        writer.manifest.update(kept)


def read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def page_of(config):
    return Path(config.report).read_text(encoding="utf-8")


def rows_of(config):
    """The rows of scores/2."""
    return open_dataset(config.scores, SCORES).table().to_pylist()


def chosen_ids(config, output="selected"):
    """The ids that the records had in the input."""
    return [record["id"] for record in read_json(getattr(config, output))]


def ids_after(config, output="selected"):
    """Run the stage; what it chose."""
    run(config)
    return chosen_ids(config, output)
