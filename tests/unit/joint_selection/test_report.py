"""The HTML page, without a browser: what it says, what it shows, what it never runs."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.joint_selection.stage import run
from free2ds_common.run_facts import RunFacts
from tests.support.selection import Inputs, chosen_ids, page_of, read_json, rows_of

HOSTILE = "<script>alert('{0}')</script>\"{0}\"&"
ESCAPED = "&lt;script&gt;alert(&#39;{0}&#39;)&lt;/script&gt;&#34;{0}&#34;&amp;"


class Page(HTMLParser):
    """Tags, attributes, and the pictures by their caption."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.pictures = set(), [], []
        self._uri, self._in_caption = "", False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes
        if tag == "img":
            self._uri = dict(attributes)["src"]
        self._in_caption = tag == "figcaption"

    def handle_data(self, data):
        if self._in_caption:
            picture = Image.open(io.BytesIO(base64.b64decode(self._uri.partition(",")[2])))
            self.pictures.append((data, np.asarray(picture.convert("RGB"), float)))
            self._in_caption = False


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A page in which every text of the data set and of the models is hostile."""
    inputs = Inputs(tmp_path_factory.mktemp("hostile"))
    inputs.sources = [HOSTILE.format("source"), "$x_$", "z"]
    inputs.question = HOSTILE.format("question") + "{}"
    inputs.manifest["model"] = HOSTILE.format("model")
    inputs.records_manifest = {
        "dataset_uri": HOSTILE.format("uri"),
        "counts": {"read": 41, "written": 40, "dropped": 0, "rejected": 1},
        "reject_reasons": {HOSTILE.format("reason"): 1},
    }
    kmeans = inputs.write().write_kmeans([30, 10], [HOSTILE.format("message"), "What is it?"])
    config = inputs.config(kmeans=kmeans)
    run(config)
    return page_of(config)


@pytest.mark.parametrize("text", ["source", "question", "model", "uri", "reason", "message"])
def test_texts_are_escaped(hostile, text):
    assert ESCAPED.format(text) in hostile
    assert f"<script>alert('{text}')" not in hostile


def test_it_runs_nothing_and_loads_nothing(hostile):
    page = Page(hostile)
    assert not page.tags & {"script", "iframe", "object", "embed", "link", "base", "form"}
    assert [name for name, _ in page.attributes if name.startswith("on")] == []
    targets = [value for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert [target[:40] for target in targets if not re.match(r"data:image/(jpeg|png);base64,|#", target)] == []
    # Not from a style either.
    assert re.findall(r"url\((?!#)|@import", hostile) == []


def test_dollars_in_names_of_sources_are_dollars(hostile):
    """In the chart too, where matplotlib would read a formula between two of them."""
    svg = hostile[hostile.index('aria-label="Composition by source"') :]
    assert ">$x_$<" in svg[: svg.index("</svg>")]


@pytest.fixture(scope="module")
def corners(tmp_path_factory):
    """A page on records where LLaVA looks at the upper right and MGM at the lower right; pictures are black."""
    inputs = Inputs(tmp_path_factory.mktemp("corners"))
    grid = np.zeros((2, 24, 24), np.float32)
    grid[0, :12, 12:] = grid[1, 12:, 12:] = 1 / 144
    inputs.maps[:] = grid.reshape(2, 1, 576)
    inputs.write()
    for name in "ab":
        Image.new("RGB", (50, 50)).save(inputs.folder / f"images/{name}.png")
    config = inputs.config()
    run(config)
    return Page(page_of(config)).pictures


@pytest.mark.parametrize(
    ("caption", "bright"),
    [("picture", None), ("LLaVA looks here", "upper right"), ("MGM looks here", "lower right")],
)
def test_each_map_is_under_its_own_models_name(corners, caption, bright):
    pictures = [pixels for text, pixels in corners if text == caption]
    assert len(pictures) >= 6
    for pixels in pictures:
        halves = slice(0, 100), slice(124, 224)
        corner = {
            f"{vertical} {horizontal}": pixels[rows, columns].mean()
            for vertical, rows in zip(("upper", "lower"), halves, strict=True)
            for horizontal, columns in zip(("left", "right"), halves, strict=True)
        }
        assert [name for name, level in corner.items() if level > 50] == ([bright] if bright else [])


@pytest.fixture(scope="module")
def plain_config(tmp_path_factory):
    """A run on the small inputs, with two settings that can be recognized."""
    inputs = Inputs(tmp_path_factory.mktemp("plain"))
    inputs.manifest["model_fingerprint"] = "sha256 abc"
    config = inputs.write().config(alpha=0.125)
    run(config)
    return config


@pytest.fixture(scope="module")
def plain(plain_config):
    return page_of(plain_config)


def test_it_stands_alone(plain):
    assert plain.count("data:image/jpeg;base64,") >= 9
    assert "Selected 10 of 40 records that could be drawn." in plain
    assert len(plain) < 8_000_000


def test_galleries_show_the_records_that_they_name(plain_config, plain):
    """Ten are selected, so that the line is at the tenth best score of all, also of those without an IoU."""
    rows = sorted(rows_of(plain_config), key=lambda row: -row["combined"])
    line = rows[9]["combined"]
    order = [row for row in rows if row["iou"] is not None]
    nearest = sorted(order, key=lambda row: abs(row["combined"] - line))[:6]
    chosen = [row for row in order if row["selected"]]
    middle = len(chosen) // 2
    wanted = {
        "Highest combined score": order[:6],
        "Lowest combined score": order[::-1][:6],
        "Near the line": sorted(nearest, key=lambda row: -row["combined"]),
        "From the middle of the selection": chosen[middle - 3 : middle + 3],
    }
    assert len(chosen) > 6
    found = {}
    for section in plain.split("<h2>")[1:]:
        title = section.partition("</h2>")[0]
        if cards := re.findall(r"<br>\nrecord (\d+), ", section):
            found[title] = [int(number) for number in cards]
    assert found == {title: [row["unique_id"] for row in rows] for title, rows in wanted.items()}


def test_charts_compare_the_selection_with_the_pool(inputs, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        "components.joint_selection.report.charts.distribution",
        lambda pool, selected, label: drawn.update({label: (pool.tolist(), selected.tolist())}) or "",
    )
    config = inputs.config(missing_iou="exclude")
    run(config)
    pool = [row for row in rows_of(config) if row["combined"] is not None]
    labels = {
        "iou": "IoU of the two maps",
        "text_score": "text score (1 is the least typical)",
        "combined": "combined score",
    }
    assert drawn == {
        label: ([row[name] for row in pool], [row[name] for row in pool if row["selected"]])
        for name, label in labels.items()
    }


def test_the_same_command_writes_the_same_bytes(inputs, monkeypatch):
    """But for the time that it took."""
    facts = RunFacts(started="2001-09-09T01:46:40+00:00", seconds=1.5, command="", threads=1)
    monkeypatch.setattr("components.joint_selection.stage.run_facts", lambda _: facts)
    config = inputs.config(overview=str(inputs.folder / "overview.md"))
    outputs = [Path(path) for path in (config.selected, config.random, config.report, config.summary, config.overview)]
    run(config)
    first = [path.read_bytes() for path in outputs]
    run(config)
    assert [path.read_bytes() for path in outputs] == first


def test_pictures_that_are_not_there_are_said_to_be_missing(inputs):
    config = inputs.config(image_root_uri=str(inputs.folder / "elsewhere"))
    run(config)
    assert "picture not shown: image_missing" in page_of(config)


def test_a_store_that_does_not_answer_costs_pictures_not_the_selection(inputs, monkeypatch, caplog):
    class HttpError(Exception):
        """As gcsfs has one: no OSError."""

    asked = []

    def refuse(image_root_uri, image):
        asked.append(image)
        raise HttpError("503")

    monkeypatch.setattr("components.joint_selection.report.gallery.load_picture", refuse)
    config = inputs.config()
    run(config)
    assert "picture not shown: the store did not answer" in page_of(config)
    assert f"{asked[0]}: HttpError: 503" in caplog.text
    assert len(asked) == 1, "a dead store is not asked for every card"
    assert len(chosen_ids(config)) == 10


def test_credentials_of_the_picture_root_are_in_no_output(make_inputs):
    inputs = make_inputs()
    inputs.records_manifest = {
        "counts": {"read": 40, "written": 40, "dropped": 0, "rejected": 0},
        "reject_reasons": {},
        "dataset_uri": "https://me:hunter2@store.example/d.json?token=s3cr3t",
    }
    root = f"file://{inputs.folder}/images?X-Amz-Signature=s1gn3d"
    config = inputs.write().config(image_root_uri=root, overview=str(inputs.folder / "overview.md"))
    run(config)
    for path in (config.report, config.summary, config.overview, f"{config.scores}/_manifest.json"):
        text = Path(path).read_text(encoding="utf-8")
        assert [secret for secret in ("hunter2", "s3cr3t", "s1gn3d") if secret in text] == [], path
    assert "store.example/d.json" in page_of(config)


def test_clusters(inputs):
    config = inputs.config(kmeans=inputs.write_kmeans([5, 0, 35]))
    run(config)
    page = page_of(config)
    assert "3 clusters of messages" in page
    # The largest first, then the smallest first.
    assert re.findall(r"message \d", page) == ["message 2", "message 0", "message 0", "message 2"]
    assert "(empty text)" not in page
    assert "1 clusters have no message: no text is nearest to their centre." in page


def test_no_clusters_without_a_k_means_model(plain):
    assert "clusters of messages" not in plain


def test_outcomes_and_unknown_ids(inputs, make_inputs):
    few = make_inputs(order=range(30)).write()
    config = few.config(mgm_attention=inputs.config().mgm_attention, max_reject_fraction=0.5)
    run(config)
    page = page_of(config)
    assert "mgm_attention holds 10 ids that are not in the data set; they were left out." in page
    assert "llava_attention holds" not in page
    assert '<tr><td>text_only</td><td class="n">3</td><td class="n">3</td><td>has no picture</td></tr>' in page
    assert '<tr><td>eos_only</td><td class="n">1</td><td class="n">0</td>' in page


def test_models_parameters_and_versions(plain):
    assert plain.count("sha256 abc") == 2
    assert "<th>pyarrow</th>" in plain
    assert "<tr><th>alpha</th><td>0.125</td></tr>" in plain
    assert "<tr><th>stratify</th><td>(empty)</td></tr>" in plain
    assert "24 x 24 positions</td>" in plain


def test_the_page_says_how_records_without_an_iou_are_ranked(plain):
    words = "by their text score among themselves, with the combined scores of the records that have an IoU"
    assert f"{words} (missing_iou = calibrated)" in plain


def test_without_any_iou_their_text_decides(make_inputs):
    inputs = make_inputs()
    inputs.text_only(*range(40))
    config = inputs.write().config()
    run(config)
    words = "by their text score alone, since no record has an IoU to calibrate with (missing_iou = calibrated)"
    assert words in page_of(config)


def test_shares_by_outcome(make_inputs):
    """40 records, 10 drawn; text alone counts, and those without an IoU have the least typical texts."""
    inputs = make_inputs()
    inputs.similarity = 0.5 + np.arange(40) / 100
    inputs.similarity[[3, 4, 5, 7]] = 0.1
    config = inputs.write().config(alpha=1.0, sampler="top", missing_iou="text")
    run(config)
    table = page_of(config).partition("<th>both models together</th>")[2].partition("</table>")[0]
    assert "of the top 10" in table
    assert re.findall(r'<tr><td>(.*?)</td><td class="n">(.*)</td></tr>', table) == [
        ("with an IoU", '36</td><td class="n">90.0%</td><td class="n">60.0%</td><td class="n">60.0%'),
        ("text_only", '3</td><td class="n">7.5%</td><td class="n">30.0%</td><td class="n">30.0%'),
        ("eos_only", '1</td><td class="n">2.5%</td><td class="n">10.0%</td><td class="n">10.0%'),
    ]


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("text", "by their text score alone (missing_iou = text)"),
        ("reference", "which is the best image score (missing_iou = reference)"),
        ("exclude", "not at all: they cannot be drawn (missing_iou = exclude)"),
    ],
)
def test_or_as_missing_iou_says(inputs, policy, words):
    config = inputs.config(missing_iou=policy)
    run(config)
    assert words in page_of(config)


def test_placeholders_are_not_shown(plain):
    assert "&lt;image&gt;" not in plain


def test_no_result_names_a_folder_of_the_inputs(inputs):
    """They are gone after a run."""
    config = inputs.config(kmeans=inputs.write_kmeans([40]))
    run(config)
    for path in (config.summary, config.report, f"{config.scores}/_manifest.json"):
        text = Path(path).read_text(encoding="utf-8")
        assert [name for name in (config.records, config.text_scores, config.kmeans) if f"{name}" in text] == []


def test_the_report_says_when_and_how_it_was_made(inputs, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("FREE2DS_STARTED", "2001-09-09T01:46:40+00:00")
    monkeypatch.setenv("FREE2DS_COMMAND", "free2ds run --x <y>")
    inputs.records_manifest = {"dataset_uri": "gs://b/d.json", "dataset_sha256": "abc"}
    config = inputs.write().config()
    run(config)
    page = page_of(config)
    for name, value in (
        ("started", "2001-09-09T01:46:40+00:00"),
        ("command", "free2ds run --x &lt;y&gt;"),
        ("threads per stage", "3"),
        ("data set", "gs://b/d.json"),
        ("its sha256", "abc"),
    ):
        assert f"<tr><th>{name}</th><td>{value}</td></tr>" in page


def test_a_run_without_a_command_shows_none(inputs, monkeypatch):
    monkeypatch.delenv("FREE2DS_COMMAND", raising=False)
    config = inputs.config()
    run(config)
    assert "<th>command</th>" not in page_of(config)


def tile_of(page):
    """The tile on the top n, without markup."""
    found = re.search(r'<div class="tile">(<b>\d+ %</b>of this selection.*?)</div>', page)
    return re.sub(r"<[^>]*>", " ", found[1]).strip()


def test_the_tile_says_what_this_draw_has_and_what_chance_makes_of_it(plain_config, plain):
    found = read_json(plain_config.summary)["chance"]
    spread = round(50 * (found["overlap"]["high"] - found["overlap"]["low"]))
    assert tile_of(plain) == (
        f"{100 * found['overlap_drawn']:.0f} % of this selection in the top 10 by score; "
        f"this setting expects {100 * found['overlap']['expected']:.0f} ± {spread} %, a random draw 25 ± 25 %"
    )


def test_the_tile_of_top_expects_nothing(inputs):
    config = inputs.config(sampler="top")
    run(config)
    assert tile_of(page_of(config)) == "100 % of this selection in the top 10 by score, a random draw 25 ± 25 %"


def test_the_curve_and_the_command_for_half(plain_config, plain):
    section = plain[
        plain.index("<h3>Other temperatures on the same scores</h3>") : plain.index("<h2>Distributions</h2>")
    ]
    wanted = read_json(plain_config.summary)["chance"]["wanted_temperature"]
    assert 'aria-label="Overlap and effective sample size over the temperature"' in section
    assert f"<code>--param temperature={wanted:g}</code>" in section
    assert [label for label in (">this run<", ">a random draw<") if label not in section] == []
    # Numbers at its axis, where matplotlib would write formulas.
    assert [label for label in (">0.001<", ">0.1<", ">10<") if label not in section] == []
    assert "$" not in section


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("temperature", [1e-300, 1e300])
def test_any_temperature_is_on_the_curve(inputs, temperature):
    config = inputs.config(temperature=temperature)
    run(config)
    assert ">this run<" in page_of(config)


def test_no_temperature_for_half_is_said(inputs):
    config = inputs.config(ratio=0.75, sampler="top")
    run(config)
    assert "No temperature on the curve gives 50 %." in page_of(config)
    assert ">this run<" not in page_of(config)


def test_sources_have_lifts(plain_config, plain):
    found = read_json(plain_config.summary)
    for name, row in found["chance"]["sources"].items():
        pool, selected, lift = found["sources"][name]["pool"], row["selected"], row["lift"]
        cells = [f"{row['lift_drawn']:.2f}", f"{selected['expected']:.1f}"]
        cells += [f"{selected['low']:.0f} to {selected['high']:.0f}", f"{lift['low']:.2f} to {lift['high']:.2f}"]
        line = re.search(rf'<tr><td>{name}</td><td class="n">{pool}</td>.*?</tr>', plain, re.DOTALL)[0]
        assert re.findall(r'<td class="n">(.*?)</td>', line)[3:] == cells


def test_how_much_was_computed_and_how_much_was_there(make_inputs):
    inputs = make_inputs()
    inputs.manifest.update(reused=3000, computed=4)
    inputs.text_manifest = {"reused": 10, "computed": 0}
    config = inputs.write().config(overview=str(inputs.folder / "overview.md"))
    run(config)
    sentence = (
        "Results: LLaVA 8 computed, 6,000 from the results store; MGM 8 computed, 6,000 from the results store; "
        "text model 0 computed, 10 from the results store."
    )
    assert f"<p>{sentence}</p>" in page_of(config)
    assert f"- {sentence}\n" in (inputs.folder / "overview.md").read_text()


def test_what_changed_since_an_earlier_selection(make_inputs):
    inputs = make_inputs().write()
    run(inputs.config())
    config = inputs.config(
        num_samples=13,
        previous_selected_uri=str(inputs.folder / "selected.json"),
        overview=str(inputs.folder / "overview.md"),
    )
    run(config)
    sentences = (
        "Since the earlier selection 10 records stayed.",
        "3 came in: 3 more records are drawn.",
        "0 dropped out.",
        "Settings that differ: num_samples.",
    )
    for sentence in sentences:
        assert f"<li>{sentence}</li>" in page_of(config)
        assert f"- {sentence}\n" in (inputs.folder / "overview.md").read_text()
    assert "<h2>Since the earlier selection</h2>" in page_of(config)
