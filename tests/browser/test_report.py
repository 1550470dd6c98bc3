"""The report in a browser: no errors, no network, pictures there, nothing wider than the screen, light and dark."""

import os
import shutil

import pytest

from components.joint_selection.stage import run
from free2ds_common.datasets import DatasetWriter
from free2ds_common.schemas import kmeans_schema
from tests.unit.joint_selection.conftest import Inputs

pytestmark = pytest.mark.browser
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium here; .ci/run installs it")
        pytest.skip("needs Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The page of the stage's small inputs, with sources and messages of hostile length and content."""
    inputs = Inputs(tmp_path_factory.mktemp("report"))
    inputs.outcomes[0][9] = "image_missing"
    inputs.records_manifest = {
        "dataset_uri": "gs://bucket/" + "very-long-name-" * 12,
        "counts": {"read": 41, "written": 40, "dropped": 0, "rejected": 1},
        "reject_reasons": {"not_json": 1},
    }
    inputs.write()
    with DatasetWriter(inputs.folder / "kmeans", kmeans_schema(2)) as writer:
        texts = ["<script>alert(1)</script>", "", "word" * 100, "What is it?"]
        rows = enumerate(texts)
        writer.write(
            [{"cluster": n, "num_turns": 10 - n, "typical_message": t, "centroid": [0.0, 1.0]} for n, t in rows]
        )
    config = inputs.config(kmeans=str(inputs.folder / "kmeans"))
    run(config)
    return config.report


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_it_renders(browser, report, width, height, scheme):
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    problems, requests = [], []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda request: problems.append(request.url[:80]))
    page.on("request", lambda request: requests.append(request.url.partition(":")[0]))
    page.goto(f"file://{report}")
    assert problems == [] and set(requests) <= {"file", "data"} and requests.count("file") == 1
    sizes = page.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth])")
    assert len(sizes) >= 9 and all(complete and natural == 224 and shown > 40 for complete, natural, shown in sizes)
    charts = page.evaluate("[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().width)")
    assert len(charts) == 6 and min(charts) > 200
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    brightness = [sum(map(int, colour.strip("rgb()").split(","))) for colour in (ground, ink)]
    assert (brightness[0] > brightness[1]) == (scheme == "light")
    # Charts are drawn in the page's own text colour.
    assert page.evaluate("getComputedStyle(document.querySelector('svg text')).fill") == ink
    text = page.inner_text("body")
    for words in (
        "From read to selected",
        "not_json 1",
        "image_missing 1",
        "Highest combined score",
        "<script>alert(1)",
    ):
        assert words in text
    context.close()


def test_it_prints(browser, report):
    """Onto white, whatever the screen's scheme, and without cutting a page's width."""
    page = browser.new_page(color_scheme="dark")
    page.goto(f"file://{report}")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()
