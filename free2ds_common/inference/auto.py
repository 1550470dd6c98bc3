"""Loads another image-text-to-text model of transformers, if its pictures are a fixed square of tokens.

Generation assumes causal attention over all tokens, plain rotary positions, and scores without extra terms. No config
entry says so, so a probe decides (`probe.py`). It runs a short prompt through the decoder alone; two checks before it
cover what that cannot show: windows, and what the model around the decoder adds.
"""

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from jinja2 import TemplateError
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.image_processing_utils import BaseImageProcessor

from free2ds_common.errors import StageError, first_line
from free2ds_common.inference import original_layout
from free2ds_common.inference.lean_llama import make_lean
from free2ds_common.inference.model import Pixels, VisionLanguageModel
from free2ds_common.inference.model_folder import (
    check_folder,
    loading,
    read_config,
    read_settings,
    require_believable_depth,
    require_token_ids,
)
from free2ds_common.inference.packed_linear import pack_linear_layers
from free2ds_common.inference.probe import NOT_PLAIN, probe
from free2ds_common.inference.prompts import (
    PLACEHOLDER,
    Prompt,
    build_conversation,
    build_prompt,
    build_text_conversation,
    conversation_settings,
    method_settings,
)
from free2ds_common.inference.tokenizers import (
    decoded,
    load_tokenizer,
    require_fitting_vocabulary,
    transformers_tokenizer,
    vocabulary_size,
)
from free2ds_common.inference.weights import (
    StoredTensor,
    is_unused,
    refuse_unfit,
    refuse_unknown,
    require_finite,
    require_index_metadata,
    stored_shapes,
)

# Kind of layer, and the config entry that says how many tokens back it sees.
_WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}


class ChatTokenizer(Protocol):
    """What a chat prompt needs of a transformers tokenizer."""

    bos_token_id: int | None
    eos_token_id: int | None
    unk_token_id: int | None
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
        prompt: "method", "v1" for LLaVA's conversation, or "chat" for the model's own chat template.

    Raises:
        StageError: It cannot be loaded, its weights or tokenizer are not the config's, its pictures are no fixed square
            of tokens, it has no chat template where one is wanted, or its attention is not what generation assumes.
    """
    model, processor = load_whole(folder, dtype)
    refuse_marked_tokens(model, folder)
    model = model.to(device).eval()
    decoder = getattr(getattr(model, "model", model), "language_model", None)
    if decoder is None or not hasattr(model, "get_image_features"):
        raise StageError(f"{folder}: {type(model).__name__} has no decoder that reads picture features as tokens.")
    _refuse_windows(decoder.config, folder)
    # The picture encoder stays as it is: it may use its layers' weights without calling the layers.
    pack_linear_layers(decoder, model.get_output_embeddings())
    make_lean(decoder)

    def preprocess(picture: Image.Image) -> Pixels:
        return {"pixel_values": processor(picture, return_tensors="pt").pixel_values[0]}

    def encode_images(pixels: Pixels) -> torch.Tensor:
        features = model.get_image_features(pixels["pixel_values"].to(dtype)).pooler_output
        return features if isinstance(features, torch.Tensor) else torch.stack(list(features))

    grid = vision_grid(folder, preprocess, encode_images, device)
    language = _language(folder, system, prompt, decoder.config)
    loaded = VisionLanguageModel(
        decoder=decoder,
        lm_head=model.get_output_embeddings(),
        prompt=language.prompt,
        prompt_settings=language.settings,
        preprocess=preprocess,
        encode_images=encode_images,
        grid=grid,
        eos_token_ids=original_layout.eos_token_ids(
            folder,
            read_config(folder),
            decoder.config.to_dict(),
            default=language.eos_token_id,
            vocab_size=decoder.config.vocab_size,
        ),
        context_length=decoder.config.max_position_embeddings,
        preprocessing=json.loads(processor.to_json_string()),
        folders=(folder,),
        unk_token_id=language.unk_token_id,
        text_prompt=language.text_prompt,
        decode=language.decode,
    )
    probe(loaded, str(folder))
    return loaded


def load_whole(folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """A model of transformers and its picture processor, both as their files say, on the CPU.

    Args:
        folder: In the Hugging Face layout.
        dtype: Of the weights.

    Raises:
        StageError: It cannot be loaded, or its weights are not the config's.
    """
    check_folder(folder)
    stored = stored_shapes(folder)
    require_index_metadata(folder)
    require_believable_depth(folder, read_config(folder), len(stored))
    with loading(folder, "an image-text-to-text model"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        text = config.get_text_config()
        require_token_ids(folder, text.to_dict(), text.vocab_size)
        _refuse_larger_model(folder, config, stored)
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        # Misshapen tensors are reported below; transformers itself raises the same error as a failed allocation.
        model, found = AutoModelForImageTextToText.from_pretrained(
            folder, config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    refuse_unfit(str(folder), sorted(found["mismatched_keys"]), sorted(found["missing_keys"]))
    refuse_unknown(folder, sorted(name for name in found["unexpected_keys"] if not is_unused(name)))
    for name, parameter in model.named_parameters():
        require_finite(folder, name, parameter)
    return model, processor


def refuse_marked_tokens(model: PreTrainedModel, folder: Path) -> None:
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


def _refuse_larger_model(folder: Path, config: PreTrainedConfig, stored: Sequence[StoredTensor]) -> None:
    """Refuse a config whose model is larger than the checkpoint, before memory is taken for it.

    transformers renames and splits tensors while it loads, so names and shapes can be compared only after that.

    Raises:
        StageError: The model has more than twice as many numbers as are stored.
    """
    with torch.device("meta"):
        try:
            model = AutoModelForImageTextToText.from_config(config)
        except RuntimeError as error:  # nothing is allocated there: sizes that no tensor can have
            raise ValueError(first_line(error)) from error
    wanted = sum(parameter.numel() for parameter in model.parameters())
    found = sum(math.prod(tensor.shape) for tensor in stored)
    if wanted > 2 * found:
        raise StageError(
            f"{folder}: config.json describes a model of {wanted} numbers, but {found} are stored. The weights do not "
            "fit config.json."
        )


@dataclass(frozen=True)
class _Language:
    """What `VisionLanguageModel` has of a tokenizer: names as there; `settings` is its `prompt_settings`."""

    prompt: Callable[[str], Prompt]
    settings: Mapping[str, object]
    text_prompt: Callable[[str], Prompt]
    decode: Callable[[Sequence[int]], str]
    eos_token_id: int | None
    unk_token_id: int | None


def _language(folder: Path, system: str, prompt: str, decoder: PreTrainedConfig) -> _Language:
    """How questions become prompts, and tokens text.

    Args:
        folder: As in `load_auto`.
        system: As in `load_auto`.
        prompt: As in `load_auto`.
        decoder: The decoder's config.
    """
    if prompt == "chat":
        chat, whole = _chat_tokenizer(folder, decoder.vocab_size)
        build = partial(chat_prompt, tokenizer=chat, folder=folder)
        build("Which?")  # so that a missing template is reported before any picture is read
        text = partial(chat_prompt, tokenizer=chat, folder=folder, picture=False)
        return _Language(build, {"style": "chat"}, text, partial(decoded, whole), chat.eos_token_id, chat.unk_token_id)
    tokenizer = load_tokenizer(folder, decoder.model_type, decoder.vocab_size)
    styles = {"method": (build_prompt, method_settings), "v1": (build_conversation, conversation_settings)}
    style, settings = styles[prompt]
    return _Language(
        prompt=partial(style, system=system, tokenizer=tokenizer),
        settings=settings(system),
        text_prompt=partial(build_text_conversation, system=system, tokenizer=tokenizer),
        decode=tokenizer.decode,
        eos_token_id=tokenizer.eos_token_id,
        unk_token_id=tokenizer.unk_token_id,
    )


def _chat_tokenizer(folder: Path, vocab_size: int) -> tuple[ChatTokenizer, PreTrainedTokenizerBase]:
    """The tokenizer, in both its types, with its chat template, which may be in the processor's older file."""
    loaded = transformers_tokenizer(folder)
    require_fitting_vocabulary(folder, vocabulary_size(loaded), vocab_size)
    tokenizer: ChatTokenizer = loaded
    older = folder / "chat_template.json"
    if tokenizer.chat_template is None and older.is_file():
        tokenizer.chat_template = read_settings(older).get("chat_template")
    return tokenizer, loaded


def chat_prompt(question: str, tokenizer: ChatTokenizer, folder: Path, picture: bool = True) -> Prompt:
    """The question in the model's own chat template, the picture, if there is one, where the template puts it.

    Raises:
        StageError: There is no chat template that works, or it does not show a picture as one token.
    """
    text = {"type": "text", "text": question.replace(PLACEHOLDER, "").strip()}
    content = [{"type": "image"}, text] if picture else [text]
    image_token = getattr(tokenizer, "image_token", None) or PLACEHOLDER
    try:
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
    except (ValueError, TypeError, TemplateError) as error:
        raise StageError(f"{folder}: no usable chat template ({first_line(error)}). Use prompt method.") from error
    if not picture:
        rendered = f"{image_token}{rendered}"
    if rendered.count(image_token) != 1:
        raise StageError(f"{folder}: the chat template does not show a picture as {image_token}. Use prompt method.")
    before, after = (tokenizer.encode(part, add_special_tokens=False) for part in rendered.split(image_token))
    bos, begun = tokenizer.bos_token_id, before if picture else after
    if bos is not None and begun[:1] != [bos]:
        begun.insert(0, bos)
    return Prompt(tuple(before), tuple(after))


def vision_grid(
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
