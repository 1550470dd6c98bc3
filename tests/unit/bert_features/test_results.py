"""The text stage with a results store."""

import dataclasses
import os
import signal
import time

import pytest

from components.bert_features import results as results_module
from components.bert_features.encoder import Encoder
from components.bert_features.stage import run
from free2ds_common.datasets import open_dataset
from free2ds_common.schemas import TEXT_TURNS, text_messages_schema
from free2ds_common.stopping import Stopped
from tests.support.records import record_row, write_records
from tests.support.results import parts
from tests.unit.bert_features.test_stage import SAID, bert, configured, spy_on_passes, write_bert

__all__ = ["bert", "configured"]


@pytest.fixture
def config(configured, tmp_path):
    return configured(SAID, cache_uri=str(tmp_path / "store"))


def counts_and_tables(config):
    result = run(config)
    messages = open_dataset(config.features + "/messages", text_messages_schema(16))
    turns = open_dataset(config.features + "/turns", TEXT_TURNS)
    counts = {name: result.metrics[name] for name in ("reused", "computed")}
    for dataset in (messages, turns):
        assert {name: dataset.manifest[name] for name in counts} == counts
    return (counts["reused"], counts["computed"]), messages.table().to_pylist(), turns.table().to_pylist()


def test_a_second_run_computes_nothing_and_writes_the_same(config, monkeypatch):
    counts, messages, turns = counts_and_tables(config)
    assert counts == (0, 5)
    passes = spy_on_passes(monkeypatch)
    again, *same = counts_and_tables(config)
    assert again == (5, 0)
    assert same == [messages, turns]
    assert passes == []


def test_the_manifests_say_how_long_the_device_worked(config):
    before = time.monotonic()
    run(config)
    elapsed = time.monotonic() - before
    (seconds,) = {
        open_dataset(f"{config.features}/{name}", schema).manifest["device_seconds"]
        for name, schema in (("messages", text_messages_schema(16)), ("turns", TEXT_TURNS))
    }
    assert 0 < seconds <= elapsed


def test_without_a_store_everything_is_computed(config):
    off = dataclasses.replace(config, cache_uri="")
    assert counts_and_tables(off)[0] == counts_and_tables(off)[0] == (0, 5)


def test_more_messages_compute_what_is_new(config, tmp_path, monkeypatch):
    run(config)
    said = [["a new one"], *reversed(SAID)]
    rows = [record_row(number, messages=messages) for number, messages in enumerate(said, start=1)]
    grown = dataclasses.replace(config, records=write_records(tmp_path / "grown", rows))
    passes = spy_on_passes(monkeypatch)
    counts, messages, _ = counts_and_tables(grown)
    assert counts == (5, 1)
    assert len(passes) == 1
    assert messages == counts_and_tables(dataclasses.replace(grown, cache_uri=""))[1]


@pytest.mark.parametrize("what", ["weights", "dtype", "version"])
def test_what_decides_an_embedding(config, tmp_path, monkeypatch, what):
    run(config)
    changes = {}
    if what == "weights":
        folder = write_bert(tmp_path / "other", 40)
        (folder / "extra.json").write_text("{}")
        changes = {"model": str(folder)}
    elif what == "dtype":
        changes = {"dtype": "bfloat16"}
    else:
        monkeypatch.setattr(results_module, "EMBEDDING_VERSION", 2)
    assert counts_and_tables(dataclasses.replace(config, **changes))[0] == (0, 5)


def test_what_decides_nothing(config):
    run(config)
    assert counts_and_tables(dataclasses.replace(config, batch_tokens=1, revision="v2"))[0] == (5, 0)


def test_unknown_words_of_results_that_are_there_count_as_ever(configured, tmp_path):
    """One of four words; one with a new message that would be refused alone: two of five."""
    config = configured([["zebra what is red"]], cache_uri=str(tmp_path / "store"))
    assert run(config).metrics["unknown_token_share"] == 1 / 4
    assert run(config).metrics["unknown_token_share"] == 1 / 4
    rows = [record_row(1, messages=["zebra what is red", "zebra"])]
    more = dataclasses.replace(config, records=write_records(tmp_path / "more", rows))
    assert run(more).metrics["unknown_token_share"] == 2 / 5


def test_sigterm_keeps_what_is_computed(config, monkeypatch):
    embed, calls = Encoder.embed, []

    def stopped(self, tokens, batch):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return embed(self, tokens, batch)

    monkeypatch.setattr(Encoder, "embed", stopped)
    with pytest.raises(Stopped, match="stopped as asked to; 2 new results are kept: run again to go on"):
        run(dataclasses.replace(config, batch_tokens=1))
    assert len(parts(config.cache_uri)) == 1
    monkeypatch.undo()
    assert counts_and_tables(config)[0] == (2, 3)
