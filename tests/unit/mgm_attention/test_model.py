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


def without_weights(folder):
    for path in (*folder.glob("*.safetensors"), *folder.glob("*.bin")):
        path.unlink()


def test_encoders_in_the_main_checkpoint_need_no_weights_elsewhere(copy):
    wanted = load_mgm(copy, CPU, FP32)
    without_weights(copy / "openai-clip-tiny-patch14-336")
    shutil.rmtree(copy / "openclip-convnext-base-w-320-tiny")
    found = load_mgm(copy, CPU, FP32)
    pixels = {"pixel_values": torch.rand(1, 3, 768, 768, generator=torch.Generator().manual_seed(0))}
    with torch.inference_mode():
        assert torch.equal(found.encode_images(pixels), wanted.encode_images(pixels))
    assert found.folders == (copy,)


@pytest.fixture
def published(copy, tmp_path, monkeypatch):
    """The model as `YanweiLi/MGM-7B` names its encoders, which only the hub has; what is fetched from there."""
    from safetensors.torch import load_file, save_file

    for path in copy.glob("model-*.safetensors"):
        save_file({name: tensor for name, tensor in load_file(path).items() if "vision_tower" not in name}, path)
    tower, aux = tmp_path / "clip", tmp_path / "convnext"
    shutil.move(copy / "openai-clip-tiny-patch14-336", tower)
    shutil.move(copy / "openclip-convnext-base-w-320-tiny", aux)
    change(
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
    change(folder, **{f"mm_{option}": entry})
    with pytest.raises(StageError, match=f"mm_{option}.* as {option} .--{option.replace('_', '-')}.\\.$"):
        load_mgm(folder, CPU, FP32)


def test_an_encoder_that_is_no_convnext(published):
    folder, tower, _, _ = published
    with pytest.raises(StageError, match="no ConvNeXt of four stages in open_clip's layout"):
        load_mgm(folder, CPU, FP32, vision_tower_aux=str(tower))


def change(folder, **entries):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))


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
    change(copy, **entries)
    with pytest.raises(StageError, match=message):
        load_mgm(copy, CPU, FP32)
