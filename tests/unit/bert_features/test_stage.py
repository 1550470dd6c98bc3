import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast, RobertaConfig, RobertaModel

from components.bert_features.config import BertFeaturesConfig
from components.bert_features.encoder import Encoder
from components.bert_features.stage import run, token_batches
from free2ds_common.datasets import DatasetWriter, open_dataset
from free2ds_common.errors import StageError
from free2ds_common.schemas import RECORDS, TEXT_TURNS, text_messages_schema

WORDS = "what is in the picture how many cats are there red blue green ?".split()
SAID = [["what is in the picture ?", "how many cats ?"], ["what is in the picture ?"], [""], ["red " * 60, "blue"]]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=5 + len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=40,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture
def config(bert, tmp_path):
    rows = [
        dict(unique_id=number, record_key=f"k{number}", image=None, source="s", question=None, messages=said, raw="{}")
        for number, said in enumerate(SAID, start=1)
    ]
    with DatasetWriter(tmp_path / "records", RECORDS) as writer:
        writer.write(rows)
    return BertFeaturesConfig(
        records=str(tmp_path / "records"), model=str(bert), batch_tokens=64, features=str(tmp_path / "features")
    )


def tables(config):
    messages = open_dataset(config.features + "/messages", text_messages_schema(16)).table().to_pylist()
    turns = open_dataset(config.features + "/turns", TEXT_TURNS).table().to_pylist()
    return {row["message"]: row for row in messages}, turns


def test_each_distinct_message_once_and_who_said_it(config):
    result = run(config)
    messages, turns = tables(config)
    assert set(messages) == {"what is in the picture ?", "how many cats ?", "", "red " * 60, "blue"}
    assert [(turn["unique_id"], turn["turn"]) for turn in turns] == [(1, 0), (1, 1), (2, 0), (3, 0), (4, 0), (4, 1)]
    assert turns[0]["message_key"] == turns[2]["message_key"] == messages["what is in the picture ?"]["message_key"]
    assert (result.metrics["turns"], result.metrics["distinct_messages"]) == (6, 5)
    assert (result.counts.read, result.counts.written) == (4, 4)


@pytest.mark.parametrize("batch_tokens", [1, 16, 10_000])
def test_embeddings_are_the_models_cls_whatever_the_batch(config, bert, batch_tokens):
    run(dataclasses.replace(config, batch_tokens=batch_tokens))
    messages, _ = tables(config)
    model, tokenizer = BertModel.from_pretrained(bert).eval(), BertTokenizerFast.from_pretrained(bert)
    for text, row in messages.items():
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=40)
        with torch.inference_mode():
            wanted = model(**inputs).last_hidden_state[0, 0].numpy()
        np.testing.assert_allclose(row["embedding"], wanted, atol=1e-5)


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
        monkeypatch.setattr(f"components.bert_features.stage.{setting}", value)
    result = run(config)
    messages, turns = tables(config)
    assert list(messages) == list(wanted) and turns == wanted_turns
    assert (result.metrics["turns"], result.metrics["distinct_messages"]) == (6, 5)
    for text, row in messages.items():
        np.testing.assert_allclose(row["embedding"], wanted[text]["embedding"], atol=1e-6)


def test_progress_moves_within_a_window(config, monkeypatch):
    reported = []
    monkeypatch.setattr("components.bert_features.stage.Progress.add", lambda self, count: reported.append(count))
    run(dataclasses.replace(config, batch_tokens=1))
    assert len(reported) == 5 and sum(reported) == 4


def test_a_failure_leaves_no_finished_folder(config, monkeypatch):
    monkeypatch.setattr(
        "components.bert_features.encoder.Encoder.embed",
        lambda self, tokens, chosen: np.full((len(chosen), 16), np.nan, np.float32),
    )
    with pytest.raises(RuntimeError, match="NaN or infinite embeddings; try --dtype float32"):
        run(config)
    for name, schema in (("turns", TEXT_TURNS), ("messages", text_messages_schema(16))):
        with pytest.raises(StageError, match="no _manifest.json"):
            open_dataset(f"{config.features}/{name}", schema)


@pytest.mark.parametrize("setting", ["CPU_ACTIVATION_BYTES", "CPU_ACTIVATION_BYTES_PER_THREAD"])
def test_a_pass_on_a_cpu_has_an_upper_size(config, monkeypatch, setting):
    threads = torch.get_num_threads() if setting.endswith("THREAD") else 1
    monkeypatch.setattr(f"components.bert_features.encoder.{setting}", 4 * 16 * 16 * 50 // threads)
    sizes = []
    embed = Encoder.embed
    monkeypatch.setattr(
        Encoder,
        "embed",
        lambda self, tokens, chosen: (sizes.append(tokens.lengths[chosen]), embed(self, tokens, chosen))[1],
    )
    run(dataclasses.replace(config, batch_tokens=1_000_000))
    assert sum(map(len, sizes)) == 5 and all(len(lengths) * lengths.max() <= 50 for lengths in sizes)


def test_roberta_has_fewer_positions_than_its_config_says(config, bert, tmp_path):
    """Those up to the padding token's number are not for tokens; the longest message would run over the end."""
    folder = tmp_path / "roberta"
    shutil.copytree(bert, folder, ignore=shutil.ignore_patterns("model.safetensors", "config.json"))
    sizes = BertConfig.from_pretrained(bert).to_dict()
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    roberta = RobertaConfig(**{name: sizes[name] for name in names}, max_position_embeddings=42, pad_token_id=1)
    RobertaModel(roberta, add_pooling_layer=False).save_pretrained(folder)
    result = run(dataclasses.replace(config, model=str(folder)))
    assert result.metadata["max_tokens"] == 40 and result.metrics["distinct_messages"] == 5


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
        (no_weights, "cannot be loaded as a BERT encoder"),
        (torn_weights, "cannot be loaded as a BERT encoder"),
        (another_depth, "no weights for .*layer.2.*The checkpoint is incomplete"),
    ],
)
def test_unusable_models(config, bert, tmp_path, change, message):
    with pytest.raises(StageError, match=message):
        run(dataclasses.replace(config, model=broken(bert, tmp_path, change)))
