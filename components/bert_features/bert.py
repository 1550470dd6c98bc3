"""BERT for its CLS vector alone, over messages of about one length."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from free2ds_common.inference.packed_linear import PackedLinear, pack_linear_layers

MODEL_TYPES = ("bert", "electra", "roberta", "xlm-roberta")
# Where a message does not fill its vectors, torch's attention on a CPU is slow: 28 tokens take twice as long as 32.
_VECTOR = 16
# oneDNN compiles kernels for each number of rows, in 1 to 3 ms, and keeps about a thousand: numbers should be few.
_ROWS_STEP, _CLS_STEP, _DISTINCT_STEP = 32, 16, 256


class ClsBert(nn.Module):
    """What CLS needs of a BERT, computed with the model's own layers.

    Messages lie one after the other in a matrix of one token per row. Three things are left out that transformers'
    forward computes. In the first layer queries, keys and values depend on a token and its position only, so each pair
    is projected once per pass. In the last layer everything is computed for CLS alone; keys and values are not even for
    that: a head's score of a state x is q'(Wk x + bk), which is (Wk'q)'x but for a constant that softmax drops, and its
    sum of values is Wv of the sum of states, plus bv. On a CPU keys and values are read on into the next message until
    a vector is full, and the surplus is masked. Matrices get surplus rows, so that few sizes occur.
    """

    def __init__(self, model: PreTrainedModel, packed: bool) -> None:
        """Wrap a model.

        Args:
            model: Of one of `MODEL_TYPES`, not a decoder. It is changed in place and serves only here then.
            packed: Pack its linear layers, with GELU in the same pass.
        """
        super().__init__()
        self.embeddings, self.project = model.embeddings, getattr(model, "embeddings_project", nn.Identity())
        self.layers = model.encoder.layer
        self.heads: int = model.config.num_attention_heads
        self.positions: int = model.config.max_position_embeddings
        last = self.layers[-1].attention.self
        per_head = (self.heads, last.attention_head_size, -1)
        self.last_key, self.last_value = (read.weight.view(per_head) for read in (last.key, last.value))
        if packed:
            pack_linear_layers(model)
        for layer in self.layers:
            if isinstance(layer.intermediate.dense, PackedLinear) and model.config.hidden_act == "gelu":
                layer.intermediate.dense.activation = "gelu"
                layer.intermediate.intermediate_act_fn = nn.Identity()

    def forward(self, ids: torch.Tensor, inside: torch.Tensor | None) -> torch.Tensor:
        """CLS of the last hidden state.

        Args:
            ids: int64, (n, tokens), padded on the right.
            inside: bool, (n, tokens), False for padding; None where there is none.

        Returns:
            (n, dimensions), not normalised.
        """
        count, length = ids.shape
        tokens = count * length
        vector = _VECTOR if ids.device.type == "cpu" else 1
        window = length + -length % vector
        surplus = window - length
        surplus += -(tokens + surplus) % _ROWS_STEP
        distinct, where = self._distinct(ids, surplus)
        mask = self._mask(inside, length, window, distinct)
        states = distinct.index_select(0, where)
        # Rows beyond the last message are read by nobody or masked. They stay zero here, so all numbers are finite.
        residual = torch.zeros_like(states)
        for number, layer in enumerate(self.layers[:-1]):
            read = layer.attention.self
            projected = [project(states if number else distinct) for project in (read.query, read.key, read.value)]
            if not number:
                projected = [of_pairs.index_select(0, where) for of_pairs in projected]
            query, key, value = (
                _windows(projection, count, length, shown, self.heads)
                for projection, shown in zip(projected, (length, window, window), strict=True)
            )
            context = functional.scaled_dot_product_attention(query, key, value, mask)
            output = layer.attention.output
            context = output.dense(context.transpose(1, 2).reshape(tokens, -1))
            torch.add(context, states[:tokens], out=residual[:tokens])
            attended = output.LayerNorm(residual)
            states = layer.output.LayerNorm(layer.output.dense(layer.intermediate(attended)).add_(attended))
        return self._last_layer(states, count, length, window, mask)

    def _distinct(self, ids: torch.Tensor, beyond: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of the pairs of token and position, (pairs, dimensions), and each row's pair, (rows,)."""
        if hasattr(self.embeddings, "create_position_ids_from_input_ids"):
            positions = self.embeddings.create_position_ids_from_input_ids(ids, self.embeddings.padding_idx)
        else:
            positions = torch.arange(ids.shape[1], device=ids.device)
        pairs, where = torch.unique(ids * self.positions + positions, return_inverse=True)
        pairs = functional.pad(pairs, (0, -len(pairs) % _DISTINCT_STEP))[None]
        embedded = self.embeddings(input_ids=pairs // self.positions, position_ids=pairs % self.positions)
        return self.project(embedded)[0], functional.pad(where.flatten(), (0, beyond))

    @staticmethod
    def _mask(inside: torch.Tensor | None, length: int, window: int, like: torch.Tensor) -> torch.Tensor | None:
        """What to add to scores, (n or 1, 1, 1, window)."""
        if inside is None:
            if window == length:
                return None
            inside = torch.ones(1, length, dtype=torch.bool, device=like.device)
        shown = functional.pad(inside, (0, window - length))
        return like.new_zeros(shown.shape).masked_fill_(~shown, -torch.inf)[:, None, None]

    def _last_layer(
        self, states: torch.Tensor, count: int, length: int, window: int, mask: torch.Tensor | None
    ) -> torch.Tensor:
        layer: Any = self.layers[-1]
        read = layer.attention.self
        surplus = (0, 0, 0, -count % _CLS_STEP)
        cls = functional.pad(states[: count * length : length], surplus)
        query = read.query(cls)[:count].view(count, self.heads, -1)
        # What each head looks for, in terms of the states: its queries are the heads here.
        sought = torch.einsum("nhs,hsd->nhd", query, self.last_key)[:, None]
        seen = _windows(states, count, length, window, 1)
        found = functional.scaled_dot_product_attention(sought, seen, seen, mask, scale=query.shape[2] ** -0.5)[:, 0]
        context = torch.einsum("nhd,hsd->nhs", found, self.last_value).flatten(1) + read.value.bias
        return layer.feed_forward_chunk(layer.attention.output(functional.pad(context, surplus), cls))[:count]


def _windows(rows: torch.Tensor, count: int, length: int, shown: int, heads: int) -> torch.Tensor:
    """(rows, dimensions) as (n, heads, shown, dimensions per head); messages overlap where more is shown."""
    dimensions = rows.shape[1]
    size = dimensions // heads
    return rows.as_strided((count, heads, shown, size), (length * dimensions, size, dimensions, 1))
