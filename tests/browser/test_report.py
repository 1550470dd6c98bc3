"""The report in a browser: no errors, no network, pictures there, nothing wider than the screen, light and dark."""

import os

import pytest

from components.joint_selection.stage import run
from free2ds_common.launch.form_picture import CHROMIUM_ARGUMENTS, find_chromium
from tests.support.selection import Inputs

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    executable = find_chromium()
    if executable is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium here; .ci/run installs it")
        pytest.skip("needs Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The page of the stage's small inputs, with sources and messages of hostile length and content."""
    inputs = Inputs(tmp_path_factory.mktemp("report"))
    inputs.outcomes[0][9] = "image_missing"
    for record in range(10, 15):
        inputs.outcomes[1][record] = "eos_only"
    inputs.records_manifest = {
        "dataset_uri": "gs://bucket/" + "very-long-name-" * 12,
        "counts": {"read": 41, "written": 40, "dropped": 0, "rejected": 1},
        "reject_reasons": {"not_json": 1},
    }
    inputs.write()
    messages = ["<script>alert(1)</script>", "", "word" * 100, "What is it?"]
    config = inputs.config(kmeans=inputs.write_kmeans([10, 9, 8, 7], messages))
    run(config)
    return config.report


@pytest.fixture(params=["light", "dark"])
def scheme(request):
    return request.param


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def size(request):
    return request.param


class Opened:
    """A page in a browser, and what went wrong on the way."""

    def __init__(self, context, report):
        self.problems, self.requests = [], []
        self.page = context.new_page()
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("requestfailed", lambda request: self.problems.append(request.url[:80]))
        self.page.on("request", lambda request: self.requests.append(request.url.partition(":")[0]))
        self.page.goto(f"file://{report}")


@pytest.fixture
def opened(browser, report, size, scheme):
    width, height = size
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    yield Opened(context, report)
    context.close()


def test_it_opens_without_errors_and_without_the_network(opened):
    assert opened.problems == []
    assert set(opened.requests) <= {"file", "data"}
    assert opened.requests.count("file") == 1


def test_pictures_and_charts_are_there(opened):
    pictures = opened.page.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth])")
    assert len(pictures) >= 9
    assert {(complete, natural) for complete, natural, _ in pictures} == {(True, 224)}
    assert min(shown for _, _, shown in pictures) > 40
    charts = opened.page.evaluate("[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().width)")
    # Three distributions, IoU against text, overlap over temperature, sources and clusters.
    assert len(charts) == 7
    assert min(charts) > 200


def test_nothing_is_wider_than_the_screen(opened, size):
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_colours_follow_the_scheme(opened, scheme):
    ground, ink = opened.page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    brightness = [sum(map(int, colour.strip("rgb()").split(","))) for colour in (ground, ink)]
    assert (brightness[0] > brightness[1]) == (scheme == "light")
    # Charts are drawn in the page's own text colour.
    assert opened.page.evaluate("getComputedStyle(document.querySelector('svg text')).fill") == ink


@pytest.mark.parametrize(
    "words",
    [
        "Warning: Only 30 of 36 records",
        "From read to selected",
        "not_json 1",
        "image_missing 1",
        "Highest combined score",
        "<script>alert(1)",
    ],
)
def test_words_can_be_read(browser, report, words):
    page = browser.new_page()
    page.goto(f"file://{report}")
    text = page.inner_text("body")
    page.close()
    assert words in text


def test_warnings_are_seen_first(opened):
    """Above the tiles, and without scrolling."""
    top, tiles, height = opened.page.evaluate(
        "[document.querySelector('.warning').getBoundingClientRect().bottom,"
        " document.querySelector('.tiles').getBoundingClientRect().top, innerHeight]"
    )
    assert top <= tiles
    assert top < height


def test_it_prints(browser, report):
    """Onto white, whatever the screen's scheme, and without cutting a page's width."""
    page = browser.new_page(color_scheme="dark")
    page.goto(f"file://{report}")
    page.emulate_media(media="print")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    pdf = page.pdf(format="A4")
    page.close()
    assert ground == "rgb(255, 255, 255)"
    assert pdf.startswith(b"%PDF")
