"""The BERT encoder: tokens in, CLS vectors out."""

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from components.bert_features import bert
from free2ds_common.errors import StageError, first_line
from free2ds_common.inference.device import choose_device, torch_dtype
from free2ds_common.inference.packed_linear import pack_linear_layers

# Memory of one forward pass on a CPU, whatever the batch setting. Larger batches are not faster there: MiniLM with 384
# dimensions on two threads does 3 % more tokens a second in batches of 2,048 than of 4,096.
CPU_ACTIVATION_BYTES = 512 << 20
CPU_ACTIVATION_BYTES_PER_THREAD = 24 << 20
# What the tokenizer returns per message takes many times the memory of its token ids.
_TOKENIZED_AT_ONCE = 4096
# The method's truncation; a model with fewer positions truncates earlier.
MAX_TOKENS = 512
_ENCODERS = (*bert.MODEL_TYPES, "distilbert", "mpnet")


@dataclass(frozen=True)
class Tokens:
    """Token ids of many messages, without padding.

    Attributes:
        ids: int32, (sum of lengths,).
        starts: int64, (n,), first token of each message.
        lengths: int64, (n,).
    """

    ids: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray


class Encoder:
    """A loaded encoder in eval mode.

    Attributes:
        max_tokens: Longer messages are cut.
        dimensions: Of an embedding.
        dtype: Of weights and arithmetic.
        device: Where the model runs.
        max_batch_tokens: Largest useful batch in tokens, padding included.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        """Wrap a model.

        Args:
            model: Its `last_hidden_state` is (n, tokens, dimensions). It is changed in place; do not use it elsewhere.
            tokenizer: A fast tokenizer.
            max_tokens: Longer messages are cut.
        """
        self._model, self._tokenizer, self.max_tokens = model, tokenizer, max_tokens
        self.dimensions: int = model.config.hidden_size
        # Per layer a token needs its states, queries, keys, values and output, and the wide feed-forward part twice.
        bytes_per_token = 4 * 16 * self.dimensions
        max_bytes = min(CPU_ACTIVATION_BYTES, CPU_ACTIVATION_BYTES_PER_THREAD * torch.get_num_threads())
        on_gpu = model.device.type != "cpu"
        self.max_batch_tokens = sys.maxsize if on_gpu else max_bytes // bytes_per_token
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        # A decoder attends under a causal mask; transformers builds it.
        whole = model.config.model_type not in bert.MODEL_TYPES or model.config.is_decoder
        # With AVX2 alone, torch's own linear layers do 5 % more tokens a second than oneDNN's.
        packed = torch.backends.cpu.get_cpu_capability() == "AVX512"
        self._cls = None if whole else bert.ClsBert(model, packed)
        if whole and packed:
            pack_linear_layers(model)

    def tokenize(self, messages: list[str]) -> Tokens:
        """Token ids with CLS and SEP, cut at `max_tokens`."""
        ids, lengths = [], []
        for start in range(0, len(messages), _TOKENIZED_AT_ONCE):
            rows = self._tokenizer(
                messages[start : start + _TOKENIZED_AT_ONCE],
                truncation=True,
                max_length=self.max_tokens,
                return_attention_mask=False,
                return_token_type_ids=False,
            ).input_ids
            lengths.append(np.fromiter(map(len, rows), dtype=np.int64, count=len(rows)))
            ids.append(np.fromiter(itertools.chain.from_iterable(rows), dtype=np.int32))
        all_lengths = np.concatenate(lengths)
        return Tokens(np.concatenate(ids), np.cumsum(all_lengths) - all_lengths, all_lengths)

    @torch.inference_mode()
    def embed(self, tokens: Tokens, batch: np.ndarray) -> np.ndarray:
        """CLS of the last hidden state.

        Args:
            tokens: All messages.
            batch: int64, (n,), the messages to embed.

        Returns:
            float32, (n, dimensions), not normalised.
        """
        lengths = tokens.lengths[batch]
        columns = np.arange(int(lengths.max()))
        inside = columns < lengths[:, None]
        places = np.where(inside, tokens.starts[batch][:, None] + columns, 0)
        ids = np.where(inside, tokens.ids[places], self._tokenizer.pad_token_id)
        device = self._model.device
        device_ids = torch.from_numpy(ids).to(device, torch.int64)
        # Without padding no mask: the fused kernel is faster without one.
        device_inside = None if inside.all() else torch.from_numpy(inside).to(device)
        if self._cls is None:
            cls = self._model(input_ids=device_ids, attention_mask=device_inside).last_hidden_state[:, 0]
        else:
            cls = self._cls(device_ids, device_inside)
        embeddings: np.ndarray = cls.float().cpu().numpy()
        return embeddings


def load_encoder(folder: Path, dtype: str) -> Encoder:
    """Load a BERT-like encoder.

    Args:
        folder: Model folder with config, weights and tokenizer.
        dtype: "auto" (bfloat16 on a GPU, float32 on a CPU) or a torch type's name.

    Raises:
        StageError: Files are missing, or it is another kind of model.
    """
    device = choose_device()
    try:
        config = AutoConfig.from_pretrained(folder)
        if config.model_type not in _ENCODERS:
            raise StageError(f"{folder}: model type {config.model_type}, wanted one of {', '.join(sorted(_ENCODERS))}.")
        options = {"add_pooling_layer": False} if config.model_type in ("bert", "roberta", "xlm-roberta") else {}
        model, loading = AutoModel.from_pretrained(
            folder, config=config, dtype=torch_dtype(dtype, device), output_loading_info=True, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, SafetensorError) as error:
        raise StageError(f"{folder}: cannot be loaded as a BERT encoder ({first_line(error)}).") from error
    missing = sorted(name for name in loading["missing_keys"] if "position_ids" not in name and "pooler" not in name)
    if missing:
        raise StageError(f"{folder}: no weights for {', '.join(missing[:5])}. The checkpoint is incomplete.")
    if not tokenizer.is_fast or tokenizer.cls_token_id is None or tokenizer.pad_token_id is None:
        raise StageError(f"{folder}: no fast tokenizer with CLS and padding tokens. Copy the whole model folder.")
    # RoBERTa's family has no use for the positions up to the padding token's number.
    unused = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "mpnet") else 0
    max_tokens = min(MAX_TOKENS, config.max_position_embeddings - unused)
    return Encoder(model.to(device).eval(), tokenizer, max_tokens)
