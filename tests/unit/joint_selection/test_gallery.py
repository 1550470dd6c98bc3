"""Pictures with maps over them: the same part of the picture that each model saw."""

import numpy as np
import pytest
from PIL import Image

from components.joint_selection.report.gallery import CROP, PAD, SQUEEZE, framed, framing_of, overlay
from free2ds_common.datasets import DatasetWriter, open_dataset
from free2ds_common.schemas import attention_schema


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, CROP),
        ({"do_center_crop": True, "do_pad": True}, CROP),
        ({"do_center_crop": False, "do_pad": True}, PAD),
        ({"do_center_crop": None}, SQUEEZE),
    ],
)
def test_framing_by_the_picture_processor(tmp_path, settings, wanted):
    with DatasetWriter(tmp_path, attention_schema()) as writer:
        writer.manifest.update(preprocessing=settings)
    assert framing_of(open_dataset(tmp_path, attention_schema())) == wanted


def wide_picture(framing):
    """A picture of 3 to 1 whose left third is white, as gray levels of a square."""
    picture = Image.new("RGB", (300, 100))
    picture.paste((255, 255, 255), (0, 0, 100, 100))
    shown = np.asarray(framed(picture, framing).convert("L"), float)
    assert shown.shape == (224, 224)
    return shown


def test_a_crop_cuts_the_left_third_off():
    assert wide_picture(CROP)[:, 4:].max() == 0


def test_squeezed_the_left_third_is_white():
    shown = wide_picture(SQUEEZE)
    assert shown[:, :70].min() > 200
    assert shown[:, 80:].max() < 50


def test_padded_it_is_white_in_a_band():
    shown = wide_picture(PAD)
    assert shown[112, :70].min() > 200
    assert shown[:70].max() == 0
    assert shown[-70:].max() == 0


@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_overlay_is_bright_where_the_map_is_high(scale):
    """However small the numbers are: those of a map sum to 1 and may be tiny."""
    values = np.zeros((24, 24), np.float32)
    values[:12] = scale
    shown = np.asarray(overlay(Image.new("RGB", (224, 224), (10, 10, 10)), values), float).sum(axis=2)
    assert shown[:100].min() > 300
    assert shown[124:].max() < 60


def test_overlay_of_a_map_of_zeros_is_the_picture_in_gray():
    shown = np.asarray(overlay(Image.new("RGB", (224, 224), (10, 10, 10)), np.zeros((24, 24), np.float32)))
    assert np.unique(shown).tolist() == [10]
