"""The locks hold what pyproject.toml asks for; told without a network, so that a stale one is seen at once."""

import re

import pytest

from tests.support.images import (
    CONSTRAINTS,
    IMAGES,
    REPOSITORY,
    SHARED_GROUPS,
    STAGES,
    WITH_MODELS,
    extra_requirements,
    group_requirements,
    lock_path,
    project_requirements,
    read_lock,
    read_pyproject,
)

STALE = "run: make locks"
GROUPS = (*STAGES, *SHARED_GROUPS)
LOCKS = [CONSTRAINTS, *(lock_path(group) for group in GROUPS)]
GPU, HARNESS = "faiss-gpu", "lmms-eval"
# Several machines train in a cluster alone: in finetune's image, and for the tests.
OF_CLUSTERS = "kubeflow"


def out_of_range(requirements, pins):
    return {
        name: pins[name].version for name, wanted in requirements.items() if pins[name].version not in wanted.specifier
    }


def direct(pins):
    return {name for name, pin in pins.items() if pin.direct}


def test_the_lock_has_what_pyproject_asks_for():
    asked = {
        **project_requirements(),
        **extra_requirements(),
        GPU: group_requirements("cluster_scoring_gpu")[GPU],
        HARNESS: group_requirements("evaluate_lmms")[HARNESS],
    }
    pins = read_lock(CONSTRAINTS)
    assert direct(pins) == set(asked), STALE
    assert out_of_range(asked, pins) == {}, STALE


@pytest.mark.parametrize("group", GROUPS)
class TestGroup:
    def test_its_lock_has_what_it_asks_for(self, group):
        asked, pins = group_requirements(group), read_lock(lock_path(group))
        assert direct(pins) == set(asked), STALE
        assert out_of_range(asked, pins) == {}, STALE

    def test_its_versions_are_the_projects(self, group):
        versions = {name: pin.version for name, pin in read_lock(lock_path(group)).items()}
        of_project = {name: pin.version for name, pin in read_lock(CONSTRAINTS).items()}
        assert {name: of_project.get(name) for name in versions} == versions, STALE

    def test_every_package_has_hashes(self, group):
        unhashed = [name for name, pin in read_lock(lock_path(group)).items() if not pin.hashes]
        assert unhashed == []

    def test_ranges_are_the_projects(self, group):
        """A range that is written a second time would be forgotten when the first one changes."""
        ranges = {name: str(found.specifier) for name, found in group_requirements(group).items() if found.specifier}
        own = {
            "cluster_scoring_gpu": {GPU: str(project_requirements()["faiss-cpu"].specifier)},
            "evaluate_lmms": {HARNESS: "~=0.7.3"},
        }
        assert ranges == own.get(group, {})

    def test_its_packages_are_the_projects(self, group):
        assert set(group_requirements(group)) - set(project_requirements()) <= {GPU, HARNESS, OF_CLUSTERS}


def test_there_is_a_lock_of_every_group_that_is_installed_and_of_no_other():
    assert {path.parent.name for path in IMAGES.glob("*/requirements.txt")} == set(GROUPS)


def test_every_group_is_installed_or_included():
    groups = read_pyproject()["dependency-groups"]
    included = {line["include-group"] for lines in groups.values() for line in lines if isinstance(line, dict)}
    assert set(groups) == set(GROUPS) | included


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_no_lock_names_an_index_or_a_folder_of_this_machine(path):
    found = re.findall(r"^\s*--(?!hash=)\S+|\w+://\S+|file:\S+", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert found == []


@pytest.mark.parametrize("stage", STAGES)
def test_only_stages_with_models_have_torch(stage):
    assert ("torch" in read_lock(lock_path(stage))) == (stage in WITH_MODELS)


@pytest.mark.parametrize("stage", WITH_MODELS)
def test_the_shared_layer_is_a_part_of_every_stage_with_models(stage):
    assert set(read_lock(lock_path("torch"))) <= set(read_lock(lock_path(stage)))


def test_kfp_is_locked_without_what_it_depends_on():
    assert set(read_lock(lock_path("kfp"))) == {"kfp"}


def test_scoring_on_a_gpu_differs_by_faiss_alone():
    cpu, gpu = read_lock(lock_path("cluster_scoring")), read_lock(lock_path("cluster_scoring_gpu"))
    assert set(cpu) - set(gpu) == {"faiss-cpu"}
    assert {name for name in set(gpu) - set(cpu) if not name.startswith("nvidia-")} == {GPU}


def test_the_other_harness_adds_to_its_image_and_brings_no_other_model_code():
    own, lmms = read_lock(lock_path("evaluate")), read_lock(lock_path("evaluate_lmms"))
    assert set(own) <= set(lmms)
    assert {"torchvision", "opencv-python-headless", "wandb"} & set(lmms) == set()
