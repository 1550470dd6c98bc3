"""Loading both layouts, from sharded safetensors and .bin files, and what is said when a folder is not right."""

import json
import shutil

import pytest
import torch

from components.llava_attention.model import load_llava, parameter_name
from free2ds_common.checkpoints import fingerprint
from free2ds_common.errors import StageError
from free2ds_common.inference.device import torch_dtype
from free2ds_common.inference.weights import stored_tensors

CPU, FP32 = torch.device("cpu"), torch.float32


@pytest.fixture
def copy(shared, tmp_path):
    def copied(name="llava"):
        folder = tmp_path / name
        shutil.copytree(shared / "parity/models" / name, folder, copy_function=shutil.copyfile)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)
        return folder

    return copied


def change(folder, **entries):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))


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


def parameters(model):
    packed = {name: value.data for name, value in model.decoder.named_parameters()}
    return {name: value.to_dense() if value.is_mkldnn else value for name, value in packed.items()}


def test_bin_files_give_the_same_weights(copy):
    folder = copy()
    wanted = parameters(load_llava(folder, CPU, FP32))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    state = dict(stored_tensors(folder))
    for name in set(index["weight_map"].values()):
        torch.save(
            {key: state[key] for key, file in index["weight_map"].items() if file == name},
            folder / (name[:-11] + "bin"),
        )
        (folder / name).unlink()
    (folder / "model.safetensors.index.json").unlink()
    renamed = {key: file[:-11] + "bin" for key, file in index["weight_map"].items()}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": renamed}))
    found = parameters(load_llava(folder, CPU, FP32))
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_weights_of_the_tower_folder_fill_what_the_checkpoint_lacks(copy):
    folder = copy()
    wanted = load_llava(folder, CPU, FP32)
    from safetensors.torch import load_file, save_file

    for path in folder.glob("model-*.safetensors"):
        state = {name: tensor for name, tensor in load_file(path).items() if "vision_tower" not in name}
        save_file(state, path)
    elsewhere = folder.parent / "clip"
    shutil.move(folder / "openai-clip-tiny-patch14-336", elsewhere)
    message = "mm_vision_tower 'openai-clip-tiny-patch14-336' is no sub-folder .* as vision_tower .--vision-tower.\\.$"
    with pytest.raises(StageError, match=message):
        load_llava(folder, CPU, FP32)
    found = load_llava(folder, CPU, FP32, vision_tower=str(elsewhere))
    pixels = {"pixel_values": torch.rand(1, 3, 336, 336, generator=torch.Generator().manual_seed(0))}
    with torch.inference_mode():
        torch.testing.assert_close(found.encode_images(pixels), wanted.encode_images(pixels), rtol=0, atol=0)
    assert found.folders == (folder, elsewhere) and wanted.folders == (folder,)
    assert fingerprint(elsewhere) != fingerprint(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_rotary_tables_in_fp32(shared, dtype):
    model = load_llava(shared / "parity/models/llava_hf", CPU, dtype)
    assert model.dtype == dtype and model.lm_head.weight.dtype == dtype
    assert model.decoder.rotary_emb.inv_freq.dtype == torch.float32
    exact = 1 / 10000 ** (torch.arange(0, 32, 2) / 32)
    torch.testing.assert_close(model.decoder.rotary_emb.inv_freq, exact)


def test_linear_rope_scaling_slows_the_positions_down(copy):
    folder = copy()
    change(folder, rope_scaling={"type": "linear", "factor": 2})
    frequencies = load_llava(folder, CPU, FP32).decoder.rotary_emb.inv_freq
    torch.testing.assert_close(frequencies, 0.5 / 10000 ** (torch.arange(0, 32, 2) / 32))


def test_the_class_token_of_the_converted_layout_is_refused(copy):
    folder = copy("llava_hf")
    change(folder, vision_feature_select_strategy="full")
    with pytest.raises(StageError, match="vision_feature_select_strategy 'full', wanted 'default'"):
        load_llava(folder, CPU, FP32)


def test_fingerprint_is_of_the_content_not_of_the_place(copy, shared):
    assert fingerprint(copy()) == fingerprint(shared / "parity/models/llava")


def no_config(folder):
    (folder / "config.json").unlink()


def broken_config(folder):
    (folder / "config.json").write_text("{")


def another_architecture(folder):
    change(folder, architectures=["QwenForCausalLM"])


def another_projector(folder):
    change(folder, mm_projector_type="linear")


def another_width(folder):
    change(folder, intermediate_size=700)


def another_depth(folder):
    change(folder, num_hidden_layers=9)


def no_shard(folder):
    (folder / "model-00002-of-00002.safetensors").unlink()


def no_weights(folder):
    for path in folder.glob("model*"):
        path.unlink()


def torn_shard(folder):
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"not safetensors")


def no_tokenizer(folder):
    (folder / "tokenizer.model").unlink()


def no_processor(folder):
    (folder / "openai-clip-tiny-patch14-336/preprocessor_config.json").unlink()


def start_and_end_tokens(folder):
    change(folder, mm_use_im_start_end=True)


def class_token(folder):
    change(folder, mm_vision_select_feature="cls_patch")


def several_tiles(folder):
    change(folder, mm_patch_merge_type="spatial_unpad")


def dynamic_positions(folder):
    change(folder, rope_scaling={"type": "dynamic", "factor": 2})


def no_tower_entry(folder):
    change(folder, mm_vision_tower=None)


def broken_index(folder):
    (folder / "model.safetensors.index.json").write_text("{")


def empty_index(folder):
    (folder / "model.safetensors.index.json").write_text("{}")


def broken_generation_config(folder):
    (folder / "generation_config.json").write_text("[]")


def broken_tokenizer(folder):
    (folder / "tokenizer.model").write_bytes(b"no tokenizer")


def broken_processor(folder):
    (folder / "openai-clip-tiny-patch14-336/preprocessor_config.json").write_text("{")


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
        (broken_processor, "preprocessor_config.json cannot be read"),
        (another_width, r"mlp.*weight \(.*688.*\) instead of \(.*700.*\).*do not fit config.json"),
        (another_depth, r"no weights for model.language_model.layers.8.* and 4 more. The checkpoint is incomplete"),
        (no_shard, "names model-00002-of-00002.safetensors, which is not there"),
        (no_weights, "no weights .wanted safetensors or .bin files."),
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


def test_pickled_code_is_refused(copy):
    class Harm:
        def __reduce__(self):
            return print, ("run",)

    folder = copy()
    no_weights(folder)
    torch.save({"lm_head.weight": Harm()}, folder / "pytorch_model.bin")
    with pytest.raises(StageError, match="cannot be read as weights"):
        load_llava(folder, CPU, FP32)


def test_automatic_type_is_by_device():
    assert torch_dtype("auto", CPU) == torch.float32
    assert torch_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert torch_dtype("float16", CPU) == torch.float16
