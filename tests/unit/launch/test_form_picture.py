"""The run form as a page: fields in order, required ones marked; what keeps it from being drawn."""

import re
import sys

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from free2ds_common.errors import StageError
from free2ds_common.launch import form_picture
from free2ds_common.launch.form_picture import DIGEST, draw_form, form_digest, form_html, shown_digest
from free2ds_common.launch.package import Package


@pytest.fixture(scope="module")
def package():
    defaults = {"a": ("NUMBER_DOUBLE", 1.0), "d": ("STRUCT", {"x": "<y>"}), "c": ("STRING", ""), "e": ("LIST", [1])}
    parameters = {
        name: {"parameterType": kind, "defaultValue": default, "isOptional": True}
        for name, (kind, default) in defaults.items()
    }
    inputs = {"parameters": {"b": {"parameterType": "STRING"}, **parameters}}
    info = {"name": "small", "description": "Less < more."}
    return Package({"pipelineInfo": info, "root": {"inputDefinitions": inputs}}, {})


def test_fields_are_in_the_order_of_the_form(package):
    fields = re.findall(r"<span>(\w+) - (\w+)</span>", form_html(package))
    assert fields == [("a", "double"), ("b", "string"), ("c", "string"), ("d", "dict"), ("e", "list")]


def test_defaults(package):
    page = form_html(package)
    assert "a - double</span><div>1</div>" in page
    assert "c - string</span><div></div>" in page
    assert "d - dict</span><div><pre>{\n  &quot;x&quot;: &quot;&lt;y&gt;&quot;\n}</pre></div>" in page
    assert "<p>Less &lt; more.</p>" in page


def test_what_is_required_is_marked(package):
    assert re.findall(r"<label class=required><span>(\w+) ", form_html(package)) == ["b"]
    assert form_html(package).count("Missing parameter.") == 1


def test_a_picture_that_shows_the_form_is_not_drawn_again(package, tmp_path, monkeypatch):
    text = PngInfo()
    text.add_text(DIGEST, form_digest(package))
    Image.new("RGB", (1, 1)).save(tmp_path / "form.png", pnginfo=text)
    monkeypatch.setattr(form_picture, "find_chromium", lambda: pytest.fail("drawn"))
    draw_form(package, tmp_path / "form.png")


def test_a_picture_of_something_else_shows_no_form(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "form.png")
    assert shown_digest(tmp_path / "form.png") == shown_digest(tmp_path / "none.png") == ""


def test_a_machine_without_chromium(package, tmp_path, monkeypatch):
    monkeypatch.setattr(form_picture.shutil, "which", lambda name: None)
    with pytest.raises(StageError, match=r"^--picture: no Chromium on this machine\. Install the package chromium\.$"):
        draw_form(package, tmp_path / "form.png")


def test_a_machine_without_playwright(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    with pytest.raises(StageError, match=r"^--picture: needs the package playwright\. Install it with free2ds\[dev\]"):
        draw_form(package, tmp_path / "form.png")
