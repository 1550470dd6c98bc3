"""What generation needs of a vision-language model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedModel

from free2ds_common.inference.prompts import Prompt

Pixels = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class VisionLanguageModel:
    """A decoder that reads picture features as tokens.

    Attributes:
        decoder: transformers decoder without head; called with `inputs_embeds`, `position_ids`, `past_key_values`.
        lm_head: Hidden states to vocabulary logits.
        prompt: A record's question to the tokens on both sides of the picture.
        prompt_settings: What decides the prompt, for the manifest (JSON values).
        preprocess: A picture in RGB to named CPU tensors; runs in worker threads.
        encode_images: Batched pixels, each (n, ...), to (n, grid * grid, hidden) features in the decoder's dtype.
        grid: Vision tokens per side.
        eos_token_ids: Tokens that end an answer.
        context_length: Tokens that the decoder can take, prompt and picture together.
        preprocessing: The picture processor's settings, for the manifest (JSON values).
        folders: The folders that weights and settings were read from, none inside another.
        unk_token_id: The token of unknown words; None if there is none.
        text_prompt: A question without a picture to its prompt, where the loader knows such.
        decode: Generated tokens to text without control tokens, where the loader knows how.
    """

    decoder: PreTrainedModel
    lm_head: nn.Module
    prompt: Callable[[str], Prompt]
    prompt_settings: Mapping[str, object]
    preprocess: Callable[[Image.Image], Pixels]
    encode_images: Callable[[Pixels], torch.Tensor]
    grid: int
    eos_token_ids: frozenset[int]
    context_length: int
    preprocessing: Mapping[str, object]
    folders: tuple[Path, ...]
    unk_token_id: int | None = None
    text_prompt: Callable[[str], Prompt] | None = None
    decode: Callable[[Sequence[int]], str] | None = None

    @property
    def num_vision_tokens(self) -> int:
        """Vision tokens per picture."""
        return self.grid * self.grid

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._parameter().device

    @property
    def dtype(self) -> torch.dtype:
        """Of the decoder's weights."""
        return self._parameter().dtype

    def _parameter(self) -> nn.Parameter:
        parameter: nn.Parameter = next(self.decoder.parameters())
        return parameter
