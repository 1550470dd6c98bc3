"""What a run is too large for, told before any GPU works."""

import pytest

import pipeline
from free2ds_common.errors import SettingError
from free2ds_common.launch import limits
from free2ds_common.launch.limits import require_fits, sizes
from free2ds_common.launch.package import Package

GIVEN = {"dataset_uri": "gs://b/d.json", "image_root_uri": "gs://b/i"}


@pytest.fixture(scope="module")
def package():
    return Package.compile(pipeline.free2ds).with_images(
        lambda image: f"registry.example/{'t' * 60}/{image.partition(':')[0]}@sha256:{'0' * 64}"
    )


def test_64_shards_fit(package):
    found = sizes(package, GIVEN, 64)
    assert found.task == "joint-selection"
    assert found.input_bytes <= limits.WANTED_INPUT_BYTES
    assert found.workflow_bytes <= limits.MAX_WORKFLOW_BYTES
    require_fits(package, {**GIVEN, "num_shards": 64})


def test_every_shard_adds_two_artifacts(package):
    """A URI of 189 bytes, 150 of metadata, 320 of everything else and JSON's own signs."""
    one, two = (sizes(package, GIVEN, shards).input_bytes for shards in (10, 11))
    assert two - one == 2 * (189 + 150 + 320 + len('{"uri": "", "": ""}, '))


def test_the_metadata_of_before_did_not_fit(package, monkeypatch):
    """On a backend: 1,250 bytes an artifact made 207,729 bytes and failed, 130 bytes made 85,032 and ran."""
    monkeypatch.setattr(limits, "_ROOT", "minio://mlpipeline/v2/artifacts")
    found = []
    for count in (1_250, 130):
        monkeypatch.setattr(limits, "COLLECTED_METADATA_BYTES", count)
        found.append(sizes(package, GIVEN, 64).input_bytes)
    assert found[0] >= 207_729
    assert 85_032 <= found[1] <= 95_000
    monkeypatch.setattr(limits, "COLLECTED_METADATA_BYTES", 1_250)
    sentence = (
        r"^num_shards: got 64, with which the input of joint-selection would have 2\d{5} bytes; no process starts"
    )
    with pytest.raises(SettingError, match=sentence):
        require_fits(package, {**GIVEN, "num_shards": 64})
    require_fits(package, {**GIVEN, "num_shards": 8})


def test_long_values_make_the_workflow_too_large(package):
    """Argo repeats every value in the nodes of every shard."""
    # Of no use to gzip: hex digits of the powers of three.
    long = {**GIVEN, "image_root_uri": f"gs://b/{3**9000:x}", "num_shards": 64}
    with pytest.raises(
        SettingError, match=r"^num_shards: got 64, with which the Workflow would have \d{7} bytes; Argo"
    ):
        require_fits(package, long)
    require_fits(package, {**long, "num_shards": 8})


def test_more_shards_make_a_larger_workflow(package):
    assert sizes(package, GIVEN, 64).workflow_bytes > 4 * sizes(package, GIVEN, 8).workflow_bytes


def test_parameters_of_the_run_count(package):
    longer = {**GIVEN, "image_root_uri": GIVEN["image_root_uri"] + "x" * 500}
    assert sizes(package, longer, 4).input_bytes == sizes(package, GIVEN, 4).input_bytes + 500
