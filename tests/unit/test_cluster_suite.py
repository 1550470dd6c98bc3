"""tests/cluster passes against a good backend, and each of its checks fails against one that is bad in that way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BYTES = "test_it_selects_byte_for_byte_what_this_machine_selects"
OF_BYTES = {
    f"TestFirstRun::{BYTES}",
    "test_a_data_set_that_changed_in_its_place_is_read_again",
    "test_a_run_survives_the_loss_of_a_pod",
    "test_many_shards_fit",
    "TestSchedule::test_each_selects_of_the_data_set_as_it_was",
}
WRONG = [f"test_a_wrong_set_up_is_soon_known_by_its_own_sentence[{name}]" for name in ("dataset_uri", "bert_model")]
# What is wrong with a backend, and the tests that say so; flaws that the same test would notice are in two backends.
FLAWS = {
    "many": {
        "orphaned": ["TestFirstRun::test_lineage_leads_back_to_data_models_and_images"],
        "no GPU": ["TestPods::test_steps_with_a_model_had_the_gpus_and_no_others_had_any"],
        "boundless": ["TestPods::test_the_memory_of_those_with_a_bound_was_limited"],
        "anywhere": ["TestPods::test_steps_with_a_model_chose_their_node_and_bore_its_taints"],
        "root": ["TestPods::test_all_pass_pod_security_restricted"],
        "forgetful": ["test_an_equal_run_comes_from_the_cache"],
        "slow": WRONG,
        "fragile": ["test_a_run_survives_the_loss_of_a_pod"],
        "recounting": [f"TestSchedule::test_the_second_scores_only_what_is_new[{model}]" for model in ("llava", "mgm")],
        "sticky": ["test_nothing_is_left_behind_but_the_runs"],
    },
    "no-kubernetes": {
        "mute": WRONG,
        "stale": [
            "test_a_data_set_that_changed_in_its_place_is_read_again",
            "TestSchedule::test_the_second_asks_for_no_more_pods",
        ],
    },
    "no-gpu": {"other bytes": sorted(OF_BYTES)},
}
IMITATIONS = {
    "good": {},
    "many": {"flaws": list(FLAWS["many"])},
    "no-kubernetes": {"flaws": list(FLAWS["no-kubernetes"]), "kubernetes": False},
    "no-gpu": {"flaws": list(FLAWS["no-gpu"]), "gpu": ""},
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """How each test ended, by imitation."""
    folder = tmp_path_factory.mktemp("suite")
    environment = {**os.environ, "HOME": str(folder), "KUBECONFIG": str(folder / "kubeconfig")}
    for name in ("UI_HOST", "REGISTRY", "TAG", "PARAMS", "NAMESPACE", "KF_PIPELINES_ENDPOINT"):
        environment.pop(name, None)
    result = subprocess.run(
        [sys.executable, "-m", "tests.support.cluster_suite", str(folder), json.dumps(IMITATIONS)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    found = dict(map(json.loads, result.stdout.splitlines()))
    for name, outcomes in found.items():
        assert len(outcomes) == 28, (folder / f"{name}.log").read_text()
    return found


def with_outcome(outcomes, outcome):
    return sorted(name for name, found in outcomes.items() if found == outcome)


def test_a_good_backend_passes_everything(ended):
    assert with_outcome(ended["good"], "passed") == sorted(ended["good"])


@pytest.mark.parametrize("name", FLAWS)
def test_each_flaw_is_noticed_and_nothing_else_is_said(name, ended):
    assert with_outcome(ended[name], "failed") == sorted({test for tests in FLAWS[name].values() for test in tests})


def test_without_kubectl_only_what_pods_tell_is_skipped(ended):
    skipped = with_outcome(ended["no-kubernetes"], "skipped")
    assert skipped == sorted(
        [*(name for name in ended["good"] if name.startswith("TestPods")), "test_a_run_survives_the_loss_of_a_pod"]
    )


def test_without_gpus_every_run_has_the_parameters_for_that(ended):
    assert with_outcome(ended["no-gpu"], "skipped") == ["test_a_cluster_without_gpus_is_a_set_of_parameters"]


def suite(**given):
    """The suite itself, with no other settings than these."""
    environment = {name: value for name, value in os.environ.items() if name not in ("HOST", "STORE")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "tests/cluster", "-p", "no:cacheprovider"],
        cwd=REPOSITORY,
        env=environment | given,
        capture_output=True,
        text=True,
    )


def test_without_a_store_nothing_begins():
    result = suite(HOST="http://127.0.0.1:9")
    assert result.returncode == 2
    assert "STORE is missing: a folder of an object store that pods and this machine reach" in result.stdout


def test_without_a_host_all_of_it_is_skipped():
    result = suite()
    assert result.returncode == 0
    assert "28 skipped" in result.stdout
    assert "needs a Kubeflow Pipelines: make test-cluster HOST=... STORE=s3://..." in result.stdout
