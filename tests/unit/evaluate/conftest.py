"""Benchmark folders, and judged answers without a model."""

import json

import numpy as np
import pytest
from PIL import Image

from free2ds_common.evaluation import Answers


@pytest.fixture
def write_benchmark(tmp_path):
    """Write a benchmark folder of LLaVA records; pictures that they name are drawn."""

    def write(records, name="tiny", metric="gqa", **entries):
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        for number, image in enumerate(sorted({record["image"] for record in records if "image" in record})):
            Image.new("RGB", (40, 30), (40 * number % 256, 90, 200)).save(folder / "images" / image)
        (folder / "questions.json").write_text(json.dumps(records))
        described = {
            "schema": "benchmark/1",
            "name": name,
            "metric": metric,
            "questions": "questions.json",
            "source": "drawn",
            "revision": "1",
        }
        (folder / "benchmark.json").write_text(json.dumps(described | entries))
        return folder

    return write


@pytest.fixture
def llava_record():
    def make(number, asked, answer, image=None, **entries):
        turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
        pictured = {"image": image} if image else {}
        return {"id": str(number), "conversations": turns, **pictured, **entries}

    return make


@pytest.fixture
def make_answers():
    """Judged answers: one tuple of unit, category, label, judged and score each."""

    def make(rows, metric="gqa", benchmark="tiny", ids=None):
        units, categories, labels, judged, scores = zip(*rows, strict=True)
        ids = tuple(ids or map(str, range(len(rows))))
        return Answers(benchmark, metric, ids, units, categories, labels, judged, np.array(scores, dtype=np.float64))

    return make
