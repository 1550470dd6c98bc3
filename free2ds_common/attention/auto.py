"""Any other transformers image-text-to-text model on either side, if its pictures are a fixed square of tokens.

What the decoding loop assumes (causal attention over all tokens, plain rotary positions, scores without extra terms) is
not declared by any config. So a probe decides: the captured row must equal the model's own eager attention.
"""

import json
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from free2ds_common.attention import original_layout
from free2ds_common.attention.capture import ATTENTION_NAME, KeyValueSlots, PrefillPass
from free2ds_common.attention.model import Pixels, VisionLanguageModel
from free2ds_common.attention.prompts import PLACEHOLDER, Prompt, build_prompt, method_settings
from free2ds_common.attention.tokenizers import load_tokenizer
from free2ds_common.errors import StageError
from free2ds_common.packed_linear import pack_linear_layers

# Largest accepted difference of a captured weight from the eager one, by type of arithmetic.
_TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}


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
    try:
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        model, loading = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise StageError(f"{folder}: cannot be loaded as an image-text-to-text model ({reason}).") from error
    if loading["missing_keys"]:
        raise StageError(f"{folder}: no weights for {', '.join(sorted(loading['missing_keys'])[:5])}.")
    model = model.to(device).eval()
    decoder = getattr(getattr(model, "model", model), "language_model", None)
    if decoder is None or not hasattr(model, "get_image_features"):
        raise StageError(f"{folder}: {type(model).__name__} has no decoder that reads picture features as tokens.")
    # Not the picture encoder, of which it is not known whether it only calls its layers.
    pack_linear_layers(decoder, model.get_output_embeddings())

    def preprocess(picture: Image.Image) -> Pixels:
        return {"pixel_values": processor(picture, return_tensors="pt").pixel_values[0]}

    def encode_images(pixels: Pixels) -> torch.Tensor:
        features = model.get_image_features(pixels["pixel_values"].to(dtype)).pooler_output
        return features if isinstance(features, torch.Tensor) else torch.stack(list(features))

    grid = _grid(folder, preprocess, encode_images, device)
    if prompt == "chat":
        build = partial(chat_prompt, tokenizer=AutoTokenizer.from_pretrained(folder), folder=folder)
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


def chat_prompt(question: str, tokenizer, folder: Path) -> Prompt:  # noqa: ANN001
    """The question in the model's own chat template, the picture where the template puts it.

    Raises:
        StageError: There is no chat template, or it does not show one picture as one token.
    """
    content = [{"type": "image"}, {"type": "text", "text": question.replace(PLACEHOLDER, "").strip()}]
    image_token = getattr(tokenizer, "image_token", None) or PLACEHOLDER
    try:
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
    except ValueError as error:
        raise StageError(f"{folder}: no chat template. Use prompt method.") from error
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
            reason = str(error).strip().splitlines()[0]
            raise StageError(f"{folder}: a picture is not one fixed set of tokens there ({reason}).") from error
    side = int(counts[0] ** 0.5)
    if counts[0] != counts[1] or side * side != counts[0]:
        raise StageError(f"{folder}: pictures become {counts[0]} and {counts[1]} tokens, wanted one square number.")
    return side


@torch.inference_mode()
def probe(model: VisionLanguageModel, where: str) -> None:
    """Compare a captured row with the model's own eager attention on random features.

    Raises:
        StageError: They differ: sliding windows, score caps, two-way attention over the picture, or the like.
    """
    decoder = model.decoder
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, decoder.config.vocab_size, (2, 8), generator=generator).to(model.device)
    embedded = decoder.get_input_embeddings()(ids)
    features = torch.randn(model.positions, embedded.shape[-1], generator=generator) * float(embedded.std())
    inputs = torch.cat([embedded[0], features.to(embedded), embedded[1]])[None]
    positions = torch.arange(inputs.shape[1], device=model.device)[None]
    start = embedded.shape[1]
    decoder.config._attn_implementation = "eager"
    eager = decoder(inputs_embeds=inputs, position_ids=positions, output_attentions=True, use_cache=False)
    wanted = torch.stack(
        [layer[0, :, -1, start : start + model.positions].float().mean(0) for layer in eager.attentions]
    )
    decoder.config._attn_implementation = ATTENTION_NAME
    step = PrefillPass(
        KeyValueSlots(1, decoder.config.num_hidden_layers),
        0,
        torch.tensor([inputs.shape[1]], device=model.device),
        [start],
        model.positions,
    )
    try:
        ours = decoder(inputs_embeds=inputs, position_ids=positions, past_key_values=step, capture=step, use_cache=True)
    except (TypeError, AttributeError, NotImplementedError) as error:
        raise StageError(
            f"{where}: the decoder {type(decoder).__name__} does not take the capture ({error})."
        ) from error
    assert step.row_sum is not None
    tolerance = _TOLERANCE[model.dtype]
    apart = float((step.row_sum[0] / decoder.config.num_hidden_layers - wanted.mean(0)).abs().max())
    states = float((ours.last_hidden_state[0, -1] - eager.last_hidden_state[0, -1]).abs().max())
    if not apart <= tolerance or not states <= 1000 * tolerance:
        raise StageError(
            f"{where}: the captured attention differs from the model's own by {apart:.1e} (at most {tolerance:.0e} "
            f"wanted): {type(decoder).__name__} is not plain causal attention. Use another model for this side."
        )
