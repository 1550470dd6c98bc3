"""The checkpoint layout that LLaVA and MGM were published in: a Llama config with `mm_*` entries."""

from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from free2ds_common.checkpoints import read_json_object, resolve_model
from free2ds_common.errors import StageError, first_line

# How the stored names of CLIP's weights begin where the model's own checkpoint has them.
CLIP_IN_CHECKPOINT = "model.vision_tower.vision_tower.vision_model."
# Entries that decide the prompt or the picture features, with the values of both published models. The projector's has
# to be there, since it decides the layers; the others may be absent.
_WANTED_ENTRIES = {
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_feature": "patch",
    "mm_use_im_start_end": False,
    "mm_patch_merge_type": "flat",
}
# MGM-7B's config names its encoders by its authors' folders; these are the same weights on the hub.
_HUB_IDS = {
    "clip-vit-large-patch14-336": "openai/clip-vit-large-patch14-336",
    "openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup": (
        "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup"
    ),
}

_LLAMA_ENTRIES = (
    "attention_bias",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "tie_word_embeddings",
    "vocab_size",
)


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's `config.json`.

    Raises:
        StageError: It is missing or no JSON object.
    """
    try:
        return read_json_object(folder / "config.json")
    except FileNotFoundError:
        raise StageError(f"{folder}: no config.json. Give a model folder or a hub id.") from None


def require_known_entries(folder: Path, config: dict[str, Any]) -> None:
    """Refuse entries that the loaders do not follow.

    Raises:
        StageError: An entry asks for another projector, other picture features or another prompt.
    """
    for entry, wanted in _WANTED_ENTRIES.items():
        found = config.get(entry, None if entry == "mm_projector_type" else wanted)
        if found != wanted:
            raise StageError(f"{folder}: {entry} {found!r}, wanted {wanted!r} as LLaVA-1.5 and MGM-7B have it.")


def llama_config(folder: Path, config: dict[str, Any]) -> LlamaConfig:
    """The decoder's part of an original config.

    Raises:
        StageError: `rope_scaling` is not linear, the only kind that LLaVA's training writes.
    """
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.get("rope_theta", 10000.0)}
    match config.get("rope_scaling"):
        case None:
            pass
        case {"type": "linear", "factor": int() | float() as factor}:
            rope.update(rope_type="linear", factor=float(factor))
        case scaling:
            raise StageError(f"{folder}: rope_scaling {scaling}, wanted null or type linear with a factor.")
    return LlamaConfig(**{name: config[name] for name in _LLAMA_ENTRIES if name in config}, rope_parameters=rope)


def tower_folder(folder: Path, config: dict[str, Any], option: str, given: str) -> Path:
    """Where a vision encoder is.

    Args:
        folder: The model's folder.
        config: Its config, whose entry "mm_<option>" is used when `given` is empty.
        option: "vision_tower" or "vision_tower_aux".
        given: The user's value: a sub-folder or its base name, a path, a URI or a hub id.

    Raises:
        StageError: There is neither value nor entry, or nothing is there.
    """
    entry = option if given else f"mm_{option}"
    reference = given or config.get(entry)
    remedy = f"Give the encoder's folder, URI or hub id as {option} (--{option.replace('_', '-')})."
    if not reference:
        raise StageError(f"{folder}: config.json has no {entry}. {remedy}")
    base_name = Path(reference).name
    for candidate in (folder / reference, folder / base_name):
        if candidate.is_dir():
            return candidate
    try:
        return Path(resolve_model(reference if given else _HUB_IDS.get(base_name, reference), "main"))
    except StageError as error:
        raise StageError(
            f"{folder}: {entry} {reference!r} is no sub-folder of the model, and {error} {remedy}"
        ) from error


def distinct_folders(folder: Path, *towers: Path) -> tuple[Path, ...]:
    """The model's folder and those of its encoders that lie outside it."""
    return (folder, *(tower for tower in towers if folder.resolve() not in tower.resolve().parents))


def clip_parameter_name(stored: str, prefix: str) -> str | None:
    """The parameter for a tensor of a separate CLIP checkpoint; None for one of CLIP's text model.

    Args:
        stored: Name in the checkpoint.
        prefix: Start of the vision tower's parameter names.
    """
    if stored.startswith(("text_model.", "text_projection", "logit_scale", "visual_projection")):
        return None
    return prefix + stored.removeprefix("vision_model.")


def clip_config(folder: Path) -> CLIPVisionConfig:
    """A CLIP vision tower's config; the folder may be of the whole CLIP model."""
    config = read_config(folder)
    return CLIPVisionConfig(**config.get("vision_config", config))


def clip_processor(folder: Path) -> CLIPImageProcessorPil:
    """CLIP's preprocessing: short side to 336 px, centre crop, normalise.

    Raises:
        StageError: There is no preprocessor_config.json, or it is broken.
    """
    if not (folder / "preprocessor_config.json").is_file():
        raise StageError(f"{folder}: no preprocessor_config.json. Copy the whole vision tower folder.")
    try:
        return CLIPImageProcessorPil.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise StageError(f"{folder}: preprocessor_config.json cannot be read ({first_line(error)}).") from error


def eos_token_ids(folder: Path, config: dict[str, Any]) -> frozenset[int]:
    """The tokens that end an answer: generation_config.json's, otherwise the config's.

    Raises:
        StageError: generation_config.json is broken.
    """
    path = folder / "generation_config.json"
    generation = read_json_object(path) if path.is_file() else {}
    eos = generation.get("eos_token_id", config.get("eos_token_id", 2))
    return frozenset(eos if isinstance(eos, list) else [eos])


def square_grid(config: CLIPVisionConfig) -> int:
    """Vision tokens per side."""
    grid: int = config.image_size // config.patch_size
    return grid
