"""Llama's small operations in fewer passes over memory, on a GPU in 16 bits.

At 7B shapes a prefill of transformers' Llama spends two fifths of its time outside matrix products: each norm and each
rotation reads and writes the hidden states several times. What changes is rounding: intermediate values stay in fp32
where transformers rounds them to 16 bits.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.models.llama.modeling_llama import ALL_ATTENTION_FUNCTIONS, LlamaAttention, LlamaRMSNorm
from typing_extensions import override

_HALF_FORMATS = (torch.float16, torch.bfloat16)


class LeanRMSNorm(LlamaRMSNorm):
    """One pass instead of six."""

    @override
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """As in `LlamaRMSNorm`."""
        return functional.rms_norm(hidden_states, (hidden_states.shape[-1],), self.weight, self.variance_epsilon)


class LeanAttention(LlamaAttention):
    """The rotation in three passes instead of five. The attention function must be registered with transformers."""

    @override
    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As in `LlamaAttention`."""
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            project(hidden_states).view(shape).transpose(1, 2) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        cos, sin = (table[:, None] for table in position_embeddings)
        query, key = rotated(query, cos, sin), rotated(key, cos, sin)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        output, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        return self.o_proj(output.reshape(*shape[:-2], -1)), weights


def rotated(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding.

    Args:
        states: (rows, heads, tokens, head size).
        cos: (1 or rows, 1, tokens, head size), the halves alike.
        sin: As `cos`.

    Source:
        RoFormer (Su et al. 2021), with the halves of a head as pairs, as Llama's checkpoints have them.
    """
    half = states.shape[-1] // 2
    output = states * cos
    output[..., :half].addcmul_(states[..., half:], sin[..., :half], value=-1)
    output[..., half:].addcmul_(states[..., :half], sin[..., half:])
    return output


def make_lean(*modules: nn.Module) -> None:
    """Turn a Llama's norms and attention into the lean ones, in place; only those on a GPU in 16 bits."""
    lean: dict[type[nn.Module], type[nn.Module]] = {LlamaRMSNorm: LeanRMSNorm, LlamaAttention: LeanAttention}
    for module in modules:
        for part in module.modules():
            weight = next(part.parameters(), None)
            if type(part) in lean and weight is not None and weight.is_cuda and weight.dtype in _HALF_FORMATS:
                part.__class__ = lean[type(part)]
