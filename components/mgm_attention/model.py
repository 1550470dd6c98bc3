"""MGM (Mini-Gemini), made of transformers' Llama, CLIP and ConvNeXt, with patch info mining between the encoders."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from transformers import CLIPVisionModel, ConvNextConfig, ConvNextModel, LlamaConfig, LlamaModel
from transformers.models.clip.configuration_clip import CLIPVisionConfig

from free2ds_common.errors import StageError
from free2ds_common.inference import original_layout
from free2ds_common.inference.capture import ATTENTION_NAME
from free2ds_common.inference.lean_llama import make_lean
from free2ds_common.inference.model import Pixels, VisionLanguageModel
from free2ds_common.inference.model_folder import check_folder, read_config, require_believable_depth
from free2ds_common.inference.packed_linear import pack_linear_layers
from free2ds_common.inference.prompts import MGM_SYSTEM, build_prompt, method_settings
from free2ds_common.inference.tokenizers import load_tokenizer
from free2ds_common.inference.weights import WeightSource, load_model, stored_shapes

# The encoders' parameters in `Mgm`.
_CLIP, _CONVNEXT = "vision_tower.", "vision_tower_aux."
_TIED = ("model.embed_tokens.weight", "lm_head.weight")
# What a whole open_clip checkpoint has beside the picture encoder's trunk: its heads and the text side.
_OPEN_CLIP_REST = (
    "visual.trunk.head.",
    "visual.head.",
    "text.",
    "transformer.",
    "token_embedding.",
    "ln_final.",
    "positional_embedding",
    "text_projection",
    "logit_scale",
    "logit_bias",
    "attn_mask",
)
# The first stage's map has a quarter of the picture's side.
_FIRST_STAGE = 4
# timm's value; transformers' default differs only in the final norm, which MGM does not use.
_CONVNEXT_EPSILON = 1e-6


class Mgm(nn.Module):
    """The model. Its parts are named as in the published checkpoint."""

    def __init__(self, text: LlamaConfig, clip: CLIPVisionConfig, convnext: ConvNextConfig, select_layer: int) -> None:
        """Build the parts.

        Args:
            text: The decoder.
            clip: The low-resolution encoder, 336 px.
            convnext: The high-resolution encoder, 768 px.
            select_layer: CLIP's hidden state to take, -2 for the penultimate layer.
        """
        super().__init__()
        width, detail = clip.hidden_size, sum(convnext.hidden_sizes)
        self.model = LlamaModel(text)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.vision_tower = CLIPVisionModel(clip)
        self.vision_tower_aux = ConvNextModel(convnext)
        self.vlm_uni_query_projector = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.vlm_uni_aux_projector = nn.Sequential(nn.LayerNorm(detail), nn.Linear(detail, width))
        self.vlm_uni_val_projector = nn.Sequential(nn.LayerNorm(detail), nn.Linear(detail, width))
        self.mm_projector = nn.Sequential(
            nn.Linear(width, text.hidden_size), nn.GELU(), nn.Linear(text.hidden_size, text.hidden_size)
        )
        self._grid = clip.image_size // clip.patch_size
        self._select_layer = select_layer

    def image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pictures to vision tokens.

        Args:
            pixel_values: (n, 3, 768, 768), normalised.

        Returns:
            (n, grid * grid, hidden) in the decoder's width.

        Source:
            Mini-Gemini (Li et al. 2024), section 3.2, patch info mining.
        """
        size = self.vision_tower.config.image_size
        # In fp32: the reference resizes before it casts to the model's dtype.
        small = functional.interpolate(pixel_values.float(), size=(size, size), mode="bilinear", align_corners=False)
        dtype = self.lm_head.weight.dtype
        clip = self.vision_tower(small.to(dtype), output_hidden_states=True).hidden_states[self._select_layer][:, 1:]
        features: torch.Tensor = self.mm_projector(clip + self._mine(clip, self._detail(pixel_values.to(dtype))))
        return features

    def _detail(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The four stages' outputs at the first one's resolution, (n, channels, side, side)."""
        stages = self.vision_tower_aux(pixel_values, output_hidden_states=True).hidden_states[1:]
        side = stages[0].shape[-2:]
        resized = [functional.interpolate(s.float(), size=side, mode="bilinear", align_corners=False) for s in stages]
        return torch.cat(resized, dim=1).to(pixel_values.dtype)

    def _mine(self, clip: torch.Tensor, detail: torch.Tensor) -> torch.Tensor:
        """Patch info mining: each CLIP token attends to its own window of the detail map.

        Args:
            clip: (n, grid * grid, width).
            detail: (n, channels, side, side), side a multiple of the grid.

        Returns:
            (n, grid * grid, width).
        """
        count, channels, side, _ = detail.shape
        window = side // self._grid
        tiles = detail.view(count, channels, self._grid, window, self._grid, window)
        tiles = tiles.permute(0, 2, 4, 3, 5, 1).reshape(count, self._grid**2, window**2, channels)
        query = self.vlm_uni_query_projector(clip)[:, :, None]
        keys, values = self.vlm_uni_aux_projector(tiles), self.vlm_uni_val_projector(tiles)
        weights = torch.softmax(query @ keys.transpose(2, 3) / query.shape[-1] ** 0.5, dim=-1)
        mined: torch.Tensor = (weights @ values)[:, :, 0]
        return mined


def parameter_name(stored: str) -> str:
    """The parameter of `Mgm` that a tensor of the main checkpoint belongs to."""
    if stored.startswith(original_layout.CLIP_IN_CHECKPOINT):
        return "vision_tower." + stored.removeprefix(original_layout.CLIP_IN_CHECKPOINT)
    stored = re.sub(r"^model\.(vlm_uni_|mm_projector)", r"\1", stored)
    for inside in ("model.vision_tower_aux.vision_stem.", "model.vision_tower_aux.vision_stages."):
        if stored.startswith(inside):
            return "vision_tower_aux." + _convnext_name(stored.removeprefix("model.vision_tower_aux.vision_"))
    return stored


def _convnext_name(timm: str) -> str:
    """The parameter of transformers' ConvNeXt for one of timm's."""
    for pattern, replacement in (
        (r"^stem\.0\.", "embeddings.patch_embeddings."),
        (r"^stem\.1\.", "embeddings.layernorm."),
        (r"^stages\.(\d+)\.downsample\.", r"encoder.stages.\1.downsampling_layer."),
        (r"^stages\.(\d+)\.blocks\.(\d+)\.", r"encoder.stages.\1.layers.\2."),
        (r"\.gamma$", ".layer_scale_parameter"),
        (r"\.conv_dw\.", ".dwconv."),
        (r"\.norm\.", ".layernorm."),
        (r"\.mlp\.fc([12])\.", r".pwconv\1."),
    ):
        timm = re.sub(pattern, replacement, timm)
    return timm


def _open_clip_name(stored: str) -> str | None:
    """The parameter of `Mgm` for a tensor of open_clip's checkpoint; None for one that MGM has no use for."""
    if stored.startswith(_OPEN_CLIP_REST):
        return None
    return _CONVNEXT + _convnext_name(stored.removeprefix("visual.trunk."))


def _convnext_config(folder: Path, rename: Callable[[str], str | None]) -> ConvNextConfig | None:
    """Depths and widths from the stored shapes, since open_clip's config gives only the name of timm's model.

    Args:
        folder: A model folder.
        rename: Stored name to parameter of `Mgm`, None for none.

    Returns:
        None if the folder holds no ConvNeXt of four stages.

    Raises:
        StageError: The folder's weights are missing or cannot be read.
    """
    widths: dict[int, int] = {}
    depths: dict[int, int] = {}
    for stored in stored_shapes(folder):
        found = re.fullmatch(
            r"vision_tower_aux\.encoder\.stages\.(\d+)\.layers\.(\d+)\.dwconv\.weight", rename(stored.name) or ""
        )
        if found and stored.shape:
            stage, block = int(found[1]), int(found[2])
            widths[stage] = stored.shape[0]
            depths[stage] = max(depths.get(stage, 0), block + 1)
    if sorted(widths) != [0, 1, 2, 3]:
        return None
    return ConvNextConfig(
        hidden_sizes=[widths[stage] for stage in range(4)],
        depths=[depths[stage] for stage in range(4)],
        layer_norm_eps=_CONVNEXT_EPSILON,
        drop_path_rate=0.0,
    )


def _require_mgm(folder: Path, stored: Mapping[str, Any]) -> None:
    """Refuse another architecture, and MGM-HD."""
    architecture = (stored.get("architectures") or ["none"])[0]
    if architecture not in ("MGMLlamaForCausalLM", "MiniGeminiLlamaForCausalLM"):
        raise StageError(f"{folder}: architecture {architecture}, wanted MGMLlamaForCausalLM.")
    if stored.get("image_grid", 1) != 1 or stored.get("image_global", False):
        raise StageError(f"{folder}: image_grid {stored.get('image_grid')}: MGM-HD is not supported, use MGM-7B.")


def _second_encoder(folder: Path, stored: dict[str, Any], given: str) -> tuple[ConvNextConfig, Path | None]:
    """The ConvNeXt's config, and its folder where the checkpoint does not hold its weights."""
    if (config := _convnext_config(folder, parameter_name)) is not None:
        return config, None
    aux = original_layout.tower_folder(folder, stored, "vision_tower_aux", given)
    check_folder(aux)
    if (config := _convnext_config(aux, _open_clip_name)) is None:
        raise StageError(f"{aux}: no ConvNeXt of four stages in open_clip's layout. Give MGM's second encoder.")
    return config, aux


def _picture_side(folder: Path, stored: Mapping[str, Any], grid: int) -> int:
    """Pixels per side of what the second encoder sees."""
    side = stored.get("image_size_aux", 768)
    if type(side) is not int or side < 1 or side % (_FIRST_STAGE * grid):
        raise StageError(
            f"{folder}: image_size_aux is {side!r}, wanted a multiple of {_FIRST_STAGE * grid}: each of CLIP's "
            f"{grid} x {grid} patches has its own part of the second encoder's map."
        )
    return side


def load_mgm(
    folder: Path, device: torch.device, dtype: torch.dtype, vision_tower: str = "", vision_tower_aux: str = ""
) -> VisionLanguageModel:
    """Load MGM.

    Args:
        folder: `MGMLlamaForCausalLM` in its published layout, the two encoders in sub-folders or elsewhere. Encoder
            weights in the checkpoint itself come first; if it has the ConvNeXt's, that folder is not needed.
        device: Where the weights go; there is never a second copy of them.
        dtype: Of weights and arithmetic.
        vision_tower: Where CLIP is if `mm_vision_tower` does not lead to it.
        vision_tower_aux: Where the ConvNeXt is if `mm_vision_tower_aux` does not lead to it.

    Raises:
        StageError: Another architecture, missing or broken files, or weights that are not the config's.
    """
    check_folder(folder)
    stored = read_config(folder)
    _require_mgm(folder, stored)
    original_layout.require_known_entries(folder, stored)
    require_believable_depth(folder, stored, len(stored_shapes(folder)))
    tower = original_layout.tower_folder(folder, stored, "vision_tower", vision_tower)
    check_folder(tower)
    text, clip = original_layout.llama_config(folder, stored), original_layout.clip_config(tower)
    convnext, aux = _second_encoder(folder, stored, vision_tower_aux)
    grid, layer = original_layout.square_grid(tower, clip), stored.get("mm_vision_select_layer", -2)
    original_layout.require_layer(folder, layer, clip)
    side = _picture_side(folder, stored, grid)
    processor = original_layout.clip_processor(tower)
    size: dict[str, Any] = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    original_layout.require_picture_size(tower, processor, side, **size)
    tokenizer = load_tokenizer(folder, "llama", text.vocab_size)
    clip_name = partial(original_layout.clip_parameter_name, prefix=_CLIP)
    sources = [WeightSource(folder, parameter_name), WeightSource(tower, clip_name, _CLIP)]
    if aux is not None:
        sources.append(WeightSource(aux, _open_clip_name, _CONVNEXT))

    def build() -> Mgm:
        model = Mgm(text, clip, convnext, layer)
        # The trunk's final norm is not part of MGM.
        model.vision_tower_aux.layernorm = nn.Identity()
        return model

    model = load_model(folder, build, sources, device, dtype, _TIED if text.tie_word_embeddings else None)
    pack_linear_layers(model)
    make_lean(model)
    model.model.config._attn_implementation = ATTENTION_NAME

    def preprocess(picture: Image.Image) -> Pixels:
        return {"pixel_values": processor(picture, return_tensors="pt", **size).pixel_values[0]}

    return VisionLanguageModel(
        decoder=model.model,
        lm_head=model.lm_head,
        prompt=partial(build_prompt, system=MGM_SYSTEM, tokenizer=tokenizer),
        prompt_settings=method_settings(MGM_SYSTEM),
        preprocess=preprocess,
        encode_images=lambda pixels: model.image_features(pixels["pixel_values"]),
        grid=grid,
        eos_token_ids=original_layout.eos_token_ids(
            folder, stored, default=tokenizer.eos_token_id, vocab_size=text.vocab_size
        ),
        context_length=text.max_position_embeddings,
        preprocessing={**processor.to_dict(), **size},
        unk_token_id=tokenizer.unk_token_id,
        folders=original_layout.distinct_folders(folder, tower, *([aux] if aux else [])),
    )
