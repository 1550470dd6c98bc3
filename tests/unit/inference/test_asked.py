"""Settings that are known before a model is loaded: when they are, and when they are not."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from components.llava_attention.config import LlavaAttentionSettings
from components.mgm_attention.config import MgmAttentionSettings
from free2ds_common.inference import asked
from free2ds_common.inference.asked import known_settings, remember_settings

COMMIT, OTHER_COMMIT = "a" * 40, "b" * 40
SETTINGS = {
    "model_fingerprint": f"commit {COMMIT}",
    "prompt": {"style": "method"},
    "preprocessing": {"size": [24, 24]},
    "max_new_tokens": 100,
    "dtype": "float32",
    "grid": 24,
    "capture_version": 1,
}


@pytest.fixture
def config(tmp_path):
    return LlavaAttentionSettings(
        model="team/llava", revision=COMMIT, image_root_uri="", cache_uri=str(tmp_path / "store")
    )


@pytest.fixture
def remembered(config):
    """Write the settings down; returns the file."""

    def write(*towers, **changes):
        changed = dataclasses.replace(config, **changes)
        remember_settings(changed, SETTINGS, [Path(changed.model), *towers], on_gpu=False)
        folder = Path(config.cache_uri) / "attention_asked"
        (path,) = folder.iterdir() if folder.is_dir() else (None,)
        return path

    return write


def known(config, on_gpu=False, **changes):
    return known_settings(dataclasses.replace(config, **changes), on_gpu=on_gpu)


def test_what_was_remembered_is_known(config, remembered):
    assert known(config) == {}
    assert len(remembered().stem) == 32
    assert known(config) == {"model": "team/llava", "revision": COMMIT, **SETTINGS}


def test_the_same_commit_under_another_name(config, remembered):
    remembered()
    assert known(config, model="mirror/llava")["model"] == "mirror/llava"


def test_what_decides_nothing(config, remembered):
    remembered()
    assert known(config, batch_size=3, require_gpu=True, image_root_uri="elsewhere")
    assert known(config, on_gpu=True, dtype="float32")


@pytest.mark.parametrize(
    "changes",
    [
        {"revision": OTHER_COMMIT},
        {"max_new_tokens": 5},
        {"dtype": "bfloat16"},
        {"on_gpu": True},
        {"vision_tower": "elsewhere"},
        {"model_type": "auto"},
        {"model_type": "auto", "prompt": "chat"},
    ],
    ids=str,
)
def test_what_decides(config, remembered, changes):
    remembered()
    assert known(config, **changes) == {}


def test_the_other_models_stage(config, remembered):
    remembered(model_type="auto")
    shared = {name: getattr(config, name) for name in ("model", "revision", "image_root_uri", "cache_uri")}
    assert known_settings(MgmAttentionSettings(**shared, model_type="auto"), on_gpu=False) == {}


@pytest.mark.parametrize("name", ["CAPTURE_VERSION", "__version__"])
def test_another_version_of_the_code(config, remembered, monkeypatch, name):
    remembered()
    monkeypatch.setattr(asked, name, "another")
    assert known(config) == {}


@pytest.mark.parametrize("changes", [{"revision": "main"}, {"revision": "v1.5"}, {"cache_uri": ""}], ids=str)
def test_a_model_that_may_be_another_tomorrow_is_not_remembered(remembered, changes):
    assert remembered(**changes) is None


def test_a_folder_needs_its_version_and_its_place(config, remembered, tmp_path):
    folder = str(tmp_path)
    assert remembered(model=folder) is None
    version = "3 files " + "0" * 32
    remembered(model=folder, revision=version)
    assert known(config, model=folder, revision=version)
    assert known(config, model=f"{folder}/other", revision=version) == {}


def test_credentials_of_a_place_are_not_written(remembered):
    path = remembered(model="s3://key:secret@bucket/llava", revision="3 files " + "0" * 32)
    assert "secret" not in path.read_text()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:100],
        lambda text: text.replace("float32", "float16"),
        lambda text: "[]",
        lambda text: "{}",
        lambda text: text.replace('"towers": []', '"towers": 3'),
    ],
    ids=["cut", "altered", "list", "empty", "towers"],
)
def test_a_damaged_file_counts_as_absent(config, remembered, damage, caplog):
    path = remembered()
    path.write_text(damage(path.read_text()))
    assert known(config) == {}
    assert f"{path}: is not as it was written" in caplog.text


def test_a_store_that_is_no_folder_knows_nothing(config, remembered, caplog):
    Path(config.cache_uri).write_text("a file")
    assert known(config) == {}
    remember_settings(config, SETTINGS, [Path("llava")], on_gpu=False)
    assert "could not be written" in caplog.text


class TestTowers:
    """Encoders outside the model's folder."""

    @pytest.fixture
    def hub(self, monkeypatch):
        """A hub that says a commit, or nothing."""

        class Hub:
            commit = COMMIT

            def model_info(self, hub_id, revision, timeout):
                assert (hub_id, revision) == ("openai/clip-vit", "main")
                if not Hub.commit:
                    raise ConnectionError("no network")
                return type("Info", (), {"sha": Hub.commit})

        monkeypatch.setattr(asked, "HfApi", Hub)
        monkeypatch.setattr(asked, "try_to_load_from_cache", lambda *arguments, **options: None)
        return Hub

    @pytest.fixture
    def snapshot(self, tmp_path):
        return tmp_path / "hub" / "models--openai--clip-vit" / "snapshots" / COMMIT

    def test_a_folder_that_stays(self, config, remembered, tmp_path):
        tower = tmp_path / "clip"
        tower.mkdir()
        (tower / "config.json").write_text("{}")
        remembered(tower)
        assert known(config)
        os.utime(tower / "config.json", ns=(1, 1))
        assert known(config) == {}
        (tower / "config.json").unlink()
        tower.rmdir()
        assert known(config) == {}

    def test_a_hub_id_that_moves(self, config, remembered, hub, snapshot):
        path = remembered(snapshot)
        assert json.loads(path.read_text())["towers"] == [{"place": "openai/clip-vit", "version": COMMIT}]
        assert known(config)
        hub.commit = OTHER_COMMIT
        assert known(config) == {}

    def test_a_hub_that_does_not_answer(self, config, remembered, hub, snapshot, monkeypatch, caplog):
        remembered(snapshot)
        hub.commit = ""
        assert known(config) == {}
        assert "openai/clip-vit: the hub does not say its version (no network)" in caplog.text
        cached = str(snapshot / "config.json")
        monkeypatch.setattr(asked, "try_to_load_from_cache", lambda *arguments, **options: cached)
        assert known(config)

    def test_a_download_from_a_store_cannot_be_found_again(self, remembered, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        assert remembered(tmp_path / "free2ds-models" / "clip") is None
