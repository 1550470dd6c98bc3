"""Benchmark folders of tiny files in the official formats: prompts, answers, groups, pictures."""

import base64
import io
import json

import pytest
from PIL import Image

from components.evaluate.__main__ import main
from components.evaluate.benchmark import BenchmarkQuestion, read_benchmark
from components.evaluate.config import ConvertConfig
from components.evaluate.convert import convert
from components.evaluate.official import OFFICIAL_FORMATS
from free2ds_common.errors import StageError

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


def png():
    data = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def write(tmp_path):
    """Write a file of JSON, or of text; returns its path as text."""

    def write_file(name, content):
        path = tmp_path / "official" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return str(path)

    return write_file


@pytest.fixture
def converted(tmp_path):
    """Convert and read the folder again; pictures are drawn first."""

    def make(benchmark, files, pictures=(), **options):
        for name in pictures:
            path = tmp_path / "pictures" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png())
        folder = tmp_path / "out"
        given = {"images": str(tmp_path / "pictures")} if pictures else {}
        convert(
            ConvertConfig(
                benchmark=benchmark, files=files, output=str(folder), source="site", revision="v1", **given | options
            )
        )
        found = read_benchmark(folder)
        there = sorted(path.relative_to(folder / "images").as_posix() for path in (folder / "images").rglob("*.*"))
        return found, there

    return make


def test_vqav2(write, converted):
    people = [{"answer": "red", "answer_id": number} for number in range(1, 11)]
    files = [
        write(
            "questions.json",
            {"data_subtype": "val2014", "questions": [{"image_id": 42, "question": "Color?", "question_id": 420}]},
        ),
        write("annotations.json", {"annotations": [{"question_id": 420, "answers": people, "answer_type": "other"}]}),
    ]
    found, there = converted("vqav2", files, ["COCO_val2014_000000000042.jpg", "unused.jpg"])
    assert found.questions == (
        BenchmarkQuestion(
            id="420",
            image="COCO_val2014_000000000042.jpg",
            question=f"Color?\n{SHORT}",
            answers=("red",) * 10,
            category="other",
        ),
    )
    assert (found.metric, there) == ("vqa", ["COCO_val2014_000000000042.jpg"])


def test_gqa(write, converted):
    file = write("testdev.json", {"201": {"imageId": "n1", "question": "Which side?", "answer": "left"}})
    found, _ = converted("gqa", [file], ["n1.jpg"])
    assert found.questions == (
        BenchmarkQuestion(id="201", image="n1.jpg", question=f"Which side?\n{SHORT}", answers=("left",)),
    )
    assert (found.name, found.metric) == ("gqa", "gqa")
    assert (found.origin["source"], found.origin["revision"]) == ("site", "v1")


def test_vizwiz(write, converted):
    people = [{"answer": "unanswerable", "answer_confidence": "yes"}] * 10
    record = {
        "image": "V_1.jpg",
        "question": "What?",
        "answers": people,
        "answer_type": "unanswerable",
        "answerable": 0,
    }
    found, _ = converted("vizwiz", [write("val.json", [record])], ["V_1.jpg"])
    hint = "When the provided information is insufficient, respond with 'Unanswerable'."
    assert found.questions == (
        BenchmarkQuestion(
            id="V_1.jpg",
            image="V_1.jpg",
            question=f"What?\n{hint}\n{SHORT}",
            answers=("unanswerable",) * 10,
            category="unanswerable",
        ),
    )


def test_scienceqa(write, converted):
    problems = {
        "1": {"question": "Which?", "choices": ["x", "y"], "answer": 1, "hint": "Look.", "image": "image.png"},
        "2": {"question": "Why?", "choices": ["u", "v"], "answer": 0, "hint": "", "image": None},
        "3": {"question": "Of training", "choices": ["u", "v"], "answer": 0, "hint": "", "image": None},
    }
    files = [write("problems.json", problems), write("pid_splits.json", {"train": ["3"], "test": ["1", "2"]})]
    found, there = converted("scienceqa", files, ["1/image.png"])
    assert found.questions == (
        BenchmarkQuestion(
            id="1",
            image="1/image.png",
            question=f"Context: Look.\nWhich?\nA. x\nB. y\n{LETTER}",
            answers=("B",),
            options=("x", "y"),
            category="image",
        ),
        BenchmarkQuestion(
            id="2",
            image=None,
            question=f"Why?\nA. u\nB. v\n{LETTER}",
            answers=("A",),
            options=("u", "v"),
            category="text",
        ),
    )
    assert there == ["1/image.png"]


@pytest.mark.parametrize(
    ("seen", "wanted"),
    [
        ([], ""),
        ([{"image_id": "p", "ocr_tokens": ["STOP", "now"]}], "Reference OCR token: STOP, now\n"),
        ([{"image_id": "p", "ocr_info": [{"word": "STOP"}]}], "Reference OCR token: STOP\n"),
    ],
)
def test_textvqa(write, converted, seen, wanted):
    record = {"image_id": "p", "question_id": 9, "question": "what sign?", "answers": ["stop"] * 10}
    files = [write("val.json", {"data": [record]})] + ([write("ocr.json", {"data": seen})] if seen else [])
    found, _ = converted("textvqa", files, ["p.jpg"])
    assert found.questions == (
        BenchmarkQuestion(id="9", image="p.jpg", question=f"what sign?\n{wanted}{SHORT}", answers=("stop",) * 10),
    )


def test_textvqa_of_a_picture_without_tokens(write, converted):
    """LLaVA's file has the empty line too."""
    data = [{"image_id": name, "question_id": name, "question": "what?", "answers": ["stop"] * 10} for name in "pq"]
    files = [
        write("val.json", {"data": data}),
        write("ocr.json", {"data": [{"image_id": "p", "ocr_tokens": ["STOP"]}]}),
    ]
    found, _ = converted("textvqa", files, ["p.jpg", "q.jpg"])
    assert found.questions[1].question == f"what?\nReference OCR token: \n{SHORT}"


def test_pope(write, converted):
    lines = {
        kind: json.dumps({"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": label}) + "\n"
        for kind, label in [("random", "yes"), ("popular", "no")]
    }
    files = [write(f"coco_pope_{kind}.json", text) for kind, text in lines.items()]
    found, _ = converted("pope", files, ["a.jpg"])
    assert [(one.id, one.category, one.answers, one.question) for one in found.questions] == [
        ("random-1", "random", ("yes",), f"Is there a dog?\n{SHORT}"),
        ("popular-1", "popular", ("no",), f"Is there a dog?\n{SHORT}"),
    ]


@pytest.mark.parametrize(("texts", "pictures"), [("count", "count"), ("count/questions_answers_YN", "count/images")])
def test_mme(write, converted, tmp_path, texts, pictures):
    write(f"mme/{texts}/001.txt", "Is it one? Please answer yes or no.\tYes\nIs it two? Please answer yes or no.\tNo\n")
    picture = tmp_path / "official/mme" / pictures / "001.jpg"
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(png())
    found, there = converted("mme", [str(tmp_path / "official/mme")])
    common = {"image": "count/001.jpg", "category": "count", "group": "count/001.jpg"}
    assert found.questions == (
        BenchmarkQuestion(id="count/001.jpg-0", question=f"Is it one?\n{SHORT}", answers=("Yes",), **common),
        BenchmarkQuestion(id="count/001.jpg-1", question=f"Is it two?\n{SHORT}", answers=("No",), **common),
    )
    assert there == ["count/001.jpg"]


def test_mme_of_jpeg_files_with_empty_lines(write, converted, tmp_path):
    write("mme/count/1.txt", "Is it one?\tYes\n\nIs it two?\tNo\n\n")
    (tmp_path / "official/mme/count/1.JPEG").write_bytes(png())
    found, there = converted("mme", [str(tmp_path / "official/mme")])
    assert [one.question for one in found.questions] == [f"Is it one?\n{SHORT}", f"Is it two?\n{SHORT}"]
    assert there == ["count/1.JPEG"]


def test_mmbench(write, converted):
    """A question, a rotation that has its picture again and one, first, that names it; another of that picture."""
    content = base64.b64encode(png()).decode()
    head = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage"
    rows = [
        "2000007\tWhich?\t\tx\ty\t\t\tA\tcolor\t7",
        f"7\tWhich?\tLook.\tx\ty\t\t\tA\tcolor\t{content}",
        f"1000007\tWhich?\tnan\ty\tx\t\t\tB\tcolor\t{content}",
        "8\tWhat?\t\tu\tv\tw\t\tC\tshape\t7",
    ]
    found, there = converted("mmbench", [write("mmbench.tsv", "\n".join([head, *rows]) + "\n")])
    assert [(one.id, one.group, one.image, one.answers) for one in found.questions] == [
        ("2000007", "7", "2000007.jpg", ("A",)),
        ("7", "7", "2000007.jpg", ("A",)),
        ("1000007", "7", "2000007.jpg", ("B",)),
        ("8", "8", "2000007.jpg", ("C",)),
    ]
    assert found.questions[1].question == f"Look.\nWhich?\nA. x\nB. y\n{LETTER}"
    assert found.questions[2].question == f"Which?\nA. y\nB. x\n{LETTER}"
    assert found.questions[3].options == ("u", "v", "w")
    assert there == ["2000007.jpg"]


@pytest.mark.parametrize("nothing", ["", "nan", "None"])
def test_mmbench_takes_options_up_to_the_first_that_is_missing(write, converted, nothing):
    row = f"1\tWhich?\t{nothing}\tx\ty\t{nothing}\tz\tA\tcolor\t{base64.b64encode(png()).decode()}"
    head = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage"
    found, _ = converted("mmbench", [write("mmbench.tsv", f"{head}\n{row}\n")])
    assert found.questions[0].options == ("x", "y")
    assert found.questions[0].question == f"Which?\nA. x\nB. y\n{LETTER}"


def test_seed(write, converted):
    choices = {"choice_a": "1", "choice_b": "2", "choice_c": "3", "choice_d": "4"}
    common = {**choices, "question": "How many?", "answer": "B", "question_type_id": 5}
    content = {
        "question_type": {"Instances Counting": 5},
        "questions": [
            {**common, "data_type": "image", "data_id": "1_2", "question_id": "q1"},
            {**common, "data_type": "video", "data_id": "3.webm", "question_id": "q2"},
        ],
    }
    found, _ = converted("seed", [write("SEED-Bench.json", content)], ["1_2"], name="seed_image")
    assert found.questions == (
        BenchmarkQuestion(
            id="q1",
            image="1_2",
            question=f"How many?\nA. 1\nB. 2\nC. 3\nD. 4\n{LETTER}",
            answers=("B",),
            options=("1", "2", "3", "4"),
            category="Instances Counting",
        ),
    )
    assert found.name == "seed_image"


def test_each_benchmark_has_its_metric():
    assert {name: official.metric for name, official in OFFICIAL_FORMATS.items()} == {
        "vqav2": "vqa",
        "gqa": "gqa",
        "vizwiz": "vqa",
        "scienceqa": "scienceqa",
        "textvqa": "vqa",
        "pope": "pope",
        "mme": "mme",
        "mmbench": "mmbench",
        "seed": "seed",
    }


GQA = {"1": {"imageId": "n", "question": "q", "answer": "a"}}


@pytest.mark.parametrize(
    ("benchmark", "content", "options", "message"),
    [
        ("vqav2", GQA, {}, "vqav2: got 1 files, wanted the questions' and the annotations' JSON"),
        ("gqa", [1], {}, "not the official format of gqa"),
        ("gqa", {"1": {"imageId": "n"}}, {}, r"not the official format of gqa \(KeyError: 'question'\)"),
        ("gqa", GQA, {}, r"images: is empty, wanted the folder with n\.jpg"),
        ("gqa", GQA, {"images": "/nowhere"}, r"/nowhere/n\.jpg: no such picture"),
        ("gqa", {"1": {**GQA["1"], "imageId": "../n"}}, {"images": "/"}, r"'\.\./n\.jpg': is no path below"),
        ("mmvet", GQA, {}, "benchmark: got 'mmvet', wanted one of gqa, mmbench"),
    ],
)
def test_what_cannot_be_converted(write, converted, benchmark, content, options, message):
    with pytest.raises(StageError, match=message):
        converted(benchmark, [write("file.json", content)], **options)


def test_pictures_are_linked(write, converted, tmp_path):
    converted("gqa", [write("file.json", GQA)], ["n.jpg"])
    assert (tmp_path / "out/images/n.jpg").samefile(tmp_path / "pictures/n.jpg")


def test_pictures_are_copied_where_the_disk_has_no_links(write, converted, tmp_path, monkeypatch):
    def no_link(source, target):
        raise OSError("Operation not permitted")

    monkeypatch.setattr("os.link", no_link)
    converted("gqa", [write("file.json", GQA)], ["n.jpg"])
    assert not (tmp_path / "out/images/n.jpg").samefile(tmp_path / "pictures/n.jpg")
    assert (tmp_path / "out/images/n.jpg").read_bytes() == png()


def test_a_file_that_is_not_there(converted):
    with pytest.raises(StageError, match=r"/nowhere: no such file\. gqa wants testdev_balanced_questions\.json"):
        converted("gqa", ["/nowhere"])


def test_a_folder_that_is_not_empty(write, converted, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").touch()
    with pytest.raises(StageError, match="is there already, wanted a new or an empty folder"):
        converted("gqa", [write("file.json", GQA)], ["n.jpg"])


def test_an_output_that_is_a_file(write, converted, tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(StageError, match="is there already, wanted a new or an empty folder"):
        converted("gqa", [write("file.json", GQA)], ["n.jpg"])


def test_too_many_files(write, converted):
    with pytest.raises(StageError, match=r"gqa: got 2 files, wanted testdev_balanced_questions\.json"):
        converted("gqa", [write("file.json", GQA)] * 2, ["n.jpg"])


def test_the_command(write, tmp_path, capsys):
    (tmp_path / "n.jpg").write_bytes(png())
    options = ["--benchmark", "gqa", "--images", str(tmp_path), "--output", str(tmp_path / "out")]
    options += ["--source", "site", "--revision", "1", "--files", write("file.json", GQA)]
    assert main(["convert", *options]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: 1 questions\n"
