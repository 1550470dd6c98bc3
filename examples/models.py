"""Tiny models of the real architectures with seeded random weights, laid out as the published checkpoints are."""

import io
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    CLIPVisionConfig,
    ConvNextConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from components.mgm_attention.model import Mgm
from free2ds_common.inference.prompts import INSTRUCTION, LLAVA_SYSTEM, MGM_SYSTEM

VOCABULARY = 640
EOS = 2
# A share of the tokens are last words: their embeddings point far along one direction, which EOS's row of lm_head reads
# (the other rows have length 1). So answers end after a few tokens; what the layers write along it ends a few at once.
LAST_WORDS, LAST_WORD_LENGTH, EOS_LENGTH = 0.25, 20.0, 3.0
# The weights do not depend on the data set's seed: these give answers of many lengths whatever is drawn.
LLAVA_SEED, MGM_SEED, BERT_SEED = 7, 8, 9
CLIP_NAME, CONVNEXT_NAME = "openai-clip-tiny-patch14-336", "openclip-convnext-tiny"
_PROCESSOR = {
    "crop_size": {"height": 336, "width": 336},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 336},
}
_TOKENIZER = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "legacy": False,
    "model_max_length": 2048,
    "tokenizer_class": "LlamaTokenizer",
}


def _text_config(vocabulary: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=EOS,
        tie_word_embeddings=False,
    )


def _clip_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, image_size=336, patch_size=14
    )


@torch.no_grad()
def _randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Weights large enough that pictures and questions matter to the answers."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        elif parameter.dim() == 2 and "embed" in name:
            parameter.normal_(0, 1, generator=generator)
        else:
            parameter.normal_(0, 1.6 / parameter[0].numel() ** 0.5, generator=generator)


@torch.no_grad()
def _let_answers_end(embeddings: torch.Tensor, lm_head: torch.Tensor, generator: torch.Generator) -> None:
    """Give a quarter of the tokens EOS as their successor.

    Args:
        embeddings: (vocabulary, hidden), changed in place.
        lm_head: (vocabulary, hidden), written anew.
        generator: Decides which tokens.
    """
    hidden = lm_head.shape[1]
    lm_head.normal_(0, 1 / hidden**0.5, generator=generator)
    direction = nn.functional.normalize(torch.randn(hidden, generator=generator), dim=0)
    embeddings[torch.rand(len(embeddings), generator=generator) < LAST_WORDS] += LAST_WORD_LENGTH * direction
    lm_head[EOS] = EOS_LENGTH * direction


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def train_tokenizer(texts: Iterable[str]) -> bytes:
    """A Llama-like sentencepiece model: BPE with byte fallback, unk 0, bos 1, eos 2."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*texts, LLAVA_SYSTEM, MGM_SYSTEM, INSTRUCTION]),
        model_writer=written,
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        unk_id=0,
        bos_id=1,
        eos_id=EOS,
        pad_id=-1,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    return written.getvalue()


def _write_llama_files(folder: Path, tokenizer: bytes) -> None:
    """What both language models have beside config and weights."""
    _write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": EOS})
    _write_json(folder / "tokenizer_config.json", _TOKENIZER)
    _write_json(
        folder / "special_tokens_map.json", {name: _TOKENIZER[name] for name in ("bos_token", "eos_token", "unk_token")}
    )
    (folder / "tokenizer.model").write_bytes(tokenizer)


def write_llava(folder: Path, tokenizer: bytes, seed: int = LLAVA_SEED) -> None:
    """LLaVA in the Hugging Face layout; save_pretrained gives the parameters their published names."""
    config = LlavaConfig(
        vision_config=_clip_config(),
        text_config=_text_config(VOCABULARY + 64),
        image_token_index=VOCABULARY,
        image_seq_length=576,
        vision_feature_layer=-2,
        tie_word_embeddings=False,
        dtype="float32",
    )
    model, generator = LlavaForConditionalGeneration(config).eval(), torch.Generator().manual_seed(seed)
    _randomise(model, generator)
    _let_answers_end(model.get_input_embeddings().weight, model.lm_head.weight, generator)
    # The padding rows: never generated.
    model.lm_head.weight.data[VOCABULARY:] = 0
    model.save_pretrained(folder)
    _write_llama_files(folder, tokenizer)
    _write_json(folder / "preprocessor_config.json", _PROCESSOR)


def published_name(name: str) -> str:
    """The name that MGM's checkpoint gives to a parameter of `Mgm`."""
    if name.startswith("vision_tower."):
        return "model.vision_tower.vision_tower.vision_model." + name.removeprefix("vision_tower.")
    if name.startswith("vision_tower_aux."):
        name = name.removeprefix("vision_tower_aux.")
        for pattern, replacement in (
            (r"^embeddings\.patch_embeddings\.", "stem.0."),
            (r"^embeddings\.layernorm\.", "stem.1."),
            (r"^encoder\.stages\.(\d+)\.downsampling_layer\.", r"stages.\1.downsample."),
            (r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.", r"stages.\1.blocks.\2."),
            (r"\.layer_scale_parameter$", ".gamma"),
            (r"\.dwconv\.", ".conv_dw."),
            (r"\.layernorm\.", ".norm."),
            (r"\.pwconv([12])\.", r".mlp.fc\1."),
        ):
            name = re.sub(pattern, replacement, name)
        return "model.vision_tower_aux.vision_" + name
    return name if name.startswith(("model.", "lm_head.")) else "model." + name


def write_mgm(folder: Path, tokenizer: bytes, seed: int = MGM_SEED) -> None:
    """MGM in its published layout, with both encoders as sub-folders."""
    text, clip = _text_config(VOCABULARY), _clip_config()
    convnext = ConvNextConfig(hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], layer_norm_eps=1e-6)
    model, generator = Mgm(text, clip, convnext, -2).eval(), torch.Generator().manual_seed(seed)
    _randomise(model, generator)
    _let_answers_end(model.model.embed_tokens.weight, model.lm_head.weight, generator)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    config = {name: getattr(text, name) for name in names} | {
        "architectures": ["MGMLlamaForCausalLM"],
        "model_type": "mgm",
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": EOS,
        "tie_word_embeddings": False,
        "image_grid": 1,
        "image_global": False,
        "image_size_aux": 768,
        "mm_hidden_size": clip.hidden_size,
        "mm_hidden_size_aux": sum(convnext.hidden_sizes),
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_vision_tower": CLIP_NAME,
        "mm_vision_tower_aux": CONVNEXT_NAME,
    }
    _write_json(folder / "config.json", config)
    _write_llama_files(folder, tokenizer)
    # The trunk's final norm belongs to ConvNextModel, not to MGM.
    state = {name: t.contiguous() for name, t in model.state_dict().items() if "vision_tower_aux.layernorm" not in name}
    save_file({published_name(name): tensor for name, tensor in state.items()}, folder / "model.safetensors")
    tower, aux = folder / CLIP_NAME, folder / CONVNEXT_NAME
    _write_json(tower / "config.json", {"architectures": ["CLIPVisionModel"], **clip.to_dict()})
    _write_json(tower / "preprocessor_config.json", _PROCESSOR)
    clip_state = {name: tensor for name, tensor in state.items() if name.startswith("vision_tower.")}
    save_file(
        {"vision_model." + name.removeprefix("vision_tower."): tensor for name, tensor in clip_state.items()},
        tower / "model.safetensors",
    )
    _write_json(aux / "open_clip_config.json", {"model_cfg": {"vision_cfg": {"image_size": 320}}})
    trunk = {
        published_name(name).replace("model.vision_tower_aux.vision_", "visual.trunk."): tensor
        for name, tensor in state.items()
        if name.startswith("vision_tower_aux.")
    }
    torch.save(trunk, aux / "open_clip_pytorch_model.bin")


def write_bert(folder: Path, texts: Iterable[str], seed: int = BERT_SEED) -> None:
    """BERT with a WordPiece vocabulary of the example texts' words and all their characters."""
    words = sorted({word for text in texts for word in re.findall(r"[a-z]+|[^a-z\s]", text.lower())})
    letters = sorted({letter for word in words for letter in word} | set("abcdefghijklmnopqrstuvwxyz0123456789"))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = list(dict.fromkeys([*special, *letters, *(f"##{letter}" for letter in letters), *words]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    _randomise(model, torch.Generator().manual_seed(seed))
    model.save_pretrained(folder)
