"""What an evaluation says of its model: its label, and how finetune trained it."""

import json

import pytest

from components.evaluate.config import EvaluateConfig
from components.evaluate.stage import run
from free2ds_common.datasets import open_dataset
from free2ds_common.errors import StageError
from free2ds_common.schemas import EVALUATION
from tests.support.checkpoints import copy_checkpoint


@pytest.fixture
def manifest(tmp_path, write_benchmark, llava_record):
    """Evaluate a model beside which something is written; returns the manifest."""

    def evaluate(training):
        model = copy_checkpoint("llava_hf", tmp_path / "model")
        if training is not None:
            (model / "training.json").write_text(training)
        config = EvaluateConfig(
            benchmarks=str(write_benchmark([llava_record(1, "What?", "thing")], metric="gqa")),
            model=str(model),
            label="selected:1",
            max_new_tokens=2,
            resamples=2,
            evaluation=str(tmp_path / "evaluation"),
            metrics=str(tmp_path / "metrics.json"),
        )
        run(config)
        return open_dataset(config.evaluation, EVALUATION).manifest

    return evaluate


def test_says_what_it_is_and_how_it_was_trained(manifest):
    told = {"model": "m", "selected_sha256": "s", "records": 8, "metrics": {"device_hours": 0.5, "loss": 1}, "x": 1}
    found = manifest(json.dumps(told))
    assert found["label"] == "selected:1"
    assert found["training"] == {"model": "m", "selected_sha256": "s", "records": 8, "device_hours": 0.5}


def test_of_a_model_from_elsewhere_nothing_is_said(manifest):
    assert manifest(None)["training"] == {}


def test_what_is_no_training_is_refused(manifest):
    with pytest.raises(StageError, match=r"training\.json"):
        manifest("[]")
