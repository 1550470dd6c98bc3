"""A store that fails again and again while data set, pictures and model come from it: the same outputs."""

import json
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from free2ds_common.datasets import MANIFEST
from tests.support.buckets import BUCKET, Bucket, relayed
from tests.support.commands import FULL
from tests.support.stores import Answer

FAULTS = {
    "503": Answer(503),
    "429": Answer(429),
    "408": Answer(408),
    "reset": Answer(reset=True),
    "cut": Answer(sent=100),
    "no body": Answer(sent=0),
}
# Cut off by a server that tells the shorter length. Of a page that lists a web server's folder nobody can tell.
SHORT = Answer(sent=100, chunked=True)
EVERY = (2, 3, 5, 7) if FULL else (2,)
BURST = 5


@pytest.fixture(params=["http", "s3", "gs"])
def bucket(request, chain):
    """The example's data set, pictures and BERT in a store."""
    files = {path.relative_to(chain.example).as_posix(): path for path in chain.example.rglob("*") if path.is_file()}
    wanted = {name: path for name, path in files.items() if name.startswith(("dataset", "images/", "models/bert/"))}
    if request.param == "http":
        with served_by_web(request.getfixturevalue("store"), wanted) as web:
            yield web
        return
    bucket = request.getfixturevalue({"s3": "s3", "gs": "gcs"}[request.param])
    for name, path in wanted.items():
        bucket.put(f"example/{name}", path.read_bytes())
    bucket.forget()
    yield bucket


@contextmanager
def served_by_web(store, files):
    """A web server with pages that list its folders, behind the relay."""
    links = {}
    for name, path in files.items():
        store.script(f"/{BUCKET}/example/{quote(name)}", Answer(body=path.read_bytes(), etag='"1"'))
        *folders, last = name.split("/")
        links.setdefault("/".join(folders), []).append(last)
    for folder, names in links.items():
        for slash in ("", "/"):
            store.page(f"/{BUCKET}/example/{folder}{slash}", *names)
    with relayed(Bucket(store.url)) as web:
        yield web


def outputs(folder):
    """Bytes of all parts; of manifests what does not name a place."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.name == MANIFEST:
            manifest = json.loads(path.read_text())
            found[path.relative_to(folder)] = manifest["parts"], manifest.get("counts")
        elif path.is_file():
            found[path.relative_to(folder)] = path.read_bytes()
    return found


def run(chain, bucket, out):
    """The stages that read from stores."""
    root = f"{bucket.scheme or bucket.url + '/'}{BUCKET}/example"
    codes = [
        chain.run("ingest", out / "ingest", dataset_uri=f"{root}/dataset.json", image_root_uri=f"{root}/images"),
        chain.run("llava_attention", out / "llava_attention", image_root_uri=f"{root}/images"),
        chain.run("bert_features", out / "bert_features", model=f"{root}/models/bert"),
    ]
    return codes, outputs(out)


@pytest.fixture
def undisturbed(chain):
    names = ("ingest", "llava_attention", "bert_features")
    return {Path(name) / path: content for name in names for path, content in outputs(chain.work / name).items()}


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_every_kth_request_fails(chain, bucket, undisturbed, pauses, tmp_path, monkeypatch, fault, every):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    bucket.faults[:] = ([None] * (every - 1) + [fault]) * 10_000
    codes, found = run(chain, bucket, tmp_path / "out")
    assert codes == [0, 0, 0]
    assert found == undisturbed
    assert len(bucket.faults) < 10_000 * every - 20


@pytest.mark.parametrize("bucket", ["s3", "gs"], indirect=True)
def test_every_third_answer_is_short(chain, bucket, undisturbed, pauses, tmp_path, monkeypatch):
    test_every_kth_request_fails(chain, bucket, undisturbed, pauses, tmp_path, monkeypatch, SHORT, 3)


@pytest.mark.parametrize("fault", [FAULTS["503"], FAULTS["reset"]], ids=["503", "reset"])
def test_bursts(chain, bucket, undisturbed, pauses, tmp_path, monkeypatch, fault):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    bucket.faults[:] = ([fault] * BURST + [None] * 20) * 1000
    codes, found = run(chain, bucket, tmp_path / "out")
    assert codes == [0, 0, 0]
    assert found == undisturbed
