"""Any other transformers image-text-to-text model on either side, if its pictures are a fixed square of tokens.

What the decoding loop assumes (causal attention over all tokens, plain rotary positions, scores without extra terms) no
config declares as a whole. So a probe decides: the captured row must equal the decoder's own eager attention. Before it
stand two checks of what a short prompt through the decoder alone cannot show: windows, and what the outer model adds.
"""

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from jinja2 import TemplateError
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, PreTrainedConfig

from free2ds_common.checkpoints import read_json_object
from free2ds_common.errors import StageError, first_line
from free2ds_common.inference import original_layout
from free2ds_common.inference.capture import ATTENTION_NAME, KeyValueSlots, PrefillPass
from free2ds_common.inference.model import Pixels, VisionLanguageModel
from free2ds_common.inference.packed_linear import pack_linear_layers
from free2ds_common.inference.prompts import PLACEHOLDER, Prompt, build_prompt, method_settings
from free2ds_common.inference.tokenizers import load_tokenizer, transformers_tokenizer
from free2ds_common.inference.weights import refuse_unfit, stored_tensors

# Largest accepted difference in fp32, relative to the largest value; 1e-5 was seen with weights four times as large as
# a new model has.
_TOLERANCE = 1e-4
_REFUSED = "it is not plain causal attention. Use another model for this side."
# Kind of layer to the entry that says how many tokens back it sees.
_WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}


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
            is wanted, or its attention is not what the capture assumes.
    """
    original_layout.read_config(folder)
    for _ in stored_tensors(folder):  # mapped, not read: names a torn file
        pass
    try:
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        # Misshapen tensors are named below; by itself transformers raises what an allocation that fails raises too.
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
    # Not the picture encoder, of which it is not known whether it only calls its layers.
    pack_linear_layers(decoder, model.get_output_embeddings())

    def preprocess(picture: Image.Image) -> Pixels:
        return {"pixel_values": processor(picture, return_tensors="pt").pixel_values[0]}

    def encode_images(pixels: Pixels) -> torch.Tensor:
        features = model.get_image_features(pixels["pixel_values"].to(dtype)).pooler_output
        return features if isinstance(features, torch.Tensor) else torch.stack(list(features))

    grid = _grid(folder, preprocess, encode_images, device)
    if prompt == "chat":
        build = partial(chat_prompt, tokenizer=_chat_tokenizer(folder), folder=folder)
        build("Which?")  # a missing template is told before any picture is read
        settings: dict[str, object] = {"style": "chat"}
    else:
        build = partial(build_prompt, system=system, tokenizer=load_tokenizer(folder))
        settings = dict(method_settings(system))
    loaded = VisionLanguageModel(
        decoder=decoder,
        lm_head=model.get_output_embeddings(),
        prompt=build,
        prompt_settings=settings,
        preprocess=preprocess,
        encode_images=encode_images,
        grid=grid,
        eos_token_ids=original_layout.eos_token_ids(folder, decoder.config.to_dict()),
        max_positions=decoder.config.max_position_embeddings,
        preprocessing=json.loads(processor.to_json_string()),
        folders=(folder,),
    )
    probe(loaded, str(folder))
    return loaded


def _refuse_marked_tokens(model: torch.nn.Module, folder: Path) -> None:
    """Refuse models that are told which tokens are the picture's.

    They make the mask (PaliGemma, Gemma 3: two-way attention over the picture) or two-dimensional positions (Qwen2-VL)
    of it outside the decoder, where the probe does not look.

    Raises:
        StageError: `forward` takes token types.
    """
    for part in (model, getattr(model, "model", model)):
        for name in inspect.signature(part.forward).parameters:
            if name.endswith("token_type_ids"):
                raise StageError(f"{folder}: {type(model).__name__} tells picture tokens apart ({name}): {_REFUSED}")


def _refuse_windows(config: PreTrainedConfig, folder: Path) -> None:
    """Refuse decoders of which a layer does not see the whole context.

    Raises:
        StageError: A window is in use and shorter than the context.
    """
    kinds = getattr(config, "layer_types", None)  # None where all layers are alike
    for kind, entry in _WINDOWS.items():
        window = getattr(config, entry, None)
        if window and (kinds is None or kind in kinds) and window < config.max_position_embeddings:
            raise StageError(f"{folder}: {entry} is {window} of {config.max_position_embeddings} tokens: {_REFUSED}")


def _chat_tokenizer(folder: Path):  # noqa: ANN202
    """The tokenizer with its chat template, from the processor's older file where there is no other."""
    tokenizer = transformers_tokenizer(folder)
    older = folder / "chat_template.json"
    if tokenizer.chat_template is None and older.is_file():
        tokenizer.chat_template = read_json_object(older).get("chat_template")
    return tokenizer


def chat_prompt(question: str, tokenizer, folder: Path) -> Prompt:  # noqa: ANN001
    """The question in the model's own chat template, the picture where the template puts it.

    Raises:
        StageError: There is no chat template that works, or it does not show one picture as one token.
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
    before, after = (tokenizer(part, add_special_tokens=False).input_ids for part in rendered.split(image_token))
    bos = tokenizer.bos_token_id
    return Prompt(tuple(before if bos is None or before[:1] == [bos] else [bos, *before]), tuple(after))


def _grid(folder: Path, preprocess, encode_images, device: torch.device) -> int:  # noqa: ANN001
    """Vision tokens per side, by looking at two blank pictures of different shape.

    Raises:
        StageError: They give different numbers of tokens, or no square number.
    """
    counts = []
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


@contextmanager
def _in_fp32(decoder: torch.nn.Module) -> Iterator[None]:
    """Let a decoder of any dtype compute in fp32: each module's own weights are cast for the time of its call."""
    stored = {parameter: parameter.data for parameter in decoder.parameters() if parameter.dtype != torch.float32}

    def cast(module: torch.nn.Module, *_: object) -> None:
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.float()

    def restore(module: torch.nn.Module, *_: object) -> None:
        for parameter in module.parameters(recurse=False):
            parameter.data = stored.get(parameter, parameter.data)

    hooks = [
        hook
        for module in decoder.modules()
        if any(parameter in stored for parameter in module.parameters(recurse=False))
        for hook in (module.register_forward_pre_hook(cast), module.register_forward_hook(restore))
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def probe(model: VisionLanguageModel, where: str) -> None:
    """Compare a captured row with the decoder's own eager attention on random features.

    In fp32 whatever the model's type: in bfloat16 two right ways were seen up to half of the largest weight apart where
    attention is sharp, since roundings grow from layer to layer, so no tolerance would tell a wrong way from them.

    Raises:
        StageError: They differ: score caps, sinks, position biases, windows shorter than this prompt, or the like.
    """
    decoder = model.decoder
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, decoder.config.vocab_size, (2, 8), generator=generator).to(model.device)
    embedded = decoder.get_input_embeddings()(ids)
    features = torch.randn(model.positions, embedded.shape[-1], generator=generator) * float(embedded.std())
    inputs = torch.cat([embedded[0], features.to(embedded), embedded[1]])[None].float()
    positions = torch.arange(inputs.shape[1], device=model.device)[None]
    start = embedded.shape[1]
    decoder.config._attn_implementation = "eager"
    with _in_fp32(decoder):
        eager = decoder(inputs_embeds=inputs, position_ids=positions, output_attentions=True, use_cache=False)
    wanted = torch.stack([layer[0, :, -1, start : start + model.positions].mean(0) for layer in eager.attentions])
    decoder.config._attn_implementation = ATTENTION_NAME
    step = PrefillPass(
        KeyValueSlots(1, decoder.config.num_hidden_layers),
        0,
        torch.tensor([inputs.shape[1]], device=model.device),
        [start],
        model.positions,
    )
    try:
        with _in_fp32(decoder):
            ours = decoder(
                inputs_embeds=inputs, position_ids=positions, past_key_values=step, capture=step, use_cache=True
            )
    except (TypeError, AttributeError, NotImplementedError) as error:
        raise StageError(
            f"{where}: the decoder {type(decoder).__name__} does not take the capture ({first_line(error)})."
        ) from error
    assert step.row_sum is not None
    weights = _apart(step.row_sum[0] / decoder.config.num_hidden_layers, wanted.mean(0))
    states = _apart(ours.last_hidden_state[0, -1], eager.last_hidden_state[0, -1])
    if not max(weights, states) <= _TOLERANCE:
        raise StageError(
            f"{where}: the captured attention differs from the model's own by {weights:.1e} of the largest weight and "
            f"{states:.1e} of the largest state (at most {_TOLERANCE:.0e} wanted): {_REFUSED}"
        )


def _apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference, relative to the largest magnitude wanted."""
    return float((found - wanted).abs().max() / wanted.abs().max())
