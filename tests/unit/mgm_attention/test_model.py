"""Patch info mining by hand, the names of the published checkpoint, and wrong folders."""

import json
import shutil

import pytest
import torch
from transformers import CLIPVisionConfig, ConvNextConfig, LlamaConfig

from components.mgm_attention.model import Mgm, load_mgm, parameter_name
from free2ds_common.errors import StageError

CPU, FP32 = torch.device("cpu"), torch.float32


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
    for picture in range(2):
        for token in range(4):
            row, column = divmod(token, 2)
            cells = torch.stack(
                [
                    detail[picture, :, row * window + i, column * window + j]
                    for i in range(window)
                    for j in range(window)
                ]
            )
            query = tiny.vlm_uni_query_projector(clip[picture, token])
            weights = torch.softmax(tiny.vlm_uni_aux_projector(cells) @ query / 8**0.5, dim=0)
            wanted = weights @ tiny.vlm_uni_val_projector(cells)
            torch.testing.assert_close(found[picture, token], wanted, rtol=1e-4, atol=1e-5)


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
def copy(shared, tmp_path):
    folder = tmp_path / "mgm"
    shutil.copytree(shared / "parity/models/mgm", folder, copy_function=shutil.copyfile)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    return folder


def test_encoders_from_their_own_folders_give_the_same_features(copy):
    """Without the encoders' weights in the main checkpoint, from folders elsewhere."""
    from safetensors.torch import load_file, save_file

    pixels = {"pixel_values": torch.rand(1, 3, 768, 768, generator=torch.Generator().manual_seed(0))}
    with torch.inference_mode():
        wanted = load_mgm(copy, CPU, FP32).encode_images(pixels)
    for path in copy.glob("model-*.safetensors"):
        save_file({name: tensor for name, tensor in load_file(path).items() if "vision_tower" not in name}, path)
    tower, aux = copy.parent / "clip", copy.parent / "convnext"
    shutil.move(copy / "openai-clip-tiny-patch14-336", tower)
    shutil.move(copy / "openclip-convnext-base-w-320-tiny", aux)
    model = load_mgm(copy, CPU, FP32, vision_tower=str(tower), vision_tower_aux=str(aux))
    with torch.inference_mode():
        assert torch.equal(model.encode_images(pixels), wanted)
    assert model.folders == (copy, tower, aux)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"architectures": ["LlavaLlamaForCausalLM"]},
            "architecture LlavaLlamaForCausalLM, wanted MGMLlamaForCausalLM",
        ),
        ({"image_grid": 2}, "image_grid 2: MGM-HD is not supported"),
        ({"mm_vision_tower_aux": "nowhere/at/all"}, "vision_tower_aux 'nowhere/at/all' is no sub-folder of the model"),
        ({"mm_vision_tower_aux": "openai-clip-tiny-patch14-336"}, "no ConvNeXt of four stages in open_clip's layout"),
    ],
)
def test_folders_that_are_not_right(copy, entries, message):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **entries}))
    with pytest.raises(StageError, match=message):
        load_mgm(copy, CPU, FP32)
