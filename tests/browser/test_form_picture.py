"""The picture of the run form, drawn."""

import os

import pytest
from PIL import Image

import pipeline
from free2ds_common.launch.form_picture import draw_form, find_chromium, form_digest, shown_digest
from free2ds_common.launch.package import Package

pytestmark = pytest.mark.browser


def test_a_picture_says_what_it_shows(tmp_path):
    if find_chromium() is None and not os.environ.get("CI"):
        pytest.skip("needs Chromium")
    package = Package.compile(pipeline.free2ds)
    draw_form(package, tmp_path / "form.png")
    assert shown_digest(tmp_path / "form.png") == form_digest(package)
    with Image.open(tmp_path / "form.png") as picture:
        assert picture.width == 1000
        assert 600 < picture.height < 1500
