"""Settings as one text."""

import pytest

from components.finetune.config import FinetuneSettings
from components.joint_selection.config import JointSelectionSettings
from free2ds_common.errors import SettingError
from free2ds_common.options import join_options, read_options, split_options


def test_a_text_becomes_typed_settings():
    found = read_options(JointSelectionSettings, "top_percent=20  sampler=top\n stratify=")
    assert found == {"top_percent": 20.0, "sampler": "top", "stratify": ""}
    assert type(found["top_percent"]) is float


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False)])
def test_a_setting_that_is_true_or_false(text, value):
    assert read_options(FinetuneSettings, f"gradient_checkpointing={text}") == {"gradient_checkpointing": value}


def test_a_setting_that_is_neither_true_nor_false():
    with pytest.raises(SettingError, match="gradient_checkpointing: got 'no', wanted true or false"):
        read_options(FinetuneSettings, "gradient_checkpointing=no")


def test_no_text_is_no_settings():
    assert read_options(JointSelectionSettings, "") == {}


@pytest.mark.parametrize("options", [{"a": "b c", "b": "'"}, {"b": "x=y", "a": ""}])
def test_a_text_comes_back(options):
    assert split_options("here", join_options(options), {"a", "b"}) == options


def test_names_stand_in_order():
    assert join_options({"b": "1", "a": "2"}) == "a=2 b=1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sampler", "options: got 'sampler', wanted name=value, separated by blanks."),
        (
            "alpha=1",
            "options: got 'alpha', wanted one of missing_iou, sampler, stratify, temperature, text_",
        ),
        ("sampler=top sampler=top", "options: has sampler twice."),
        ('sampler="top', "options: got 'sampler=\"top', with a quote that does not end."),
        ("top_percent=half", "options: top_percent: got 'half', wanted a number."),
    ],
)
def test_what_is_no_text_of_options_is_refused(text, message):
    with pytest.raises(SettingError) as refused:
        read_options(JointSelectionSettings, text)
    assert str(refused.value).startswith(message)
