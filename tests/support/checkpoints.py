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
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoTokenizer, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

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


def llama_tokenizer(tokenizer):
    """A tokenizer.model that leaves texts as they are, as Llama's does; the examples' has the library's defaults."""
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(tokenizer)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.precompiled_charsmap = b""
    model.normalizer_spec.remove_extra_whitespaces = False
    return model.SerializeToString()


def resave(folder, target, tokenizer_class=AutoTokenizer):
    """A folder that the installed transformers writes: tokenizer.json only, and one file for the whole processor."""
    LlavaForConditionalGeneration.from_pretrained(folder).save_pretrained(target)
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil.from_pretrained(folder),
        tokenizer=tokenizer_class.from_pretrained(folder),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(target)
    return target


def as_transformers_4(folder, legacy):
    """Turn a re-saved folder into what transformers 4 wrote.

    Args:
        folder: From `resave`.
        legacy: Which of its two ways to put the word marker in front of a text.
    """
    content = json.loads((folder / "tokenizer.json").read_text())
    if legacy:
        content["normalizer"] = {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        }
        content["pre_tokenizer"] = None
    else:
        content["normalizer"] = None
        content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    for number, token in enumerate(("<image>", "<pad>"), start=640):
        added = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        content["added_tokens"].append({"id": number, "content": token, "special": True, **added})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    bos = {"content": "<s>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, "bos_token": {"__type": "AddedToken", **bos}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": bos}))
    processor = json.loads((folder / "processor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(processor.pop("image_processor")))
    (folder / "processor_config.json").write_text(json.dumps(processor))
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope["rope_theta"], "rope_scaling": None, "torch_dtype": text.pop("dtype")}
    config["torch_dtype"] = config.pop("dtype")
    (folder / "config.json").write_text(json.dumps(config))
    write_single(folder, {old_name(name): tensor for name, tensor in weights(folder).items()})


def share_embedding(folder):
    """Give a folder one matrix for reading and writing tokens, stored once under the name of either."""
    state = weights(folder)
    head = next(name for name in state if "lm_head" in name)
    embedding = next(name for name in state if "embed_tokens" in name)
    state[embedding] = state[head]
    return state, head, embedding
