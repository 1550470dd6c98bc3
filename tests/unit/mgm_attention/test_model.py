"""Patch info mining by hand, every way to lay the checkpoint out, eval mode, and wrong folders."""

import json
import shutil

import pytest
import torch
from transformers import CLIPVisionConfig, ConvNextConfig, LlamaConfig

from components.mgm_attention import model as mgm
from components.mgm_attention.model import Mgm, load_mgm, parameter_name
from examples.models import CLIP_NAME, CONVNEXT_NAME
from free2ds_common.errors import StageError
from tests.support.checkpoints import (
    CPU,
    FP32,
    answers_of,
    assert_same_answers,
    change_config,
    change_layer,
    copy_checkpoint,
    picture,
    remove_weights,
    weights,
    without_towers,
    write_shards,
)


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    clip = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    convnext = ConvNextConfig(hidden_sizes=[2, 3, 4, 5], depths=[1, 1, 1, 1], layer_norm_eps=1e-6)
    text = LlamaConfig(hidden_size=12, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    return Mgm(text, clip, convnext, -2).eval()


@torch.inference_mode()
def test_every_token_sees_its_own_window(tiny):
    """Against a loop over tokens, window rows and window columns."""
    side, window = 8, 4
    clip, detail = torch.randn(2, 4, 8), torch.randn(2, 14, side, side)
    found = tiny._mine(clip, detail)
    for number in range(2):
        for token in range(4):
            row, column = divmod(token, 2)
            cells = torch.stack(
                [detail[number, :, row * window + i, column * window + j] for i in range(window) for j in range(window)]
            )
            query = tiny.vlm_uni_query_projector(clip[number, token])
            weights = torch.softmax(tiny.vlm_uni_aux_projector(cells) @ query / 8**0.5, dim=0)
            wanted = weights @ tiny.vlm_uni_val_projector(cells)
            torch.testing.assert_close(found[number, token], wanted, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_detail_map_is_four_stages_at_the_first_ones_size(tiny):
    found = tiny._detail(torch.randn(1, 3, 32, 32))
    assert found.shape == (1, 2 + 3 + 4 + 5, 8, 8)


@torch.inference_mode()
def test_one_picture_does_not_reach_another(tiny):
    pictures = torch.randn(2, 3, 32, 32)
    both = tiny.image_features(pictures)
    assert both.shape == (2, 4, 12)
    torch.testing.assert_close(both[1:], tiny.image_features(pictures[1:]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("stored", "parameter"),
    [
        ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("model.vlm_uni_val_projector.1.bias", "vlm_uni_val_projector.1.bias"),
        ("model.mm_projector.0.weight", "mm_projector.0.weight"),
        ("model.vision_tower.vision_tower.vision_model.post_layernorm.bias", "vision_tower.post_layernorm.bias"),
        ("model.vision_tower_aux.vision_stem.1.bias", "vision_tower_aux.embeddings.layernorm.bias"),
        (
            "model.vision_tower_aux.vision_stages.2.blocks.1.mlp.fc2.weight",
            "vision_tower_aux.encoder.stages.2.layers.1.pwconv2.weight",
        ),
        (
            "model.vision_tower_aux.vision_stages.3.downsample.0.bias",
            "vision_tower_aux.encoder.stages.3.downsampling_layer.0.bias",
        ),
        (
            "model.vision_tower_aux.vision_stages.0.blocks.0.gamma",
            "vision_tower_aux.encoder.stages.0.layers.0.layer_scale_parameter",
        ),
    ],
)
def test_published_names(stored, parameter):
    assert parameter_name(stored) == parameter


@pytest.fixture
def copy(tmp_path):
    return copy_checkpoint("mgm", tmp_path / "mgm")


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    folder = copy_checkpoint("mgm", tmp_path_factory.mktemp("wanted") / "mgm")
    return answers_of(load_mgm(folder, CPU, FP32))


def as_it_is(folder):
    return load_mgm(folder, CPU, FP32)


def bin_shards(folder):
    write_shards(folder, weights(folder), "bin")
    return load_mgm(folder, CPU, FP32)


def encoders_in_sub_folders(folder):
    without_towers(folder)
    return load_mgm(folder, CPU, FP32)


def encoders_elsewhere(folder):
    without_towers(folder)
    tower, aux = folder.parent / "clip", folder.parent / "convnext"
    shutil.move(folder / CLIP_NAME, tower)
    shutil.move(folder / CONVNEXT_NAME, aux)
    return load_mgm(folder, CPU, FP32, vision_tower=str(tower), vision_tower_aux=str(aux))


def encoders_in_the_main_checkpoint(folder):
    remove_weights(folder / CLIP_NAME)
    shutil.rmtree(folder / CONVNEXT_NAME)
    return load_mgm(folder, CPU, FP32)


@pytest.mark.parametrize(
    "load", [as_it_is, bin_shards, encoders_in_sub_folders, encoders_elsewhere, encoders_in_the_main_checkpoint]
)
def test_every_layout_gives_the_same_answers(copy, wanted, load):
    assert_same_answers(answers_of(load(copy)), wanted)


def test_clips_own_weights_fill_only_what_the_checkpoint_lacks(copy, wanted):
    lacking = "model.vision_tower.vision_tower.vision_model.post_layernorm.bias"
    write_shards(copy, {name: tensor for name, tensor in weights(copy).items() if name != lacking})
    tower = copy / CLIP_NAME
    write_shards(tower, {name: torch.zeros_like(tensor) for name, tensor in weights(tower).items()})
    assert_same_answers(answers_of(load_mgm(copy, CPU, FP32)), wanted)


def test_clips_last_layer_is_not_used(copy, wanted):
    state = weights(copy)
    change_layer(state, 2)
    write_shards(copy, state)
    assert_same_answers(answers_of(load_mgm(copy, CPU, FP32)), wanted)


def test_folders_to_fingerprint(copy):
    assert encoders_in_the_main_checkpoint(copy).folders == (copy,)


def test_folders_to_fingerprint_with_encoders_elsewhere(copy):
    assert encoders_elsewhere(copy).folders == (copy, copy.parent / "clip", copy.parent / "convnext")


def test_prompt_and_grid_are_mgms(copy):
    model = load_mgm(copy, CPU, FP32)
    assert "a curious user" in model.prompt_settings["system"]
    assert (model.grid, model.num_vision_tokens, model.context_length) == (24, 576, 4096)


def test_pictures_are_scaled_to_the_second_encoders_size(copy):
    model = load_mgm(copy, CPU, FP32)
    assert model.preprocess(picture())["pixel_values"].shape == (3, 768, 768)
    assert model.preprocessing["crop_size"] == {"height": 768, "width": 768}


@pytest.mark.parametrize(("generation", "wanted"), [({"eos_token_id": 5}, {5}), ({"eos_token_id": [5, 7]}, {5, 7})])
def test_end_of_sequence_is_the_generation_configs(copy, generation, wanted):
    (copy / "generation_config.json").write_text(json.dumps(generation))
    assert load_mgm(copy, CPU, FP32).eos_token_ids == wanted


class TestEvalMode:
    """Nothing is dropped at random, whatever rates a config has."""

    @pytest.fixture(params=["dropout", "DropPath"])
    def drops(self, request, copy, monkeypatch):
        """A folder or loader with large rates."""
        if request.param == "dropout":
            change_config(copy / CLIP_NAME, attention_dropout=0.5)
        else:
            monkeypatch.setattr(
                mgm, "ConvNextConfig", lambda **options: ConvNextConfig(**{**options, "drop_path_rate": 0.9})
            )
        return copy

    @torch.inference_mode()
    def test_features_do_not_depend_on_the_seed(self, drops):
        model = load_mgm(drops, CPU, FP32)
        pixels = {"pixel_values": model.preprocess(picture())["pixel_values"][None]}
        found = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            found.append(model.encode_images(pixels))
        assert torch.equal(found[0], found[1])

    def test_answers_are_those_without_drops(self, drops, wanted):
        assert_same_answers(answers_of(load_mgm(drops, CPU, FP32)), wanted)


@pytest.fixture
def published(copy, tmp_path, monkeypatch):
    """The model as `YanweiLi/MGM-7B` names its encoders, which only the hub has; what is fetched from there."""
    without_towers(copy)
    tower, aux = tmp_path / "clip", tmp_path / "convnext"
    shutil.move(copy / CLIP_NAME, tower)
    shutil.move(copy / CONVNEXT_NAME, aux)
    change_config(
        copy,
        mm_vision_tower="model_zoo/OpenAI/clip-vit-large-patch14-336",
        mm_vision_tower_aux="model_zoo/OpenAI/openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup",
    )
    hub = {
        "openai/clip-vit-large-patch14-336": str(tower),
        "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup": str(aux),
    }
    fetched = []

    def download(hub_id, revision, ignore_patterns):
        fetched.append(hub_id)
        return hub[hub_id]

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return copy, tower, aux, fetched


def test_the_published_checkpoints_encoders_come_from_the_hub(published):
    folder, tower, aux, fetched = published
    assert load_mgm(folder, CPU, FP32).folders == (folder, tower, aux)
    assert fetched == [
        "openai/clip-vit-large-patch14-336",
        "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup",
    ]


def test_sub_folders_named_as_the_published_entries_go_before_the_hub(published):
    folder, tower, aux, fetched = published
    shutil.move(tower, folder / "clip-vit-large-patch14-336")
    inside = folder / "model_zoo/OpenAI/openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup"
    inside.parent.mkdir(parents=True)
    shutil.move(aux, inside)
    assert load_mgm(folder, CPU, FP32).folders == (folder,)
    assert fetched == []


def test_a_users_missing_folder_is_not_replaced_by_the_hubs(published):
    folder, _, _, fetched = published
    with pytest.raises(StageError, match="vision_tower '/nowhere/clip-vit-large-patch14-336' is no sub-folder"):
        load_mgm(folder, CPU, FP32, vision_tower="/nowhere/clip-vit-large-patch14-336")
    assert fetched == []


@pytest.mark.parametrize("option", ["vision_tower", "vision_tower_aux"])
@pytest.mark.parametrize("entry", [None, "nowhere/at/all"])
def test_an_encoder_that_is_nowhere_names_the_option_to_give(published, option, entry):
    folder, _, _, _ = published
    change_config(folder, **{f"mm_{option}": entry})
    with pytest.raises(StageError, match=f"mm_{option}.* as {option} .--{option.replace('_', '-')}.\\.$"):
        load_mgm(folder, CPU, FP32)


def test_an_encoder_that_is_no_convnext(published):
    folder, tower, _, _ = published
    with pytest.raises(StageError, match="no ConvNeXt of four stages in open_clip's layout"):
        load_mgm(folder, CPU, FP32, vision_tower_aux=str(tower))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"architectures": ["LlavaLlamaForCausalLM"]},
            "architecture LlavaLlamaForCausalLM, wanted MGMLlamaForCausalLM",
        ),
        ({"image_grid": 2}, "image_grid 2: MGM-HD is not supported"),
        ({"mm_projector_type": "mlp3x_gelu"}, "mm_projector_type 'mlp3x_gelu', wanted 'mlp2x_gelu'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end True, wanted False"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling {'type': 'yarn'}, wanted null or"),
    ],
)
def test_folders_that_are_not_right(copy, entries, message):
    change_config(copy, **entries)
    with pytest.raises(StageError, match=message):
        load_mgm(copy, CPU, FP32)
