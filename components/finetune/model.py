"""The model to train: loaded, with adapters on the decoder's layers; and written with them merged in."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from components.finetune.config import LLAVA, LLAVA_ARCHITECTURE, FinetuneConfig
from free2ds_common.errors import SettingError, StageError
from free2ds_common.inference.auto import load_whole, refuse_marked_tokens, vision_grid
from free2ds_common.inference.model import Pixels
from free2ds_common.inference.model_folder import read_config, read_settings
from free2ds_common.inference.original_layout import clip_processor, require_picture_size
from free2ds_common.inference.tokenizers import LoadedTokenizer, load_tokenizer
from free2ds_common.inference.weights import stored_shapes

_LLAVA_PROCESSOR = "LlavaImageProcessor"
_PREPROCESSOR, _PROCESSOR = "preprocessor_config.json", "processor_config.json"
# What of a model folder is not its weights or made from them.
_SETTINGS = ("*.json", "*.model", "*.txt", "*.jinja")
_NOT_COPIED = re.compile(r"config\.json|.*\.index\.json")
_MAX_FILE = "5GB"


@dataclass(frozen=True)
class Preprocess:
    """A picture in RGB to what the encoder takes, as a thing that other processes can be given.

    Attributes:
        processor: A picture processor of transformers.
    """

    processor: BaseImageProcessor

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        """Float32, (3, side, side)."""
        pixels: torch.Tensor = self.processor(picture, return_tensors="pt").pixel_values[0]
        return pixels


@dataclass(frozen=True)
class TrainedModel:
    """A model and what its records become.

    Attributes:
        folder: Where it was read from.
        network: With adapters.
        tokenizer: The decoder's.
        preprocess: For its pictures.
        image_token: Stands for a picture.
        vision_tokens: Tokens that a picture becomes.
        picture_shape: Of a preprocessed picture.
        eos: Ends an answer.
        dtype: Of the weights that are not trained, and of the arithmetic; the trained ones are float32.
    """

    folder: Path
    network: PeftModel
    tokenizer: LoadedTokenizer
    preprocess: Preprocess
    image_token: int
    vision_tokens: int
    picture_shape: tuple[int, ...]
    eos: int
    dtype: torch.dtype


def load_trained(config: FinetuneConfig, folder: Path, device: torch.device, dtype: torch.dtype) -> TrainedModel:
    """Load a model and put adapters on it.

    Args:
        config: Settings.
        folder: The model's, in the Hugging Face layout.
        device: Where the weights go.
        dtype: Of the weights that are not trained.

    Raises:
        StageError: It is another model, its files do not fit together, or it has no such layers.
    """
    if config.model_type == LLAVA:
        _require_llava(folder)
    model, processor = load_whole(folder, dtype)
    refuse_marked_tokens(model, folder)
    decoder = model.config.get_text_config()
    if config.max_length > decoder.max_position_embeddings:
        raise SettingError(
            "max_length",
            f"got {config.max_length}, wanted at most {decoder.max_position_embeddings}, the context of {folder}.",
        )
    image_token = getattr(model.config, "image_token_id", getattr(model.config, "image_token_index", None))
    if not isinstance(image_token, int) or not hasattr(model, "get_image_features"):
        raise StageError(f"{folder}: {type(model).__name__} has no token that stands for a picture.")
    tokenizer = load_tokenizer(folder, decoder.model_type, decoder.vocab_size)
    if tokenizer.eos_token_id is None:
        raise StageError(f"{folder}: the tokenizer has no EOS, which ends every answer.")
    preprocess = Preprocess(_processor(folder, processor, config))
    if config.model_type == LLAVA:
        require_picture_size(folder, preprocess.processor, model.config.vision_config.image_size)
    model = model.to(device).eval()

    def encode_images(pixels: Pixels) -> torch.Tensor:
        features = model.get_image_features(pixels["pixel_values"].to(dtype)).pooler_output
        return features if isinstance(features, torch.Tensor) else torch.stack(list(features))

    grid = vision_grid(folder, lambda picture: {"pixel_values": preprocess(picture)}, encode_images, device)
    return TrainedModel(
        folder=folder,
        network=_with_adapters(config, folder, model),
        tokenizer=tokenizer,
        preprocess=preprocess,
        image_token=image_token,
        vision_tokens=grid * grid,
        picture_shape=tuple(preprocess(Image.new("RGB", (8, 8))).shape),
        eos=tokenizer.eos_token_id,
        dtype=dtype,
    )


def _require_llava(folder: Path) -> None:
    architecture = (read_config(folder).get("architectures") or ["none"])[0]
    if architecture != LLAVA_ARCHITECTURE:
        raise StageError(
            f"{folder}: architecture {architecture}, wanted {LLAVA_ARCHITECTURE}: LLaVA-1.5 in the Hugging "
            "Face layout. Convert the model, or use model_type auto for another one of transformers."
        )


def _processor(folder: Path, stored: BaseImageProcessor, config: FinetuneConfig) -> BaseImageProcessor:
    """The picture processor: the stored one, or LLaVA's, which pads to a square first.

    Raises:
        StageError: It is not CLIP's, and pads nothing.
    """
    if config.model_type == LLAVA:
        stored = clip_processor(folder)
    if not config.pads_pictures:
        return stored
    if not isinstance(stored, CLIPImageProcessorPil | LlavaImageProcessorPil):
        raise StageError(f"{folder}: {type(stored).__name__} cannot pad pictures to squares. Set pictures to stored.")
    settings = {**stored.to_dict(), "image_processor_type": _LLAVA_PROCESSOR, "do_pad": True}
    return LlavaImageProcessorPil.from_dict(settings)


def _with_adapters(config: FinetuneConfig, folder: Path, model: PreTrainedModel) -> PeftModel:
    """The model with adapters, which alone are trained, with the projector; both in float32.

    Raises:
        StageError: There are no such layers, or no such projector.
        SettingError: `lora_targets` is no regular expression.
    """
    names = [name for name, _ in model.named_modules()]
    try:
        matched = [name for name in names if re.fullmatch(config.lora_targets, name)]
    except re.error as error:
        raise SettingError("lora_targets", f"is no regular expression ({error}).") from None
    if not matched:
        raise StageError(
            f"{folder}: no layer of {type(model).__name__} is called {config.lora_targets} (lora_targets)."
        )
    if not any(name.rpartition(".")[2] == config.projector for name in names):
        raise StageError(f"{folder}: {type(model).__name__} has no module {config.projector} (projector).")
    adapted = get_peft_model(
        model,
        LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=config.lora_targets,
            modules_to_save=[config.projector],
            task_type="CAUSAL_LM",
        ),
    )
    for parameter in adapted.parameters():
        # Small steps would be lost in bfloat16.
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def write_merged(trained: TrainedModel, target: Path) -> None:
    """Write the model with its adapters merged into it, and the files that a model folder has beside its weights.

    The adapters are gone from the model in memory then.

    Args:
        trained: The model.
        target: Output folder.

    Raises:
        StageError: What was written has other tensors than the model that it was made from.
    """
    merged = trained.network.merge_and_unload(safe_merge=True).to(trained.dtype)
    merged.save_pretrained(target, max_shard_size=_MAX_FILE)
    for pattern in _SETTINGS:
        for path in sorted(trained.folder.glob(pattern)):
            if not _NOT_COPIED.fullmatch(path.name):
                shutil.copyfile(path, target / path.name)
    _write_processor(trained.preprocess.processor, target)
    wanted = sum(1 for _ in merged.parameters())
    if (found := len(stored_shapes(target))) < wanted - 1:  # tied embeddings are stored once
        raise StageError(f"{target}: {found} tensors were written, wanted {wanted}. Run again.")


def _write_processor(processor: BaseImageProcessor, target: Path) -> None:
    """Say in each file that tells of pictures how they were prepared."""
    settings: dict[str, Any] = json.loads(processor.to_json_string())
    if isinstance(processor, LlavaImageProcessorPil):
        settings["image_processor_type"] = _LLAVA_PROCESSOR
    (target / _PREPROCESSOR).write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    path = target / _PROCESSOR
    if path.is_file() and isinstance(whole := read_settings(path), dict) and "image_processor" in whole:
        whole["image_processor"] = settings
        path.write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n", encoding="utf-8")
