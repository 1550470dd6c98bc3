"""Records to a batch."""

import numpy as np
import pytest
import torch
from PIL import Image

from components.finetune.collate import Collator
from components.finetune.samples import Sample

PICTURE, PAD = 99, 7


@pytest.fixture
def collate(tmp_path):
    Image.new("RGB", (4, 4), (10, 0, 0)).save(tmp_path / "red.png")
    Image.new("RGB", (4, 4), (20, 0, 0)).save(tmp_path / "redder.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return Collator(
        image_root_uri=str(tmp_path),
        preprocess=lambda picture: torch.tensor([float(picture.getpixel((0, 0))[0])]),
        picture_shape=(1,),
        image_token=PICTURE,
        vision_tokens=3,
        pad_token=PAD,
    )


def sample(ids, learnt, image=None):
    return Sample(np.array(ids, np.int32), np.array(learnt, bool), image)


def test_pictures_text_and_padding(collate):
    batch = collate(
        [
            sample([1, PICTURE, 5, 6], [0, 0, 0, 1], "red.png"),
            sample([1, 8], [0, 1]),
            sample([PICTURE], [0], "redder.png"),
        ]
    )
    assert batch["input_ids"].tolist() == [
        [1, PICTURE, PICTURE, PICTURE, 5, 6],
        [1, 8, PAD, PAD, PAD, PAD],
        [PICTURE, PICTURE, PICTURE, PAD, PAD, PAD],
    ]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100] * 5 + [6], [-100, 8] + [-100] * 4, [-100] * 6]
    assert batch["pixel_values"].tolist() == [[10.0], [20.0]]
    assert batch["problems"] == []


def test_text_alone_has_no_pixels(collate):
    assert "pixel_values" not in collate([sample([1, 8], [0, 1])])


@pytest.mark.parametrize(("name", "reason"), [("none.png", "image_missing"), ("broken.png", "image_unreadable")])
def test_nothing_is_learnt_with_a_picture_that_cannot_be_used(collate, name, reason):
    batch = collate([sample([PICTURE, 5], [0, 1], name), sample([PICTURE, 6], [0, 1], "red.png")])
    assert batch["labels"].tolist() == [[-100] * 4, [-100] * 3 + [6]]
    assert batch["pixel_values"].tolist() == [[0.0], [10.0]]
    assert [problem[0] for problem in batch["problems"]] == [reason]
