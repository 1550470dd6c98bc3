"""lineage: from a selection to data set, models and images, out of what its run wrote down."""

import hashlib
import json

import pytest

import pipeline

RECORDS = {
    "schema": "records/2",
    "rows": 4,
    "sha256": "a" * 64,
    "code_version": "0.1.0",
    "image": "r.example/free2ds-ingest:1",
    "facts": {"dataset_uri": "gs://b/d.json", "dataset_sha256": "d" * 64, "image_root_uri": "gs://b/i"},
    "made_from": {},
}
SHARD = {**RECORDS, "sha256": ["b" * 64, "c" * 64], "facts": {}, "image": "", "made_from": {"records": RECORDS}}
ATTENTION = {
    **RECORDS,
    "schema": "attention/1",
    "sha256": ["e" * 64, "f" * 64],
    "facts": {"model": "org/m", "revision": "1a2b", "model_fingerprint": f"sha256 {'9' * 64}, sha256 {'8' * 64}"},
    "made_from": {"shard": SHARD},
}


@pytest.fixture
def results(tmp_path):
    """A run's results: as much of them as lineage reads."""
    folder = tmp_path / "out"
    (folder / "scores").mkdir(parents=True)
    (folder / "selected.json").write_text("[]")
    summary = {
        "counts": {"read": 4, "written": 2, "dropped": 2, "rejected": 0},
        "parameters": {"ratio": 0.5, "stratify": ""},
        "code_version": "0.1.0",
        "run": {"started": "2026-11-27T10:00:00+00:00"},
        "lineage": {
            "image": "r.example/free2ds-joint-selection:1",
            "outputs": {"selected": hashlib.sha256(b"[]").hexdigest()},
            "made_from": {"records": RECORDS, "llava_attention": ATTENTION},
        },
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.mark.parametrize("of", ["", "/", "/selected.json"])
def test_a_tree(results, capsys, of):
    assert pipeline.main(["lineage", f"{results}{of}"]) == 0
    assert (
        capsys.readouterr().out
        == f"""\
selected: 2 of 4 records, sha256 4f53cda18c2b
│   {results}/selected.json
│   free2ds 0.1.0 in r.example/free2ds-joint-selection:1
│   ratio=0.5
├── records: records/2, 4 rows, sha256 aaaaaaaaaaaa
│       free2ds 0.1.0 in r.example/free2ds-ingest:1
│       data set gs://b/d.json, sha256 dddddddddddd
│       pictures gs://b/i
└── llava_attention: attention/1, 4 rows in 2 parts, sha256 eeeeeeeeeeee
    │   free2ds 0.1.0 in r.example/free2ds-ingest:1
    │   model org/m, revision 1a2b, sha256 999999999999, sha256 888888888888
    └── shard: records/2, 4 rows in 2 parts, sha256 bbbbbbbbbbbb
        │   free2ds 0.1.0
        └── records: records/2, 4 rows, sha256 aaaaaaaaaaaa (see above)
"""
    )


def test_as_json(results, capsys):
    pipeline.main(["lineage", str(results), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["made_from"] == {"records": RECORDS, "llava_attention": ATTENTION}
    assert found["selected"] == {
        "place": f"{results}/selected.json",
        "sha256": hashlib.sha256(b"[]").hexdigest(),
        "records": 2,
        "of": 4,
    }


def test_in_a_store_the_files_have_the_names_of_ports(results, capsys):
    (results / "selected.json").rename(results / "selected")
    (results / "summary.json").rename(results / "summary")
    assert pipeline.main(["lineage", f"file://{results}/selected"]) == 0
    assert f"│   file://{results}/selected\n" in capsys.readouterr().out


def test_a_selection_that_was_changed_is_refused(results, capsys):
    (results / "selected.json").write_text("[1]")
    assert pipeline.main(["lineage", str(results)]) == 2
    assert capsys.readouterr().err == (
        f"error: {results}/selected.json: is not the file that this run wrote (sha256 080a9ed42855, wanted "
        "4f53cda18c2b). Take the run's own, or that file's summary.\n"
    )


def test_a_summary_of_an_earlier_version(results, capsys):
    (results / "summary.json").write_text("{}")
    assert pipeline.main(["lineage", str(results)]) == 2
    assert capsys.readouterr().err == (
        f"error: {results}: its summary has no lineage; an earlier version made it. Run again.\n"
    )


@pytest.mark.parametrize("content", ["[]", "no json"])
def test_what_is_no_summary(results, capsys, content):
    (results / "summary.json").write_text(content)
    assert pipeline.main(["lineage", str(results)]) == 2
    assert capsys.readouterr().err == f"error: {results}/summary.json: is no summary of a run.\n"


def test_results_that_are_not_there(tmp_path, capsys):
    (tmp_path / "selected.json").write_text("[]")
    assert pipeline.main(["lineage", f"{tmp_path}/selected.json"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: summary.json and scores not there. Give a folder")
