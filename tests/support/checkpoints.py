"""Tiny LLaVA and MGM folders in every layout, all with the same weights per model, and what they answer."""

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from examples.models import CLIP_NAME, EOS, train_tokenizer, write_llava, write_mgm
from examples.scenes import sample_texts
from free2ds_common.inference.generation import AnswerGenerator, PictureGroup, Question

CPU, FP32 = torch.device("cpu"), torch.float32
QUESTIONS = ("What is it?", "How many are there?\n<image>", "<image>\nWhich colour has it?")


@functools.cache
def _made() -> Path:
    """llava_hf, llava and mgm, written once per test run."""
    root = Path(tempfile.mkdtemp(prefix="free2ds-checkpoints-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    tokenizer = train_tokenizer(sample_texts())
    write_llava(root / "llava_hf", tokenizer)
    write_mgm(root / "mgm", tokenizer)
    _write_original_llava(root / "llava_hf", root / "mgm" / CLIP_NAME, root / "llava")
    return root


def _write_original_llava(converted, clip, folder):
    """LLaVA as it was published: two shards with CLIP's weights in them, and CLIP's folder inside."""
    text = json.loads((converted / "config.json").read_text())["text_config"]
    names = (
        "hidden_act",
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "rms_norm_eps",
        "vocab_size",
    )
    config = {name: text[name] for name in names} | {
        "architectures": ["LlavaLlamaForCausalLM"],
        "eos_token_id": EOS,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_vision_tower": CLIP_NAME,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.model", "generation_config.json"):
        shutil.copyfile(converted / name, folder / name)
    state = {original_name(name): tensor for name, tensor in weights(converted).items()}
    write_shards(folder, state)
    tower = folder / CLIP_NAME
    tower.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copyfile(clip / name, tower / name)
    clip_weights = {name: tensor for name, tensor in state.items() if "vision_tower" in name}
    save_file(
        {name.removeprefix("model.vision_tower.vision_tower."): t for name, t in clip_weights.items()},
        tower / "model.safetensors",
    )


def original_name(name):
    """The name in LLaVA's original checkpoint for one in the Hugging Face layout."""
    return _renamed(
        name,
        ("language_model.model.", "model."),
        ("language_model.lm_head.", "lm_head."),
        ("multi_modal_projector.linear_1.", "model.mm_projector.0."),
        ("multi_modal_projector.linear_2.", "model.mm_projector.2."),
        ("vision_tower.", "model.vision_tower.vision_tower.vision_model."),
    )


def old_name(name):
    """The name in the first Hugging Face checkpoints, such as llava-hf/llava-1.5-7b-hf."""
    return _renamed(name, ("vision_tower.", "vision_tower.vision_model."))


def new_name(name):
    """The name that transformers' own module has."""
    return _renamed(
        name,
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
        ("vision_tower.", "model.vision_tower.vision_model."),
    )


def _renamed(name, *pairs):
    for old, new in pairs:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def copy_checkpoint(name, folder):
    """A copy of llava_hf, llava or mgm that a test may change."""
    shutil.copytree(_made() / name, folder)
    return folder


def change_config(folder, **entries):
    """Set entries of config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))


def change_layer(state, layer):
    """Double the weights of one of CLIP's layers, of which there are three, in an original checkpoint."""
    prefix = f"model.vision_tower.vision_tower.vision_model.encoder.layers.{layer}."
    changed = [name for name in state if name.startswith(prefix)]
    assert changed
    for name in changed:
        state[name] = 2 * state[name]


def weights(folder):
    """All tensors of a folder's safetensors files."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def remove_weights(folder):
    """Delete weights and indexes of a folder, but not of its sub-folders."""
    for path in (*folder.glob("*.safetensors*"), *folder.glob("*.bin*")):
        path.unlink()


def write_shards(folder, state, suffix="safetensors"):
    """Weights in two files with an index, in place of what was there."""
    remove_weights(folder)
    names, stem = sorted(state), {"safetensors": "model", "bin": "pytorch_model"}[suffix]
    where = {}
    for number, part in enumerate((names[0::2], names[1::2]), start=1):
        path = folder / f"{stem}-0000{number}-of-00002.{suffix}"
        (save_file if suffix == "safetensors" else torch.save)({name: state[name] for name in part}, path)
        where.update(dict.fromkeys(part, path.name))
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": where}))


def write_single(folder, state, suffix="safetensors"):
    """Weights in one file, in place of what was there."""
    remove_weights(folder)
    if suffix == "safetensors":
        save_file(state, folder / "model.safetensors")
    else:
        torch.save(state, folder / "pytorch_model.bin")


def without_towers(folder):
    """Take the encoders' weights out of the main checkpoint."""
    write_shards(folder, {name: tensor for name, tensor in weights(folder).items() if "vision_tower" not in name})


def picture(seed=0):
    """A picture of noise, 400 x 300."""
    values = np.random.default_rng(seed).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    return Image.fromarray(values)


def answers_of(model, max_new_tokens=6):
    """Tokens and map of each of QUESTIONS about one picture."""
    questions = tuple(Question(number, model.prompt(text)) for number, text in enumerate(QUESTIONS))
    found = AnswerGenerator(model, max_new_tokens, 4).generate([PictureGroup(model.preprocess(picture()), questions)])
    return [(answer.tokens, answer.map) for answer in sorted(found, key=lambda answer: answer.index)]


def assert_same_answers(found, wanted):
    """Token by token, bit by bit."""
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in wanted]
    for (_, one), (_, other) in zip(found, wanted, strict=True):
        assert one is not None
        assert torch.equal(one, other)
