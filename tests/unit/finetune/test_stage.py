"""The stage on a tiny LLaVA: what it learns, what it writes, how it goes on."""

import json
import os
import shutil
import signal
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
import torch
from kfp import dsl
from peft import PeftModel
from PIL import Image
from transformers import LlavaForConditionalGeneration

from benchmarks.finetune import bare_loop
from components.finetune.checkpoints import Checkpoints
from components.finetune.component import finetune as finetune_task
from components.finetune.config import FinetuneConfig
from components.finetune.model import load_trained
from components.finetune.stage import run
from components.llava_attention.model import load_llava
from free2ds_common.errors import StageError
from free2ds_common.launch.limits import METADATA_BYTES
from free2ds_common.options import join_options
from free2ds_common.result import Counts
from free2ds_common.stopping import Stopped
from tests.support.checkpoints import CPU, FP32, copy_checkpoint, weights
from tests.support.training import history, training, write_records


def test_losses_are_those_of_a_loop_written_apart(finetune, config):
    given = {"lora_dropout": 0.0, "dtype": "float32", "warmup_fraction": 0.4, "batch_size": 2, "micro_batch_size": 1}
    _, losses = finetune(**given)
    wanted, _ = bare_loop(config(**given)).run()
    assert len(losses) == 5
    assert losses == pytest.approx(wanted, abs=1e-5)


def test_rates_rise_and_then_fall_as_a_cosine(finetune, tmp_path):
    """Two of five steps rise, from nothing; the projector's rate does as the adapters' does."""
    finetune(batch_size=2, warmup_fraction=0.4, learning_rate=2e-4, projector_learning_rate=2e-5)
    found = [step["learning_rates"] for step in history(tmp_path)]
    shares = [0.0, 0.5, 1.0, 0.75, 0.25]
    assert found == [pytest.approx([2e-4 * share, 2e-5 * share]) for share in shares]


def test_gradient_checkpointing_changes_no_loss(finetune):
    _, plain = finetune("plain")
    _, checkpointed = finetune("checkpointed", gradient_checkpointing=True)
    assert plain == pytest.approx(checkpointed, abs=1e-6)


@pytest.fixture(scope="module")
def made(tmp_path_factory, llava):
    """A trained model, made once: where, the stage's result, and what makes settings like its own."""
    folder = tmp_path_factory.mktemp("made")
    write_records(folder)
    make = partial(training, folder, llava)
    return folder / "out", run(make(dtype="float32", warmup_fraction=0.0)), make


class TestOutputs:
    def test_the_attention_stage_loads_the_merged_model_as_any_other(self, made, llava):
        folder, _, _ = made
        before, after = load_llava(llava, CPU, FP32), load_llava(folder / "model", CPU, FP32)
        assert after.eos_token_ids == before.eos_token_ids
        assert after.prompt("What?") == before.prompt("What?")

    def test_pictures_are_padded_there_as_in_training(self, made, llava):
        folder, _, make = made
        picture = Image.effect_noise((90, 40), 80).convert("RGB")
        trained = load_trained(make(), llava, CPU, FP32).preprocess(picture)
        loaded = load_llava(folder / "model", CPU, FP32).preprocess(picture)["pixel_values"]
        assert torch.equal(loaded, trained)
        cropped = load_llava(llava, CPU, FP32).preprocess(picture)["pixel_values"]
        assert not torch.equal(loaded, cropped)

    def test_the_decoder_and_the_projector_have_learnt_and_nothing_else(self, made, llava):
        before, after = weights(llava), weights(made[0] / "model")
        assert before.keys() == after.keys()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        targets = {name for name in before if "language_model" in name and name.endswith("_proj.weight")}
        assert len(targets) == 3 * 7
        assert changed == targets | {name for name in before if "multi_modal_projector" in name}

    def test_the_adapter_on_the_first_model_is_the_merged_model(self, made, llava):
        ids = torch.tensor([[1, 40, 50, 60]])
        base = LlavaForConditionalGeneration.from_pretrained(llava, dtype=FP32)
        adapted = PeftModel.from_pretrained(base, made[0] / "adapter").eval()
        merged = LlavaForConditionalGeneration.from_pretrained(made[0] / "model", dtype=FP32).eval()
        with torch.no_grad():
            torch.testing.assert_close(adapted(input_ids=ids).logits, merged(input_ids=ids).logits)

    def test_its_files_name_no_folder_of_this_machine_but_what_the_user_gave(self, made):
        assert not (made[0] / "adapter" / "README.md").exists()
        told = json.loads((made[0] / "adapter" / "adapter_config.json").read_text())
        assert told["base_model_name_or_path"] == made[2]().model

    def test_the_result_counts_and_measures(self, made):
        result = made[1]
        assert result.counts == Counts(read=10, written=10)
        assert (result.metrics["steps"], result.metrics["truncated"]) == (3.0, 0.0)
        assert result.metrics["tokens_per_second"] > 0
        assert result.metadata["metrics"] == result.metrics

    def test_the_page_shows_the_losses(self, made):
        page = (made[0] / "report.html").read_text()
        assert page.count("<polyline") == 3
        assert "trained on 10 records" in page


# Six steps.
TWO_EPOCHS = {"checkpoint_steps": 1, "num_epochs": 2, "lora_dropout": 0.2}


class TestGoingOn:
    @pytest.fixture
    def ended_after(self, monkeypatch):
        """Do something when the checkpoint of a step has been published."""

        def end(step, work):
            publish = Checkpoints.publish

            def published(self, number):
                publish(self, number)
                if number == step:
                    work()

            monkeypatch.setattr(Checkpoints, "publish", published)
            return lambda: monkeypatch.setattr(Checkpoints, "publish", publish)

        return end

    @pytest.mark.parametrize("step", [3, 4])
    def test_a_run_that_broke_off_has_the_same_losses_from_there_on(self, finetune, ended_after, tmp_path, step):
        class Killed(BaseException):
            pass

        def kill():
            raise Killed

        _, whole = finetune("whole", **TWO_EPOCHS)
        cache = str(tmp_path / "cache")
        mend = ended_after(step, kill)
        with pytest.raises(Killed):
            finetune("broken", cache_uri=cache, **TWO_EPOCHS)
        mend()
        # Had it begun again, nothing would be left of what is changed here.
        (state,) = (tmp_path / "cache").glob(f"finetune/*/checkpoint-{step}/trainer_state.json")
        state.write_text(state.read_text().replace('"seconds": ', '"seconds": 1000'))
        result, resumed = finetune("broken", cache_uri=cache, **TWO_EPOCHS)
        assert resumed == whole
        assert result.metrics["seconds"] > 1000
        assert weights(tmp_path / "broken" / "model")["language_model.lm_head.weight"].isfinite().all()

    def test_a_run_that_was_asked_to_stop_goes_on(self, finetune, ended_after, tmp_path):
        cache = str(tmp_path / "cache")
        given = {**TWO_EPOCHS, "checkpoint_steps": 2}
        _, whole = finetune("whole", **given)
        mend = ended_after(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped, match="stopped as asked to after step 3 of 6: run again to go on"):
            finetune("stopped", cache_uri=cache, **given)
        assert len(list((tmp_path / "cache").glob("finetune/*/checkpoint-3/complete.json"))) == 1
        mend()
        assert finetune("stopped", cache_uri=cache, **given)[1] == whole

    def test_other_settings_begin_anew(self, finetune, tmp_path):
        finetune("one", cache_uri=str(tmp_path / "cache"))
        finetune("other", cache_uri=str(tmp_path / "cache"), learning_rate=2e-2)
        assert len(list((tmp_path / "cache" / "finetune").iterdir())) == 2

    def test_an_epoch_has_its_own_order(self, config, tmp_path):
        """With adapters that learn nothing, an epoch's losses are another order's."""
        run(config(num_epochs=2, learning_rate=0.0, projector_learning_rate=0.0, lora_dropout=0.0))
        told = history(tmp_path)
        tokens = [step["tokens"] for step in told]
        assert sum(tokens[:3]) == sum(tokens[3:])
        assert [step["loss"] for step in told[:3]] != [step["loss"] for step in told[3:]]


class TestRecords:
    def test_max_steps_leaves_records_out(self, finetune):
        result, losses = finetune(max_steps=2)
        assert (len(losses), result.counts) == (2, Counts(read=10, written=8, dropped=2))

    def test_a_picture_that_is_gone_is_counted(self, finetune, tmp_path):
        (tmp_path / "images" / "0.png").unlink()
        result, _ = finetune(max_reject_fraction=0.1)
        assert result.counts == Counts(read=10, written=9, rejected=1)
        assert result.metadata["rejected_by_reason"] == {"image_missing": 1}

    def test_too_many_pictures_that_are_gone(self, finetune, tmp_path):
        (tmp_path / "images" / "0.png").unlink()
        with pytest.raises(StageError, match=r"1 of 10 records rejected \(image_missing 1\)"):
            finetune()

    def test_a_wrong_image_root(self, finetune, tmp_path):
        shutil.rmtree(tmp_path / "images")
        with pytest.raises(StageError, match=r"image_root_uri: .* is not a folder"):
            finetune()
        (tmp_path / "images").mkdir()
        with pytest.raises(StageError, match=r"none of the pictures of a step can be used\. Check image_root_uri"):
            finetune(batch_size=2, max_reject_fraction=1.0)


class TestWrongSettings:
    def test_a_loss_that_is_no_number(self, finetune):
        with pytest.raises(StageError, match=r"the loss of step \d is nan: lower learning_rate"):
            finetune(learning_rate=1e30, warmup_fraction=0.0)

    def test_a_context_shorter_than_max_length(self, finetune):
        with pytest.raises(StageError, match="max_length: got 5000, wanted at most 4096"):
            finetune(max_length=5000)

    def test_layers_that_are_not_there(self, finetune):
        with pytest.raises(StageError, match="is called mlp_c_fc"):
            finetune(lora_targets="mlp_c_fc")

    def test_layers_that_are_no_expression(self, finetune):
        with pytest.raises(StageError, match="lora_targets: is no regular expression"):
            finetune(lora_targets="(")

    def test_a_projector_that_is_not_there(self, finetune):
        with pytest.raises(StageError, match="has no module connector"):
            finetune(projector="connector")

    def test_llavas_own_layout(self, finetune, tmp_path):
        with pytest.raises(StageError, match="architecture LlavaLlamaForCausalLM, wanted LlavaForCond"):
            finetune(model=str(copy_checkpoint("llava", tmp_path / "llava")))

    def test_pictures_of_another_size(self, finetune, tmp_path, llava):
        folder = shutil.copytree(llava, tmp_path / "llava")
        change = json.loads((folder / "preprocessor_config.json").read_text())
        (folder / "preprocessor_config.json").write_text(
            json.dumps({**change, "crop_size": {"height": 14, "width": 14}})
        )
        with pytest.raises(StageError, match="preprocessing makes pictures of 14 x 14"):
            finetune(model=str(folder))

    def test_an_output_that_is_a_file(self, finetune, tmp_path):
        (tmp_path / "out").write_text("")
        with pytest.raises(StageError, match="is or lies below a file"):
            finetune()


def test_another_model_of_transformers_is_trained_as_it_is(finetune, tmp_path):
    """The same files as `auto`: pictures as its processor says."""
    _, losses = finetune(model_type="auto")
    told = json.loads((tmp_path / "out" / "model" / "preprocessor_config.json").read_text())
    assert told["image_processor_type"].startswith("CLIP")
    assert len(losses) == 3


def test_a_processor_in_the_file_of_newer_releases_is_told_there_too(finetune, llava, tmp_path):
    folder = shutil.copytree(llava, tmp_path / "llava")
    nested = {"image_processor": json.loads((folder / "preprocessor_config.json").read_text())}
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps(nested))
    finetune(model=str(folder), max_steps=1)
    assert load_llava(tmp_path / "out" / "model", CPU, FP32).preprocessing["do_pad"] is True


def test_as_a_task_of_kubeflow(config, tmp_path):
    """Every setting reaches the stage; the metrics are the training's."""

    class Logged(dsl.Metrics):
        def log_metric(self, metric, value):
            self.__dict__.setdefault("logged", {})[metric] = value

    (tmp_path / "task").mkdir()
    given = asdict(config(max_steps=2, lora_rank=3, num_epochs=2, dtype="float32"))
    kinds = {"tuned_model": dsl.Model, "adapter": dsl.Model, "report": dsl.HTML, "training": Logged}
    ports = {name: kind(name, uri=str(tmp_path / "task" / name)) for name, kind in kinds.items()}
    named = ("image_root_uri", "model", "max_reject_fraction", "cache_uri")
    nowhere = dsl.Dataset("none", uri="/nowhere")
    finetune_task.python_func(
        selected=nowhere,
        random=dsl.Dataset("random", uri=given["selected"]),
        everything=nowhere,
        arm=f"random:{given['seed']}",
        **ports,
        **{name: given[name] for name in named},
        options=join_options({name: str(given[name]) for name in FinetuneConfig.OPTIONS}),
        image_root_version="v1",
        revision="c0ffee",
        gpu_count="0",
    )
    told = ports["tuned_model"].metadata
    told_whole = json.loads((tmp_path / "task" / "adapter" / "training.json").read_text())
    assert told_whole["parameters"] == {name: given[name] for name in told_whole["parameters"]}
    assert told["parameters"]["lora_rank"] == 3
    assert "num_processes" not in told["parameters"]
    assert told["metrics"]["steps"] == ports["training"].logged["steps"] == 2
    # Not the one among the options: that of resolve.
    assert told["revision"] == "c0ffee"
    assert (told["image_root_version"], told["read"], told["dropped"]) == ("v1", 10, 2)
    assert len(json.dumps(told)) < METADATA_BYTES
    assert load_llava(Path(ports["tuned_model"].path), CPU, FP32).grid == 2
