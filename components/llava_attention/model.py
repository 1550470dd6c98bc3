"""Loads LLaVA-1.5 from either of its checkpoint layouts, as transformers' LlavaForConditionalGeneration."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import LlavaConfig, LlavaForConditionalGeneration

from free2ds_common.errors import StageError
from free2ds_common.inference import original_layout
from free2ds_common.inference.capture import ATTENTION_NAME
from free2ds_common.inference.lean_llama import make_lean
from free2ds_common.inference.model import Pixels, VisionLanguageModel
from free2ds_common.inference.model_folder import (
    check_folder,
    loading,
    read_config,
    require_believable_depth,
    require_token_ids,
)
from free2ds_common.inference.packed_linear import pack_linear_layers
from free2ds_common.inference.prompts import LLAVA_SYSTEM, build_prompt, method_settings
from free2ds_common.inference.tokenizers import load_tokenizer
from free2ds_common.inference.weights import WeightSource, load_model, stored_shapes

# From stored names to transformers'; the first match counts. Hugging Face layout, old and new, then the original one.
_RENAMES = (
    (r"(?:model\.)?language_model\.lm_head\.", "lm_head."),
    (r"(?:model\.)?language_model\.(?:model\.)?", "model.language_model."),
    (r"(?:model\.)?multi_modal_projector\.", "model.multi_modal_projector."),
    (r"model\.mm_projector\.0\.", "model.multi_modal_projector.linear_1."),
    (r"model\.mm_projector\.2\.", "model.multi_modal_projector.linear_2."),
    (re.escape(original_layout.CLIP_IN_CHECKPOINT), "model.vision_tower."),
    (r"(?:model\.)?vision_tower\.(?:vision_model\.)?", "model.vision_tower."),
    (r"model\.(embed_tokens|layers|norm)\.", r"model.language_model.\1."),
)


_TOWER = "model.vision_tower."
_TIED = ("model.language_model.embed_tokens.weight", "lm_head.weight")


def parameter_name(stored: str) -> str:
    """The parameter of LlavaForConditionalGeneration that a stored tensor belongs to."""
    for pattern, replacement in _RENAMES:
        renamed, count = re.subn("^" + pattern, replacement, stored)
        if count:
            return renamed
    return stored


def load_llava(folder: Path, device: torch.device, dtype: torch.dtype, vision_tower: str = "") -> VisionLanguageModel:
    """Load LLaVA-1.5.

    Args:
        folder: In the Hugging Face layout (`LlavaForConditionalGeneration`) or the original one
            (`LlavaLlamaForCausalLM`).
        device: Where the weights go; there is never a second copy of them.
        dtype: Of weights and arithmetic.
        vision_tower: In the original layout, where CLIP is if `mm_vision_tower` does not lead to it.

    Raises:
        StageError: Another architecture, missing or broken files, or weights that are not the config's.
    """
    check_folder(folder)
    stored = read_config(folder)
    require_believable_depth(folder, stored, len(stored_shapes(folder)))
    architecture = (stored.get("architectures") or ["none"])[0]
    tower: Path | None = None
    if architecture == "LlavaForConditionalGeneration":
        config = _converted_config(folder)
        processor_folder = folder
    elif architecture in ("LlavaLlamaForCausalLM", "LlavaLlamaModel"):
        original_layout.require_known_entries(folder, stored)
        tower = original_layout.tower_folder(folder, stored, "vision_tower", vision_tower)
        config = _original_config(folder, stored, tower)
        processor_folder = tower
    else:
        raise StageError(f"{folder}: architecture {architecture}, wanted LLaVA-1.5 in one of its two layouts.")
    text, vision = config.text_config, config.vision_config
    original_layout.require_layer(folder, config.vision_feature_layer, vision)
    grid = original_layout.square_grid(folder, vision)
    processor = original_layout.clip_processor(processor_folder)
    original_layout.require_picture_size(processor_folder, processor, vision.image_size)
    tokenizer = load_tokenizer(folder, "llama", text.vocab_size)
    sources = [WeightSource(folder, parameter_name)]
    if tower is not None:
        clip_name = partial(original_layout.clip_parameter_name, prefix=_TOWER)
        sources.append(WeightSource(tower, clip_name, _TOWER))
    tied = _TIED if text.tie_word_embeddings or config.tie_word_embeddings else None
    model = load_model(folder, lambda: LlavaForConditionalGeneration(config), sources, device, dtype, tied)
    pack_linear_layers(model)
    make_lean(model)
    decoder = model.model.language_model
    decoder.config._attn_implementation = ATTENTION_NAME

    def preprocess(picture: Image.Image) -> Pixels:
        return {"pixel_values": processor(picture, return_tensors="pt").pixel_values[0]}

    def encode_images(pixels: Pixels) -> torch.Tensor:
        return torch.stack(model.get_image_features(pixels["pixel_values"].to(dtype)).pooler_output)

    return VisionLanguageModel(
        decoder=decoder,
        lm_head=model.lm_head,
        prompt=partial(build_prompt, system=LLAVA_SYSTEM, tokenizer=tokenizer),
        prompt_settings=method_settings(LLAVA_SYSTEM),
        preprocess=preprocess,
        encode_images=encode_images,
        grid=grid,
        eos_token_ids=original_layout.eos_token_ids(
            folder, stored, text.to_dict(), default=tokenizer.eos_token_id, vocab_size=text.vocab_size
        ),
        context_length=text.max_position_embeddings,
        preprocessing=processor.to_dict(),
        unk_token_id=tokenizer.unk_token_id,
        folders=original_layout.distinct_folders(folder, *([tower] if tower else [])),
    )


def _converted_config(folder: Path) -> LlavaConfig:
    with loading(folder, "LLaVA-1.5"):
        config = LlavaConfig.from_pretrained(folder)
    kinds = (config.text_config.model_type, config.vision_config.model_type)
    if kinds != ("llama", "clip_vision_model"):
        raise StageError(
            f"{folder}: a LLaVA of {kinds[0]} and {kinds[1]}, wanted llama and clip_vision_model as LLaVA-1.5 has "
            "them. Use model_type auto for other models."
        )
    require_token_ids(folder, config.text_config.to_dict(), config.text_config.vocab_size)
    if config.vision_feature_select_strategy != "default":
        raise StageError(
            f"{folder}: vision_feature_select_strategy {config.vision_feature_select_strategy!r}, wanted 'default': "
            "one token per patch as LLaVA-1.5 has it."
        )
    return config


def _original_config(folder: Path, stored: dict[str, Any], tower: Path) -> LlavaConfig:
    check_folder(tower)
    vision = original_layout.clip_config(tower)
    text = original_layout.llama_config(folder, stored)
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        vision_feature_layer=stored.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        image_seq_length=original_layout.square_grid(tower, vision) ** 2,
        tie_word_embeddings=text.tie_word_embeddings,
    )
