"""The whole stage: order, numbering, pictures, rejects, limits."""

import gzip
import io
import json
import threading
import time
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from components.ingest import pictures, stage
from components.ingest.config import IngestConfig
from components.ingest.stage import run
from examples.scenes import make_dataset
from free2ds_common.datasets import open_dataset
from free2ds_common.errors import StageError
from free2ds_common.result import Counts
from free2ds_common.schemas import RECORDS


def record(number, image=None):
    turns = [{"from": "human", "value": f"question {number}"}, {"from": "gpt", "value": "answer"}]
    return {"id": number, **({"image": image} if image is not None else {}), "conversations": turns}


def png(size=(8, 6), colour="red"):
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def place(tmp_path):
    """A data set folder: `place.run(records)` writes and ingests it."""

    class Place:
        root = tmp_path / "images"
        records, rejects = tmp_path / "out" / "records", tmp_path / "out" / "rejects.jsonl"

        def picture(self, name, data=None):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_bytes(png() if data is None else data)
            return name

        def run(self, content, max_reject_fraction=0.05, image_root_uri=None):
            path = tmp_path / "data.json"
            path.write_text(content if isinstance(content, str) else json.dumps(content))
            root = str(self.root) if image_root_uri is None else image_root_uri
            return run(
                IngestConfig(
                    dataset_uri=str(path),
                    image_root_uri=root,
                    max_reject_fraction=max_reject_fraction,
                    records=str(self.records),
                    rejects=str(self.rejects),
                )
            )

        def rows(self):
            return open_dataset(self.records, RECORDS).table().to_pylist()

        def rejected(self):
            return [json.loads(line) for line in self.rejects.read_text().splitlines()]

    return Place()


def test_numbers_and_columns(place):
    place.picture("coco/a.png")
    records = [record(1, "coco/a.png"), record(2), record(1, "coco/a.png"), {**record(3), "unique_id": 99}]
    result = place.run(records)
    assert result.counts == Counts(read=4, written=4)
    rows = place.rows()
    assert [row["unique_id"] for row in rows] == [1, 2, 3, 4]
    assert [json.loads(row["raw"]) for row in rows] == records
    assert [row["image"] for row in rows] == ["coco/a.png", None, "coco/a.png", None]
    assert [row["source"] for row in rows] == ["coco", "text-only", "coco", "text-only"]
    assert [row["question"] for row in rows] == ["question 1", "question 2", "question 1", "question 3"]
    assert rows[0]["record_key"] == rows[2]["record_key"]
    assert rows[0]["messages"] == ["question 1"]
    assert place.rejects.read_text() == ""
    manifest = open_dataset(place.records, RECORDS).manifest
    assert manifest["counts"] == {"read": 4, "written": 4, "dropped": 0, "rejected": 0}
    assert manifest["records_with_image"] == 2
    assert manifest["records_text_only"] == 2
    assert manifest["dataset_uri"].endswith("data.json")
    assert len(manifest["dataset_sha256"]) == 64
    assert result.metadata["reject_reasons"] == {}
    assert result.metadata["pictures_checked"] == "decoded"
    assert None not in result.metadata.values()


# Pytest undoes the filter that free2ds_common.pictures sets.
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_every_picture_problem(place, tmp_path):
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, "JPEG")
    place.picture("ok.jpg", whole.getvalue())
    place.picture("cut.jpg", whole.getvalue()[:-800])
    place.picture("text.jpg", b"this is no picture")
    place.picture("empty.jpg", b"")
    place.picture("strip.png", png((1000, 1)))
    place.picture("big.png", png((10_001, 10_000)))
    (tmp_path / "secret.png").write_bytes(png())
    (place.root / "link.png").symlink_to(tmp_path / "secret.png")
    (place.root / "folder.png").mkdir()
    names = ["ok.jpg", "cut.jpg", "text.jpg", "empty.jpg", "strip.png", "big.png", "link.png", "folder.png", "none.png"]
    names += ["../secret.png", str(tmp_path / "secret.png"), "ok.jpg"]
    result = place.run([record(number, name) for number, name in enumerate(names)], max_reject_fraction=1)
    assert result.counts == Counts(read=12, written=2, rejected=10)
    assert [row["unique_id"] for row in place.rows()] == [1, 2]
    assert [json.loads(row["raw"])["id"] for row in place.rows()] == [0, 11]
    assert [(line["index"], line["reason"]) for line in place.rejected()] == [
        (1, "image_unreadable"),
        (2, "image_unreadable"),
        (3, "image_unreadable"),
        (4, "image_too_large"),
        (5, "image_too_large"),
        (6, "image_outside_root"),
        (7, "image_missing"),
        (8, "image_missing"),
        (9, "image_outside_root"),
        (10, "image_outside_root"),
    ]
    assert [line["record"]["id"] for line in place.rejected()] == list(range(1, 11))
    assert "0x" not in place.rejects.read_text()  # no memory addresses: the file is the same every time
    assert result.metadata["reject_reasons"] == {
        "image_missing": 2,
        "image_outside_root": 3,
        "image_too_large": 2,
        "image_unreadable": 3,
    }


def test_order_is_kept_and_every_picture_is_opened_once(place, monkeypatch):
    monkeypatch.setattr(stage, "WINDOW", 5)
    opened, first_may_go = [], threading.Event()

    def slow_first(root, image):
        opened.append(image)
        if image == "0.png":
            assert first_may_go.wait(10)
        elif image == "3.png":
            first_may_go.set()
        return png()

    monkeypatch.setattr(pictures, "read_picture_bytes", slow_first)
    place.root.mkdir()
    place.run([record(number, f"{number % 10}.png") for number in range(40)])
    assert [json.loads(row["raw"])["id"] for row in place.rows()] == list(range(40))
    assert sorted(opened) == [f"{number}.png" for number in range(10)]


def test_an_unexpected_error_is_not_a_reject(place, monkeypatch):
    def out_of_order(root, image):
        raise OSError("the store does not answer")

    monkeypatch.setattr(pictures, "read_picture_bytes", out_of_order)
    place.root.mkdir()
    with pytest.raises(OSError, match="does not answer"):
        place.run([record(1, "a.png"), record(2, "b.png")])
    with pytest.raises(StageError, match=r"no _manifest\.json"):
        place.rows()


def test_broken_line(place):
    lines = [json.dumps(record(1)), "{oops", json.dumps(record(2)), '["list"]']
    assert place.run("\n".join(lines), max_reject_fraction=0.5).counts == Counts(read=4, written=2, rejected=2)
    assert [(line["index"], line["reason"], line["record"]) for line in place.rejected()] == [
        (1, "not_json", "{oops"),
        (3, "not_an_object", ["list"]),
    ]


def test_a_record_that_is_nested_too_deeply_is_rejected_and_not_kept(place):
    """Python would read it, but writing what it has read may fail a few levels before its limit."""
    good = json.dumps(record(1))
    deep = f'{good[:-1]}, "extra": {"[" * 600}{"]" * 600}}}'
    assert place.run(f"{good}\n{deep}\n", max_reject_fraction=0.5).counts == Counts(read=2, written=1, rejected=1)
    assert place.rejected() == [
        {
            "index": 1,
            "reason": "nested_too_deeply",
            "detail": "is nested 601 levels deep, at most 500 are read",
            "record": None,
        }
    ]


def test_the_first_rejected_records_are_told_with_a_refusal(place):
    """A failed step of Kubeflow hands no file on, and a pod's path leads nowhere."""
    place.picture("other.png")
    records = [record(0), {"id": "bad"}, {**record(2), "image": "none.png"}]
    with pytest.raises(StageError) as refused:
        place.run(records)
    sentence = str(refused.value)
    assert " The first: record 1 conversations_missing (" in sentence
    assert "); record 2 image_missing (" in sentence
    assert str(place.rejects) not in sentence
    assert refused.value.counts["rejected"] == 2


def test_an_empty_data_set_has_no_first_ones(place):
    with pytest.raises(StageError, match=r"data\.json: the list is empty, wanted records\.$"):
        place.run([])


def test_reject_fraction_is_a_limit_not_a_target(place):
    records = [record(number) for number in range(19)] + [{"id": "bad"}]
    assert place.run(records, max_reject_fraction=0.05).counts == Counts(read=20, written=19, rejected=1)
    with pytest.raises(
        StageError,
        match=r"data.json: 1 of 20 records rejected \(conversations_missing 1\), more than max_reject_fraction 0.04",
    ):
        place.run(records, max_reject_fraction=0.04)
    assert [line["record"] for line in place.rejected()] == [{"id": "bad"}]
    with pytest.raises(StageError, match=r"no _manifest\.json"):
        place.rows()


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_reject_fraction_out_of_range(place, fraction):
    with pytest.raises(StageError, match=r"max_reject_fraction: got .*, wanted a number in \[0, 1\]"):
        place.run([record(1)], max_reject_fraction=fraction)


def test_wrong_image_root_is_named(place):
    place.picture("elsewhere/a.png")
    with pytest.raises(
        StageError, match=r"none of the 2 pictures that the records .* image_root_uri must be the folder"
    ):
        place.run([record(1, "a.png"), record(2, "b.png"), record(3), record(4)])
    assert [line["reason"] for line in place.rejected()] == ["image_missing", "image_missing"]


def test_a_bad_picture_is_no_sign_of_a_wrong_root(place):
    place.picture("a.png", b"no picture")
    with pytest.raises(StageError, match=r"2 of 2 records rejected \(image_missing 1, image_unreadable 1\)"):
        place.run([record(1, "a.png"), record(2, "b.png")])


def test_a_wrong_root_is_only_named_above_the_limit(place):
    """29 of 100 are exactly 0.29, although 0.29 * 100 is below 29 in floating point."""
    place.root.mkdir()
    records = [record(number, f"{number}.png" if number < 29 else None) for number in range(100)]
    assert place.run(records, max_reject_fraction=0.29).counts == Counts(read=100, written=71, rejected=29)
    with pytest.raises(StageError, match="none of the 29 pictures"):
        place.run(records, max_reject_fraction=0.28)


@pytest.mark.parametrize(
    ("records", "fraction", "message", "counts"),
    [
        ([], 0.05, "the list is empty", (0, 0, 0)),
        ([record(1), record(2, "no.png")], 0.05, "none of the 1 pictures", (2, 1, 1)),
        ([record(1), record(2), {}], 0.05, "1 of 3 records rejected", (3, 2, 1)),
        ([1, 2], 1, "none of its 2 records can be used", (2, 0, 2)),
    ],
)
def test_every_refusal_of_the_whole_input_carries_the_counts(place, records, fraction, message, counts):
    place.root.mkdir()
    with pytest.raises(StageError, match=message) as caught:
        place.run(records, max_reject_fraction=fraction)
    read, written, rejected = counts
    assert caught.value.counts == {"read": read, "written": written, "dropped": 0, "rejected": rejected}


def test_image_root_that_does_not_exist(place, tmp_path):
    with pytest.raises(StageError, match=r"image_root_uri: .*none is not a folder"):
        place.run([record(1), record(2, "a.png")], image_root_uri=str(tmp_path / "none"))
    with pytest.raises(StageError, match="image_root_uri: is empty"):
        place.run([record(1, "a.png")], image_root_uri="")


def test_text_only_data_set_needs_no_image_root(place):
    result = place.run([record(1)], image_root_uri="")
    assert result.counts == Counts(read=1, written=1)
    assert result.metadata["pictures_checked"] == "none"


def test_no_records(place):
    with pytest.raises(StageError, match=r"data\.json: the list is empty"):
        place.run([])
    with pytest.raises(StageError, match="none of its 2 records can be used"):
        place.run([1, 2], max_reject_fraction=1)


def test_list_that_breaks_off_leaves_no_finished_records(place):
    place.run([record(1)])
    with pytest.raises(StageError, match="after 1 records"):
        place.run(json.dumps([record(1), record(2)])[:-9])
    with pytest.raises(StageError, match=r"no _manifest\.json"):
        place.rows()


def test_placeholder_without_a_picture_is_counted(place, caplog):
    asking = record(1)
    asking["conversations"][0]["value"] = "<image>\nWhat?"
    result = place.run([asking, record(2)])
    assert result.counts.written == 2
    assert result.metadata["placeholder_without_image"] == 1
    assert "1 records ask about <image> but name no picture" in caplog.text
    assert place.rows()[0]["messages"] == ["What?"]


def test_odd_unicode_survives(place):
    odd = record(1)
    odd["conversations"][0]["value"] = "nul \x00, line \u2028, joined 👩\u200d🚀"
    place.run([odd])
    row = place.rows()[0]
    assert json.loads(row["raw"]) == odd
    assert row["question"] == "nul \x00, line \u2028, joined 👩\u200d🚀"


def test_records_that_no_model_will_be_asked_about_are_warned_about(place, caplog):
    place.picture("a.png", two_colours())
    silent, silent_text = record(1, "a.png"), record(2)
    del silent["conversations"][1], silent_text["conversations"][1]
    result = place.run([silent, silent_text, record(3, "a.png")])
    assert result.metadata["records_without_question"] == 1
    assert "1 records with a picture have no human turn that a gpt turn directly follows" in caplog.text


def test_no_warning_without_cause(place, caplog):
    place.picture("a.png", two_colours())
    place.run([record(1, "a.png")])
    assert [line.message for line in caplog.records if line.levelname == "WARNING"] == []


def two_colours():
    picture, data = Image.new("RGB", (8, 6), "red"), io.BytesIO()
    picture.putpixel((3, 2), (0, 0, 9))
    picture.save(data, "PNG")
    return data.getvalue()


def test_pictures_of_one_colour_are_counted_once_each_and_named(place, caplog, monkeypatch):
    monkeypatch.setattr(pictures, "NAMES_KEPT", 2)
    names = [place.picture(f"{number}.png") for number in range(4)]
    place.picture("two.png", two_colours())
    place.picture("strip.png", png((1000, 1)))
    result = place.run(
        [record(number, name) for number, name in enumerate([*names, *names, "two.png", "strip.png"])],
        max_reject_fraction=1,
    )
    assert result.metrics["pictures_of_one_colour"] == 4
    manifest = open_dataset(place.records, RECORDS).manifest
    assert manifest["pictures_of_one_colour"] == 4
    assert manifest["names_of_pictures_of_one_colour"] == ["0.png", "1.png"]
    warnings = [line.message for line in caplog.records if line.levelname == "WARNING"]
    assert warnings == ["4 pictures have one colour only, where no model can look at anything: '0.png', '1.png', ..."]


def test_the_values_of_a_record_come_out_as_they_came_in(place):
    """Each line would come out as another value; the last two are read."""
    good = json.dumps(record(1))[:-1]
    lines = [
        f'{good}, "extra": 1e999}}',
        f'{good}, "extra": [NaN]}}',
        f'{good}, "extra": -Infinity}}',
        f'{good}, "extra": {"1" * 5000}}}',
        f'{good}, "id": 2}}',
        f'{good}, "extra": {{"a": 1, "\\u0061": 2}}}}',
        f'{good}, "extra": "\\ud83d"}}',
        f'{good}, "extra": "\\ud83d\\ude00"}}',
        f'{good}, "extra": {"1" * 4000}}}',
    ]
    reasons = ["number_not_finite"] * 3 + ["number_too_long", "duplicate_keys", "duplicate_keys", "lone_surrogate"]
    for content in ("\n".join(lines), f"[{','.join(lines)}]"):
        place.run(content, max_reject_fraction=1)
        assert [(line["index"], line["reason"]) for line in place.rejected()] == list(enumerate(reasons))
        assert [line["record"] for line in place.rejected()][:6] == lines[:6]
        assert [json.loads(row["raw"])["extra"] for row in place.rows()] == ["😀", int("1" * 4000)]


@pytest.mark.parametrize("layout", ["list", "lines"])
def test_a_record_that_is_too_deep_to_be_parsed_costs_only_itself(place, layout):
    good = json.dumps(record(1))
    deep = f'{good[:-1]}, "extra": {"[" * 5000}"]}}"{"]" * 5000}}}'
    content = f"[{good}, {deep} ,{good}]" if layout == "list" else f"{good}\n{deep}\n{good}\n"
    assert place.run(content, max_reject_fraction=0.5).counts == Counts(read=3, written=2, rejected=1)
    assert place.rejected() == [
        {"index": 1, "reason": "nested_too_deeply", "detail": "is nested deeper than can be read", "record": deep}
    ]


def test_no_more_pixels_are_decoded_at_a_time_than_the_budget_has(place, monkeypatch):
    monkeypatch.setattr(pictures, "PIXELS_AT_A_TIME", 100)
    monkeypatch.setattr(pictures, "DECODE_THREADS", 8)
    lock, now, most = threading.Lock(), [0], [0]

    def check(data, name, budget):
        pixels = 60 if name == "0.png" else 45
        with budget.taken(pixels):
            with lock:
                now[0] += pixels
                most[0] = max(most[0], now[0])
            time.sleep(0.002)
            with lock:
                now[0] -= pixels
        return False

    monkeypatch.setattr(pictures, "check_picture", check)
    names = [place.picture(f"{number}.png") for number in range(16)]
    assert place.run([record(number, name) for number, name in enumerate(names)]).counts.written == 16
    assert most[0] <= 100


def test_object_store(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe(
        "/store/data.json.gz", gzip.compress(json.dumps([record(1, "x/a.png"), record(2, "x/no.png")]).encode())
    )
    memory.pipe("/store/images/x/a.png", b"looked up, not read")
    config = IngestConfig(
        dataset_uri="memory://store/data.json.gz",
        image_root_uri="memory://store/images/",
        max_reject_fraction=0.5,
        records=str(tmp_path / "records"),
        rejects=str(tmp_path / "rejects"),
    )
    result = run(config)
    assert result.counts == Counts(read=2, written=1, rejected=1)
    assert result.metadata["pictures_checked"] == "found"
    assert result.metrics == {"records_with_image": 1, "records_text_only": 0}
    assert not [name for name in open_dataset(config.records, RECORDS).manifest if "colour" in name]
    rejected = json.loads(Path(config.rejects).read_text())
    assert (rejected["reason"], rejected["detail"]) == ("image_missing", "no file at memory://store/images/x/no.png")


def test_more_records_than_one_write(place, monkeypatch):
    monkeypatch.setattr(stage, "ROWS_PER_WRITE", 3)
    place.run([record(number) for number in range(8)])
    assert [row["unique_id"] for row in place.rows()] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_example_data(tmp_path):
    """The examples' drawn pictures, some gray, some transparent, and every tenth record without one."""
    records = make_dataset(tmp_path, 60, 7)
    config = IngestConfig(
        dataset_uri=str(tmp_path / "dataset.json"),
        image_root_uri=str(tmp_path / "images"),
        max_reject_fraction=0.0,
        records=str(tmp_path / "records"),
        rejects=str(tmp_path / "rejects.jsonl"),
    )
    result = run(config)
    assert result.counts == Counts(read=60, written=60)
    assert result.metrics == {"records_with_image": 54, "records_text_only": 6, "pictures_of_one_colour": 0}
    rows = open_dataset(config.records, RECORDS).table(["raw"]).to_pylist()
    assert [json.loads(row["raw"]) for row in rows] == records


def test_the_position_counts_rejected_records_from_0(place):
    """The second of three records has no turns."""
    good = {"id": 5, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    place.run([good, {"id": 6}, {**good, "id": "seven"}], max_reject_fraction=1.0)
    assert [(row["unique_id"], row["position"], row["id"]) for row in place.rows()] == [(1, 0, "5"), (2, 2, "seven")]
    assert [line["index"] for line in place.rejected()] == [1]
