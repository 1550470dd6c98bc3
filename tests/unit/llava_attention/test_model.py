"""Every layout gives the same answers, and what is said when a folder is not right."""

import json
import shutil

import pytest
import torch

from components.llava_attention.model import load_llava, parameter_name
from examples.models import CLIP_NAME
from free2ds_common.checkpoints import fingerprint
from free2ds_common.errors import StageError
from tests.support.checkpoints import (
    CPU,
    FP32,
    answers_of,
    assert_same_answers,
    change_config,
    change_layer,
    copy_checkpoint,
    new_name,
    old_name,
    remove_weights,
    weights,
    without_towers,
    write_shards,
    write_single,
)


@pytest.fixture
def copy(tmp_path):
    """The original layout, or llava_hf."""
    return lambda name="llava": copy_checkpoint(name, tmp_path / name)


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    folder = copy_checkpoint("llava", tmp_path_factory.mktemp("wanted") / "llava")
    return answers_of(load_llava(folder, CPU, FP32))


@pytest.mark.parametrize(
    ("stored", "parameter"),
    [
        ("language_model.model.layers.3.mlp.up_proj.weight", "model.language_model.layers.3.mlp.up_proj.weight"),
        ("model.language_model.norm.weight", "model.language_model.norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("vision_tower.vision_model.pre_layrnorm.bias", "model.vision_tower.pre_layrnorm.bias"),
        ("model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias", "model.vision_tower.pre_layrnorm.bias"),
        ("multi_modal_projector.linear_1.bias", "model.multi_modal_projector.linear_1.bias"),
        ("model.mm_projector.2.bias", "model.multi_modal_projector.linear_2.bias"),
        ("model.embed_tokens.weight", "model.language_model.embed_tokens.weight"),
    ],
)
def test_names_of_all_layouts(stored, parameter):
    assert parameter_name(stored) == parameter


def converted(rename):
    def change(copy):
        folder = copy("llava_hf")
        write_single(folder, {rename(name): tensor for name, tensor in weights(folder).items()})
        return load_llava(folder, CPU, FP32)

    return change


def original(write, suffix):
    def change(copy):
        folder = copy()
        write(folder, weights(folder), suffix)
        return load_llava(folder, CPU, FP32)

    return change


def clip_in_its_sub_folder(copy):
    folder = copy()
    without_towers(folder)
    return load_llava(folder, CPU, FP32)


def whole_clip_elsewhere(copy):
    """A folder of the whole CLIP model: its text side is passed over, its vision config is inside."""
    folder = copy()
    without_towers(folder)
    tower = shutil.move(folder / CLIP_NAME, folder.parent / "clip")
    vision = json.loads((tower / "config.json").read_text())
    (tower / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": vision}))
    write_single(
        tower, {**weights(tower), "text_model.final_layer_norm.bias": torch.ones(3), "logit_scale": torch.ones(1)}
    )
    return load_llava(folder, CPU, FP32, vision_tower=str(tower))


@pytest.mark.parametrize(
    "load",
    [
        pytest.param(converted(old_name), id="converted, old names"),
        pytest.param(converted(new_name), id="converted, new names"),
        pytest.param(original(write_shards, "safetensors"), id="safetensors shards"),
        pytest.param(original(write_shards, "bin"), id="bin shards"),
        pytest.param(original(write_single, "safetensors"), id="one safetensors file"),
        pytest.param(original(write_single, "bin"), id="one bin file"),
        clip_in_its_sub_folder,
        whole_clip_elsewhere,
    ],
)
def test_every_layout_gives_the_same_answers(copy, wanted, load):
    assert_same_answers(answers_of(load(copy)), wanted)


def test_weights_of_the_checkpoint_go_before_the_towers_own(copy, wanted):
    folder = copy()
    tower = folder / CLIP_NAME
    write_single(tower, {name: torch.zeros_like(tensor) for name, tensor in weights(tower).items()})
    assert_same_answers(answers_of(load_llava(folder, CPU, FP32)), wanted)


def test_the_towers_own_weights_fill_only_what_the_checkpoint_lacks(copy, wanted):
    folder = copy()
    lacking = "model.vision_tower.vision_tower.vision_model.post_layernorm.bias"
    write_shards(folder, {name: tensor for name, tensor in weights(folder).items() if name != lacking})
    tower = folder / CLIP_NAME
    write_single(tower, {name: torch.zeros_like(tensor) for name, tensor in weights(tower).items()})
    assert_same_answers(answers_of(load_llava(folder, CPU, FP32)), wanted)


def test_clips_last_layer_is_not_used(copy, wanted):
    folder = copy()
    state = weights(folder)
    change_layer(state, 2)
    write_shards(folder, state)
    assert_same_answers(answers_of(load_llava(folder, CPU, FP32)), wanted)


def test_a_given_tower_goes_before_the_configs_entry(copy):
    folder = copy()
    without_towers(folder)
    elsewhere = folder.parent / "clip"
    shutil.copytree(folder / CLIP_NAME, elsewhere)
    write_single(folder / CLIP_NAME, {"post_layernorm.bias": torch.zeros(64)})  # not complete
    assert load_llava(folder, CPU, FP32, vision_tower=str(elsewhere)).folders == (folder, elsewhere)


def test_a_tower_that_is_nowhere_names_the_option(copy):
    folder = copy()
    shutil.rmtree(folder / CLIP_NAME)
    message = rf"mm_vision_tower '{CLIP_NAME}' is no sub-folder .* as vision_tower \(--vision-tower\)\.$"
    with pytest.raises(StageError, match=message):
        load_llava(folder, CPU, FP32)


def test_folders_to_fingerprint(copy):
    folder, hugging_face = copy(), copy("llava_hf")
    assert load_llava(folder, CPU, FP32).folders == (folder,)
    assert load_llava(hugging_face, CPU, FP32).folders == (hugging_face,)


def test_prompt_and_grid_are_llavas(copy):
    model = load_llava(copy(), CPU, FP32)
    assert "a curious human" in model.prompt_settings["system"]
    assert (model.grid, model.num_vision_tokens, model.context_length) == (24, 576, 4096)


class TestEndOfSequence:
    """generation_config.json goes before config.json."""

    def eos(self, copy, generation, config):
        folder = copy()
        change_config(folder, eos_token_id=config)
        if generation is None:
            (folder / "generation_config.json").unlink()
        else:
            (folder / "generation_config.json").write_text(json.dumps(generation))
        return load_llava(folder, CPU, FP32).eos_token_ids

    @pytest.mark.parametrize(
        ("generation", "config", "wanted"),
        [
            ({"eos_token_id": 5}, 2, {5}),
            ({"eos_token_id": [5, 7]}, 2, {5, 7}),
            ({"bos_token_id": 1}, 3, {3}),
            (None, 3, {3}),
            (None, [3, 4], {3, 4}),
        ],
    )
    def test_where_it_is_taken_from(self, copy, generation, config, wanted):
        assert self.eos(copy, generation, config) == wanted

    def test_neither_says_it(self, copy):
        folder = copy()
        entries = json.loads((folder / "config.json").read_text())
        del entries["eos_token_id"]
        (folder / "config.json").write_text(json.dumps(entries))
        (folder / "generation_config.json").unlink()
        assert load_llava(folder, CPU, FP32).eos_token_ids == {2}


def test_nothing_is_dropped_at_random(copy, wanted):
    folder = copy("llava_hf")
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    change_config(folder, vision_config={**vision, "attention_dropout": 0.5})
    assert_same_answers(answers_of(load_llava(folder, CPU, FP32)), wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_rotary_tables_in_fp32(copy, dtype):
    model = load_llava(copy("llava_hf"), CPU, dtype)
    assert (model.dtype, model.lm_head.weight.dtype) == (dtype, dtype)
    assert model.decoder.rotary_emb.inv_freq.dtype == torch.float32
    exact = 1 / 10000 ** (torch.arange(0, 24, 2) / 24)
    torch.testing.assert_close(model.decoder.rotary_emb.inv_freq, exact)


def test_linear_rope_scaling_slows_the_positions_down(copy):
    folder = copy()
    change_config(folder, rope_scaling={"type": "linear", "factor": 2})
    frequencies = load_llava(folder, CPU, FP32).decoder.rotary_emb.inv_freq
    torch.testing.assert_close(frequencies, 0.5 / 10000 ** (torch.arange(0, 24, 2) / 24))


def test_the_class_token_of_the_converted_layout_is_refused(copy):
    folder = copy("llava_hf")
    change_config(folder, vision_feature_select_strategy="full")
    with pytest.raises(StageError, match="vision_feature_select_strategy 'full', wanted 'default'"):
        load_llava(folder, CPU, FP32)


def test_fingerprint_is_of_the_content_not_of_the_place(copy):
    folder = copy()
    elsewhere = shutil.copytree(folder, folder.parent / "elsewhere")
    assert fingerprint(elsewhere) == fingerprint(folder)


def no_config(folder):
    (folder / "config.json").unlink()


def broken_config(folder):
    (folder / "config.json").write_text("{")


def another_architecture(folder):
    change_config(folder, architectures=["QwenForCausalLM"])


def another_projector(folder):
    change_config(folder, mm_projector_type="linear")


def another_width(folder):
    change_config(folder, intermediate_size=700)


def another_depth(folder):
    change_config(folder, num_hidden_layers=9)


def no_shard(folder):
    (folder / "model-00002-of-00002.safetensors").unlink()


def torn_shard(folder):
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"not safetensors")


def no_tokenizer(folder):
    (folder / "tokenizer.model").unlink()


def no_processor(folder):
    (folder / CLIP_NAME / "preprocessor_config.json").unlink()


def start_and_end_tokens(folder):
    change_config(folder, mm_use_im_start_end=True)


def class_token(folder):
    change_config(folder, mm_vision_select_feature="cls_patch")


def several_tiles(folder):
    change_config(folder, mm_patch_merge_type="spatial_unpad")


def dynamic_positions(folder):
    change_config(folder, rope_scaling={"type": "dynamic", "factor": 2})


def no_tower_entry(folder):
    change_config(folder, mm_vision_tower=None)


def broken_index(folder):
    (folder / "model.safetensors.index.json").write_text("{")


def empty_index(folder):
    (folder / "model.safetensors.index.json").write_text("{}")


def broken_generation_config(folder):
    (folder / "generation_config.json").write_text("[]")


def broken_tokenizer(folder):
    (folder / "tokenizer.model").write_bytes(b"no tokenizer")


def broken_processor(folder):
    (folder / CLIP_NAME / "preprocessor_config.json").write_text("{")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (no_config, "no config.json"),
        (broken_config, "config.json is no JSON"),
        (another_architecture, "architecture QwenForCausalLM, wanted LLaVA-1.5"),
        (another_projector, "mm_projector_type 'linear', wanted 'mlp2x_gelu'"),
        (start_and_end_tokens, "mm_use_im_start_end True, wanted False"),
        (class_token, "mm_vision_select_feature 'cls_patch', wanted 'patch'"),
        (several_tiles, "mm_patch_merge_type 'spatial_unpad', wanted 'flat'"),
        (dynamic_positions, "rope_scaling {'type': 'dynamic', 'factor': 2}, wanted null or"),
        (no_tower_entry, "config.json has no mm_vision_tower. Give .* as vision_tower"),
        (broken_index, "model.safetensors.index.json is no JSON object"),
        (empty_index, "model.safetensors.index.json has no weight_map"),
        (broken_generation_config, "generation_config.json is no JSON object"),
        (broken_tokenizer, "tokenizer.model: cannot be read as a tokenizer"),
        (broken_processor, "preprocessor_config.json is no JSON object"),
        (another_width, r"mlp.*weight \(.*256.*\) instead of \(.*700.*\).*do not fit config.json"),
        (another_depth, r"no weights for model.language_model.layers.3.* and 49 more. The checkpoint is incomplete"),
        (no_shard, "names model-00002-of-00002.safetensors, which is not there"),
        (remove_weights, "no weights .wanted safetensors or .bin files."),
        (torn_shard, "model-00002-of-00002.safetensors: cannot be read as weights"),
        (no_tokenizer, "no tokenizer.model or tokenizer.json"),
        (no_processor, "no preprocessor_config.json"),
    ],
)
def test_folders_that_are_not_right(copy, harm, message):
    folder = copy()
    harm(folder)
    with pytest.raises(StageError, match=message):
        load_llava(folder, CPU, FP32)


class Harm:
    """Unpickling it would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.path),)


def test_pickled_code_is_refused_and_does_not_run(copy):
    folder = copy()
    trace = folder / "it ran"
    remove_weights(folder)
    torch.save({"lm_head.weight": Harm(trace)}, folder / "pytorch_model.bin")
    with pytest.raises(StageError, match=r"pytorch_model\.bin: cannot be read as weights"):
        load_llava(folder, CPU, FP32)
    assert not trace.exists()
