"""What the KFP tasks of the stages with models make of `gpu_count`."""

import importlib
import inspect
from types import SimpleNamespace

import pytest

from components.bert_features.component import bert_features
from components.llava_attention.component import llava_attention
from components.mgm_attention.component import mgm_attention
from free2ds_common.result import Counts, StageResult

INPUTS = {"shard": "shard", "records": "records"}
OUTPUTS = ("attention", "features")


@pytest.mark.parametrize(("gpu_count", "wanted"), [("1", True), ("0", False)])
@pytest.mark.parametrize("component", [llava_attention, mgm_attention, bert_features], ids=lambda task: task.name)
def test_a_gpu_is_required_where_the_step_asks_for_one(component, gpu_count, wanted, tmp_path, monkeypatch):
    task = component.python_func
    seen = []

    def run(config):
        seen.append(config.require_gpu)
        return StageResult(Counts(read=0, written=0), {}, {})

    monkeypatch.setattr(importlib.import_module(f"components.{task.__name__}.stage"), "run", run)
    given = {}
    for name in inspect.signature(task).parameters:
        if name in INPUTS or name in OUTPUTS:
            given[name] = SimpleNamespace(path=str(tmp_path / name), metadata={})
        else:
            given[name] = "" if name == "options" else "auto"
    task(**given | {"gpu_count": gpu_count})
    assert seen == [wanted]
