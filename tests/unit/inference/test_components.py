"""What the KFP tasks of the stages with models make of `require_gpu` and `gpu_count`."""

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


@pytest.mark.parametrize(
    ("require_gpu", "gpu_count", "wanted"), [(True, "1", True), (True, "0", False), (False, "1", False)]
)
@pytest.mark.parametrize("component", [llava_attention, mgm_attention, bert_features], ids=lambda task: task.name)
def test_a_gpu_is_required_where_the_step_asks_for_one(
    component, require_gpu, gpu_count, wanted, tmp_path, monkeypatch
):
    task = component.python_func
    seen = []

    def run(config):
        seen.append(config.require_gpu)
        return StageResult(Counts(read=0, written=0), {}, {})

    monkeypatch.setattr(importlib.import_module(f"components.{task.__name__}.stage"), "run", run)
    given = {}
    for name, parameter in inspect.signature(task).parameters.items():
        if name in INPUTS or name in OUTPUTS:
            given[name] = SimpleNamespace(path=str(tmp_path / name), metadata={})
        else:
            given[name] = 1 if parameter.annotation is int else "auto"
    task(**given | {"require_gpu": require_gpu, "gpu_count": gpu_count})
    assert seen == [wanted]
