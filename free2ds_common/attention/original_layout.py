"""Reading the checkpoint layout that LLaVA and MGM were published in: a Llama config with `mm_*` entries."""

import json
from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from free2ds_common.errors import StageError
from free2ds_common.models import resolve_model

# In `mm_*` entries and in the stored names; "model." is in front of both.
CLIP_IN_CHECKPOINT = "model.vision_tower.vision_tower.vision_model."


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's `config.json`.

    Raises:
        StageError: It is missing or no JSON object.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageError(f"{folder}: no config.json. Give a model folder or a hub id.") from None
    except ValueError:
        raise StageError(f"{folder}: config.json is no JSON. Copy the model folder again.") from None
    if not isinstance(config, dict):
        raise StageError(f"{folder}: config.json is no JSON object. Copy the model folder again.")
    return config


def llama_config(config: dict[str, Any]) -> LlamaConfig:
    """The decoder's part of an original config."""
    names = (
        "attention_bias hidden_act hidden_size intermediate_size max_position_embeddings num_attention_heads "
        "num_hidden_layers num_key_value_heads rms_norm_eps tie_word_embeddings vocab_size"
    ).split()
    return LlamaConfig(
        **{name: config[name] for name in names if name in config},
        rope_parameters={"rope_type": "default", "rope_theta": config.get("rope_theta", 10000.0)},
    )


def tower_folder(folder: Path, reference: str, what: str) -> Path:
    """Where a vision encoder is.

    Args:
        folder: The model's folder.
        reference: The config's entry or the user's parameter: a sub-folder, its base name, a path, a URI or a hub id.
        what: For the message.

    Raises:
        StageError: It is none of these.
    """
    for candidate in (folder / reference, folder / Path(reference).name):
        if candidate.is_dir():
            return candidate
    try:
        return Path(resolve_model(reference, "main"))
    except StageError as error:
        raise StageError(f"{folder}: {what} {reference!r} is no sub-folder of the model, and {error}") from error


def distinct_folders(folder: Path, *towers: Path) -> tuple[Path, ...]:
    """The model's folder and those of its encoders that lie elsewhere."""
    return (folder, *(tower for tower in towers if folder.resolve() not in tower.resolve().parents))


def clip_config(folder: Path) -> CLIPVisionConfig:
    """A CLIP vision tower's config; a folder of the whole CLIP model will do."""
    config = read_config(folder)
    return CLIPVisionConfig(**config.get("vision_config", config))


def clip_processor(folder: Path) -> CLIPImageProcessorPil:
    """CLIP's preprocessing: short side to 336 px, centre crop, normalise.

    Raises:
        StageError: There is no preprocessor_config.json.
    """
    if not (folder / "preprocessor_config.json").is_file():
        raise StageError(f"{folder}: no preprocessor_config.json. Copy the whole vision tower folder.")
    return CLIPImageProcessorPil.from_pretrained(folder)


def eos_token_ids(folder: Path, config: dict[str, Any]) -> frozenset[int]:
    """The tokens that end an answer: generation_config.json's, else the config's."""
    path = folder / "generation_config.json"
    generation = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    eos = generation.get("eos_token_id", config.get("eos_token_id", 2))
    return frozenset(eos if isinstance(eos, list) else [eos])


def square_grid(config: CLIPVisionConfig) -> int:
    """Vision tokens per side."""
    return config.image_size // config.patch_size
