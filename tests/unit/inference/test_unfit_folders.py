"""The same broken model folders for every loader: one sentence each, before any memory is taken, and no code runs."""

import json

import pytest
import torch

from components.bert_features.encoder import load_encoder
from components.llava_attention.model import load_llava
from components.mgm_attention.model import load_mgm
from examples.models import CLIP_NAME, CONVNEXT_NAME
from examples.models import write_bert as write_example_bert
from examples.scenes import sample_texts
from free2ds_common.errors import StageError
from free2ds_common.inference.auto import load_auto
from tests.support.checkpoints import (
    CPU,
    FP32,
    change_config,
    copy_checkpoint,
    remove_weights,
    weights,
    without_towers,
    write_single,
)

LOADERS = {
    "llava": lambda folder: load_llava(folder, CPU, FP32),
    "llava_hf": lambda folder: load_llava(folder, CPU, FP32),
    "mgm": lambda folder: load_mgm(folder, CPU, FP32),
    "auto": lambda folder: load_auto(folder, CPU, FP32, "", "method"),
    "bert": lambda folder: load_encoder(folder, "float32"),
}
VISION_LANGUAGE = [name for name in LOADERS if name != "bert"]


@pytest.fixture(params=LOADERS)
def model(request, tmp_path):
    """A folder that loads, and its loader."""
    return written(request.param, tmp_path)


@pytest.fixture(params=VISION_LANGUAGE)
def vision_language(request, tmp_path):
    return written(request.param, tmp_path)


def written(name, tmp_path):
    folder = tmp_path / name
    if name == "bert":
        write_example_bert(folder, sample_texts())
    else:
        copy_checkpoint("llava_hf" if name == "auto" else name, folder)
    return folder, LOADERS[name]


def refused(model, message):
    folder, load = model
    with pytest.raises(StageError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def change_weights(folder, change):
    """Let `change` alter the dictionary of a folder's tensors and the name of one that matters."""
    state = weights(folder)
    name = next(
        name for name in sorted(state) if state[name].dim() == 2 and "layers.0" in name.replace("layer.0", "layers.0")
    )
    change(state, name)
    write_single(folder, state)
    return name


def test_they_load_before_they_are_harmed(model):
    folder, load = model
    load(folder)


@pytest.mark.parametrize(
    ("dtype", "said"),
    [
        (torch.int8, "I8"),
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.int32, "I32"),
    ],
)
def test_codes_are_no_weights(model, dtype, said):
    def change(state, name):
        state[name] = state[name].to(dtype)
        state[name.replace("weight", "weight_scale")] = torch.ones(1)

    name = change_weights(model[0], change)
    refused(model, f"{name} is stored as {said}: the model is quantised")


def test_codes_in_a_bin_file(model):
    folder, _ = model
    state = weights(folder)
    name = max(state, key=lambda name: state[name].numel())
    write_single(folder, {**state, name: state[name].to(torch.int8)}, "bin")
    refused(model, f"{name} is stored as int8: the model is quantised")


@pytest.mark.parametrize(
    "entries",
    [
        {"quantization_config": {"quant_method": "fp8"}},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {"compression_config": {"format": "int-quantized"}},
    ],
)
def test_a_quantised_config(model, entries):
    change_config(model[0], **entries)
    refused(model, f"config.json: {next(iter(entries))}: the model is quantised")


def test_a_quantised_part(vision_language):
    folder, _ = vision_language
    part = json.loads((folder / "config.json").read_text()).get("text_config", {})
    change_config(folder, text_config={**part, "quantization_config": {"bits": 4}})
    refused(vision_language, "config.json: text_config.quantization_config: the model is quantised")


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"])
def test_a_quantisers_own_file(model, name):
    (model[0] / name).write_text('{"bits": 4}')
    refused(model, f"{name}: the model is quantised")


def test_no_quantisation_written_out(model):
    folder, load = model
    change_config(folder, quantization_config=None)
    load(folder)


@pytest.mark.parametrize("suffix", ["lora_A.weight", "base_layer.weight", "scale"])
def test_tensors_that_belong_nowhere(model, suffix):
    def change(state, name):
        state[name.removesuffix("weight") + suffix] = torch.ones(2)

    name = change_weights(model[0], change)
    # transformers has its own names for layers.
    refused(model, f"{name.split('.')[-2]}.{suffix} in the checkpoint, but not in the model")


def test_a_bias_that_the_config_has_not(vision_language):
    folder, _ = vision_language
    state = weights(folder)
    name = next(name for name in state if "layers.1.self_attn.q_proj.weight" in name and "vision" not in name)
    bias = name.replace("weight", "bias")
    write_single(folder, {**state, bias: torch.ones(96)})
    refused(vision_language, r"layers\.1\.self_attn\.q_proj\.bias in the checkpoint, but not in the model")


def test_a_config_with_fewer_layers_than_are_stored(model):
    folder, _ = model
    config = json.loads((folder / "config.json").read_text())
    part = config.get("text_config", config)
    part["num_hidden_layers"] -= 1
    (folder / "config.json").write_text(json.dumps(config))
    refused(model, r"layers?\.[12]\..* in the checkpoint, but not in the model")


def test_an_adapter_beside_the_model(model):
    (model[0] / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    refused(model, "an adapter beside a model is not read. Merge it first")


def test_known_tensors_without_use(model):
    folder, load = model
    change_weights(
        folder,
        lambda state, name: state.update(
            {
                name.rsplit(".", 2)[0] + ".rotary_emb.inv_freq": torch.ones(4),
                "embeddings.position_ids": torch.arange(4),
            }
        ),
    )
    load(folder)


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers(model, number):
    def change(state, name):
        state[name][0, 0] = number

    change_weights(model[0], change)
    refused(model, r"layers?\.0\..* has numbers that are NaN or infinite in float32")


def test_weights_too_large_for_the_number_format(tmp_path):
    folder, _ = written("llava", tmp_path)

    def change(state, name):
        state[name][0, 0] = 1e5

    change_weights(folder, change)
    load_llava(folder, CPU, torch.bfloat16)
    with pytest.raises(StageError, match=r"infinite in float16\. Use another dtype"):
        load_llava(folder, CPU, torch.float16)


@pytest.mark.parametrize("entries", [{"hidden_size": 96 * 2**30}, {"intermediate_size": 2**40}, {"vocab_size": 2**50}])
def test_sizes_that_no_memory_has(model, entries):
    folder, _ = model
    config = json.loads((folder / "config.json").read_text())
    config.get("text_config", config).update(entries)
    (folder / "config.json").write_text(json.dumps(config))
    refused(model, "do not fit config.json|does not describe one|cannot be loaded|vocab_size is")


def test_more_layers_than_tensors(model):
    folder, _ = model
    config = json.loads((folder / "config.json").read_text())
    config.get("text_config", config)["num_hidden_layers"] = 10**9
    (folder / "config.json").write_text(json.dumps(config))
    refused(model, r"num_hidden_layers is 1000000000, but only \d+ tensors are stored")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", "tokenizer.json", "vocab.txt", "model.safetensors"])
def test_git_lfs_pointers(model, name):
    if name == "model.safetensors":
        remove_weights(model[0])
    (model[0] / name).write_text(POINTER)
    refused(model, f"{name}: a Git LFS pointer, not the file")


def test_a_pointer_in_place_of_a_shard(model):
    folder, _ = model
    remove_weights(folder)
    (folder / "part.safetensors").write_text(POINTER)
    index = {"metadata": {}, "weight_map": {"a": "part.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(model, "part.safetensors: a Git LFS pointer")


@pytest.mark.parametrize(
    ("tower", "file"), [(CLIP_NAME, "preprocessor_config.json"), (CONVNEXT_NAME, "open_clip_config.json")]
)
def test_a_pointer_in_an_encoders_folder(tmp_path, tower, file):
    mgm = written("mgm", tmp_path)
    without_towers(mgm[0])
    (mgm[0] / tower / file).write_text(POINTER)
    refused(mgm, f"{file}: a Git LFS pointer")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", '{"a": ' * 100_000),
        ("config.json", "\xff"),
        ("generation_config.json", "[]"),
        ("tokenizer_config.json", "{"),
        ("special_tokens_map.json", ""),
    ],
)
def test_broken_json(model, name, text):
    (model[0] / name).write_text(text, encoding="latin-1")
    refused(model, f"{name} (is no JSON object|cannot be read)")


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"a": 3}}])
def test_an_index_without_a_map(model, index):
    remove_weights(model[0])
    (model[0] / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(model, r"model\.safetensors\.index\.json has no weight_map")


@pytest.mark.parametrize("name", ["auto", "bert"])
def test_an_index_that_transformers_cannot_read(tmp_path, name):
    model = written(name, tmp_path)
    folder, _ = model
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    where = dict.fromkeys(weights(folder), "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    refused(model, r"model\.safetensors\.index\.json has no metadata")


class Harm:
    """Unpickling it would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.path),)


def test_a_bin_file_with_code_does_not_run(model):
    folder, _ = model
    trace = folder / "it ran"
    remove_weights(folder)
    torch.save({"weight": Harm(trace)}, folder / "pytorch_model.bin")
    refused(model, r"pytorch_model\.bin: cannot be read as weights")
    assert not trace.exists()


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {"a": torch.ones(1)}}])
def test_a_bin_file_of_something_else(model, content):
    remove_weights(model[0])
    torch.save(content, model[0] / "pytorch_model.bin")
    refused(model, r"pytorch_model\.bin: cannot be read as weights \(")


def test_a_bin_file_from_before_torch_1_6(model):
    folder, load = model
    state = weights(folder)
    remove_weights(folder)
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    load(folder)


@pytest.mark.parametrize("name", ["auto", "llava_hf", "bert"])
def test_a_padding_token_outside_the_vocabulary(tmp_path, name):
    model = written(name, tmp_path)
    config = json.loads((model[0] / "config.json").read_text())
    config.get("text_config", config)["pad_token_id"] = 99_999
    (model[0] / "config.json").write_text(json.dumps(config))
    refused(model, "pad_token_id is 99999, wanted a number from 0 to vocab_size - 1")


def test_a_vocabulary_that_is_not_the_models(vision_language):
    """As many rows as are stored, so that the weights fit: the tokenizer alone is another one."""
    folder, _ = vision_language
    state = weights(folder)
    for name, tensor in state.items():
        if "embed_tokens" in name or "lm_head" in name:
            state[name] = tensor[:500].contiguous()
    write_single(folder, state)
    config = json.loads((folder / "config.json").read_text())
    config.get("text_config", config)["vocab_size"] = 500
    (folder / "config.json").write_text(json.dumps(config))
    refused(vision_language, "the tokenizer has 640 tokens, but config.json's vocab_size is 500")


def test_a_tokenizer_of_few_tokens(vision_language):
    folder, _ = vision_language
    state = weights(folder)
    for name, tensor in state.items():
        if "embed_tokens" in name or "lm_head" in name:
            state[name] = torch.zeros(2000, tensor.shape[1])
    write_single(folder, state)
    config = json.loads((folder / "config.json").read_text())
    config.get("text_config", config)["vocab_size"] = 2000
    (folder / "config.json").write_text(json.dumps(config))
    refused(vision_language, "the tokenizer has 640 tokens, but config.json's vocab_size is 2000")
