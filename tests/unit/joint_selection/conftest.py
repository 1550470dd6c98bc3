"""Small inputs for the stage: 40 records, some without a map, some without a picture."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from components.joint_selection.config import JointSelectionConfig
from free2ds_common.datasets import DatasetWriter
from free2ds_common.schemas import RECORDS, TEXT_SCORES, attention_schema

COUNT = 40


class Inputs:
    """Writes the stage's input folders below one folder; `order` permutes the records."""

    def __init__(self, folder, order=None, shards=2):
        self.folder = folder
        self.order = list(order) if order is not None else list(range(COUNT))
        rng = np.random.default_rng(5)
        self.maps = rng.dirichlet(np.ones(576), size=(2, COUNT)).astype(np.float32)
        self.similarity = rng.random(COUNT)
        self.outcomes = [["ok"] * COUNT, ["ok"] * COUNT]
        for record in (3, 4, 5):
            self.outcomes[0][record] = self.outcomes[1][record] = "text_only"
        self.outcomes[0][7] = "eos_only"
        self.shards = shards
        self.records_manifest = {}
        self.sources = ["x", "y", "z"]
        self.manifest = {"grid": 24, "model": "m", "model_fingerprint": "f", "dtype": "float32"}

    def key(self, record):
        return f"{record:064x}"

    def write(self):
        folder = self.folder
        (folder / "images").mkdir(exist_ok=True)
        for name in ("a", "b"):
            Image.effect_noise((50, 40), 80).convert("RGB").save(folder / f"images/{name}.png")
        rows = []
        for place, record in enumerate(self.order, start=1):
            image = None if record in (3, 4, 5) else "ab"[record % 2] + ".png"
            rows.append(
                dict(unique_id=place, record_key=self.key(record), image=image, source=self.sources[record % 3],
                     question=f"<image>\nQuestion {record}?", messages=[f"Question {record}?"],
                     raw=json.dumps({"id": str(record), "image": image, "note": "ü \ud800"}))
            )  # fmt: skip
        with DatasetWriter(folder / "records", RECORDS) as writer:
            writer.write(rows)
            writer.manifest.update(self.records_manifest)
        for side, name in enumerate(("llava", "mgm")):
            for shard in range(self.shards):
                with DatasetWriter(folder / f"{name}{shard}", attention_schema()) as writer:
                    writer.write(
                        [
                            self.attention_row(side, place, record)
                            for place, record in enumerate(self.order, start=1)
                            if place % self.shards == shard
                        ]
                    )
                    writer.manifest.update(self.manifest)
        with DatasetWriter(folder / "text", TEXT_SCORES) as writer:
            writer.write(
                [
                    dict(
                        unique_id=place,
                        record_key=self.key(record),
                        num_turns=1,
                        text_similarity=self.similarity[record],
                    )
                    for place, record in enumerate(self.order, start=1)
                ]
            )
        return self

    def attention_row(self, side, place, record):
        outcome = self.outcomes[side][record]
        values = self.maps[side][record] if outcome == "ok" else None
        return dict(unique_id=place, record_key=self.key(record), num_steps=3, outcome=outcome, map=values)

    def config(self, **changes):
        folder = self.folder
        config = JointSelectionConfig(
            records=str(folder / "records"),
            llava_attention=[str(folder / f"llava{shard}") for shard in range(self.shards)],
            mgm_attention=[str(folder / f"mgm{shard}") for shard in range(self.shards)],
            text_scores=str(folder / "text"), image_root_uri=str(folder / "images"), ratio=0.25, num_samples=0,
            alpha=0.5, temperature=1.0, sampler="gumbel", missing_iou="text",
            text_normalization="reference", top_percent=30,
            stratify="", max_reject_fraction=0.05, seed=42, selected=str(folder / "selected.json"),
            scores=str(folder / "scores"), report=str(folder / "report.html"), summary=str(folder / "summary.json"),
            random=str(folder / "random.json"), kmeans="", overview="",
        )  # fmt: skip
        return dataclasses.replace(config, **changes)


@pytest.fixture
def inputs(tmp_path):
    return Inputs(tmp_path).write()


@pytest.fixture
def make_inputs(tmp_path_factory):
    """Inputs that a test changes before it writes them."""
    return lambda **options: Inputs(tmp_path_factory.mktemp("inputs"), **options)
