import threading

import pytest
import torch
from PIL import Image

from free2ds_common.inference.generation import Question
from free2ds_common.inference.prefetch import PictureQuestions, prefetch
from free2ds_common.inference.prompts import Prompt

QUESTION = Question(0, Prompt((1,), (2,)))


@pytest.fixture
def root(tmp_path):
    """Nine pictures; the width of each is its number."""
    for number in range(1, 10):
        Image.new("RGB", (number, 4)).save(tmp_path / f"{number}.png")
    return tmp_path


def width(picture):
    return {"width": torch.tensor(picture.width)}


def groups(numbers):
    return [PictureQuestions(f"{number}.png", (Question(number, QUESTION.prompt),)) for number in numbers]


@pytest.mark.parametrize("max_pictures", [1, 2, 20])
def test_pictures_in_the_order_of_the_groups(root, max_pictures):
    numbers = [5, 1, 9, 2, 2]
    found = list(prefetch(groups(numbers), str(root), width, max_pictures, None))
    assert [int(group.pixels["width"]) for group in found] == numbers
    assert [group.questions[0].index for group in found] == numbers


def test_no_more_pictures_than_wanted_are_held(root):
    taken = []

    def source():
        for group in groups(range(1, 10)):
            taken.append(group)
            yield group

    loaded = prefetch(source(), str(root), width, 3, None)
    counts = []
    for _ in range(4):
        next(loaded)
        counts.append(len(taken))
    loaded.close()
    assert counts == [3, 4, 5, 6]


def test_a_picture_that_cannot_be_used_is_told_and_left_out(root):
    (root / "2.png").write_bytes(b"no picture")
    (root / "3.png").unlink()
    told = []
    found = prefetch(
        groups([1, 2, 3, 4]), str(root), width, 2, lambda group, problem: told.append((group.image, problem.reason))
    )
    assert [int(group.pixels["width"]) for group in found] == [1, 4]
    assert told == [("2.png", "image_unreadable"), ("3.png", "image_missing")]


def test_errors_of_the_preprocessing_are_not_swallowed(root):
    def fail(picture):
        raise RuntimeError("broken processor")

    with pytest.raises(RuntimeError, match="broken processor"):
        list(prefetch(groups([1]), str(root), fail, 2, None))


def test_pictures_are_loaded_in_other_threads(root):
    def thread(picture):
        return {"own": torch.tensor(threading.current_thread() is threading.main_thread())}

    (group,) = prefetch(groups([1]), str(root), thread, 2, None)
    assert not group.pixels["own"]


def test_large_pictures_are_decoded_one_at_a_time(root, monkeypatch):
    """Of 36 pixels two do not fit into 40; a barrier that two pass together must break."""
    monkeypatch.setattr("free2ds_common.inference.prefetch.MAX_PIXELS", 40)
    meeting = threading.Barrier(2, timeout=0.2)

    def meet(picture):
        with pytest.raises(threading.BrokenBarrierError):
            meeting.wait()
        return width(picture)

    assert len(list(prefetch(groups([9, 9]), str(root), meet, 2, None))) == 2
