"""BERT's CLS vector and nothing else, for batches of messages of about one length."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from free2ds_common.inference.packed_linear import PackedLinear, pack_linear_layers

MODEL_TYPES = ("bert", "electra", "roberta", "xlm-roberta")
# torch's attention on a CPU is slow for lengths that do not fill its vectors: 28 tokens take twice as long as 32.
_VECTOR = 16
# oneDNN compiles a kernel for each number of rows, in 1 to 3 ms, and caches about a thousand: few numbers may occur.
_ROWS_STEP, _CLS_STEP, _DISTINCT_STEP = 32, 16, 256


class ClsBert(nn.Module):
    """The part of a BERT that its CLS vector depends on, computed with the model's own layers.

    The messages of a batch lie one after the other in a matrix with one token per row. Compared with transformers'
    forward pass:

    - In the first layer, queries, keys and values depend on a token and its position only, so each such pair is
      projected once per batch.
    - In the last layer, everything is computed for CLS alone, and keys and values not at all: a head's score of a state
      x is q'(Wk x + bk), which is (Wk'q)'x but for a constant that softmax cancels, and its weighted sum of values is
      Wv times the weighted sum of states, plus bv.
    - On a CPU, keys and values run on into the next message until a vector is full; the surplus is masked. Matrices get
      surplus rows, so that few sizes occur, and no product of so few rows that it would be added up in another order.
    """

    def __init__(self, model: PreTrainedModel, packed: bool) -> None:
        """Wrap a model.

        Args:
            model: Of one of `MODEL_TYPES`, not a decoder. It is changed in place; do not use it elsewhere.
            packed: Pack its linear layers, and fuse GELU into them.
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
        key_length = length + -length % vector
        surplus = key_length - length
        surplus += -(tokens + surplus) % _ROWS_STEP
        distinct, where = self._distinct(ids, surplus)
        mask = self._mask(inside, length, key_length, distinct)
        states = distinct.index_select(0, where)
        # Rows beyond the last message are masked or never read. They stay zero, so that everything is finite.
        residual = torch.zeros_like(states)
        for number, layer in enumerate(self.layers[:-1]):
            read = layer.attention.self
            projected = [project(states if number else distinct) for project in (read.query, read.key, read.value)]
            if not number:
                projected = [of_pairs.index_select(0, where) for of_pairs in projected]
            query, key, value = (
                _split_heads(projection, count, length, row_length, self.heads)
                for projection, row_length in zip(projected, (length, key_length, key_length), strict=True)
            )
            context = functional.scaled_dot_product_attention(query, key, value, mask)
            output = layer.attention.output
            context = output.dense(context.transpose(1, 2).reshape(tokens, -1))
            torch.add(context, states[:tokens], out=residual[:tokens])
            attended = output.LayerNorm(residual)
            states = layer.output.LayerNorm(layer.output.dense(layer.intermediate(attended)).add_(attended))
        return self._last_layer(states, count, length, key_length, mask)

    def _distinct(self, ids: torch.Tensor, surplus: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of the pairs of token and position, (pairs, dimensions), and each row's pair, (rows,)."""
        if hasattr(self.embeddings, "create_position_ids_from_input_ids"):
            positions = self.embeddings.create_position_ids_from_input_ids(ids, self.embeddings.padding_idx)
        else:
            positions = torch.arange(ids.shape[1], device=ids.device)
        pairs, where = torch.unique(ids * self.positions + positions, return_inverse=True)
        pairs = functional.pad(pairs, (0, -len(pairs) % _DISTINCT_STEP))[None]
        embedded = self.embeddings(input_ids=pairs // self.positions, position_ids=pairs % self.positions)
        return self.project(embedded)[0], functional.pad(where.flatten(), (0, surplus))

    @staticmethod
    def _mask(inside: torch.Tensor | None, length: int, key_length: int, like: torch.Tensor) -> torch.Tensor | None:
        """What to add to attention scores, (n or 1, 1, 1, key_length); None for nothing."""
        if inside is None:
            if like.device.type != "cpu":
                return None
            inside = torch.ones(1, length, dtype=torch.bool, device=like.device)
        visible = functional.pad(inside, (0, key_length - length))
        return like.new_zeros(visible.shape).masked_fill_(~visible, -torch.inf)[:, None, None]

    def _last_layer(
        self, states: torch.Tensor, count: int, length: int, key_length: int, mask: torch.Tensor | None
    ) -> torch.Tensor:
        layer: Any = self.layers[-1]
        read = layer.attention.self
        surplus = (0, 0, 0, -count % _CLS_STEP)
        cls = functional.pad(states[: count * length : length], surplus)
        query = read.query(cls).view(len(cls), self.heads, -1)
        # Wk'q of every head: to the attention below, the heads are so many queries of a single head.
        queries = torch.einsum("nhs,hsd->nhd", query, self.last_key)[:count, None]
        keys = _split_heads(states, count, length, key_length, 1)
        sums = functional.scaled_dot_product_attention(queries, keys, keys, mask, scale=query.shape[2] ** -0.5)[:, 0]
        sums = functional.pad(sums, (0, 0, *surplus))
        context = torch.einsum("nhd,hsd->nhs", sums, self.last_value).flatten(1) + read.value.bias
        output: torch.Tensor = layer.feed_forward_chunk(layer.attention.output(context, cls))
        return output[:count]


def _split_heads(rows: torch.Tensor, count: int, length: int, row_length: int, heads: int) -> torch.Tensor:
    """(rows, dimensions) as (n, heads, row_length, dimensions per head), a view; messages overlap beyond `length`."""
    dimensions = rows.shape[1]
    size = dimensions // heads
    return rows.as_strided((count, heads, row_length, size), (length * dimensions, size, dimensions, 1))
