"""Loads another image-text-to-text model of transformers, if its pictures are a fixed square of tokens.

Generation assumes causal attention over all tokens, plain rotary positions, and scores without extra terms. No config
entry says so, so a probe decides (`probe.py`). It runs a short prompt through the decoder alone; two checks before it
cover what that cannot show: windows, and what the model around the decoder adds.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from huggingface_hub.errors import StrictDataclassError
from jinja2 import TemplateError
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from free2ds_common.checkpoints import read_json_object
from free2ds_common.errors import StageError, first_line
from free2ds_common.inference import original_layout
from free2ds_common.inference.model import Pixels, VisionLanguageModel
from free2ds_common.inference.packed_linear import pack_linear_layers
from free2ds_common.inference.probe import NOT_PLAIN, probe
from free2ds_common.inference.prompts import PLACEHOLDER, Prompt, build_prompt, method_settings
from free2ds_common.inference.tokenizers import load_tokenizer, transformers_tokenizer
from free2ds_common.inference.weights import refuse_unfit, stored_tensors

# Kind of layer, and the config entry that says how many tokens back it sees.
_WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}


class ChatTokenizer(Protocol):
    """What a chat prompt needs of a transformers tokenizer."""

    bos_token_id: int | None
    chat_template: str | None

    def apply_chat_template(
        self, conversation: Sequence[Mapping[str, object]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """The conversation as text."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`."""


def load_auto(folder: Path, device: torch.device, dtype: torch.dtype, system: str, prompt: str) -> VisionLanguageModel:
    """Load a model by its own config.

    Args:
        folder: Model folder with image processor and tokenizer.
        device: Where the weights go.
        dtype: Of weights and arithmetic.
        system: System text of the method's prompt.
        prompt: "method", or "chat" for the model's own chat template.

    Raises:
        StageError: It cannot be loaded, its pictures are no fixed square of tokens, it has no chat template where one
            is wanted, or its attention is not what generation assumes.
    """
    original_layout.read_config(folder)
    for _ in stored_tensors(folder):  # memory-mapped, not read: names a torn file
        pass
    try:
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        # Misshapen tensors are reported below; transformers itself raises the same error as a failed allocation.
        model, loading = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError, KeyError, ImportError, TypeError, AttributeError, StrictDataclassError) as error:
        raise StageError(f"{folder}: cannot be loaded as an image-text-to-text model ({first_line(error)}).") from error
    refuse_unfit(str(folder), sorted(loading["mismatched_keys"]), sorted(loading["missing_keys"]))
    _refuse_marked_tokens(model, folder)
    model = model.to(device).eval()
    decoder = getattr(getattr(model, "model", model), "language_model", None)
    if decoder is None or not hasattr(model, "get_image_features"):
        raise StageError(f"{folder}: {type(model).__name__} has no decoder that reads picture features as tokens.")
    _refuse_windows(decoder.config, folder)
    # The picture encoder stays as it is: it may use its layers' weights without calling the layers.
    pack_linear_layers(decoder, model.get_output_embeddings())

    def preprocess(picture: Image.Image) -> Pixels:
        return {"pixel_values": processor(picture, return_tensors="pt").pixel_values[0]}

    def encode_images(pixels: Pixels) -> torch.Tensor:
        features = model.get_image_features(pixels["pixel_values"].to(dtype)).pooler_output
        return features if isinstance(features, torch.Tensor) else torch.stack(list(features))

    grid = _grid(folder, preprocess, encode_images, device)
    build, settings = _prompt(folder, system, prompt)
    loaded = VisionLanguageModel(
        decoder=decoder,
        lm_head=model.get_output_embeddings(),
        prompt=build,
        prompt_settings=settings,
        preprocess=preprocess,
        encode_images=encode_images,
        grid=grid,
        eos_token_ids=original_layout.eos_token_ids(folder, decoder.config.to_dict()),
        context_length=decoder.config.max_position_embeddings,
        preprocessing=json.loads(processor.to_json_string()),
        folders=(folder,),
    )
    probe(loaded, str(folder))
    return loaded


def _refuse_marked_tokens(model: PreTrainedModel, folder: Path) -> None:
    """Refuse models that are told which tokens belong to the picture.

    From that they make, outside the decoder and so out of the probe's sight, a mask (PaliGemma, Gemma 3: two-way
    attention over the picture) or two-dimensional positions (Qwen2-VL).

    Raises:
        StageError: `forward` takes token types.
    """
    for part in (model, getattr(model, "model", model)):
        for name in inspect.signature(part.forward).parameters:
            if name.endswith("token_type_ids"):
                raise StageError(f"{folder}: {type(model).__name__} tells picture tokens apart ({name}): {NOT_PLAIN}")


def _refuse_windows(config: PreTrainedConfig, folder: Path) -> None:
    """Refuse decoders with a layer that does not see the whole context.

    Raises:
        StageError: A layer has a window that is shorter than the context.
    """
    kinds = getattr(config, "layer_types", None)  # None where all layers are alike
    for kind, entry in _WINDOWS.items():
        window = getattr(config, entry, None)
        if window and (kinds is None or kind in kinds) and window < config.max_position_embeddings:
            raise StageError(f"{folder}: {entry} is {window} of {config.max_position_embeddings} tokens: {NOT_PLAIN}")


def _prompt(folder: Path, system: str, prompt: str) -> tuple[Callable[[str], Prompt], Mapping[str, object]]:
    """How a question becomes a prompt, and what the manifest says about it; arguments as in `load_auto`."""
    if prompt == "chat":
        build = partial(chat_prompt, tokenizer=_chat_tokenizer(folder), folder=folder)
        build("Which?")  # so that a missing template is reported before any picture is read
        return build, {"style": "chat"}
    return partial(build_prompt, system=system, tokenizer=load_tokenizer(folder)), method_settings(system)


def _chat_tokenizer(folder: Path) -> ChatTokenizer:
    """The tokenizer with its chat template, which may be in the processor's older file."""
    tokenizer: ChatTokenizer = transformers_tokenizer(folder)
    older = folder / "chat_template.json"
    if tokenizer.chat_template is None and older.is_file():
        tokenizer.chat_template = read_json_object(older).get("chat_template")
    return tokenizer


def chat_prompt(question: str, tokenizer: ChatTokenizer, folder: Path) -> Prompt:
    """The question in the model's own chat template, the picture where the template puts it.

    Raises:
        StageError: There is no chat template that works, or it does not show a picture as one token.
    """
    content = [{"type": "image"}, {"type": "text", "text": question.replace(PLACEHOLDER, "").strip()}]
    image_token = getattr(tokenizer, "image_token", None) or PLACEHOLDER
    try:
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
    except (ValueError, TypeError, TemplateError) as error:
        raise StageError(f"{folder}: no usable chat template ({first_line(error)}). Use prompt method.") from error
    if rendered.count(image_token) != 1:
        raise StageError(f"{folder}: the chat template does not show a picture as {image_token}. Use prompt method.")
    before, after = (tokenizer.encode(part, add_special_tokens=False) for part in rendered.split(image_token))
    bos = tokenizer.bos_token_id
    return Prompt(tuple(before if bos is None or before[:1] == [bos] else [bos, *before]), tuple(after))


def _grid(
    folder: Path,
    preprocess: Callable[[Image.Image], Pixels],
    encode_images: Callable[[Pixels], torch.Tensor],
    device: torch.device,
) -> int:
    """Vision tokens per side, found with two blank pictures of different shapes.

    Raises:
        StageError: They give different numbers of tokens, or no square number.
    """
    counts: list[int] = []
    for size in ((64, 64), (200, 80)):
        try:
            pixels = preprocess(Image.new("RGB", size))["pixel_values"]
            with torch.inference_mode():
                counts.append(encode_images({"pixel_values": pixels[None].to(device)}).shape[1])
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise StageError(
                f"{folder}: a picture is not one fixed set of tokens there ({first_line(error)})."
            ) from error
    side = int(counts[0] ** 0.5)
    if counts[0] != counts[1] or side * side != counts[0]:
        raise StageError(f"{folder}: pictures become {counts[0]} and {counts[1]} tokens, wanted one square number.")
    return side
