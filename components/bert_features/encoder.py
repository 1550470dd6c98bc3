"""The BERT encoder: tokens in, CLS vectors out."""

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from components.bert_features import bert
from free2ds_common.errors import StageError, first_line
from free2ds_common.inference.device import choose_device, torch_dtype
from free2ds_common.inference.model_folder import (
    check_folder,
    loading,
    read_config,
    require_believable_depth,
    require_token_ids,
)
from free2ds_common.inference.packed_linear import pack_linear_layers
from free2ds_common.inference.tokenizers import require_fitting_vocabulary, transformers_tokenizer, vocabulary_size
from free2ds_common.inference.weights import (
    StoredTensor,
    is_unused,
    refuse_unfit,
    refuse_unknown,
    require_finite,
    require_index_metadata,
    stored_shapes,
)

# Memory of one forward pass on a CPU, whatever the batch setting. Larger batches are not faster there: MiniLM with 384
# dimensions on two threads does 3 % more tokens a second in batches of 2,048 than of 4,096.
CPU_ACTIVATION_BYTES = 512 << 20
CPU_ACTIVATION_BYTES_PER_THREAD = 24 << 20
# What the tokenizer returns per message takes many times the memory of its token ids.
_TOKENIZED_AT_ONCE = 4096
# Of the tokens of a message, at most.
_MAX_PADDING = 0.05
# The method's truncation; a model with fewer positions truncates earlier.
MAX_TOKENS = 512
# Tensors that the CLS vector does not depend on: what a model was trained or fine-tuned with, on top of the encoder.
_HEADS = (
    r"(^|\.)pooler\.",  # the vector that classifiers read; the method takes CLS itself
    r"^cls\.(predictions|seq_relationship)\.",  # BERT's pre-training
    r"^lm_head\.",  # that of RoBERTa and MPNet
    r"^(discriminator|generator)_predictions\.|^generator_lm_head\.",  # ELECTRA's
    r"^vocab_(transform|layer_norm|projector)\.",  # DistilBERT's
    r"^(pre_)?classifier\.|^qa_outputs\.",  # fine-tuning
)
# Words in capitals among a vocabulary's, beyond which it is one for texts with capitals.
_CAPITALS_SHARE = 0.02
_PROBE = "Which Bären, naïve or 3.5 m TALL, aren't (in) the picture?"
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
        # With AVX2 alone, torch's own linear layers do 5 % more tokens a second than oneDNN's. For less than 16 rows
        # they add up in another order than for more: `ClsBert` has no such matrices, transformers' forward pass does.
        if whole:
            pack_linear_layers(model)
        self._cls = None if whole else bert.ClsBert(model, torch.backends.cpu.get_cpu_capability() == "AVX512")
        self._padded = np.arange(max_tokens + 1) if whole else _padded_lengths(max_tokens)

    def tokenize(self, messages: list[str]) -> Tokens:
        """Token ids with CLS and SEP, cut at `max_tokens`."""
        ids, lengths = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
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

    def count_unknown(self, tokens: Tokens) -> tuple[np.ndarray, np.ndarray]:
        """How many tokens of each message stand for an unknown word, and how many it has, CLS and the like left out.

        Returns:
            int64, (n,), both. A tokenizer without unknown words has none, and all tokens count.
        """
        unknown = self._tokenizer.unk_token_id
        if unknown is None:
            return np.zeros_like(tokens.lengths), tokens.lengths
        special = [token for token in self._tokenizer.all_special_ids if token != unknown]

        def per_message(mask: np.ndarray) -> np.ndarray:
            before: np.ndarray = np.concatenate([[0], np.cumsum(mask)])
            counts: np.ndarray = before[tokens.starts + tokens.lengths] - before[tokens.starts]
            return counts

        return per_message(tokens.ids == unknown), per_message(~np.isin(tokens.ids, special))

    def padded_lengths(self, lengths: np.ndarray) -> np.ndarray:
        """How many tokens a message takes in a forward pass, padding included: a function of its own length alone.

        Attention adds up over these tokens, in another order for another number of them. transformers' forward passes
        (of the models that `ClsBert` is not for) leave out the mask where a batch has no padding: they get none.

        Args:
            lengths: int, (n,), tokens per message.
        """
        padded: np.ndarray = self._padded[lengths]
        return padded

    @torch.inference_mode()
    def embed(self, tokens: Tokens, batch: np.ndarray) -> np.ndarray:
        """CLS of the last hidden state.

        In float32 on a CPU, with the same libraries and instructions, an embedding is the same to the last bit whatever
        else is in the batch and however many threads there are, if all `padded_lengths` of the batch are the same.

        Args:
            tokens: All messages.
            batch: int64, (n,), the messages to embed.

        Returns:
            float32, (n, dimensions), not normalised.
        """
        lengths = tokens.lengths[batch]
        columns = np.arange(int(self.padded_lengths(lengths).max()))
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


def _padded_lengths(max_tokens: int) -> np.ndarray:
    """int64, (max_tokens + 1,): for each length the next of a series that leaves at most `_MAX_PADDING` as padding."""
    padded = np.empty(max_tokens + 1, dtype=np.int64)
    shortest = 0
    while shortest <= max_tokens:
        longest = min(int(shortest / (1 - _MAX_PADDING)), max_tokens)
        padded[shortest : longest + 1] = longest
        shortest = longest + 1
    return padded


def load_encoder(folder: Path, dtype: str, device: torch.device | None = None) -> Encoder:
    """Load a BERT-like encoder.

    Args:
        folder: Model folder with config, weights and tokenizer.
        dtype: "auto" (bfloat16 on a GPU, float32 on a CPU) or a torch type's name.
        device: Where it runs; None takes the GPU if there is one.

    Raises:
        StageError: Files are missing or broken, it is another kind of model, or weights or tokenizer are not those of
            the config.
    """
    device = device or choose_device()
    check_folder(folder)
    entries = read_config(folder)
    kind = entries.get("model_type")
    if kind not in _ENCODERS:
        raise StageError(f"{folder}: model type {kind}, wanted one of {', '.join(sorted(_ENCODERS))}.")
    stored = stored_shapes(folder)
    require_index_metadata(folder)
    require_believable_depth(folder, entries, len(stored))
    options = {"add_pooling_layer": False} if kind in ("bert", "roberta", "xlm-roberta") else {}
    with loading(folder, "a BERT encoder"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        require_token_ids(folder, config.to_dict(), config.vocab_size)
        _require_fitting_weights(folder, config, stored, options)
        model, found = AutoModel.from_pretrained(
            folder, config=config, dtype=torch_dtype(dtype, device), output_loading_info=True, **options
        )
    missing = sorted(name for name in found["missing_keys"] if not is_unused(name, _HEADS))
    refuse_unfit(str(folder), [], missing)
    for name, parameter in model.named_parameters():
        if not is_unused(name, _HEADS):
            require_finite(folder, name, parameter)
    tokenizer = _tokenizer(folder, config)
    # RoBERTa's family has no use for the positions up to the padding token's number.
    unused = config.pad_token_id + 1 if kind in ("roberta", "xlm-roberta", "mpnet") else 0
    max_tokens = min(MAX_TOKENS, config.max_position_embeddings - unused)
    return Encoder(model.to(device).eval(), tokenizer, max_tokens)


def _require_fitting_weights(
    folder: Path, config: PreTrainedConfig, stored: list[StoredTensor], options: dict[str, bool]
) -> None:
    """Compare a checkpoint's names and shapes with the config's model, before memory is taken for it.

    Args:
        folder: The model's folder.
        config: Its config.
        stored: Its tensors.
        options: For building the model.

    Raises:
        StageError: A parameter is missing or has another shape, or a tensor belongs nowhere.
    """
    with torch.device("meta"):
        try:
            model = AutoModel.from_config(config, **options)
        except RuntimeError as error:  # nothing is allocated there: sizes that no tensor can have
            raise ValueError(first_line(error)) from error
    wanted = {name: parameter.shape for name, parameter in model.named_parameters()}
    missing = {name: None for name in wanted if not is_unused(name, _HEADS)}
    misshapen, unknown = [], []
    for tensor in stored:
        # Checkpoints with a head name the encoder; the oldest ones have LayerNorm's names from another library.
        name = tensor.name.removeprefix(f"{model.base_model_prefix}.")
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if is_unused(name, _HEADS):
            continue
        if name not in wanted:
            unknown.append(tensor.name)
            continue
        missing.pop(name, None)
        if tensor.shape != tuple(wanted[name]):
            misshapen.append((tensor.name, tensor.shape, wanted[name]))
    refuse_unfit(str(folder), misshapen, missing)
    refuse_unknown(folder, unknown)


def _tokenizer(folder: Path, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder.

    Raises:
        StageError: It is missing, broken or another model's, or its files do not agree.
    """
    tokenizer = transformers_tokenizer(folder)
    if not tokenizer.is_fast or tokenizer.cls_token_id is None or tokenizer.pad_token_id is None:
        raise StageError(f"{folder}: no fast tokenizer with CLS and padding tokens. Copy the whole model folder.")
    require_fitting_vocabulary(folder, vocabulary_size(tokenizer), config.vocab_size)
    known = tokenizer.get_vocab()
    # Words that it knows, in capitals: the settings that files disagree about mostly are those of capitals.
    words = sorted(word for word in known if word.isalpha())
    text = " ".join([_PROBE, *(word.upper() for word in words[:: max(1, len(words) // 50)])])
    ids = _encoded(folder, tokenizer, text)
    if (folder / "tokenizer.json").is_file():
        try:
            stored = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the tokenizers library raises nothing narrower
            raise StageError(f"{folder}: tokenizer.json cannot be read ({first_line(error)}).") from error
        stored.no_truncation()
        stored.no_padding()
        if stored.encode(text, add_special_tokens=False).ids != ids:
            raise StageError(
                f"{folder}: tokenizer.json and the other tokenizer files do not agree on capitals, accents or tokens. "
                "Copy the whole model folder."
            )
    capitals = sum(word != word.lower() for word in known if word[:1] not in "[<")
    as_small = _encoded(folder, tokenizer, "A") == _encoded(folder, tokenizer, "a")
    if as_small and "A" in known and "a" in known and capitals > _CAPITALS_SHARE * len(known):
        raise StageError(
            f"{folder}: the vocabulary has words with capitals, but the tokenizer makes them small: "
            "tokenizer_config.json is missing or another model's. Copy the whole model folder."
        )
    return tokenizer


def _encoded(folder: Path, tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids without special ones.

    Raises:
        StageError: The tokenizer lacks its own special tokens.
    """
    try:
        ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise StageError(f"{folder}: the tokenizer does not work ({first_line(error)}).") from error
    return ids
