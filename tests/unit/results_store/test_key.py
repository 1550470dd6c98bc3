import pytest

from free2ds_common.places import place
from free2ds_common.results_store.key import BUCKETS, bucket_of, canonical, result_key, settings_key

SETTINGS = {"model_fingerprint": "sha256 1", "dtype": "float32", "prompt": {"style": "method", "system": "S"}}


def test_canonical_json_has_one_form():
    assert canonical({"b": [1, "ä\ud800"], "a": {"d": None, "c": 1.5}}) == (
        b'{"a":{"c":1.5,"d":null},"b":[1,"\\u00e4\\ud800"]}'
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_json_has_no_key(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        settings_key({"value": value})


@pytest.mark.parametrize(
    "change",
    [{"model_fingerprint": "sha256 2"}, {"dtype": "bfloat16"}, {"prompt": {"style": "method", "system": "T"}}],
)
def test_each_setting_changes_the_folder(change):
    assert settings_key({**SETTINGS, **change}) != settings_key(SETTINGS)


def test_the_order_of_settings_does_not():
    assert settings_key(dict(reversed(SETTINGS.items()))) == settings_key(SETTINGS)


def test_the_same_question_has_another_key_with_other_settings():
    assert result_key("a" * 32, {"question": "Q"}) != result_key("b" * 32, {"question": "Q"})
    assert result_key("a" * 32, {"question": "Q"}) != result_key("a" * 32, {"question": "R"})
    assert len(result_key("a" * 32, {})) == 32


def test_buckets_cut_the_places_into_equal_ranges():
    assert [bucket_of(value) for value in (0, 2**54 - 1, 2**54, 2**64 - 1)] == [0, 0, 1, BUCKETS - 1]
    # The first ten bits of 072c1ea0a4b8287e.
    assert bucket_of(place("coco/a.jpg", "any")) == 28
