"""Whether a decoder's attention is what generation assumes: the captured row must equal its own eager attention."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from free2ds_common.errors import StageError, first_line
from free2ds_common.inference.capture import ATTENTION_NAME, KeyValueCache, PrefillPass
from free2ds_common.inference.model import VisionLanguageModel

# Largest accepted difference in fp32, relative to the largest value. Right captures were seen up to 1e-5 apart, with
# weights four times as large as a new model's.
_TOLERANCE = 1e-4
# End of the message wherever a model is refused for its attention.
NOT_PLAIN = "it is not plain causal attention. Use another model for this side."


@torch.inference_mode()
def probe(model: VisionLanguageModel, where: str) -> None:
    """Compare a captured row with the decoder's own eager attention on random features.

    The probe computes in fp32 whatever the model's dtype. In bfloat16, where attention is sharp, two right ways were
    seen up to half of the largest weight apart, since rounding errors grow from layer to layer: no tolerance would tell
    a wrong way from those.

    Args:
        model: The model; in the end it uses the capturing attention.
        where: The model's folder, for the message.

    Raises:
        StageError: They differ: score caps, sinks, position biases, windows shorter than this prompt, or the like.
    """
    decoder = model.decoder
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, decoder.config.vocab_size, (2, 8), generator=generator).to(model.device)
    embedded = decoder.get_input_embeddings()(ids)
    features = torch.randn(model.num_vision_tokens, embedded.shape[-1], generator=generator) * float(embedded.std())
    inputs = torch.cat([embedded[0], features.to(embedded), embedded[1]])[None].float()
    position_ids = torch.arange(inputs.shape[1], device=model.device)[None]
    start = embedded.shape[1]
    decoder.config._attn_implementation = "eager"
    with _in_fp32(decoder):
        eager = decoder(inputs_embeds=inputs, position_ids=position_ids, output_attentions=True, use_cache=False)
    vision = slice(start, start + model.num_vision_tokens)
    wanted = torch.stack([layer[0, :, -1, vision].mean(0) for layer in eager.attentions])
    decoder.config._attn_implementation = ATTENTION_NAME
    step = PrefillPass(
        KeyValueCache(1, decoder.config.num_hidden_layers),
        0,
        torch.tensor([inputs.shape[1]], device=model.device),
        [start],
        model.num_vision_tokens,
    )
    try:
        with _in_fp32(decoder):
            ours = decoder(
                inputs_embeds=inputs, position_ids=position_ids, past_key_values=step, capture=step, use_cache=True
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
            f"{states:.1e} of the largest state (at most {_TOLERANCE:.0e} wanted): {NOT_PLAIN}"
        )


@contextmanager
def _in_fp32(decoder: torch.nn.Module) -> Iterator[None]:
    """Let a decoder of any dtype compute in fp32; each module's own weights are cast only while it runs."""
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


def _apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference, relative to the largest magnitude in `wanted`."""
    return float((found - wanted).abs().max() / wanted.abs().max())
