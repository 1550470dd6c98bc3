"""Where a model is found and what its fingerprint is of."""

import hashlib
import json
import os
from types import SimpleNamespace

import fsspec
import pytest
from botocore.exceptions import NoCredentialsError
from huggingface_hub.errors import LocalEntryNotFoundError

from free2ds_common.checkpoints import fingerprint, read_json_object, resolve_model
from free2ds_common.errors import StageError, first_line
from free2ds_common.versions import folder_version

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(monkeypatch):
    """Answers a download with the folder "id@revision"; unreachable for ids of "nobody"."""

    def download(hub_id, revision, ignore_patterns):
        if hub_id.startswith("nobody/"):
            raise LocalEntryNotFoundError("no connection\nand more lines")
        return f"{hub_id}@{revision}"

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)


def test_a_folder_is_taken_as_it_is(tmp_path):
    assert resolve_model(str(tmp_path), "unused") == str(tmp_path)


def test_a_folder_that_changed_since_its_version_was_found_out(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    version = folder_version(str(tmp_path))
    assert resolve_model(str(tmp_path), version) == str(tmp_path)
    (tmp_path / "config.json").write_text("{} ")
    with pytest.raises(StageError, match=r"^model: .* has changed since the run began\."):
        resolve_model(str(tmp_path), version)


@pytest.mark.parametrize("model", ["some/bert", "hf://some/bert", "hf://models/some/bert"])
def test_a_hub_id_is_downloaded_at_its_revision(hub, model):
    assert resolve_model(model, "v1") == "some/bert@v1"


class Answer(Exception):
    """What the hub's library raises for a status."""

    def __init__(self, status):
        super().__init__(f"{status}")
        self.response = SimpleNamespace(status_code=status)


def test_a_hub_that_is_busy_is_asked_again(monkeypatch, pauses):
    answers = [Answer(503), ConnectionError("reset"), "folder"]

    def download(hub_id, **_):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve_model("some/bert", "main") == "folder"
    assert len(pauses) == 2


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (401, 1), (503, 8)])
def test_a_hub_that_does_not_give_it(monkeypatch, pauses, status, tries):
    asked = []

    def download(hub_id, **_):
        asked.append(hub_id)
        raise Answer(status)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(StageError, match=rf"^model: some/bert at revision main .* from the hub \({status}\)\.$"):
        resolve_model("some/bert", "main")
    assert len(asked) == tries


def test_a_uri_is_copied_to_the_cache(tmp_path):
    source = tmp_path / "bucket"
    source.mkdir()
    (source / "config.json").write_text("{}")
    found = resolve_model(f"file://{source}", "unused", cache_dir=str(tmp_path / "cache"))
    assert read_json_object(tmp_path / found / "config.json") == {}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("", "model: is empty"),
        ("/nowhere", "model: /nowhere is no folder. Give an existing folder"),
        ("a/b/c", "model: a/b/c is no folder"),
        ("nobody/bert", r"model: nobody/bert at revision main .* from the hub \(no connection\)\.$"),
    ],
)
def test_no_such_model(hub, model, message):
    with pytest.raises(StageError, match=message):
        resolve_model(model, "main")


@pytest.fixture
def folder(tmp_path):
    def write(name, **files):
        place = tmp_path / name
        place.mkdir(parents=True)
        for file, text in {"config.json": "{}", "model.safetensors": "w", **files}.items():
            (place / file).parent.mkdir(exist_ok=True)
            (place / file).write_text(text)
        return place

    return write


def test_fingerprint_by_hand(folder):
    """sha256 of the JSON list of name and sha256, sorted by name."""
    parts = [[name, hashlib.sha256(text).hexdigest()] for name, text in (("config.json", b"{}"), ("model.bin", b"w"))]
    place = folder("one", **{"model.bin": "w"})
    (place / "model.safetensors").unlink()
    assert fingerprint(place) == "sha256 " + hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def test_fingerprint_is_the_same_wherever_the_folder_lies(folder):
    assert fingerprint(folder("one")) == fingerprint(folder("elsewhere/two"))


@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "model.safetensors",
        "pytorch_model.bin",
        "tokenizer.json",
        "tokenizer.model",
        "vocab.txt",
        "merges.txt",
        "chat_template.jinja",
        "tower/config.json",
        "tower/open_clip_pytorch_model.bin",
    ],
)
def test_fingerprint_is_of_every_file_that_decides_results(folder, file):
    found = {fingerprint(folder(text, **{file: text})) for text in ("one", "two")}
    assert len(found | {fingerprint(folder("none"))}) == 3


@pytest.mark.parametrize(
    "file", ["README.md", "picture.png", "model.safetensors.lock", ".gitattributes", "model.h5", "training.json"]
)
def test_fingerprint_is_of_nothing_else(folder, file):
    assert fingerprint(folder("one", **{file: "words"})) == fingerprint(folder("two"))


def test_fingerprint_tells_names_apart(folder):
    """The same bytes as another file, or in another sub-folder."""
    names = ("pytorch_model.bin", "other.bin", "tower/other.bin", "aux/other.bin")
    assert len({fingerprint(folder(f"{number}", **{name: "w"})) for number, name in enumerate(names)}) == 4


def test_fingerprint_is_not_fooled_by_swapped_contents(folder):
    one = folder("one", **{"a.bin": "1", "b.bin": "2"})
    assert fingerprint(one) != fingerprint(folder("two", **{"a.bin": "2", "b.bin": "1"}))


def test_fingerprint_of_a_hub_download_is_its_commit(folder):
    assert fingerprint(folder(f"models--some--bert/snapshots/{COMMIT}")) == f"commit {COMMIT}"


@pytest.mark.parametrize("name", ["mine", COMMIT[:-1], COMMIT + "0", COMMIT.upper()])
def test_a_users_own_snapshots_folder_is_no_hub_download(folder, name):
    assert fingerprint(folder(f"snapshots/{name}")) == fingerprint(folder("elsewhere"))


def test_first_line():
    assert first_line(ValueError(" one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff"])
def test_settings_that_are_no_json_object(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(StageError, match=r"config\.json is no JSON object\. Copy the model folder again"):
        read_json_object(tmp_path / "config.json")


def test_settings_are_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"a": "ä"}))
    assert read_json_object(tmp_path / "config.json") == {"a": "ä"}


def test_settings_that_are_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(StageError, match=r"config\.json: is a pipe, a socket or a device"):
        read_json_object(tmp_path / "config.json")


def test_settings_that_are_too_deep(tmp_path):
    (tmp_path / "config.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(StageError, match=r"config\.json is no JSON object"):
        read_json_object(tmp_path / "config.json")


def test_a_pipe_in_a_model_folder_has_no_fingerprint(folder):
    place = folder("one")
    os.mkfifo(place / "vocab.txt")
    assert fingerprint(place) == fingerprint(folder("two"))


def test_replaced_weights_in_a_store_are_another_model(tmp_path):
    store = fsspec.filesystem("memory")
    found = []
    for weights in (b"one", b"two", b"two"):
        store.pipe("/checkpoints/bert/model.safetensors", weights)
        found.append(fingerprint(resolve_model("memory://checkpoints/bert", "", cache_dir=str(tmp_path))))
    assert found[0] != found[1]
    assert found[1] == found[2]


def test_a_store_without_credentials_is_one_sentence(tmp_path, monkeypatch):
    class Closed(fsspec.AbstractFileSystem):
        protocol = "closed"

        def find(self, path, **options):
            raise NoCredentialsError

    fsspec.register_implementation("closed", Closed, clobber=True)
    with pytest.raises(StageError, match=r"^closed://b/m: may not be read \(NoCredentialsError: Unable to locate cred"):
        resolve_model("closed://b/m", "", cache_dir=str(tmp_path))


def test_a_bucket_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(StageError, match="memory://no-such-bucket/m: no folder with files there"):
        resolve_model("memory://no-such-bucket/m", "", cache_dir=str(tmp_path))


def test_the_hub_without_a_network_is_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StageError, match="model: hf://some/bert at revision main is no folder here and could not be"):
        resolve_model("hf://some/bert", "main")
