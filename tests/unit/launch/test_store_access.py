"""Names of credentials as run parameters; the values stay in the cluster."""

import importlib

import pytest

import pipeline
from free2ds_common.errors import SettingError
from free2ds_common.launch.containers import CREDENTIAL_FILE, PASSED_ON
from free2ds_common.launch.package import Package
from free2ds_common.launch.parameters import read_parameters
from free2ds_common.launch.resources import ResourceSettings
from free2ds_common.launch.store_access import CONFIG_MAP_KEYS, SECRET_KEYS

REQUIRED = ["dataset_uri=s3://b/d.json", "image_root_uri=s3://b/i"]


@pytest.mark.parametrize("name", ["store_secret", "store_config_map"])
@pytest.mark.parametrize("value", ["", "AKIA0123", "a b", "-a", "a" * 254, "a\n"])
def test_what_is_no_name_is_refused_and_not_shown(name, value):
    with pytest.raises(SettingError, match=f"^{name}: wanted the name of an object in the cluster, in lower-case") as e:
        ResourceSettings(**{name: value}).check()
    assert not value or value not in str(e.value)


@pytest.mark.parametrize("value", ["a", "free2ds-store", "team.a-1", "a" * 253])
def test_names_are_accepted(value):
    ResourceSettings(store_secret=value, store_config_map=value).check()


def test_a_command_checks_them():
    with pytest.raises(SettingError, match=r"^store_secret: wanted the name"):
        read_parameters(Package.compile(pipeline.free2ds), "", [*REQUIRED, "store_secret="])


def test_the_same_variables_reach_a_stage_in_docker():
    """But for Google's, which Docker is given as the file that it is on this machine."""
    assert set(SECRET_KEYS + CONFIG_MAP_KEYS) - set(PASSED_ON) == {"FSSPEC_GS"}
    assert CREDENTIAL_FILE == "GOOGLE_APPLICATION_CREDENTIALS"


def test_boto_takes_endpoint_and_keys_from_these_variables(monkeypatch):
    for name in ("AWS_PROFILE", "AWS_CONFIG_FILE", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.example:8333")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    session = importlib.import_module("botocore.session").get_session()
    client = session.create_client("s3")
    url = client.generate_presigned_url("get_object", {"Bucket": "bucket", "Key": "data.json"})
    assert url.startswith("http://store.example:8333/bucket/data.json?")
    assert (client.meta.region_name, session.get_credentials().access_key) == ("eu-central-1", "key")


def test_fsspec_takes_googles_key_from_its_variable():
    config = importlib.import_module("fsspec.config")
    found = {}
    config.set_conf_env(found, {"FSSPEC_GS": '{"token": {"type": "service_account"}}'})
    assert found == {"gs": {"token": {"type": "service_account"}}}
