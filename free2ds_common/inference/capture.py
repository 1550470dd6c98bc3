"""Attention capture: fused attention for the whole pass, weights only for the one query row that the method needs.

`capturing_attention` is registered with transformers' AttentionInterface. A forward pass gets a `Pass` both as its
key-value cache and as the keyword `capture`. The pass stores keys and values, runs the attention and adds the last
query row's weights on the vision tokens to `row_sum`. Nothing of size length x length is allocated outside the fused
kernel; after a shared prefix there is one mask of size question x prompt.

One file of more than 300 lines, because the cache and the two kinds of pass know each other's layout.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch.nn import functional
from transformers import AttentionInterface

try:
    from flash_attn import flash_attn_func
except ImportError:  # optional: torch's own fused kernel does the same
    flash_attn_func = None

ATTENTION_NAME = "free2ds_last_row"


class KeyValueCache:
    """Key-value cache of a batch: row i of every layer belongs to sequence i, padded on the right.

    Sequences may differ in length. What lies to the right of a sequence is finite and gets no weight.
    """

    GROWTH = 32

    def __init__(self, max_rows: int, num_layers: int, spare: int = 0) -> None:
        """Plan for `max_rows` sequences and `num_layers` layers; memory is allocated when the first sequence comes.

        Args:
            max_rows: Sequences.
            num_layers: Decoder layers.
            spare: Tokens to have room for beyond those asked for, whenever memory is allocated; GROWTH at least.
        """
        self._max_rows, self._num_layers, self._spare = max_rows, num_layers, spare
        self._layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def reserve(self, layer: int, length: int, like: torch.Tensor, used_rows: int) -> None:
        """Make room for `length` tokens in a layer; growing copies that layer's first `used_rows` rows."""
        if not self._layers:
            # All layers at once, before the pass allocates what it soon frees: one layer at a time, between such
            # blocks, they left gaps that the allocator could not fill (peak 1.65 instead of 1.17 GB at 16 layers).
            self._layers = [
                (self._allocate(length, like), self._allocate(length, like)) for _ in range(self._num_layers)
            ]
        held = self._layers[layer][0].shape[2]
        if held < length:
            # Keys first, then values, so that only one of the two is in memory twice.
            for place in (0, 1):
                grown = self._allocate(length, like)
                grown[:used_rows, :, :held] = self._layers[layer][place][:used_rows]
                grown[:used_rows, :, held:] = 0
                pair = list(self._layers[layer])
                pair[place] = grown
                self._layers[layer] = (pair[0], pair[1])

    @property
    def capacity(self) -> int:
        """Tokens that fit into a row of every layer."""
        return min((keys.shape[2] for keys, _ in self._layers), default=0)

    def require(self, length: int, used_rows: int) -> None:
        """Make room for `length` tokens in every layer; there is at least one sequence."""
        for layer, (keys, _) in enumerate(self._layers):
            self.reserve(layer, length, keys, used_rows)

    def _allocate(self, length: int, like: torch.Tensor) -> torch.Tensor:
        """Uninitialised, since each sequence clears its own row: unused rows cost no memory."""
        return like.new_empty(self._max_rows, like.shape[1], length + max(self.GROWTH, self._spare), like.shape[3])

    def store(self, layer: int, rows: slice, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write tokens of new sequences after the `start` tokens that are there already, and clear what follows.

        Args:
            layer: Decoder layer.
            rows: Rows to write; those before them are in use.
            start: First position to write.
            keys: (rows, key-value heads, tokens, head size).
            values: The same shape.
        """
        stop = start + keys.shape[2]
        self.reserve(layer, stop, keys, rows.stop if start else rows.start)
        for held, new in zip(self._layers[layer], (keys, values), strict=True):
            _words(held[rows, :, start:stop]).copy_(_words(new))
            held[rows, :, stop:] = 0

    def append(self, layer: int, position_ids: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write one token per sequence, each at its own position.

        Args:
            layer: Decoder layer.
            position_ids: int64, (rows,).
            keys: (rows, key-value heads, 1, head size).
            values: The same shape.
        """
        rows = torch.arange(len(position_ids), device=keys.device)
        for held, new in zip(self._layers[layer], (keys, values), strict=True):
            held[rows, :, position_ids] = new[:, :, 0]

    def view(self, layer: int, rows: slice, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of some rows' first `length` tokens, without a copy."""
        keys, values = self._layers[layer]
        return keys[rows, :, :length], values[rows, :, :length]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a sequence of `length` tokens to another row."""
        for keys, values in self._layers:
            keys[target, :, :length] = keys[source, :, :length]
            values[target, :, :length] = values[source, :, :length]

    def clear(self, row: int) -> None:
        """Zero a row with values that are not finite: a weight of 0 times NaN would reach its next sequence."""
        for keys, values in self._layers:
            keys[row] = 0
            values[row] = 0


def _words(values: torch.Tensor) -> torch.Tensor:
    """The same memory in words of eight bytes where it divides so: copies between layouts go word by word."""
    fits = values.stride(-1) == 1 and values.shape[-1] * values.element_size() % 8 == 0
    return values.view(torch.int64) if fits else values


class Pass(ABC):
    """One forward pass of the decoder.

    Attributes:
        row_sum: float32, (rows, num_vision_tokens): attention of the last query row on the vision tokens, mean over
            heads, summed over layers; None in a pass that captures nothing.
    """

    def __init__(self, vision_starts: Sequence[int], num_vision_tokens: int, device: torch.device) -> None:
        """Prepare a pass.

        Args:
            vision_starts: Position of each row's first vision token; empty captures nothing.
            num_vision_tokens: Vision tokens per row.
            device: The decoder's.
        """
        self._num_vision_tokens = num_vision_tokens
        self._common_start = vision_starts[0] if len(set(vision_starts)) == 1 else None
        self.row_sum = torch.zeros(len(vision_starts), num_vision_tokens, device=device) if vision_starts else None
        if vision_starts and self._common_start is None:
            starts = torch.tensor(vision_starts, device=device)
            self._columns = starts[:, None] + torch.arange(num_vision_tokens, device=device)

    @abstractmethod
    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by the decoder as its cache: store the new keys and values, return those to attend to."""

    @abstractmethod
    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, groups: int
    ) -> torch.Tensor:
        """Attention output, (rows, heads, queries, head size)."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Part of the cache interface; positions are always given explicitly."""
        return 0

    def _last_row_weights(
        self, query: torch.Tensor, keys: torch.Tensor, scaling: float, allowed: torch.Tensor | None
    ) -> torch.Tensor:
        """Attention weights of one query row per sequence; adds those on the vision tokens to `row_sum`.

        Args:
            query: (rows, heads, head size).
            keys: (rows, key-value heads, tokens, head size).
            scaling: Factor of the scores.
            allowed: bool, (rows, tokens); None allows all.

        Returns:
            float32, (rows, key-value heads, heads per key-value head, tokens).
        """
        rows, heads, size = query.shape
        grouped = query.view(rows, keys.shape[1], heads // keys.shape[1], size)
        scores = (torch.matmul(grouped, keys.transpose(2, 3)) * scaling).float()
        if allowed is not None:
            scores.masked_fill_(~allowed[:, None, None], float("-inf"))
        weights = torch.softmax(scores, dim=-1)
        if self.row_sum is not None:
            if self._common_start is not None:
                seen = weights[..., self._common_start : self._common_start + self._num_vision_tokens].mean(dim=(1, 2))
            else:
                seen = weights.mean(dim=(1, 2)).gather(1, self._columns)
            self.row_sum += seen
        return weights


class PrefillPass(Pass):
    """Prefill: whole prompts, padded on the right, so the causal mask alone keeps padding out of every real row."""

    def __init__(
        self,
        cache: KeyValueCache | None,
        first_row: int,
        lengths: torch.Tensor,
        vision_starts: Sequence[int],
        num_vision_tokens: int,
        prefix: list[tuple[torch.Tensor, torch.Tensor]] | None = None,
        prefix_of_row: torch.Tensor | None = None,
    ) -> None:
        """Prepare a prefill.

        Args:
            cache: Where keys and values go; None keeps them in `layers` instead (for a shared prefix).
            first_row: The cache's row for the first sequence.
            lengths: int64, (rows,), new tokens of each row without padding.
            vision_starts: As in `Pass`.
            num_vision_tokens: As in `Pass`.
            prefix: Per layer, keys and values before the new tokens, (prefixes, key-value heads, P, head size).
            prefix_of_row: int64, (rows,), the prefix that each row continues.
        """
        super().__init__(vision_starts, num_vision_tokens, lengths.device)
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._cache, self._first_row, self._lengths = cache, first_row, lengths
        self._prefix, self._prefix_of_row = prefix, prefix_of_row
        self._mask: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new tokens after the prefix, if there is one; attend to both."""
        if self._cache is None:
            self.layers.append((key_states, value_states))
            return key_states, value_states
        rows = slice(self._first_row, self._first_row + len(key_states))
        if self._prefix is None:
            self._cache.store(layer_idx, rows, 0, key_states, value_states)
            return key_states, value_states
        before = [held[self._prefix_of_row] for held in self._prefix[layer_idx]]
        start, total = before[0].shape[2], before[0].shape[2] + key_states.shape[2]
        self._cache.reserve(layer_idx, total, key_states, rows.start)
        self._cache.store(layer_idx, rows, 0, before[0], before[1])
        self._cache.store(layer_idx, rows, start, key_states, value_states)
        return self._cache.view(layer_idx, rows, total)

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, groups: int
    ) -> torch.Tensor:
        """Fused causal attention; the last real query row is computed again for its weights."""
        new, total = query.shape[2], keys.shape[2]
        if flash_attention_fits(query):
            # Its causal mask is aligned to the last key, as a prefix needs it, and it takes grouped heads as they are.
            swapped = (held.transpose(1, 2) for held in (query, keys, values))
            output: torch.Tensor = flash_attn_func(*swapped, softmax_scale=scaling, causal=True).transpose(1, 2)
        else:
            output = self._torch_attention(query, keys, values, scaling, groups)
        if self.row_sum is not None:
            last = query[torch.arange(len(query), device=query.device), :, self._lengths - 1]
            ends = self._lengths + (total - new)
            allowed = torch.arange(total, device=query.device) < ends[:, None]
            self._last_row_weights(last, keys, scaling, allowed)
        return output

    def _torch_attention(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, groups: int
    ) -> torch.Tensor:
        """The same with torch's fused kernel."""
        new, total = query.shape[2], keys.shape[2]
        if self._mask is None and total > new:
            device = query.device
            self._mask = torch.arange(total, device=device) <= torch.arange(total - new, total, device=device)[:, None]
        # Expanded here: with enable_gqa some back ends leave the fused kernel and allocate length x length.
        wide = [held.repeat_interleave(groups, dim=1) if groups > 1 else held for held in (keys, values)]
        return functional.scaled_dot_product_attention(
            query, wide[0], wide[1], self._mask, is_causal=self._mask is None, scale=scaling
        )


def flash_attention_fits(query: torch.Tensor) -> bool:
    """Whether flash-attn is installed and takes these tensors: on a GPU, in a 16-bit format."""
    return flash_attn_func is not None and query.is_cuda and query.dtype in (torch.float16, torch.bfloat16)


class DecodePass(Pass):
    """Decode: one token per sequence; its weights serve the output and the capture.

    Attributes:
        position_ids: int64, (rows,): the position of each sequence's new token.
    """

    def __init__(
        self,
        cache: KeyValueCache,
        lengths: Sequence[int],
        vision_starts: Sequence[int],
        num_vision_tokens: int,
        device: torch.device,
    ) -> None:
        """Prepare a step.

        Args:
            cache: Holds the sequences; row i is sequence i.
            lengths: Tokens already stored, per row.
            vision_starts: As in `Pass`.
            num_vision_tokens: As in `Pass`.
            device: As in `Pass`.
        """
        super().__init__(vision_starts, num_vision_tokens, device)
        self._cache = cache
        self._total = max(lengths) + 1
        self.position_ids = torch.tensor(lengths, device=device)
        self._allowed: torch.Tensor | None = None
        if min(lengths) + 1 < self._total:
            self._allowed = torch.arange(self._total, device=device) <= self.position_ids[:, None]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append each sequence's new token."""
        self._cache.reserve(layer_idx, self._total, key_states, len(key_states))
        self._cache.append(layer_idx, self.position_ids, key_states, value_states)
        return self._cache.view(layer_idx, slice(len(key_states)), self._total)

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, groups: int
    ) -> torch.Tensor:
        """The new token's weights times the values."""
        weights = self._last_row_weights(query[:, :, 0], keys, scaling, self._allowed)
        return torch.matmul(weights.to(values.dtype), values).view(len(query), -1, 1, values.shape[3])


class FixedDecodePass(DecodePass):
    """A decode step with shapes that the caller chooses and lengths that only the device knows."""

    def __init__(
        self,
        cache: KeyValueCache,
        lengths: torch.Tensor,
        vision_starts: torch.Tensor | None,
        num_vision_tokens: int,
        total: int,
    ) -> None:
        """Prepare a step.

        Args:
            cache: Holds the sequences; row i is sequence i.
            lengths: int64, (rows,), tokens already stored; less than `total`.
            vision_starts: int64, (rows,); None captures nothing.
            num_vision_tokens: As in `Pass`.
            total: Tokens to attend to, beyond a sequence's own with no weight; the cache has room for them.
        """
        Pass.__init__(self, (), num_vision_tokens, lengths.device)
        self._cache, self._total, self.position_ids = cache, total, lengths
        self._allowed = torch.arange(total, device=lengths.device) <= lengths[:, None]
        if vision_starts is not None:
            self._columns = vision_starts[:, None] + torch.arange(num_vision_tokens, device=lengths.device)
            self.row_sum = torch.zeros(self._columns.shape, device=lengths.device)


def capturing_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    capture: Pass,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in every decoder layer.

    Args:
        module: The decoder layer's attention.
        query: (rows, heads, queries, head size), rotated.
        key: (rows, key-value heads, tokens, head size), rotated.
        value: As `key`.
        attention_mask: Not used: the pass knows what is masked.
        scaling: Factor of the scores.
        capture: The pass.
        **kwargs: What else transformers passes to attention functions.

    Returns:
        The output, (rows, queries, heads, head size), and None in place of the weights.
    """
    output = capture.attend(query, key, value, scaling, query.shape[1] // key.shape[1])
    return output.transpose(1, 2), None


AttentionInterface.register(ATTENTION_NAME, capturing_attention)
