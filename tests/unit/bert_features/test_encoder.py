import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from components.bert_features.batching import token_batches
from components.bert_features.encoder import Encoder, Tokens, load_encoder
from tests.support.text import minilm_folder

SIZES = dict(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=40,
    pad_token_id=1,
    embedding_size=16,
)
DISTILBERT = dict(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=40)
MODELS = [
    ("bert", SIZES),
    ("bert", {**SIZES, "hidden_act": "relu"}),
    ("bert", {**SIZES, "num_hidden_layers": 1}),
    ("bert", {**SIZES, "num_hidden_layers": 4}),
    ("bert", {**SIZES, "is_decoder": True}),
    ("electra", SIZES),
    ("electra", {**SIZES, "embedding_size": 8}),
    ("roberta", SIZES),
    ("xlm-roberta", SIZES),
    ("mpnet", SIZES),
    ("distilbert", {**DISTILBERT, "pad_token_id": 1}),
]


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kind", "settings"), MODELS)
@torch.inference_mode()
def test_gives_the_plain_models_cls_for_every_kind(monkeypatch, kind, settings, dtype, capability):
    # Weights are packed with AVX-512 only; the packed product runs everywhere.
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **settings)).eval()
    for parameter in model.parameters():
        parameter.normal_(0, 0.5)
    model = model.to(dtype)
    rows = [torch.randint(2, 50, (length,)) for length in (3, 16, 16, 1, 21)]
    wanted = np.stack([model(row[None]).last_hidden_state[0, 0].float() for row in rows])
    lengths = np.array([len(row) for row in rows])
    tokens = Tokens(torch.cat(rows).numpy(), np.cumsum(lengths) - lengths, lengths)
    encoder = Encoder(copy.deepcopy(model), SimpleNamespace(pad_token_id=1), 40)
    # A vector of the CPU's attention kernel holds 16 tokens: below, exactly and above, with padding and without.
    for chosen in ([0, 1, 2, 3, 4], [2, 1], [0], [3, 3, 3], [4, 4, 4]):
        found = encoder.embed(tokens, np.array(chosen))
        np.testing.assert_allclose(found, wanted[chosen], atol=1e-5)
    assert np.abs(wanted[0] - wanted[1]).max() > 0.01


@torch.inference_mode()
def test_passes_of_many_lengths_multiply_few_sizes():
    """oneDNN compiles a kernel for each number of rows."""
    model = AutoModel.from_config(AutoConfig.for_model("bert", **{**SIZES, "num_hidden_layers": 3})).eval()
    seen = {"layers": set(), "last": set()}
    for layer in model.encoder.layer:
        where = seen["last" if layer is model.encoder.layer[-1] else "layers"]
        layer.intermediate.dense.register_forward_pre_hook(lambda _, inputs, where=where: where.add(len(inputs[0])))
    encoder = Encoder(model, SimpleNamespace(pad_token_id=1), 40)
    for length in range(1, 41):
        count = 400 // length
        tokens = Tokens(np.full(count * length, 7), np.arange(count) * length, np.full(count, length))
        assert encoder.embed(tokens, np.arange(count)).shape == (count, 16)
    assert seen["layers"] <= {384, 416, 448}
    assert {rows % 16 for rows in seen["last"]} == {0}


@pytest.fixture(scope="module")
def minilm():
    return load_encoder(minilm_folder(), "float32", torch.device("cpu"))


def embedded(encoder, messages):
    """Embeddings of token ids, as bytes, in batches of at most 1,024 tokens."""
    lengths = np.array([len(message) for message in messages])
    tokens = Tokens(np.concatenate(messages), np.cumsum(lengths) - lengths, lengths)
    found = [b""] * len(messages)
    for batch in token_batches(encoder.padded_lengths(lengths), 1024):
        for place, row in zip(batch, encoder.embed(tokens, batch), strict=True):
            found[place] = row.tobytes()
    return found


@pytest.fixture(scope="module")
def messages():
    rng = np.random.default_rng(0)
    return [rng.integers(1000, 20_000, size=length) for length in rng.integers(3, 60, size=150)]


@pytest.mark.parametrize("seed", [1, 2])
def test_an_embedding_does_not_depend_on_the_other_messages(minilm, messages, seed):
    whole = embedded(minilm, messages)
    some = np.random.default_rng(seed).permutation(len(messages))[:70]
    assert embedded(minilm, [messages[number] for number in some]) == [whole[number] for number in some]


def test_an_embedding_does_not_depend_on_the_number_of_threads(minilm, messages):
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(embedded(minilm, messages))
    finally:
        torch.set_num_threads(before)
    assert found[1] == found[0]
    assert found[2] == found[0]


def test_padding_is_a_function_of_the_length_and_at_most_a_twentieth(minilm):
    padded = minilm.padded_lengths(np.arange(513))
    assert (padded >= np.arange(513)).all()
    assert (np.arange(513) >= 0.95 * padded).all()
    # One token more from 19 on: 19 of 20 are no more than a twentieth short.
    assert padded[[1, 19, 20, 21, 22, 512]].tolist() == [1, 20, 20, 22, 22, 512]
