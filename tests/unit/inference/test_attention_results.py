"""The attention stage with a results store: what is computed again and what is not."""

import dataclasses
import logging
import os
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

from free2ds_common.datasets import open_dataset
from free2ds_common.errors import StageError
from free2ds_common.inference import attention_stage
from free2ds_common.inference.asked import DECIDING
from free2ds_common.inference.attention_stage import run_attention
from free2ds_common.left_over import LeftOver
from free2ds_common.schemas import attention_schema
from free2ds_common.stopping import Stopped
from free2ds_common.versions import folder_version
from tests.support.results import parts

LOGGER = logging.getLogger("test")
ROWS = [
    ("a.png", "What is it?"),
    (None, "Write a poem."),
    ("a.png", "Why so?\n<image>"),
    ("b.png", None),
    ("b.png", "How many are there in the picture?"),
    ("c.png", "word " * 200),
    ("c.png", "Where?"),
]
# Of them, those that the model is asked about: not text-only, without a question or too long.
ASKED = 4


@pytest.fixture
def config(config, tmp_path):
    return dataclasses.replace(config, cache_uri=str(tmp_path / "store"))


@pytest.fixture
def started(config, load_tiny, write_shard):
    """Run the stage on rows; its counts of reused and computed results, and the rows that it wrote."""

    def start(rows=ROWS, load=load_tiny, draw=True, **changes):
        shard, root = write_shard(rows, draw)
        run_config = dataclasses.replace(config, shard=shard, image_root_uri=root, **changes)
        result = run_attention(run_config, "S", load, LOGGER)
        dataset = open_dataset(config.attention, attention_schema())
        counts = {name: result.metrics[name] for name in ("reused", "computed")}
        assert {name: dataset.manifest[name] for name in counts} == counts
        return (counts["reused"], counts["computed"]), list(dataset.rows())

    return start


def changed(load, **entries):
    return lambda *arguments: dataclasses.replace(load(*arguments), **entries)


def test_a_second_run_computes_nothing_and_writes_the_same(started):
    counts, rows = started()
    assert counts == (0, ASKED)
    again, same = started(draw=False)
    assert again == (ASKED, 0)
    assert same == rows


def test_without_a_store_everything_is_computed(started, config):
    assert started(cache_uri="")[0] == (0, ASKED)
    assert started(cache_uri="")[0] == (0, ASKED)
    assert not Path(config.cache_uri).exists()


def test_a_grown_and_shuffled_data_set_computes_what_is_new(started, load_tiny):
    _, rows = started()
    grown = [*reversed(ROWS), ("c.png", "And this?"), (None, "And that?")]
    counts, more = started(grown, draw=False)
    assert counts == (ASKED, 1)
    assert [row["map"] for row in more[:7]] == [row["map"] for row in reversed(rows)]


@pytest.mark.parametrize(
    "changes",
    [{"max_new_tokens": 5}, {"dtype": "bfloat16"}],
    ids=["max_new_tokens", "dtype"],
)
def test_settings_that_decide_a_map(started, changes):
    started()
    assert started(draw=False, **changes)[0] == (0, ASKED)


@pytest.mark.parametrize(
    "entries",
    [
        {"prompt_settings": {"style": "method", "system": "T"}},
        {"preprocessing": {"size": 25}},
    ],
    ids=["prompt", "preprocessing"],
)
def test_facts_of_the_model_that_decide_a_map(started, load_tiny, entries):
    started()
    assert started(draw=False, load=changed(load_tiny, **entries))[0] == (0, ASKED)


def test_other_weights_are_another_model(started, config):
    started()
    (Path(config.model) / "model.safetensors").write_bytes(b"other weights")
    assert started(draw=False)[0] == (0, ASKED)


def test_another_version_of_the_capture(started, monkeypatch):
    started()
    monkeypatch.setattr(attention_stage, "CAPTURE_VERSION", 2)
    assert started(draw=False)[0] == (0, ASKED)


def test_what_decides_nothing(started, config, tmp_path):
    """Another batch size, the same model in another folder, and shards and pictures elsewhere."""
    _, rows = started()
    moved = Path(config.model).rename(tmp_path / "moved")
    counts, same = started(draw=False, batch_size=1, model=str(moved), revision="v2")
    assert counts == (ASKED, 0)
    assert same == rows


def test_a_picture_that_changes_is_looked_at_again(started, tmp_path):
    started()
    path = tmp_path / "images/a.png"
    before = path.stat()
    Image.new("RGB", (40, 30), "red").save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert started(draw=False)[0] == (2, 2)


def test_a_picture_that_moves_is_the_same(started, tmp_path):
    started()
    (tmp_path / "images/a.png").rename(tmp_path / "images/z.png")
    moved = [("z.png" if image == "a.png" else image, question) for image, question in ROWS]
    assert started(moved, draw=False)[0] == (ASKED, 0)


def test_an_empty_answer_is_kept_and_one_that_is_not_finite_is_not(started, load_tiny):
    empty = changed(load_tiny, eos_token_ids=frozenset(range(64)))
    started(load=empty)
    counts, rows = started(draw=False, load=empty)
    assert counts == (ASKED, 0)
    assert [row["outcome"] for row in rows].count("eos_only") == ASKED
    assert {row["num_steps"] for row in rows if row["outcome"] == "eos_only"} == {1}


def test_a_map_that_is_not_finite_is_computed_again(started, load_tiny):
    def load(*arguments):
        model = load_tiny(*arguments)

        def encode(pixels):
            features = model.encode_images(pixels)
            features[0] = float("nan")
            return features

        return dataclasses.replace(model, encode_images=encode, eos_token_ids=frozenset())

    rows = [("a.png", "Q?"), ("b.png", "Q?"), ("c.png", "Q?")]
    counts, first = started(rows, load=load)
    broken = [row["outcome"] for row in first].count("non_finite")
    assert (counts, broken) == ((0, 3), 1)
    assert started(rows, draw=False, load=changed(load_tiny, eos_token_ids=frozenset()))[0] == (2, 1)


def test_a_picture_that_cannot_be_read_is_tried_again(started, tmp_path):
    rows = [("a.png", "Q?"), ("b.png", "Q?")]
    (tmp_path / "images").mkdir()
    picture = tmp_path / "images/b.png"
    Image.new("RGB", (40, 30), "red").save(tmp_path / "images/a.png")
    _, first = started(rows, draw=False)
    assert first[1]["outcome"] == "image_missing"
    Image.new("RGB", (40, 30), "blue").save(picture)
    counts, second = started(rows, draw=False)
    assert (counts, second[1]["outcome"]) == ((1, 1), "ok")


def test_a_broken_part_is_computed_again(started, config, caplog):
    _, rows = started()
    (path,) = parts(config.cache_uri)
    path.write_bytes(path.read_bytes()[:100])
    counts, same = started(draw=False)
    assert counts == (0, ASKED)
    assert path.name in caplog.text
    assert same == rows


def test_unknown_words_of_results_that_are_there_count_as_ever(started, load_tiny, caplog):
    """Alone, the new question would be refused: all of it is unknown to the model, whose "w" is 62."""
    load = changed(load_tiny, unk_token_id=62)
    started([("a.png", "wwww what is there?!!")], load=load)
    caplog.clear()
    started([("a.png", "wwww what is there?!!"), ("a.png", "wwwwwwwww")], draw=False, load=load)
    (warning,) = [message for message in caplog.messages if "unknown words" in message]
    caplog.clear()
    started([("a.png", "wwww what is there?!!"), ("a.png", "wwwwwwwww")], draw=False, load=load, cache_uri="")
    assert warning in caplog.messages


def test_a_store_that_refuses_is_said_before_anything_is_computed(started, config):
    Path(config.cache_uri).write_text("a file")
    with pytest.raises(StageError, match="lies below a file, wanted a folder for results"):
        started()


@pytest.fixture
def pinned(config):
    """The model's version, as resolve finds it."""
    return folder_version(config.model)


def load_nothing(*arguments):
    raise AssertionError("the model is loaded")


class TestWithoutTheModel:
    """Of a model with a version, an earlier run's settings are known before it is loaded."""

    def test_a_second_run_loads_nothing_and_writes_the_same(self, started, config, pinned):
        _, rows = started(revision=pinned)
        counts, same = started(load=load_nothing, draw=False, revision=pinned)
        assert counts == (ASKED, 0)
        assert same == rows
        manifest = open_dataset(config.attention, attention_schema()).manifest
        assert (manifest["device"], manifest["dtype"]) == ("none, all results were there", "float32")

    def test_new_records_need_it(self, started, pinned):
        started(revision=pinned)
        grown = [*ROWS, ("c.png", "And this?")]
        assert started(grown, draw=False, revision=pinned)[0] == (ASKED, 1)

    def test_a_branch_may_have_moved(self, started):
        started()
        with pytest.raises(AssertionError, match="the model is loaded"):
            started(load=load_nothing, draw=False)

    def test_what_is_known_may_be_wrong(self, started, load_tiny, pinned):
        """Another processor under the same words: its own results are looked for, and kept."""
        started(revision=pinned)
        other = changed(load_tiny, preprocessing={"size": 25})
        grown = [*ROWS, ("c.png", "And this?")]
        assert started(grown, draw=False, revision=pinned, load=other)[0] == (0, ASKED + 1)
        assert started(grown, draw=False, revision=pinned, load=load_nothing)[0] == (ASKED + 1, 0)


class TestLeftOver:
    """Shards of what the reuse stage left over."""

    @pytest.fixture
    def promised(self, started, config, pinned):
        """The settings of finished results."""
        started(revision=pinned)
        manifest = open_dataset(config.attention, attention_schema()).manifest
        return {name: manifest[name] for name in (*DECIDING, "model", "revision")}

    @pytest.fixture
    def left(self, started, monkeypatch, promised, pinned):
        """Run the stage on rows that are left over."""

        def start(rows, answered=4, settings=promised, **changes):
            told = LeftOver(9, answered, settings)
            monkeypatch.setattr(LeftOver, "of", classmethod(lambda cls, manifest, rows: told))
            return started(rows, **{"revision": pinned, "draw": False, **changes})

        return start

    def test_nothing_left_over_needs_no_model(self, left, config, promised):
        assert left([], load=load_nothing) == ((0, 0), [])
        manifest = open_dataset(config.attention, attention_schema()).manifest
        assert {name: manifest[name] for name in promised} == promised

    def test_a_model_with_other_settings_is_refused_before_it_scores(self, left, promised):
        settings = {**promised, "dtype": "bfloat16"}
        sentence = (
            "has dtype 'float32' here, but the finished results of this run have 'bfloat16'. "
            "Give the setting in the model's options, or another cache_uri."
        )
        with pytest.raises(StageError, match=sentence):
            left([("a.png", "New?")], settings=settings)

    def test_pictures_that_failed_before_may_be_all_there_is(self, left):
        _, rows = left([("gone.png", "What?")])
        assert rows[0]["outcome"] == "image_missing"
        with pytest.raises(StageError, match="none of the 1 pictures of this shard can be used"):
            left([("gone.png", "What?")], answered=0)

    def test_maps_that_were_not_finite_before_may_be_all_there_is(self, left, load_tiny):
        load = changed(load_tiny, encode_images=lambda pixels: torch.full((len(pixels["p"]), 576, 16), torch.nan))
        assert left([("a.png", "New?")], load=load)[1][0]["outcome"] == "non_finite"
        with pytest.raises(StageError, match="the attention of all 1 answers is NaN or infinite"):
            left([("a.png", "New?")], load=load, answered=0)


def stopping_after(load, count):
    """A model that gets SIGTERM while it looks at the picture of that number."""

    def loaded(*arguments):
        model = load(*arguments)
        seen = []

        def encode(pixels):
            seen.extend(pixels["p"])
            if len(seen) >= count and signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN):
                os.kill(os.getpid(), signal.SIGTERM)
            return model.encode_images(pixels)

        return dataclasses.replace(model, encode_images=encode)

    return loaded


def test_sigterm_finishes_the_batch_and_a_rerun_goes_on(started, load_tiny, config):
    rows = [(f"{number}.png", "why " * (1 + number % 3)) for number in range(20)]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match=r"stopped as asked to; \d+ new results are in .*: run again to go on"):
        started(rows, load=stopping_after(load_tiny, 6), batch_size=2)
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(StageError, match=r"no _manifest\.json"):
        open_dataset(config.attention, attention_schema())
    kept = sum(int(path.name.split("-")[2]) for path in parts(config.cache_uri))
    assert 6 <= kept < 20
    counts, resumed = started(rows, draw=False, batch_size=2)
    assert counts == (kept, 20 - kept)
    assert resumed == started(rows, draw=False)[1]


def test_a_stage_without_a_store_ends_at_once(started, load_tiny, config):
    """SIGTERM does what it does to any process: it is not taken."""
    started(ROWS, load=stopping_after(load_tiny, 1), cache_uri="")
