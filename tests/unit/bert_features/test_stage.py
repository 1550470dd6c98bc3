import dataclasses
import itertools
import json
import logging
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from components.bert_features.batching import token_batches
from components.bert_features.config import BertFeaturesConfig
from components.bert_features.encoder import Encoder
from components.bert_features.stage import run
from free2ds_common.datasets import DatasetWriter, open_dataset
from free2ds_common.errors import StageError
from free2ds_common.inference.device import device_name
from free2ds_common.schemas import RECORDS, TEXT_TURNS, text_messages_schema
from tests.support.records import record_row, write_records
from tests.support.text import minilm_folder

WORDS = ["what", "is", "in", "the", "picture", "how", "many", "cats", "are", "there", "red", "blue", "green", "?"]
SAID = [["what is in the picture ?", "how many cats ?"], ["what is in the picture ?"], [""], ["red " * 60, "blue"]]


def write_bert(folder, positions):
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=5 + len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=positions,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("bert"), 40)


@pytest.fixture
def configured(bert, tmp_path):
    """A config for records that say what is given, by default with the tiny model."""

    def build(said, **settings):
        rows = [record_row(number, messages=messages) for number, messages in enumerate(said, start=1)]
        records = write_records(tmp_path / "records", rows)
        given = {"model": str(bert), "batch_tokens": 64, **settings}
        return BertFeaturesConfig(records=records, features=str(tmp_path / "features"), **given)

    return build


@pytest.fixture
def config(configured):
    return configured(SAID)


def spy_on_passes(monkeypatch):
    """Token counts of the messages of every forward pass, as they come."""
    passes = []
    embed = Encoder.embed

    def spy(self, tokens, batch):
        passes.append(tokens.lengths[batch].tolist())
        return embed(self, tokens, batch)

    monkeypatch.setattr(Encoder, "embed", spy)
    return passes


def tables(config, dimensions=16):
    messages = open_dataset(config.features + "/messages", text_messages_schema(dimensions)).table().to_pylist()
    turns = open_dataset(config.features + "/turns", TEXT_TURNS).table().to_pylist()
    return {row["message"]: row for row in messages}, turns


def test_each_distinct_message_once_and_who_said_it(config):
    result = run(config)
    messages, turns = tables(config)
    assert set(messages) == {"what is in the picture ?", "how many cats ?", "", "red " * 60, "blue"}
    assert open_dataset(config.features + "/messages", text_messages_schema(16)).num_rows == 5
    assert [(turn["unique_id"], turn["turn"]) for turn in turns] == [(1, 0), (1, 1), (2, 0), (3, 0), (4, 0), (4, 1)]
    assert turns[0]["message_key"] == turns[2]["message_key"] == messages["what is in the picture ?"]["message_key"]
    assert (result.metrics["turns"], result.metrics["distinct_messages"]) == (6, 5)
    assert (result.counts.read, result.counts.written) == (4, 4)


def cls_of(model, tokenizer, text, max_length):
    """transformers' own CLS vector of a single message."""
    inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=max_length)
    with torch.inference_mode():
        return model(**inputs).last_hidden_state[0, 0].numpy()


@pytest.mark.parametrize("batch_tokens", [1, 10_000])
def test_messages_of_very_different_lengths_share_no_pass(config, monkeypatch, batch_tokens):
    passes = spy_on_passes(monkeypatch)
    run(dataclasses.replace(config, batch_tokens=batch_tokens))
    # Tokens with CLS and SEP, the longest cut at the model's 40 positions; 8 and 6 together would be 1/8 padding.
    assert passes == [[40], [8], [6], [3], [2]]


@pytest.mark.parametrize(("batch_tokens", "sizes"), [(1, [1] * 7), (8, [2, 2, 2, 1]), (15, [3, 3, 1]), (28, [7])])
def test_batch_tokens_decides_the_passes_and_not_the_embeddings(configured, bert, monkeypatch, batch_tokens, sizes):
    # Seven messages of four tokens with CLS and SEP.
    said = [[f"{first} {second}"] for first, second in itertools.pairwise(WORDS[:8])]
    config = configured(said, batch_tokens=batch_tokens)
    seen = spy_on_passes(monkeypatch)
    run(config)
    assert [len(lengths) for lengths in seen] == sizes
    messages, _ = tables(config)
    model, tokenizer = BertModel.from_pretrained(bert).eval(), BertTokenizerFast.from_pretrained(bert)
    for text, row in messages.items():
        np.testing.assert_allclose(row["embedding"], cls_of(model, tokenizer, text, 40), atol=1e-5)


def test_embeddings_are_the_models_cls_neither_pooled_nor_normalised(config, bert):
    run(config)
    messages, _ = tables(config)
    model, tokenizer = BertModel.from_pretrained(bert).eval(), BertTokenizerFast.from_pretrained(bert)
    for text, row in messages.items():
        np.testing.assert_allclose(row["embedding"], cls_of(model, tokenizer, text, 40), atol=1e-5)
        # The last layer ends in a LayerNorm whose weights are 1 and 0: 16 numbers of variance 1.
        assert np.linalg.norm(row["embedding"]) == pytest.approx(4, abs=1e-3)


def test_a_real_model_in_windows_and_batches(configured, monkeypatch):
    """MiniLM's word pieces, 512 positions and a pooling layer, which is left out."""
    monkeypatch.setattr("components.bert_features.batching._FIRST_WINDOW", 2)
    monkeypatch.setattr("components.bert_features.batching._WINDOW", 4)
    said = [
        ["What is the man in the photograph holding?", "Why?"],
        ["Describe the image briefly.", "Zähle die unregelmäßig verteilten Fahrräder."],
        ["What is the woman in the photograph holding?"],
        ["Count the antidisestablishmentarianism placards. " * 5],
    ]
    folder = str(minilm_folder())
    config = configured(said, model=folder, batch_tokens=2048, dtype="float32")
    assert run(config).metadata["max_tokens"] == 512
    messages, _ = tables(config, 384)
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    assert set(messages) == {message for turns in said for message in turns}
    for text, row in messages.items():
        np.testing.assert_allclose(row["embedding"], cls_of(model, tokenizer, text, 512), atol=1e-5)


def test_messages_are_cut_at_512_tokens(configured, tmp_path):
    """510 words between CLS and SEP count, although the model has 600 positions."""
    words = ["red", "blue"] * 300
    cut, whole = " ".join(words[:510]), " ".join(words[:550])
    shorter = " ".join(words[:509])
    config = configured([[cut], [whole], [shorter]], model=str(write_bert(tmp_path / "long", 600)))
    assert run(config).metadata["max_tokens"] == 512
    messages, _ = tables(config)
    np.testing.assert_allclose(messages[whole]["embedding"], messages[cut]["embedding"], atol=1e-6)
    assert np.abs(np.subtract(messages[shorter]["embedding"], messages[cut]["embedding"])).max() > 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {"_FIRST_WINDOW": 1, "_WINDOW": 1},
        {"_FIRST_WINDOW": 1, "_WINDOW": 3},
        {"_FIRST_WINDOW": 2, "_WINDOW": 5},
        {"_FIRST_WINDOW": 5},
        {"_WINDOW_CHARACTERS": 30},
    ],
)
def test_windows_do_not_change_what_is_written(config, monkeypatch, settings):
    run(config)
    wanted, wanted_turns = tables(config)
    for setting, value in settings.items():
        monkeypatch.setattr(f"components.bert_features.batching.{setting}", value)
    result = run(config)
    messages, turns = tables(config)
    assert list(messages) == list(wanted)
    assert turns == wanted_turns
    assert (result.metrics["turns"], result.metrics["distinct_messages"]) == (6, 5)
    for text, row in messages.items():
        np.testing.assert_allclose(row["embedding"], wanted[text]["embedding"], atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "windows"),
    [
        ({}, [5]),
        ({"_FIRST_WINDOW": 1, "_WINDOW": 3}, [1, 3, 1]),
        # The messages have 24, 15, 0, 240 and 4 characters.
        ({"_WINDOW_CHARACTERS": 30}, [2, 2, 1]),
    ],
)
def test_windows_are_limited_in_messages_and_in_characters(config, monkeypatch, settings, windows):
    sizes = []
    tokenize = Encoder.tokenize

    def spy(self, messages):
        sizes.append(len(messages))
        return tokenize(self, messages)

    monkeypatch.setattr(Encoder, "tokenize", spy)
    for setting, value in settings.items():
        monkeypatch.setattr(f"components.bert_features.batching.{setting}", value)
    run(config)
    assert sizes == windows


def test_progress_moves_within_a_window(config, monkeypatch):
    reported = []
    monkeypatch.setattr("components.bert_features.stage.Progress.add", lambda self, count: reported.append(count))
    run(dataclasses.replace(config, batch_tokens=1))
    assert len(reported) == 5
    assert sum(reported) == 4


def test_a_failure_leaves_no_finished_folder(config, monkeypatch):
    monkeypatch.setattr(
        "components.bert_features.encoder.Encoder.embed",
        lambda self, tokens, chosen: np.full((len(chosen), 16), np.nan, np.float32),
    )
    message = r"the model gave NaN or infinite embeddings in float32\. Try dtype float32"
    with pytest.raises(StageError, match=message):
        run(config)
    for name, schema in (("turns", TEXT_TURNS), ("messages", text_messages_schema(16))):
        with pytest.raises(StageError, match=r"no _manifest\.json"):
            open_dataset(f"{config.features}/{name}", schema)


@pytest.mark.parametrize("setting", ["CPU_ACTIVATION_BYTES", "CPU_ACTIVATION_BYTES_PER_THREAD"])
def test_a_pass_on_a_cpu_has_an_upper_size(configured, monkeypatch, setting):
    threads = torch.get_num_threads() if setting.endswith("THREAD") else 1
    monkeypatch.setattr(f"components.bert_features.encoder.{setting}", 4 * 16 * 16 * 50 // threads)
    passes = spy_on_passes(monkeypatch)
    # Thirteen messages of four tokens, of which twelve fit into 50.
    run(configured([[f"{first} {second}" for first, second in itertools.pairwise(WORDS)]], batch_tokens=1_000_000))
    assert [len(lengths) for lengths in passes] == [12, 1]


def test_roberta_has_fewer_positions_than_its_config_says(config, bert, tmp_path):
    """Those up to the padding token's number are not for tokens; the longest message would run over the end."""
    folder = tmp_path / "roberta"
    shutil.copytree(bert, folder, ignore=shutil.ignore_patterns("model.safetensors", "config.json"))
    sizes = BertConfig.from_pretrained(bert).to_dict()
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    roberta = RobertaConfig(**{name: sizes[name] for name in names}, max_position_embeddings=42, pad_token_id=1)
    RobertaModel(roberta, add_pooling_layer=False).save_pretrained(folder)
    result = run(dataclasses.replace(config, model=str(folder)))
    assert result.metadata["max_tokens"] == 40
    assert result.metrics["distinct_messages"] == 5


def test_parts_are_of_the_same_records_whatever_their_path(config, tmp_path):
    run(config)
    wanted = open_dataset(config.features + "/turns", TEXT_TURNS).manifest["records_sha256"]
    moved = shutil.copytree(config.records, tmp_path / "elsewhere")
    run(dataclasses.replace(config, records=str(moved)))
    assert open_dataset(config.features + "/turns", TEXT_TURNS).manifest["records_sha256"] == wanted
    rows = list(open_dataset(moved, RECORDS).rows())
    with DatasetWriter(moved, RECORDS) as writer:
        writer.write([{**row, "source": "other"} for row in rows])
    run(dataclasses.replace(config, records=str(moved)))
    assert open_dataset(config.features + "/turns", TEXT_TURNS).manifest["records_sha256"] != wanted


def test_parts_together_are_the_whole(config):
    run(config)
    whole, turns = tables(config)
    found, said = {}, []
    for part in ("0/3", "1/3", "2/3"):
        run(dataclasses.replace(config, part=part))
        messages, some = tables(config)
        assert not set(messages) & set(found)
        found |= messages
        said += some
    assert {text: row["message_key"] for text, row in found.items()} == {
        t: row["message_key"] for t, row in whole.items()
    }
    assert sorted(map(str, said)) == sorted(map(str, turns))


def test_token_batches_take_every_row_once_with_little_padding():
    lengths = np.random.default_rng(0).integers(3, 60, size=5000)
    batches = list(token_batches(lengths, 1024))
    assert sorted(np.concatenate(batches)) == list(range(5000))
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded <= lengths.sum() / 0.95
    assert all(len(batch) * lengths[batch].max() <= 1024 for batch in batches)


def test_longer_than_a_batch_is_a_batch_of_its_own():
    assert [sorted(batch) for batch in token_batches(np.array([5, 90, 5]), 10)] == [[1], [0, 2]]


@pytest.mark.parametrize("part", ["", "1", "1/1", "2/2", "-1/2", "a/b", "0/0"])
def test_wrong_parts(part):
    with pytest.raises(StageError, match="wanted i/n with i from 0 to n - 1"):
        BertFeaturesConfig(records="", features="", part=part).check()


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("records", "/nowhere", "no _manifest.json"),
        ("model", "/nowhere", "model: /nowhere is no folder"),
        ("batch_tokens", 0, "batch_tokens: got 0, wanted a number of at least 1"),
        ("dtype", "int8", "dtype: got 'int8'"),
    ],
)
def test_wrong_settings(config, setting, value, message):
    with pytest.raises(StageError, match=message):
        run(dataclasses.replace(config, **{setting: value}))


def broken(bert, tmp_path, change):
    folder = tmp_path / "broken"
    folder.mkdir()
    for file in bert.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    change(folder)
    return str(folder)


def another_architecture(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def torn_weights(folder):
    (folder / "model.safetensors").write_bytes(b"torn")


def another_depth(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (another_architecture, "model type gpt2, wanted one of bert"),
        (no_weights, r"no weights \(wanted safetensors or .bin files\)"),
        (torn_weights, "model.safetensors: cannot be read as weights"),
        (another_depth, "no weights for .*layer.2.*The checkpoint is incomplete"),
    ],
)
def test_unusable_models(config, bert, tmp_path, change, message):
    with pytest.raises(StageError, match=message):
        run(dataclasses.replace(config, model=broken(bert, tmp_path, change)))


def uncased(folder):
    """A folder's files that are of the tokenizer, with the vocabulary alone left."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    return folder / "vocab.txt"


def no_tokenizer(folder):
    uncased(folder).unlink()


def empty_vocabulary(folder):
    uncased(folder).write_text("")


def only_special_tokens(folder):
    uncased(folder).write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    grow(folder, 200)


def cut_vocabulary(folder):
    uncased(folder)
    grow(folder, 200)


def larger_vocabulary(folder):
    vocabulary = uncased(folder)
    vocabulary.write_text(vocabulary.read_text() + "\none\nmore")


def pointer(folder):
    uncased(folder).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def other_capitals(folder):
    """tokenizer.json keeps capitals, tokenizer_config.json does not."""
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(content))


def capitals_without_settings(folder):
    """vocab.txt of a model that tells capitals apart, without the file that says so."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "A", "a", "What", "The", "what", "the", *"BCDEFGHI"]
    uncased(folder).write_text("\n".join(words))


def no_padding_token(folder):
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def grow(folder, rows):
    """Give the model an embedding of so many rows."""
    state = load_file(folder / "model.safetensors")
    state["embeddings.word_embeddings.weight"] = torch.zeros(rows, 16)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            no_tokenizer,
            r"no tokenizer \(wanted tokenizer.json, tokenizer.model, vocab.txt, .*Copy the whole model folder",
        ),
        (empty_vocabulary, r"the tokenizer has \d tokens, but config.json's vocab_size is 19"),
        (only_special_tokens, "the tokenizer has 5 tokens, but config.json's vocab_size is 200"),
        (cut_vocabulary, "the tokenizer has 19 tokens, but config.json's vocab_size is 200"),
        (larger_vocabulary, "the tokenizer has 21 tokens, but config.json's vocab_size is 19"),
        (pointer, r"vocab\.txt: a Git LFS pointer, not the file\. Run git lfs pull"),
        (other_capitals, "tokenizer.json and the other tokenizer files do not agree"),
        (capitals_without_settings, "the vocabulary has words with capitals, but the tokenizer makes them small"),
        (no_padding_token, "no fast tokenizer with CLS and padding tokens"),
    ],
)
def test_tokenizers_that_are_not_the_models(config, bert, tmp_path, change, message):
    with pytest.raises(StageError, match=message):
        run(dataclasses.replace(config, model=broken(bert, tmp_path, change)))


@pytest.mark.parametrize("kept", [("tokenizer.json",), ("vocab.txt",), ("tokenizer.json", "tokenizer_config.json")])
def test_every_layout_of_the_tokenizer_gives_the_same_embeddings(config, bert, tmp_path, kept):
    run(config)
    wanted, _ = tables(config)

    def keep(folder):
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
            if name not in kept:
                (folder / name).unlink(missing_ok=True)

    run(dataclasses.replace(config, model=broken(bert, tmp_path, keep)))
    found, _ = tables(config)
    assert {text: row["embedding"] for text, row in found.items()} == {
        text: row["embedding"] for text, row in wanted.items()
    }


def test_names_and_heads_of_older_checkpoints(config, bert, tmp_path):
    """Pre-training's names, with LayerNorm's gamma and beta, and the layers on top of the encoder."""
    run(config)
    wanted, _ = tables(config)

    def rename(folder):
        state = load_file(folder / "model.safetensors")
        old = {
            "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
            for name, t in state.items()
        }
        heads = ("cls.predictions.bias", "cls.seq_relationship.weight", "bert.pooler.dense.weight")
        old |= {name: torch.ones(2) for name in heads} | {"bert.embeddings.position_ids": torch.arange(40)[None]}
        save_file(old, folder / "model.safetensors", {"format": "pt"})

    run(dataclasses.replace(config, model=broken(bert, tmp_path, rename)))
    found, _ = tables(config)
    assert {text: row["embedding"] for text, row in found.items()} == {
        text: row["embedding"] for text, row in wanted.items()
    }


def test_a_data_set_of_unknown_words_fails_before_the_model_runs(configured, monkeypatch):
    passes = spy_on_passes(monkeypatch)
    config = configured([["Welche Farbe hat das Auto ?"], ["red", ""]])
    with pytest.raises(StageError, match=r"71% of 7 tokens are unknown words \(at most 50% wanted\)"):
        run(config)
    assert passes == []


def test_unknown_words_after_the_first_window(configured, monkeypatch):
    monkeypatch.setattr("components.bert_features.batching._FIRST_WINDOW", 1)
    with pytest.raises(StageError, match="70% of 10 tokens are unknown words"):
        run(configured([["red blue green"], ["alle meine Entchen schwimmen auf dem See"]]))


def test_some_unknown_words_are_a_warning(configured, caplog):
    result = run(configured([["what Auto is red ?"]]))
    assert result.metrics["unknown_token_share"] == 0.2
    assert [message for message in caplog.messages if message.startswith("20% of 5 tokens are unknown words")]


def test_a_required_gpu_is_looked_for_first(config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(StageError, match="require_gpu: there is no GPU here"):
        run(dataclasses.replace(config, records="/nowhere", model="/nowhere", require_gpu=True))


def test_the_device_is_logged_and_recorded(config, caplog):
    caplog.set_level(logging.INFO)
    device = device_name(torch.device("cpu"))
    assert run(config).metadata["device"] == device
    assert f"{config.model} runs on: {device}" in caplog.messages
    for name, schema in (("turns", TEXT_TURNS), ("messages", text_messages_schema(16))):
        assert open_dataset(f"{config.features}/{name}", schema).manifest["device"] == device
