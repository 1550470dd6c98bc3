import dataclasses
import json
import logging
import re
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from free2ds_common.checkpoints import fingerprint
from free2ds_common.datasets import DatasetWriter, open_dataset
from free2ds_common.errors import StageError
from free2ds_common.inference.attention_results import terse_metadata
from free2ds_common.inference.attention_stage import run_attention
from free2ds_common.inference.capture import KeyValueCache
from free2ds_common.inference.device import device_name
from free2ds_common.inference.prompts import INSTRUCTION
from free2ds_common.launch.limits import COLLECTED_METADATA_BYTES
from free2ds_common.schemas import RECORDS, attention_schema
from tests.support.selection import change_manifest

LOGGER = logging.getLogger("test")
SAYS = (
    "model",
    "revision",
    "model_fingerprint",
    "prompt",
    "max_new_tokens",
    "preprocessing",
    "dtype",
    "grid",
    "capture_version",
)


def rows_of(config):
    return list(open_dataset(config.attention, attention_schema()).rows())


ROWS = [
    ("a.png", "What is it?"),
    (None, "Write a poem."),
    ("a.png", "Why so?\n<image>"),
    ("b.png", None),
    ("b.png", "How many are there in the picture?"),
    ("c.png", "word " * 200),
    ("c.png", "Where?"),
]


def test_one_row_per_record_in_the_shards_order(config, load_tiny, write_shard):
    shard, root = write_shard(ROWS)
    config = dataclasses.replace(config, shard=shard, image_root_uri=root)
    result = run_attention(config, "S", load_tiny, LOGGER)
    rows = rows_of(config)
    assert [row["unique_id"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["record_key"] for row in rows] == [f"key{number}" for number in range(1, 8)]
    outcomes = [row["outcome"] for row in rows]
    assert [outcomes[index] for index in (1, 3, 5)] == ["text_only", "no_question", "prompt_too_long"]
    assert {outcomes[index] for index in (0, 2, 4, 6)} <= {"ok", "eos_only"}
    for row in rows:
        assert (row["map"] is None) == (row["outcome"] != "ok")
        assert row["map"] is None or sum(row["map"]) == pytest.approx(1, abs=1e-5)
        assert (row["num_steps"] == 0) == (row["outcome"] in ("text_only", "no_question", "prompt_too_long"))
    assert (result.counts.read, result.counts.written, result.counts.rejected) == (7, 7, 0)
    assert sum(result.metadata["outcomes"].values()) == 7


class TestTerse:
    """What an artifact carries: 128 of them come together in one input."""

    @pytest.fixture
    def terse(self, config, load_tiny, write_shard):
        def of(shard_facts):
            shard, root = write_shard(ROWS)
            change_manifest(shard, **shard_facts)
            result = run_attention(
                dataclasses.replace(config, shard=shard, image_root_uri=root), "S", load_tiny, LOGGER
            )
            return result.terse, result.metadata["model_fingerprint"]

        return of

    def test_name_fingerprint_and_rows(self, terse):
        found, fingerprint = terse({"shard": 2, "num_shards": 64})
        assert re.fullmatch("sha256 [0-9a-f]{64}(, sha256 [0-9a-f]{64})*", fingerprint)
        assert found == {
            "display_name": "LLaVA attention, shard 3 of 64",
            "fingerprint": ", ".join(part[: len("sha256 ") + 12] for part in fingerprint.split(", ")),
            "rows": 7,
        }

    def test_records_that_are_no_shard(self, terse):
        assert terse({})[0]["display_name"] == "LLaVA attention"

    def test_is_short(self):
        """MGM has three folders; the last shard of the largest data set."""
        three = ", ".join(["sha256 " + "0" * 64] * 3)
        terse = terse_metadata("MGM attention, shard 64 of 64", {"model_fingerprint": three}, 665_298)
        assert len(json.dumps(terse)) <= COLLECTED_METADATA_BYTES


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_batch_size_does_not_change_maps(config, load_tiny, write_shard, batch_size):
    shard, root = write_shard([(f"{number % 3}.png", "why " * (number + 1)) for number in range(9)])
    config = dataclasses.replace(config, shard=shard, image_root_uri=root)
    run_attention(config, "S", load_tiny, LOGGER)
    wanted = rows_of(config)
    run_attention(dataclasses.replace(config, batch_size=batch_size), "S", load_tiny, LOGGER)
    for one, other in zip(wanted, rows_of(config), strict=True):
        assert one["num_steps"] == other["num_steps"]
        assert one["map"] == pytest.approx(other["map"], abs=1e-6) if one["map"] else other["map"] is None


def test_manifest_says_what_decided_the_maps(config, load_tiny, write_shard):
    shard, root = write_shard([("a.png", "Q?")])
    config = dataclasses.replace(config, shard=shard, image_root_uri=root)
    run_attention(config, "S", load_tiny, LOGGER)
    manifest = json.loads((open_dataset(config.attention, attention_schema()).folder / "_manifest.json").read_text())
    found = {name: manifest[name] for name in SAYS}
    assert found == {
        "model": config.model,
        "revision": "main",
        "model_fingerprint": fingerprint(config.model),
        "prompt": {"style": "method", "system": "S", "instruction": INSTRUCTION},
        "max_new_tokens": 6,
        "preprocessing": {"size": 24},
        "dtype": "float32",
        "grid": 24,
        "capture_version": 1,
    }
    assert manifest["outcomes"] == {rows_of(config)[0]["outcome"]: 1}
    assert manifest["made_from"]["shard"]["sha256"] == open_dataset(shard, RECORDS).sha256


def test_manifest_says_how_long_the_device_worked(config, load_tiny, write_shard):
    """Not how long the model took to load."""
    shard, root = write_shard([("a.png", "Q?")])

    def load(*arguments):
        time.sleep(0.5)
        return load_tiny(*arguments)

    before = time.monotonic()
    run_attention(dataclasses.replace(config, shard=shard, image_root_uri=root), "S", load, LOGGER)
    elapsed = time.monotonic() - before
    assert 0 < open_dataset(config.attention, attention_schema()).manifest["device_seconds"] <= elapsed - 0.5


def changing(load, **entries):
    """The loader of a model with other entries."""
    return lambda *arguments: dataclasses.replace(load(*arguments), **entries)


def test_several_folders_are_all_in_the_fingerprint(config, load_tiny, write_shard, tmp_path):
    shard, root = write_shard([("a.png", "Q?")])
    config = dataclasses.replace(config, shard=shard, image_root_uri=root)
    folders = []
    for name in ("model", "clip", "convnext"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_bytes(name.encode())
        folders.append(folder)
    result = run_attention(config, "S", changing(load_tiny, folders=tuple(folders)), LOGGER)
    found = result.metadata["model_fingerprint"].split(", ")
    assert found == [fingerprint(folder) for folder in folders]
    assert len(set(found)) == 3


# BOS, "S USER: ", "\nQ?", the instruction, the last blank, the picture.
Q_TOKENS = 1 + 8 + 3 + 58 + 1 + 576


@pytest.mark.parametrize(("context_length", "outcomes"), [(Q_TOKENS, {"ok"}), (Q_TOKENS - 1, {"prompt_too_long"})])
def test_a_prompt_may_fill_the_context(config, load_tiny, write_shard, context_length, outcomes):
    shard, root = write_shard([("a.png", "Q?"), ("b.png", "Q?\n<image>")])
    config = dataclasses.replace(config, shard=shard, image_root_uri=root)
    load = changing(load_tiny, context_length=context_length, eos_token_ids=frozenset())
    run_attention(config, "S", load, LOGGER)
    assert {row["outcome"] for row in rows_of(config)} == outcomes


@pytest.mark.parametrize("max_new_tokens", [1, 2, 5])
def test_longest_answer(config, load_tiny, write_shard, max_new_tokens):
    shard, root = write_shard([("a.png", "Q?"), ("b.png", "Why?")])
    config = dataclasses.replace(config, shard=shard, image_root_uri=root, max_new_tokens=max_new_tokens)
    result = run_attention(config, "S", changing(load_tiny, eos_token_ids=frozenset()), LOGGER)
    assert [row["num_steps"] for row in rows_of(config)] == [max_new_tokens] * 2
    assert result.metrics["generated_tokens"] == 2 * max_new_tokens
    assert result.metadata["max_new_tokens"] == max_new_tokens


@pytest.mark.parametrize(("batch_size", "largest"), [(1, 1), (3, 3), (16, 5)])
def test_batch_size_is_that_of_the_passes(config, load_tiny, write_shard, batch_size, largest, monkeypatch):
    """And of the key-value cache; not larger than there are records with a picture."""
    shard, root = write_shard([*((f"{number}.png", "Q?") for number in range(5)), (None, "Q?")])
    rows, cache_rows = [], []

    class Cache(KeyValueCache):
        def __init__(self, max_rows, num_layers, spare):
            cache_rows.append(max_rows)
            super().__init__(max_rows, num_layers, spare)

    monkeypatch.setattr("free2ds_common.inference.generation.KeyValueCache", Cache)

    def load(*arguments):
        model = load_tiny(*arguments)
        model.decoder.register_forward_pre_hook(
            lambda module, inputs, options: rows.append(len(options["inputs_embeds"])), with_kwargs=True
        )
        return model

    config = dataclasses.replace(config, shard=shard, image_root_uri=root, batch_size=batch_size)
    run_attention(config, "S", load, LOGGER)
    assert max(rows) == largest
    assert cache_rows == [largest]


@pytest.mark.parametrize(
    ("dtype", "wanted"), [("auto", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_number_format_reaches_the_loader(config, load_tiny, write_shard, dtype, wanted):
    shard, root = write_shard([(None, "Q?")])
    given = []

    def load(folder, device, dtype):
        given.append((folder, device.type, dtype))
        return load_tiny(folder, device, dtype)

    config = dataclasses.replace(config, shard=shard, image_root_uri=root, dtype=dtype)
    result = run_attention(config, "S", load, LOGGER)
    assert given == [(Path(config.model), "cpu", wanted)]
    assert result.metadata["dtype"] == str(wanted).removeprefix("torch.")


def test_records_without_a_map_are_counted(config, load_tiny, write_shard):
    shard, root = write_shard(ROWS)
    config = dataclasses.replace(config, shard=shard, image_root_uri=root)
    result = run_attention(config, "S", changing(load_tiny, eos_token_ids=frozenset()), LOGGER)
    outcomes = {"ok": 4, "text_only": 1, "no_question": 1, "prompt_too_long": 1}
    assert result.metadata["outcomes"] == outcomes
    assert {name: value for name, value in result.metrics.items() if name.startswith("outcome_")} == {
        f"outcome_{name}": count for name, count in outcomes.items()
    }
    assert result.metrics["generated_tokens"] == 4 * 6


def test_nothing_but_eos_has_no_map(config, load_tiny, write_shard):
    shard, root = write_shard([("a.png", "Q?")])
    config = dataclasses.replace(config, shard=shard, image_root_uri=root)
    run_attention(config, "S", changing(load_tiny, eos_token_ids=frozenset(range(64))), LOGGER)
    (row,) = rows_of(config)
    assert (row["outcome"], row["num_steps"], row["map"]) == ("eos_only", 1, None)


def test_picture_lost_since_ingest_is_an_outcome(config, load_tiny, write_shard, tmp_path, caplog):
    shard, root = write_shard([("a.png", "Q?"), ("b.png", "Q?"), ("c.png", "Q?")])
    (tmp_path / "images/a.png").unlink()
    (tmp_path / "images/c.png").write_bytes(b"no picture")
    config = dataclasses.replace(config, shard=shard, image_root_uri=root)
    result = run_attention(config, "S", load_tiny, LOGGER)
    assert [row["outcome"] for row in rows_of(config)][0::2] == ["image_missing", "image_unreadable"]
    assert (result.counts.read, result.counts.written) == (3, 3)
    warned = [record for record in caplog.records if record.levelname == "WARNING"]
    assert {record.name for record in warned} == {LOGGER.name}
    assert sorted(record.getMessage().split(":")[0] for record in warned) == ["image_missing", "image_unreadable"]


def test_no_usable_picture_stops_the_stage(config, load_tiny, write_shard):
    shard, root = write_shard([("a.png", "Q?"), ("b.png", "Q?")], draw=False)
    config = dataclasses.replace(config, shard=shard, image_root_uri=root)
    with pytest.raises(StageError, match=r"none of the 2 pictures of this shard can be used\. Check image_root_uri"):
        run_attention(config, "S", load_tiny, LOGGER)


def test_empty_shard_and_text_only_shard(config, load_tiny, write_shard):
    for rows in ([], [(None, "Q?")]):
        shard, _ = write_shard(rows)
        result = run_attention(
            dataclasses.replace(config, shard=shard, image_root_uri="/nowhere"), "S", load_tiny, LOGGER
        )
        assert result.counts.written == len(rows) == len(rows_of(config))


def test_another_grid_than_the_pairs_is_refused_before_any_picture(config, load_tiny, write_shard, tmp_path):
    shard, _ = write_shard([("a.png", "Q?")], draw=False)
    config = dataclasses.replace(config, shard=shard, image_root_uri="/nowhere")

    with pytest.raises(StageError, match=r"model: 16 x 16 vision tokens, wanted the 24 x 24 .* Use model_type auto"):
        run_attention(config, "S", changing(load_tiny, grid=16), LOGGER)
    assert not (tmp_path / "attention").exists()


def test_progress_counts_answers_as_they_come(config, load_tiny, write_shard, monkeypatch):
    """The first record has the longest prompt and is answered late; the others are not waited for."""
    shard, root = write_shard([(f"{number}.png", "why " * (9 - number)) for number in range(6)])
    counted, counted_at_write = [], []
    monkeypatch.setattr(
        "free2ds_common.inference.attention_rows.Progress.add", lambda self, count=1: counted.append(count)
    )
    monkeypatch.setattr("free2ds_common.inference.attention_stage._ROWS_PER_WRITE", 4)
    write = DatasetWriter.write
    monkeypatch.setattr(
        DatasetWriter,
        "write",
        lambda self, rows: (counted_at_write.append((len(rows), len(counted))), write(self, rows)),
    )
    result = run_attention(dataclasses.replace(config, shard=shard, image_root_uri=root), "S", load_tiny, LOGGER)
    assert counted == [1] * 6
    assert result.metrics["generated_tokens"] == sum(row["num_steps"] for row in rows_of(config))
    assert [rows for rows, _ in counted_at_write] == [4, 2]
    assert counted_at_write[0][1] > 4


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("max_new_tokens", 0, "max_new_tokens: got 0, wanted a number of at least 1"),
        ("batch_size", -1, "batch_size: got -1"),
        ("dtype", "int8", "dtype: got 'int8', wanted one of auto, bfloat16, float16, float32"),
        ("image_root_uri", "/nowhere", "image_root_uri: /nowhere is not a folder"),
        ("shard", "/nowhere", "no _manifest.json"),
        ("model", "/nowhere", "/nowhere"),
    ],
)
def test_wrong_settings(config, load_tiny, write_shard, setting, value, message):
    shard, root = write_shard([("a.png", "Q?")])
    config = dataclasses.replace(config, shard=shard, image_root_uri=root)
    with pytest.raises(StageError, match=message):
        run_attention(dataclasses.replace(config, **{setting: value}), "S", load_tiny, LOGGER)


def test_a_required_gpu_is_looked_for_first(config, load_tiny, tmp_path, monkeypatch):
    """Before the shard and the model are opened: neither is there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = dataclasses.replace(config, shard="/nowhere", model="/nowhere", require_gpu=True)
    with pytest.raises(StageError, match="require_gpu: there is no GPU here"):
        run_attention(config, "S", load_tiny, LOGGER)
    assert not (tmp_path / "attention").exists()


def test_the_device_is_logged_and_recorded(config, load_tiny, write_shard, caplog):
    caplog.set_level(logging.INFO)
    shard, root = write_shard([("a.png", "Q?")])
    config = dataclasses.replace(config, shard=shard, image_root_uri=root)
    result = run_attention(config, "S", load_tiny, LOGGER)
    device = device_name(torch.device("cpu"))
    assert f"{config.model} runs on: {device}" in caplog.messages
    assert result.metadata["device"] == device
    assert open_dataset(config.attention, attention_schema()).manifest["device"] == device


def broken_for(load, pictures):
    """A model whose features of pictures of these colours are NaN."""

    def load_broken(*arguments):
        model = load(*arguments)

        def encode(pixels):
            features = model.encode_images(pixels)
            for number, picture in enumerate(pixels["p"]):
                if round(float(picture.mean()) * 255) in pictures:
                    features[number] = torch.nan
            return features

        return dataclasses.replace(model, encode_images=encode, eos_token_ids=frozenset())

    return load_broken


@pytest.fixture
def coloured(config, write_shard, tmp_path):
    """A config of 20 records, each with a picture of its own shade, two without a picture."""
    rows = [*((f"{number}.png", "Q?") for number in range(20)), (None, "Q?"), (None, "Q?")]
    shard, root = write_shard(rows)
    for number in range(20):
        Image.new("RGB", (30, 30), (number, number, number)).save(tmp_path / f"images/{number}.png")
    return dataclasses.replace(config, shard=shard, image_root_uri=root, max_new_tokens=2)


def test_no_finite_map_at_all(coloured, load_tiny):
    with pytest.raises(StageError, match=r"the attention of all 20 answers is NaN or infinite\. float32 may be too"):
        run_attention(coloured, "S", broken_for(load_tiny, range(20)), LOGGER)
    with pytest.raises(StageError, match=r"no _manifest\.json"):
        rows_of(coloured)


def test_pictures_that_cannot_be_used_are_no_answers(coloured, load_tiny, tmp_path):
    for number in range(3):
        (tmp_path / f"images/{number}.png").unlink()
    with pytest.raises(StageError, match="the attention of all 17 answers is NaN or infinite"):
        run_attention(coloured, "S", broken_for(load_tiny, range(20)), LOGGER)


@pytest.mark.parametrize(("broken", "warned"), [(range(19), True), (range(1), True), ((), False)])
def test_some_maps_that_are_not_finite(coloured, load_tiny, caplog, broken, warned):
    result = run_attention(coloured, "S", broken_for(load_tiny, broken), LOGGER)
    assert result.metadata["outcomes"].get("non_finite", 0) == len(broken)
    sentence = f"the attention of {len(broken)} of 20 answers is NaN or infinite"
    assert any(message.startswith(sentence) for message in caplog.messages) == warned


def test_few_maps_that_are_not_finite_are_no_warning(coloured, load_tiny, caplog, monkeypatch):
    monkeypatch.setattr("free2ds_common.inference.attention_checks.WARN_NON_FINITE_SHARE", 0.051)
    run_attention(coloured, "S", broken_for(load_tiny, [3]), LOGGER)
    assert not [message for message in caplog.messages if "NaN" in message]


def test_questions_of_unknown_words(config, load_tiny, write_shard):
    """The model's letters: "w" is 3 + 119 % 60 = 62."""
    shard, root = write_shard([("a.png", "wwww wwww"), ("b.png", "wwwwwww? ok")])
    config = dataclasses.replace(config, shard=shard, image_root_uri=root)
    with pytest.raises(StageError, match=r"model: 75% of 20 tokens are unknown words \(at most 50% wanted\)"):
        run_attention(config, "S", changing(load_tiny, unk_token_id=62), LOGGER)


def test_some_unknown_words_are_a_warning(config, load_tiny, write_shard, caplog):
    shard, root = write_shard([("a.png", "wwww what"), ("b.png", "is there?!!")])
    config = dataclasses.replace(config, shard=shard, image_root_uri=root)
    run_attention(config, "S", changing(load_tiny, unk_token_id=62), LOGGER)
    assert [m for m in caplog.messages if m.startswith("25% of 20 tokens are unknown words")]


@pytest.mark.parametrize(("unknown", "encoded"), [(range(8), False), (range(8, 40), True)])
def test_unknown_words_are_looked_for_in_the_first_window_and_in_all(config, load_tiny, write_shard, unknown, encoded):
    """A window is eight records with a batch of one."""
    rows = [(f"{number}.png", "wwww" if number in unknown else "what") for number in range(40 if encoded else 9)]
    shard, root = write_shard(rows)
    config = dataclasses.replace(config, shard=shard, image_root_uri=root, batch_size=1, max_new_tokens=1)
    calls = []

    def load(*arguments):
        model = load_tiny(*arguments)

        def encode(pixels):
            calls.append(1)
            return model.encode_images(pixels)

        return dataclasses.replace(model, unk_token_id=62, encode_images=encode)

    with pytest.raises(StageError, match="tokens are unknown words"):
        run_attention(config, "S", load, LOGGER)
    assert bool(calls) == encoded
