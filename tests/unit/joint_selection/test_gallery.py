"""Pictures with maps over them: the same part of the picture that each model saw."""

import numpy as np
import pytest
from PIL import Image

from components.joint_selection.gallery import CROP, PAD, SQUEEZE, framed, framing_of, overlay
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


def test_framed_by_hand():
    """A wide picture, left third white: cut off by the crop, on the left when squeezed, in a band when padded."""
    picture = Image.new("RGB", (300, 100))
    picture.paste((255, 255, 255), (0, 0, 100, 100))
    cropped, padded, squeezed = (
        np.asarray(framed(picture, framing).convert("L"), float) for framing in (CROP, PAD, SQUEEZE)
    )
    assert cropped.shape == padded.shape == squeezed.shape == (224, 224)
    assert cropped[:, 4:].max() == 0
    assert squeezed[:, :70].min() > 200 and squeezed[:, 80:].max() < 50
    assert padded[112, :70].min() > 200 and padded[:70].max() == padded[-70:].max() == 0


def test_overlay_is_bright_where_the_map_is_high():
    values = np.zeros((24, 24), np.float32)
    values[:12] = 1
    shown = np.asarray(overlay(Image.new("RGB", (224, 224), (10, 10, 10)), values), float).sum(axis=2)
    assert shown[:100].min() > 300 and shown[124:].max() < 60
