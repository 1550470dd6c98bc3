"""One attention function for both models: the fused kernel, and only the one query row that the method needs.

It is registered with transformers' AttentionInterface. A forward pass is given a `Pass` as its key-value cache and
under the keyword `capture`; the pass stores keys and values, runs the attention and adds the last query row's weights
on the vision tokens to `row_sum`. Nothing of size length x length is allocated outside the fused kernel; behind a
shared prefix there is one mask of question x prompt.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch.nn import functional
from transformers import AttentionInterface

try:
    from flash_attn import flash_attn_func
except ImportError:  # an option: torch's own fused kernel serves as well
    flash_attn_func = None

ATTENTION_NAME = "free2ds_last_row"


class KeyValueSlots:
    """Keys and values of the answers in flight: row i of every layer belongs to answer i, tokens from the left.

    Answers may have different lengths. What lies right of an answer's length is finite and gets no weight.
    """

    GROWTH = 32

    def __init__(self, max_rows: int, num_layers: int) -> None:
        """Hold at most `max_rows` answers of `num_layers` layers; memory is taken when the first one comes."""
        self._max_rows, self._num_layers = max_rows, num_layers
        self._layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def reserve(self, layer: int, length: int, like: torch.Tensor, used_rows: int) -> None:
        """Have room for `length` tokens in a layer; growing copies the `used_rows` first rows of that one layer."""
        if not self._layers:
            # All layers at once, before the pass makes what it soon frees: laid between such blocks, one layer at a
            # time, they left gaps that the allocator could not fill (peak 1.65 instead of 1.17 GB at 16 layers).
            self._layers = [(self._room(length, like), self._room(length, like)) for _ in range(self._num_layers)]
        held = self._layers[layer][0].shape[2]
        if held < length:
            # Keys first, so that only one of the two is held twice at a time.
            for place in (0, 1):
                grown = self._room(length, like)
                grown[:used_rows, :, :held] = self._layers[layer][place][:used_rows]
                grown[:used_rows, :, held:] = 0
                pair = list(self._layers[layer])
                pair[place] = grown
                self._layers[layer] = (pair[0], pair[1])

    def _room(self, length: int, like: torch.Tensor) -> torch.Tensor:
        """Without values, since an answer clears its own row: rows that no answer uses cost no memory."""
        return like.new_empty(self._max_rows, like.shape[1], length + self.GROWTH, like.shape[3])

    def store(self, layer: int, rows: slice, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write the last tokens of new answers, behind `start` tokens that are there already.

        Args:
            layer: Decoder layer.
            rows: Answers to write; those before them are in use.
            start: First position.
            keys: (rows, key-value heads, tokens, head size).
            values: The same shape.
        """
        stop = start + keys.shape[2]
        self.reserve(layer, stop, keys, rows.stop if start else rows.start)
        for held, new in zip(self._layers[layer], (keys, values), strict=True):
            held[rows, :, start:stop] = new
            held[rows, :, stop:] = 0

    def append(self, layer: int, positions: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write one token per answer, each at its own position.

        Args:
            layer: Decoder layer.
            positions: int64, (rows,).
            keys: (rows, key-value heads, 1, head size).
            values: The same shape.
        """
        rows = torch.arange(len(positions), device=keys.device)
        for held, new in zip(self._layers[layer], (keys, values), strict=True):
            held[rows, :, positions] = new[:, :, 0]

    def view(self, layer: int, rows: slice, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of some answers and their first `length` tokens, without a copy."""
        keys, values = self._layers[layer]
        return keys[rows, :, :length], values[rows, :, :length]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy one answer's `length` tokens to another row."""
        for keys, values in self._layers:
            keys[target, :, :length] = keys[source, :, :length]
            values[target, :, :length] = values[source, :, :length]

    def clear(self, row: int) -> None:
        """Wipe an answer whose values are not finite: zero times NaN would reach the row's next answer."""
        for keys, values in self._layers:
            keys[row] = 0
            values[row] = 0


class Pass(ABC):
    """One forward pass of the decoder.

    Attributes:
        row_sum: float32, (rows, positions): attention of the last query row on the vision tokens, mean over heads,
            summed over layers; None in a pass that captures nothing.
    """

    def __init__(self, vision_starts: Sequence[int], positions: int, device: torch.device) -> None:
        """Prepare a pass.

        Args:
            vision_starts: First vision token of each row; empty captures nothing.
            positions: Vision tokens per row.
            device: The decoder's.
        """
        self._positions = positions
        self._common_start = vision_starts[0] if len(set(vision_starts)) == 1 else None
        self.row_sum = torch.zeros(len(vision_starts), positions, device=device) if vision_starts else None
        if vision_starts and self._common_start is None:
            starts = torch.tensor(vision_starts, device=device)
            self._columns = starts[:, None] + torch.arange(positions, device=device)

    @abstractmethod
    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by the decoder as its cache: keep the new keys and values, return those to attend to."""

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
        """Softmax weights of one query row, captured on the way.

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
                seen = weights[..., self._common_start : self._common_start + self._positions].mean(dim=(1, 2))
            else:
                seen = weights.mean(dim=(1, 2)).gather(1, self._columns)
            self.row_sum += seen
        return weights


class PrefillPass(Pass):
    """Whole prompts, padded on the right: a causal mask alone keeps the padding out of every real row."""

    def __init__(
        self,
        slots: KeyValueSlots | None,
        first_row: int,
        lengths: torch.Tensor,
        vision_starts: Sequence[int],
        positions: int,
        prefix: list[tuple[torch.Tensor, torch.Tensor]] | None = None,
        prefix_of_row: torch.Tensor | None = None,
    ) -> None:
        """Prepare a prefill.

        Args:
            slots: Where keys and values go; None keeps them in `layers` instead (for a shared prefix).
            first_row: Slot of the first row.
            lengths: int64, (rows,), new tokens of each row without padding.
            vision_starts: As in `Pass`.
            positions: As in `Pass`.
            prefix: Per layer, keys and values before the new tokens, (prefixes, key-value heads, P, head size).
            prefix_of_row: int64, (rows,), the prefix each row continues.
        """
        super().__init__(vision_starts, positions, lengths.device)
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._slots, self._first_row, self._lengths = slots, first_row, lengths
        self._prefix, self._prefix_of_row = prefix, prefix_of_row
        self._mask: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new tokens behind the prefix, if there is one, and attend to both."""
        if self._slots is None:
            self.layers.append((key_states, value_states))
            return key_states, value_states
        rows = slice(self._first_row, self._first_row + len(key_states))
        if self._prefix is None:
            self._slots.store(layer_idx, rows, 0, key_states, value_states)
            return key_states, value_states
        before = [held[self._prefix_of_row] for held in self._prefix[layer_idx]]
        start, total = before[0].shape[2], before[0].shape[2] + key_states.shape[2]
        self._slots.reserve(layer_idx, total, key_states, rows.start)
        self._slots.store(layer_idx, rows, 0, before[0], before[1])
        self._slots.store(layer_idx, rows, start, key_states, value_states)
        return self._slots.view(layer_idx, rows, total)

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, groups: int
    ) -> torch.Tensor:
        """Fused causal attention; the last real query row once more for its weights."""
        new, total = query.shape[2], keys.shape[2]
        if flash_attention_fits(query):
            # Its causal mask ends at the last key, as a prefix wants it, and it takes grouped heads as they are.
            swapped = (held.transpose(1, 2) for held in (query, keys, values))
            output = flash_attn_func(*swapped, softmax_scale=scaling, causal=True).transpose(1, 2)
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
        """The same by torch's fused kernel."""
        new, total = query.shape[2], keys.shape[2]
        if self._mask is None and total > new:
            device = query.device
            self._mask = torch.arange(total, device=device) <= torch.arange(total - new, total, device=device)[:, None]
        # Expanded by hand: enable_gqa makes some back ends leave the fused kernel and allocate length x length.
        wide = [held.repeat_interleave(groups, dim=1) if groups > 1 else held for held in (keys, values)]
        return functional.scaled_dot_product_attention(
            query, wide[0], wide[1], self._mask, is_causal=self._mask is None, scale=scaling
        )


def flash_attention_fits(query: torch.Tensor) -> bool:
    """Whether the package flash-attn is installed and takes these tensors: a GPU, two bytes a number."""
    return flash_attn_func is not None and query.is_cuda and query.dtype in (torch.float16, torch.bfloat16)


class DecodePass(Pass):
    """One token per answer; the weights are computed once, for the output and for the capture.

    Attributes:
        positions: int64, (rows,): where each answer's new token goes.
    """

    def __init__(
        self,
        slots: KeyValueSlots,
        lengths: Sequence[int],
        vision_starts: Sequence[int],
        positions: int,
        device: torch.device,
    ) -> None:
        """Prepare a step.

        Args:
            slots: Holds the answers; row i is answer i.
            lengths: Tokens already stored, per row.
            vision_starts: As in `Pass`.
            positions: As in `Pass`.
            device: As in `Pass`.
        """
        super().__init__(vision_starts, positions, device)
        self._slots = slots
        self._total = max(lengths) + 1
        self.positions = torch.tensor(lengths, device=device)
        self._allowed: torch.Tensor | None = None
        if min(lengths) + 1 < self._total:
            self._allowed = torch.arange(self._total, device=device) <= self.positions[:, None]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the token of each answer."""
        self._slots.reserve(layer_idx, self._total, key_states, len(key_states))
        self._slots.append(layer_idx, self.positions, key_states, value_states)
        return self._slots.view(layer_idx, slice(len(key_states)), self._total)

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, groups: int
    ) -> torch.Tensor:
        """The one row's weights times the values."""
        weights = self._last_row_weights(query[:, :, 0], keys, scaling, self._allowed)
        return torch.matmul(weights.to(values.dtype), values).view(len(query), -1, 1, values.shape[3])


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
    """The function registered with transformers; see the module's docstring.

    Args:
        module: The decoder layer's attention.
        query: (rows, heads, queries, head size), rotated.
        key: (rows, key-value heads, tokens, head size), rotated.
        value: As `key`.
        attention_mask: Always None: the pass knows what is masked.
        scaling: Factor of the scores.
        capture: The pass.
        **kwargs: What transformers gives to any attention function.

    Returns:
        Output (rows, queries, heads, head size), and None for the weights.
    """
    output = capture.attend(query, key, value, scaling, query.shape[1] // key.shape[1])
    return output.transpose(1, 2), None


AttentionInterface.register(ATTENTION_NAME, capturing_attention)
