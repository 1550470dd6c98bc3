"""The page about a training."""

import re

import pytest

from components.finetune.report import curve, smoothed


def test_smoothing_keeps_the_ends_and_the_length():
    values = [0.0, 6.0, 0.0] * 20
    found = smoothed(values)
    assert (found[0], found[-1], len(found)) == (0.0, 0.0, 60)
    assert found[1] == pytest.approx(2.0)


def test_few_values_stay_as_they_are():
    assert smoothed([1.0, 3.0]) == [1.0, 3.0]


def test_a_curve_goes_from_the_first_step_to_the_last():
    drawn = curve([([4.0, 2.0, 0.0], "#000", "loss")], "loss")
    points = re.search(r'points="([^"]*)"', drawn)[1].split()
    # 64 px on the left and 12 on the right of 760; 12 above and 34 below of 260.
    assert points == ["64.0,12.0", "406.0,119.0", "748.0,226.0"]


def test_a_curve_of_one_step_can_be_drawn():
    assert "406.0,12.0" in curve([([4.0], "#000", "loss")], "loss")
