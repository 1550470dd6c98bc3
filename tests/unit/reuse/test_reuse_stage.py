"""What the reuse stage takes from a results store, and what it leaves over."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from components.reuse import stage
from components.reuse.component import demand
from components.reuse.stage import run
from free2ds_common.datasets import open_dataset, open_parts
from free2ds_common.errors import StageError
from free2ds_common.result import Counts
from free2ds_common.schemas import RECORDS, attention_schema
from tests.support.records import write_records
from tests.support.results import parts
from tests.unit.reuse.conftest import OUTCOMES, SETTINGS, map_of

ALL = set(OUTCOMES)


def finished(config, name):
    dataset = open_dataset(getattr(config, f"{name}_finished"), attention_schema())
    return {row["unique_id"]: row for row in dataset.rows()}, dataset.manifest


def missing(config, name):
    dataset = open_dataset(getattr(config, f"{name}_missing"), RECORDS)
    return {row["unique_id"] for row in dataset.rows()}, dataset.manifest


class TestNothingKnown:
    """No results store, or a first run."""

    @pytest.mark.parametrize("changes", [{"cache_uri": ""}, {}, {"llava_revision": "main", "mgm_revision": "main"}])
    def test_everything_is_left_over(self, config, changes):
        config = dataclasses.replace(config, **changes)
        result = run(config)
        assert result.counts == Counts(read=7, written=7)
        assert result.metadata == {"llava_new": "yes", "mgm_new": "yes"}
        for name in ("llava", "mgm"):
            assert finished(config, name)[0] == {}
            numbers, manifest = missing(config, name)
            assert numbers == {1, 2, 3, 4, 5, 6, 7}
            assert manifest["left_over"] == {"asked": 7, "answered": 0, "settings": {}}

    def test_a_model_of_which_nothing_is_known_is_loaded_for_nothing_at_all(self, config, tmp_path):
        """Only so are the settings of its empty table known."""
        empty = write_records(tmp_path / "empty", [])
        assert run(dataclasses.replace(config, records=empty)).metadata == {"llava_new": "yes", "mgm_new": "yes"}

    def test_no_picture_is_looked_at(self, config, images):
        shutil.rmtree(images)
        assert run(config).metrics == {"llava_reused": 0, "llava_missing": 7, "mgm_reused": 0, "mgm_missing": 7}

    def test_the_empty_part_goes_with_any_other(self, config, remember):
        remember("llava", ALL)
        run(config)
        folders = [config.mgm_finished, config.llava_finished]
        (part,) = open_parts(folders, attention_schema(), ("model_fingerprint",), "llava_attention")
        assert part.num_rows == 7

    def test_empty_parts_alone_are_refused(self, config):
        run(config)
        with pytest.raises(StageError, match=r"mgm_attention: all attention/1 folders are empty, wanted one with rows"):
            open_parts([config.mgm_finished], attention_schema(), ("model_fingerprint",), "mgm_attention")


class TestKnown:
    def test_one_model_has_all_and_the_other_some(self, config, remember):
        remember("llava", ALL)
        remember("mgm", {1, 7})
        result = run(config)
        assert result.metadata == {"llava_new": "no", "mgm_new": "yes"}
        # Too long a prompt is no answer.
        assert result.metrics == {"llava_reused": 4, "llava_missing": 0, "mgm_reused": 2, "mgm_missing": 3}
        assert missing(config, "llava")[0] == set()
        assert missing(config, "mgm")[0] == {2, 5, 6}
        assert set(finished(config, "mgm")[0]) == {1, 3, 4, 7}

    def test_rows(self, config, remember):
        remember("llava", ALL)
        run(config)
        rows, _ = finished(config, "llava")
        assert {number: row["outcome"] for number, row in rows.items()} == OUTCOMES | {3: "text_only", 4: "no_question"}
        assert {number: row["map"] for number, row in rows.items() if row["map"]} == {n: map_of(n) for n in (1, 5, 7)}
        assert {number: row["num_steps"] for number, row in rows.items()} == {1: 1, 2: 2, 3: 0, 4: 0, 5: 5, 6: 6, 7: 7}
        assert rows[5]["record_key"] == "k5"

    def test_manifests(self, config, remember):
        remember("llava", {1, 6})
        run(config)
        _, told = finished(config, "llava")
        assert {name: told[name] for name in SETTINGS} == SETTINGS
        assert (told["model"], told["reused"], told["computed"]) == ("somewhere/llava", 1, 0)
        assert told["outcomes"] == {"ok": 1, "prompt_too_long": 1, "text_only": 1, "no_question": 1}
        assert told["made_from"]["records"]["rows"] == 7
        _, left = missing(config, "llava")
        assert (left["left_over"]["asked"], left["left_over"]["answered"]) == (7, 1)
        assert {name: left["left_over"]["settings"][name] for name in SETTINGS} == SETTINGS

    def test_artifacts_of_finished_rows_carry_little(self, config, remember):
        remember("llava", ALL)
        assert run(config).terse_of == {
            "llava_finished": {
                "display_name": "LLaVA attention, from earlier runs",
                "fingerprint": "sha256 111111111111",
                "rows": 7,
            },
            "mgm_finished": {"display_name": "MGM attention, from earlier runs", "fingerprint": "", "rows": 0},
        }

    def test_small_ranges_give_the_same(self, config, remember, monkeypatch):
        remember("llava", ALL - {2})
        run(config)
        rows = finished(config, "llava")[0]
        monkeypatch.setattr(stage, "ROWS_PER_RANGE", 1)
        run(config)
        assert finished(config, "llava")[0] == rows
        assert missing(config, "llava")[0] == {2}


class TestLeftOver:
    """What is not taken."""

    @pytest.fixture
    def left(self, config, remember):
        def find(**changes):
            changed = dataclasses.replace(config, **changes)
            run(changed)
            return missing(changed, "llava")[0]

        remember("llava", ALL)
        return find

    def test_a_changed_picture(self, left, images):
        Image.new("RGB", (4, 4), "red").save(images / "a.png")
        assert left() == {1, 2}

    def test_a_picture_that_is_gone(self, left, images):
        (images / "c.png").unlink()
        assert left() == {6, 7}

    def test_a_broken_part(self, left, config):
        (path,) = parts(config.cache_uri)
        path.write_bytes(path.read_bytes()[:100])
        assert left() == ALL

    @pytest.mark.parametrize(
        "changes",
        [
            {"llava_options": "max_new_tokens=5"},
            {"llava_options": "dtype=bfloat16"},
            {"llava_options": "vision_tower=elsewhere"},
            {"llava_options": "model_type=auto prompt=chat"},
            {"llava_revision": "3 files " + "1" * 32},
            {"llava_model": "somewhere/else"},
            {"on_gpu": True},
        ],
        ids=str,
    )
    def test_other_settings(self, left, changes):
        assert left(**changes) == {1, 2, 3, 4, 5, 6, 7}

    def test_a_number_format_that_is_given_is_the_same_anywhere(self, left):
        assert left(on_gpu=True, llava_options="dtype=float32 batch_size=3") == set()

    def test_words_that_the_model_does_not_know_are_refused_as_ever(self, config, remember):
        remember("mgm", ALL, unknown=3)
        with pytest.raises(StageError, match=r"somewhere/mgm: 75% of 20 tokens are unknown words"):
            run(config)

    def test_wrong_options_are_named(self, config):
        with pytest.raises(StageError, match=r"^llava_max_new_tokens: got 0"):
            run(dataclasses.replace(config, llava_options="max_new_tokens=0"))

    def test_a_pictures_folder_that_is_gone(self, left, images):
        shutil.rmtree(images)
        with pytest.raises(StageError, match="image_root_uri"):
            left()


class TestDemand:
    NODES = ({"gpu": "yes"}, [{"key": "gpu"}])

    def test_who_has_nothing_new_asks_for_nothing(self):
        assert demand.python_func("yes", "no", "2", *self.NODES) == ("2", *self.NODES, "0", {}, [])
        assert demand.python_func("no", "yes", "2", *self.NODES) == ("0", {}, [], "2", *self.NODES)


def test_no_torch_is_loaded():
    code = "import sys, components.reuse.stage; print({'torch', 'transformers', 'kfp'} & set(sys.modules))"
    root = Path(__file__).resolve().parents[3]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_command_line(config, capsys):
    from components.reuse.__main__ import main

    options = {
        field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.name != "on_gpu"
    }
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["llava_missing"] == 7
