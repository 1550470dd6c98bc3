"""Steps, passes, processes; and records that are unusable."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from components.finetune.config import FinetuneConfig
from components.finetune.schedule import Schedule, check_rejects, counted, schedule, unusable
from free2ds_common.errors import SettingError, StageError
from free2ds_common.result import Counts

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def config(**changes):
    ports = {"selected": "s.json", "tuned_model": "m", "adapter": "a", "report": "r", "image_root_uri": ""}
    return FinetuneConfig(**{**ports, **changes})


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("dtype", "float16"),
            ("pictures", "crop"),
            ("model_type", "mgm"),
            ("lora_rank", 0),
            ("max_length", 0),
            ("max_steps", -1),
            ("learning_rate", -1.0),
            ("lora_dropout", 1.0),
            ("warmup_fraction", 1.0),
            ("projector", ""),
            ("seed", 2**31),
            ("nodes", 0),
        ],
    )
    def test_what_is_out_of_range_is_refused(self, name, value):
        with pytest.raises(SettingError, match=f"^{name}: "):
            config(**{name: value}).check()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"cache_uri": ""}, "cache_uri: got nothing, wanted an object store: 2 nodes share nothing else"),
            ({"cache_uri": "/cache"}, "cache_uri: got /cache, wanted an object store"),
            ({"cache_uri": "file:///cache"}, "cache_uri: got file:///cache, wanted an object store"),
            ({"image_root_uri": "images"}, "image_root_uri: got images, wanted an object store"),
            ({"runtime": ""}, "runtime: is empty, wanted the name of a TrainingRuntime"),
            (
                {"require_gpu": True, "node_resources": "nvidia.com/gpu=8,cpu=4"},
                "nodes: got 2 and an accelerator for the step itself, which trains nothing then. Set train_gpu_count "
                r"to 0; each node gets nvidia.com/gpu, cpu \(node_resources\)",
            ),
            ({"node_resources": "gpu"}, "node_resources: got 'gpu', wanted name=quantity once each"),
            ({"node_resources": "cpu=1,cpu=2"}, "node_resources: got 'cpu=2', wanted name=quantity once each"),
        ],
    )
    def test_what_several_nodes_need(self, changes, message):
        several = {"nodes": 2, "cache_uri": "s3://b/cache", "image_root_uri": "s3://b/images"}
        with pytest.raises(SettingError, match=f"^{message}"):
            config(**{**several, **changes}).check()

    def test_several_nodes_may_have_text_alone_and_no_gpu(self):
        config(nodes=2, cache_uri="s3://b/cache", image_root_uri="", node_resources="").check()

    def test_what_a_node_is_given(self):
        assert config(node_resources=" cpu=4 , memory=8Gi,").given_per_node == {"cpu": "4", "memory": "8Gi"}

    def test_the_defaults_are_llavas_recipe(self):
        found = config()
        found.check()
        assert (found.lora_rank, found.lora_alpha, found.learning_rate) == (128, 256, 2e-4)
        assert (found.projector_learning_rate, found.warmup_fraction) == (2e-5, 0.03)
        assert (found.num_epochs, found.batch_size, found.max_length) == (1, 128, 2048)

    @pytest.mark.parametrize(
        ("model_type", "pictures", "pads"),
        [("llava", "auto", True), ("auto", "auto", False), ("auto", "pad", True), ("llava", "stored", False)],
    )
    def test_whose_pictures_are_padded(self, model_type, pictures, pads):
        assert config(model_type=model_type, pictures=pictures).pads_pictures is pads


class TestSchedule:
    @pytest.mark.parametrize(
        ("changes", "records", "processes", "device", "wanted"),
        [
            ({}, 1280, 1, GPU, Schedule(1, 8, 16, 10, 10)),
            ({}, 1281, 1, CPU, Schedule(1, 4, 32, 11, 11)),
            ({}, 1280, 8, GPU, Schedule(8, 8, 2, 10, 10)),
            ({"batch_size": 2}, 5, 1, GPU, Schedule(1, 2, 1, 3, 3)),
            ({"batch_size": 8, "micro_batch_size": 2, "num_epochs": 3}, 17, 2, CPU, Schedule(2, 2, 2, 3, 9)),
            ({"max_steps": 4}, 1280, 1, GPU, Schedule(1, 8, 16, 10, 4)),
            ({}, 3, 1, GPU, Schedule(1, 8, 16, 1, 1)),
        ],
    )
    def test_records_are_dealt_out(self, changes, records, processes, device, wanted):
        assert schedule(config(**changes), records, processes, device) == wanted

    @pytest.mark.parametrize(
        ("changes", "processes"), [({"batch_size": 10, "micro_batch_size": 4}, 1), ({"batch_size": 2}, 3)]
    )
    def test_a_step_that_cannot_be_dealt_out(self, changes, processes):
        with pytest.raises(SettingError, match=r"^batch_size: got \d+, wanted a multiple of"):
            schedule(config(**changes), 100, processes, CPU)


def samples(usable, **rejected):
    class Usable(list):
        num_read = usable + sum(rejected.values())

    found = Usable(range(usable))
    found.rejected = Counter(rejected)
    return found


PLAN = Schedule(processes=1, micro_batch_size=4, accumulation=1, steps_per_epoch=2, steps=4)
HISTORY = [{"unusable": {"image_missing": 2}}, {"unusable": {}}, {"unusable": {"image_missing": 2}}]


def test_a_picture_that_cannot_be_used_counts_once():
    assert unusable(PLAN, HISTORY) == {"image_missing": 2}
    assert counted(config(batch_size=4), samples(8, no_answer=1), PLAN, HISTORY) == Counts(9, 6, 0, 3)


def test_records_beyond_the_last_step_are_dropped():
    plan = SimpleNamespace(steps=1, steps_per_epoch=2)
    assert counted(config(batch_size=4), samples(8), plan, HISTORY[:1]) == Counts(8, 2, 4, 2)


def test_too_many_unusable_records():
    few = config(batch_size=4, max_reject_fraction=0.34)
    check_rejects(few, samples(8, no_answer=1), PLAN, HISTORY)
    with pytest.raises(StageError, match=r"s.json: 3 of 9 records rejected \(image_missing 2, no_answer 1\)"):
        check_rejects(config(batch_size=4, max_reject_fraction=0.3), samples(8, no_answer=1), PLAN, HISTORY)
