import threading
import time

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


@pytest.fixture
def taken(root, monkeypatch):
    """How many groups are taken after each of some pictures; no file comes before the third is asked for."""
    third = threading.Event()

    def read(uri, image):
        third.wait(10)
        return (root / image).read_bytes()

    monkeypatch.setattr("free2ds_common.inference.prefetch.read_picture_bytes", read)

    def count(max_pictures, pictures):
        taken = []

        def source():
            for group in groups(range(1, 10)):
                taken.append(group)
                if len(taken) == 3:
                    third.set()
                yield group

        loaded = prefetch(source(), str(root), width, max_pictures, None)
        counts = []
        for _ in range(pictures):
            next(loaded)
            counts.append(len(taken))
        loaded.close()
        return counts

    return count


def test_no_more_than_wanted_is_held(taken, monkeypatch):
    """Three pictures, and of three files one is handed on."""
    monkeypatch.setattr("free2ds_common.inference.prefetch.READERS", 3)
    assert taken(3, 4) == [5, 6, 7, 8]


def test_fewer_large_files_are_read_ahead(taken, monkeypatch):
    """Three, as long as no length is known; then one at a time."""
    monkeypatch.setattr("free2ds_common.inference.prefetch.READERS", 3)
    monkeypatch.setattr("free2ds_common.inference.prefetch.MAX_BYTES_AHEAD", 100)
    assert taken(1, 5) == [3, 3, 3, 4, 5]


def test_many_files_are_read_at_a_time_and_no_picture_more_is_decoded(root, monkeypatch):
    """Eight readers meet; the decoders, one per core, never are more than one."""
    meeting = threading.Barrier(8, timeout=10)
    decoding = threading.Semaphore(1)

    def read(uri, image):
        meeting.wait()
        return (root / image).read_bytes()

    def alone(picture):
        assert decoding.acquire(blocking=False)
        time.sleep(0.01)
        decoding.release()
        return width(picture)

    monkeypatch.setattr("free2ds_common.inference.prefetch.read_picture_bytes", read)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert len(list(prefetch(groups(range(1, 9)), str(root), alone, 2, None))) == 8


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
