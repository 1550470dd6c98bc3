"""Where local runs keep results, and the command that looks after a store."""

import json
import os
import shutil
import time

import pytest

import pipeline
from free2ds_common.errors import StageError
from free2ds_common.launch.cache import cache_of_run, user_cache
from free2ds_common.results_store.store import ResultsStore
from tests.support.results import KIND, key, parts, row

FINGERPRINT = "sha256 " + "ab" * 32


def test_local_runs_keep_results_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_of_run(None, off=False) == f"{tmp_path}/free2ds/results"
    assert (tmp_path / "free2ds/results").is_dir()


@pytest.mark.parametrize("home", ["", "relative/path"])
def test_the_users_cache_without_an_absolute_path_for_it(monkeypatch, home, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache() == tmp_path / ".cache/free2ds/results"


@pytest.mark.parametrize(
    ("given", "off", "wanted"), [("gs://b/c", False, "gs://b/c"), ("", False, ""), (None, True, "")]
)
def test_what_is_given_is_taken(given, off, wanted):
    assert cache_of_run(given, off=off) == wanted


def test_a_store_and_none_at_once_are_refused():
    with pytest.raises(StageError, match=r"--no-cache: cache_uri=gs://b is given, too\. Leave one of them out"):
        cache_of_run("gs://b", off=True)


def test_a_users_cache_that_cannot_be_made_is_none(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache_of_run(None, off=False) == ""
    assert "this run keeps no results" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_refused_where_it_was_asked_for(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StageError, match=r"cache_uri: .*file/x cannot be written to \(Not a directory\)\. Give another"
    ):
        cache_of_run(f"{tmp_path}/file/x", off=False)


@pytest.fixture
def root(tmp_path):
    """A store with results of two models, of each in three parts."""
    for model, dtype in (("one", "float32"), ("two", "bfloat16")):
        settings = {"model_fingerprint": FINGERPRINT, "dtype": dtype}
        store = ResultsStore(str(tmp_path / "store"), KIND, settings, {"model": model})
        for number in (1, 3, 5):
            store.write([row(number, 9 - number), row(number + 1, 7)])
    return tmp_path / "store"


def cache(root, action, *options):
    return pipeline.main(["cache", action, "--cache-uri", str(root), *options])


def test_list(root, capsys):
    assert cache(root, "list") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:3] == ["kind", "model", "number"]
    assert [(line[0], line[1], line[2], line[3], line[4]) for line in sorted(lines[1:3])] == [
        ("numbers", "one", "float32", "6", "3"),
        ("numbers", "two", "bfloat16", "6", "3"),
    ]
    assert FINGERPRINT in " ".join(lines[1])
    assert lines[3][:2] == ["12", "results,"]


def test_list_of_one_model(root, capsys):
    cache(root, "list", "--model", "two")
    assert capsys.readouterr().out.splitlines()[-1].startswith("6 results, ")
    cache(root, "list", "--model", FINGERPRINT)
    assert capsys.readouterr().out.splitlines()[-1].startswith("12 results, ")


def test_a_store_without_results(tmp_path, capsys):
    assert cache(tmp_path / "none", "list") == 0
    assert capsys.readouterr().out == f"{tmp_path}/none: no results\n"


def test_verify(root, capsys):
    assert cache(root, "verify") == 0
    assert capsys.readouterr().out == "6 of 6 parts are as they were written\n"
    broken = parts(root)[2]
    broken.write_bytes(broken.read_bytes()[:-5])
    assert cache(root, "verify") == 1
    told = capsys.readouterr().out
    assert f"{broken.name}: is not as it was written" in told
    assert "5 of 6 parts are as they were written" in told
    assert cache(root, "delete", "--broken") == 0
    assert len(parts(root)) == 5
    assert not broken.exists()


def test_compact(root, capsys, tmp_path):
    assert cache(root, "compact", "--dry-run") == 0
    assert len(parts(root)) == 6
    assert cache(root, "compact") == 0
    assert "numbers of one: 3 small parts of 3 put together into 1" in capsys.readouterr().out
    assert len(parts(root)) == 2
    store = ResultsStore(str(root), KIND, {"model_fingerprint": FINGERPRINT, "dtype": "float32"}, {})
    found = store.take([key(number) for number in range(1, 7)], range(1024), tmp_path)
    assert [found.row(key(number))["number"] for number in range(1, 7)] == [1, 2, 3, 4, 5, 6]
    (name,) = [path.name for path in parts(root) if path.parent.name == store.uri.rpartition("/")[2]]
    assert name.startswith("0004-0008-6-")


def test_compact_keeps_the_result_that_readers_take(tmp_path):
    store = ResultsStore(str(tmp_path / "store"), KIND, {}, {"model": "m"})
    for value in (1.0, 2.0, 3.0, 4.0):
        store.write([row(1, value=value)])

    def value():
        folder = tmp_path / "scratch"
        folder.mkdir()
        taken = store.take([key(1)], [0], folder).row(key(1))["map"][0]
        shutil.rmtree(folder)
        return taken

    before = value()
    cache(tmp_path / "store", "compact")
    assert len(parts(tmp_path / "store")) == 1
    assert value() == before


def test_compact_leaves_large_and_broken_parts_alone(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("free2ds_common.results_store.upkeep._LARGE_ROWS", 3)
    store = ResultsStore(str(tmp_path), KIND, {}, {})
    store.write([row(number) for number in (1, 2, 3)])
    store.write([row(4)])
    broken, large = sorted(parts(tmp_path), key=lambda path: path.stat().st_size)
    broken.write_bytes(b"")
    store.write([row(5)])
    store.write([row(6)])
    cache(tmp_path, "compact")
    assert len(parts(tmp_path)) == 3
    assert large.exists()
    assert broken.exists()
    assert "left alone" in caplog.text


def test_compact_removes_what_killed_writers_left(tmp_path):
    store = ResultsStore(str(tmp_path), KIND, {}, {})
    store.write([row(1)])
    (part,) = parts(tmp_path)
    old, young = (part.parent / f".{part.name}.{letter}" for letter in "ab")
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * 86_400,) * 2)
    cache(tmp_path, "compact")
    assert [path.exists() for path in (old, young, part)] == [False, True, True]


def test_a_models_credentials_are_not_kept(tmp_path, capsys):
    told = {"model": "https://user:secret@host/model?token=abc"}
    ResultsStore(str(tmp_path), KIND, {}, told).write([row(1)])
    assert b"secret" not in parts(tmp_path)[0].read_bytes()
    cache(tmp_path, "list")
    out = capsys.readouterr().out
    assert "host/model" in out
    assert "abc" not in out


def test_delete_of_a_model(root, capsys):
    assert cache(root, "delete", "--model", "one", "--dry-run") == 0
    assert "numbers of one: 3 parts, 6 results" in capsys.readouterr().out
    assert len(parts(root)) == 6
    assert cache(root, "delete", "--model", "one") == 0
    assert len(parts(root)) == 3
    assert cache(root, "list", "--model", "one") == 0
    assert "no results of one" in capsys.readouterr().out


def test_delete_forgets_what_a_model_came_to(root):
    """Where all its results go; those of other models and files of somebody else stay."""
    folder = root / "attention_asked"
    folder.mkdir()
    for shelf in (root / KIND.name).iterdir():
        (folder / f"{shelf.name}.json").write_text(json.dumps({"settings_key": shelf.name}))
    (folder / "other.json").write_text("no JSON")
    old = parts(root)[0]
    os.utime(old, (time.time() - 8 * 86_400,) * 2)
    assert cache(root, "delete", "--older-than", "7") == 0
    assert len(list(folder.iterdir())) == 3
    assert cache(root, "delete", "--model", "one", "--dry-run") == 0
    assert len(list(folder.iterdir())) == 3
    assert cache(root, "delete", "--model", "one") == 0
    (kept,) = {path.parent.name for path in parts(root)}
    assert {path.name for path in folder.iterdir()} == {f"{kept}.json", "other.json"}


def test_delete_by_age(root):
    old = parts(root)[0]
    os.utime(old, (time.time() - 8 * 86_400,) * 2)
    assert cache(root, "delete", "--older-than", "9") == 0
    assert len(parts(root)) == 6
    assert cache(root, "delete", "--older-than", "7") == 0
    assert len(parts(root)) == 5
    assert not old.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["delete"], "cache delete: says not what to delete. Give --model, --older-than or --broken."),
        (["list", "--broken"], "--older-than and --broken: only cache delete takes them."),
    ],
)
def test_options_that_do_not_fit(root, capsys, options, message):
    assert cache(root, *options) == 2
    assert message in capsys.readouterr().err
