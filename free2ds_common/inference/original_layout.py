"""The checkpoint layout that LLaVA and MGM were published in: a Llama config with `mm_*` entries."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from free2ds_common.checkpoints import resolve_model
from free2ds_common.errors import StageError
from free2ds_common.inference.model_folder import loading, read_config, read_settings, require_believable_depth

# How the stored names of CLIP's weights begin where the model's own checkpoint has them.
CLIP_IN_CHECKPOINT = "model.vision_tower.vision_tower.vision_model."
# The head of CLIP's text side, and what both sides are compared with.
_CLIP_TEXT = ("text_model.", "text_projection", "logit_scale", "visual_projection")
# Names of one and the same way to prepare a picture.
_CLIP_PROCESSORS = (
    "CLIPImageProcessor",
    "CLIPImageProcessorFast",
    "CLIPImageProcessorPil",
    "CLIPFeatureExtractor",
)
# CLIP's, and before it a border in the mean colour that makes the picture a square, where do_pad says so.
_LLAVA_PROCESSORS = ("LlavaImageProcessor", "LlavaImageProcessorFast", "LlavaImageProcessorPil")
PictureProcessor: TypeAlias = CLIPImageProcessorPil | LlavaImageProcessorPil
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
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "mlp_bias",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "tie_word_embeddings",
    "vocab_size",
)


def require_known_entries(folder: Path, config: dict[str, Any]) -> None:
    """Refuse entries that the loaders do not follow.

    Raises:
        StageError: An entry asks for another projector, other picture features or another prompt.
    """
    for entry, wanted in _WANTED_ENTRIES.items():
        found = config.get(entry)
        if found is None and entry != "mm_projector_type":
            found = wanted
        if found != wanted:
            raise StageError(f"{folder}: {entry} {found!r}, wanted {wanted!r} as LLaVA-1.5 and MGM-7B have it.")


def llama_config(folder: Path, config: dict[str, Any]) -> LlamaConfig:
    """The decoder's part of an original config.

    Raises:
        StageError: `rope_scaling` is not linear, the only kind that LLaVA's training writes.
    """
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.get("rope_theta") or 10000.0}
    match config.get("rope_scaling") or config.get("rope_parameters"):
        case None | {"rope_type": "default"}:
            pass
        case {"type": "linear", "factor": int() | float() as factor}:
            rope.update(rope_type="linear", factor=float(factor))
        case {"rope_type": "linear", "factor": int() | float() as factor}:
            rope.update(rope_type="linear", factor=float(factor))
        case scaling:
            raise StageError(f"{folder}: rope_scaling {scaling}, wanted null or type linear with a factor.")
    # transformers 5 keeps the base there.
    match config.get("rope_parameters"):
        case {"rope_theta": int() | float() as base}:
            rope["rope_theta"] = base
    given = {name: config[name] for name in _LLAMA_ENTRIES if config.get(name) is not None}
    with loading(folder, "a Llama decoder"):
        return LlamaConfig(**given, rope_parameters=rope)


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
    """The parameter for a tensor of a separate CLIP checkpoint; None for one of CLIP's text side.

    Args:
        stored: Name in the checkpoint.
        prefix: Start of the vision tower's parameter names.
    """
    if stored.startswith(_CLIP_TEXT):
        return None
    return prefix + stored.removeprefix("vision_model.")


def clip_config(folder: Path) -> CLIPVisionConfig:
    """A CLIP vision tower's config; the folder may be of the whole CLIP model.

    Raises:
        StageError: It is missing, or of another model.
    """
    config = read_config(folder)
    require_believable_depth(folder, config, 0)
    found = config.get("model_type", "clip_vision_model")
    if found not in ("clip", "clip_vision_model"):
        raise StageError(f"{folder}: model type {found}, wanted CLIP's vision tower.")
    with loading(folder, "CLIP's vision tower"):
        return CLIPVisionConfig(**config.get("vision_config", config))


def require_layer(folder: Path, layer: object, config: CLIPVisionConfig) -> None:
    """Refuse a hidden state that CLIP does not have.

    Args:
        folder: The model's folder.
        layer: Number of the state, from 0 (the embeddings) or from the end (-1), or a list of such numbers.
        config: CLIP's.

    Raises:
        StageError: It does not have it.
    """
    states = config.num_hidden_layers + 1
    for number in layer if isinstance(layer, list) else [layer]:
        if type(number) is not int or not -states <= number < states:
            raise StageError(f"{folder}: the vision layer to take is {number!r}, but CLIP has {states - 1} layers.")


def clip_processor(folder: Path) -> PictureProcessor:
    """CLIP's preprocessing: short side to 336 px, centre crop, normalise; as LLaVA's with a border before it.

    Raises:
        StageError: There are no settings for it, they are broken or of another kind, or two files differ.
    """
    given = processor_settings(folder)
    if not given:
        raise StageError(
            f"{folder}: no preprocessor_config.json, nor a processor_config.json with an image_processor. "
            "Copy the whole vision tower folder."
        )
    made: dict[str, PictureProcessor] = {}
    for name, settings in given.items():
        kind = settings.get("image_processor_type") or settings.get("feature_extractor_type") or _CLIP_PROCESSORS[0]
        made_for = LlavaImageProcessorPil if kind in _LLAVA_PROCESSORS else CLIPImageProcessorPil
        known = kind in (*_CLIP_PROCESSORS, *_LLAVA_PROCESSORS)
        if not known or (settings.get("do_pad") and made_for is CLIPImageProcessorPil):
            does = "do_pad" if known else f"image_processor_type {kind}"
            raise StageError(f"{folder}: {name}: {does} is another preprocessing than CLIP's.")
        with loading(folder, f"CLIP's preprocessing: {name}"):
            made[name] = made_for.from_dict(settings)
    first, *others = made.values()
    if any(other.to_dict() != first.to_dict() for other in others):
        raise StageError(f"{folder}: {' and '.join(made)} describe different preprocessing. Delete the wrong one.")
    return first


def processor_settings(folder: Path) -> dict[str, dict[str, Any]]:
    """Settings of the picture processor by file; newer releases nest them in the whole processor's."""
    found = {}
    if (folder / "preprocessor_config.json").is_file():
        found["preprocessor_config.json"] = read_settings(folder / "preprocessor_config.json")
    if (folder / "processor_config.json").is_file():
        nested = read_settings(folder / "processor_config.json").get("image_processor")
        if isinstance(nested, dict):
            found["processor_config.json"] = nested
    return found


def require_picture_size(folder: Path, processor: PictureProcessor, side: int, **options: object) -> None:
    """Refuse a preprocessing whose pictures the encoder does not take.

    Args:
        folder: Of the preprocessing.
        processor: The preprocessing.
        side: Pixels per side that the encoder takes.
        **options: Of the call.

    Raises:
        StageError: A blank picture becomes something else.
    """
    with loading(folder, "CLIP's preprocessing"):
        pixels = processor(Image.new("RGB", (64, 48)), return_tensors="pt", **options).pixel_values[0]
    if tuple(pixels.shape) != (3, side, side):
        height, width = pixels.shape[-2:]
        raise StageError(
            f"{folder}: preprocessing makes pictures of {width} x {height} pixels, but the encoder's image_size is "
            f"{side}."
        )


def eos_token_ids(folder: Path, *configs: Mapping[str, Any], default: int | None, vocab_size: int) -> frozenset[int]:
    """The tokens that end an answer: generation_config.json's, otherwise the first config's that says it.

    Args:
        folder: The model's folder.
        *configs: config.json, the more specific part last; an entry of null counts as absent.
        default: The tokenizer's.
        vocab_size: Rows of the embedding.

    Raises:
        StageError: generation_config.json is broken, nothing says it, or it is no token.
    """
    path = folder / "generation_config.json"
    generation = read_settings(path) if path.is_file() else {}
    said = (config.get("eos_token_id") for config in (generation, *configs))
    found = next((eos for eos in said if eos is not None and eos != []), default)
    tokens = found if isinstance(found, list) else [found]
    for token in tokens:
        if type(token) is not int or not 0 <= token < vocab_size:
            raise StageError(f"{folder}: eos_token_id is {token!r}, wanted a token of the {vocab_size} in vocab_size.")
    return frozenset(tokens)


def square_grid(folder: Path, config: CLIPVisionConfig) -> int:
    """Vision tokens per side.

    Raises:
        StageError: image_size or patch_size is no positive number.
    """
    for name in ("image_size", "patch_size"):
        size = getattr(config, name)
        if type(size) is not int or size < 1:
            raise StageError(f"{folder}: CLIP's {name} is {size!r}, wanted a positive number.")
    grid: int = config.image_size // config.patch_size
    return grid
