"""`compile` names the images that were pushed."""

import json

import pytest

import pipeline

IMAGES = [
    "free2ds-resolve",
    "free2ds-ingest",
    "free2ds-reuse",
    "free2ds-split",
    "free2ds-llava-attention",
    "free2ds-mgm-attention",
    "free2ds-bert-features",
    "free2ds-cluster-scoring",
    "free2ds-joint-selection",
]


def images_of(compiled):
    executors = compiled.spec["deploymentSpec"]["executors"].values()
    return sorted({executor["container"]["image"] for executor in executors if "container" in executor})


def test_registry_and_tag(compile_pipeline):
    compiled = compile_pipeline("--registry", "registry.example/team/", "--tag", "1.2.3")
    assert images_of(compiled) == sorted(f"registry.example/team/{name}:1.2.3" for name in IMAGES)


def test_digests(compile_pipeline, tmp_path):
    digests = {name: f"sha256:{number:064x}" for number, name in enumerate(IMAGES)}
    (tmp_path / "digests.json").write_text(json.dumps(digests))
    compiled = compile_pipeline("--registry", "registry.example", "--digests", str(tmp_path / "digests.json"))
    assert images_of(compiled) == sorted(f"registry.example/{name}@{digests[name]}" for name in IMAGES)


def test_the_same_command_writes_the_same_bytes(tmp_path):
    for name in ("one.yaml", "two.yaml"):
        assert pipeline.main(["compile", "--output", str(tmp_path / name)]) == 0
    assert (tmp_path / "one.yaml").read_bytes() == (tmp_path / "two.yaml").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tag", "1"], "error: --tag and --digests: no --registry given. Say where the images were pushed."),
        (["--registry", "r"], "error: --registry r: neither --tag nor --digests given. Say which images to use."),
        (
            ["--registry", "r", "--digests", "no.json"],
            "error: --digests: no.json cannot be read (No such file or direc",
        ),
    ],
)
def test_half_the_information_is_refused(options, message, tmp_path, capsys):
    assert pipeline.main(["compile", "--output", str(tmp_path / "x.yaml"), *options]) == 2
    assert capsys.readouterr().err.startswith(message)
    assert not (tmp_path / "x.yaml").exists()


@pytest.mark.parametrize("digest", ["1.2.3", 7])
def test_a_wrong_digest_is_refused(digest, tmp_path, capsys):
    (tmp_path / "digests.json").write_text(json.dumps({name: digest for name in IMAGES}))
    options = ["--registry", "r", "--digests", str(tmp_path / "digests.json"), "--output", str(tmp_path / "x.yaml")]
    assert pipeline.main(["compile", *options]) == 2
    assert capsys.readouterr().err.endswith(f"has {digest!r}, wanted sha256: and 64 hex digits.\n")


def test_an_image_without_digest_is_refused(tmp_path, capsys):
    (tmp_path / "digests.json").write_text("{}")
    options = ["--registry", "r", "--digests", str(tmp_path / "digests.json"), "--output", str(tmp_path / "x.yaml")]
    assert pipeline.main(["compile", *options]) == 2
    assert "has '', wanted sha256: and 64 hex digits." in capsys.readouterr().err
