"""Shards: images stay together, order does not depend on the input, every shard exists."""

import itertools

import pytest

from components.split import stage
from components.split.config import SplitConfig, SplitSettings
from components.split.stage import number_of_shards, run, shard_names
from free2ds_common.datasets import DatasetWriter, open_dataset
from free2ds_common.errors import StageError
from free2ds_common.left_over import LeftOver
from free2ds_common.lineage import origin
from free2ds_common.places import place
from free2ds_common.result import Counts
from free2ds_common.schemas import RECORDS


def row(number, image):
    return {
        "unique_id": number,
        "record_key": f"{number % 90:064x}",
        "position": number,
        "id": None,
        "image": image,
        "source": "s",
        "question": None,
        "messages": ["m", str(number)],
        "raw": f'{{"id":{number}}}',
    }


# 100 records on 30 images, 25 of them text-only; some records are equal but for unique_id.
ROWS = [row(number, None if number % 4 == 0 else f"{number % 30}.jpg") for number in range(1, 101)]


def sealed(folder, rows):
    with DatasetWriter(folder, RECORDS, rows_per_part=40) as writer:
        writer.write(rows)
    return str(folder)


def split(tmp_path, rows, num_shards, name="shards"):
    records = sealed(tmp_path / "records", rows)
    result = run(SplitConfig(records=records, num_shards=num_shards, shards=str(tmp_path / name)))
    shards = [open_dataset(tmp_path / name / shard, RECORDS).table().to_pylist() for shard in shard_names(num_shards)]
    return result, shards


def test_shard_names():
    assert shard_names(2) == ["shard-00000-of-00002", "shard-00001-of-00002"]
    assert len(shard_names(64)) == 64


def test_place_is_fixed_for_ever():
    # first 16 hex digits of `printf "image coco/a.jpg" | sha256sum`, and of `printf "text k"`
    assert place("coco/a.jpg", "any") == int("072c1ea0a4b8287e", 16)
    assert place(None, "k") == int("a1be6c45a6ed02aa", 16)


@pytest.mark.parametrize("num_shards", [1, 3, 4, 64])
@pytest.mark.parametrize("rows_per_range", [7, 50_000])
def test_every_record_in_one_shard_and_images_together(tmp_path, monkeypatch, num_shards, rows_per_range):
    monkeypatch.setattr(stage, "ROWS_PER_RANGE", rows_per_range)
    result, shards = split(tmp_path, ROWS, num_shards)
    assert result.counts == Counts(read=100, written=100)
    assert result.metadata["records_per_shard"] == [len(shard) for shard in shards]
    assert result.metadata["shards"] == shard_names(num_shards)
    assert sorted((found for shard in shards for found in shard), key=lambda found: found["unique_id"]) == ROWS
    homes = {}
    for number, shard in enumerate(shards):
        images = [found["image"] for found in shard if found["image"]]
        changes = sum(one != other for one, other in itertools.pairwise(images))
        assert changes == max(0, len(set(images)) - 1)
        for image in images:
            assert homes.setdefault(image, number) == number
        low, high = number * 2**64 // num_shards, (number + 1) * 2**64 // num_shards
        assert all(low <= place(found["image"], found["record_key"]) < high for found in shard)


def test_other_numbers_of_shards_cut_the_same_sequence(tmp_path, monkeypatch):
    sequences = set()
    for num_shards in (1, 2, 5):
        for rows_per_range in (9, 50_000):
            monkeypatch.setattr(stage, "ROWS_PER_RANGE", rows_per_range)
            _, shards = split(tmp_path, ROWS, num_shards)
            sequences.add(tuple(found["unique_id"] for shard in shards for found in shard))
    assert len(sequences) == 1


def test_order_of_the_input_plays_no_part(tmp_path):
    _, shards = split(tmp_path, ROWS, 3)
    renumbered = [{**found, "unique_id": number} for number, found in enumerate(reversed(ROWS), start=1)]
    _, others = split(tmp_path, renumbered, 3, "others")

    def without_numbers(tables):
        # Records 1..10 and 91..100 share their key but not raw, so the key, not raw, is what is ordered.
        return [[(found["image"], found["record_key"]) for found in table] for table in tables]

    assert without_numbers(shards) == without_numbers(others)


def test_equal_records_keep_the_input_order(tmp_path):
    same = [{**row(1, "a.jpg"), "unique_id": number} for number in (1, 2, 3)]
    _, shards = split(tmp_path, same, 1)
    assert [found["unique_id"] for found in shards[0]] == [1, 2, 3]


def test_empty_shards_are_sealed(tmp_path):
    result, shards = split(tmp_path, ROWS[:1], 4)
    assert sorted(len(shard) for shard in shards) == [0, 0, 0, 1]
    assert result.metrics == {"num_shards": 4, "largest_shard": 1, "smallest_shard": 0}
    _, shards = split(tmp_path, [], 1)
    assert shards == [[]]


def test_shards_of_an_earlier_run_go_and_nothing_else(tmp_path):
    split(tmp_path, ROWS, 5)
    (tmp_path / "shards" / "notes.txt").write_text("mine")
    (tmp_path / "shards" / "shard-1").mkdir()
    split(tmp_path, ROWS, 2)
    found = sorted(path.name for path in (tmp_path / "shards").iterdir())
    assert found == ["notes.txt", *shard_names(2), "shard-1"]


def test_manifest(tmp_path):
    split(tmp_path, ROWS, 2)
    manifest = open_dataset(tmp_path / "shards" / "shard-00001-of-00002", RECORDS).manifest
    assert manifest["shard"] == 1
    assert manifest["num_shards"] == 2


@pytest.mark.parametrize("num_shards", [-1, 65])
def test_number_of_shards_out_of_range(tmp_path, num_shards):
    with pytest.raises(StageError, match=f"num_shards: got {num_shards}, wanted 1 to 64, or 0"):
        run(SplitConfig(records=str(tmp_path / "none"), num_shards=num_shards, shards=str(tmp_path / "shards")))


def test_no_records_in_a_shard(tmp_path):
    with pytest.raises(StageError, match="records_per_shard: got 0, wanted a number of at least 1"):
        run(SplitConfig(records=str(tmp_path / "none"), records_per_shard=0, shards=str(tmp_path / "shards")))


@pytest.mark.parametrize(
    ("num_shards", "rows", "asked", "wanted"),
    [
        # By records_per_shard, 10 here.
        (0, 0, 0, 1),
        (0, 10, 10, 1),
        (0, 11, 500, 2),
        (0, 10_000, 10_000, 64),
        # In proportion to what the run asks about.
        (20, 500, 500, 20),
        (20, 26, 500, 2),
        (20, 25, 500, 1),
        (20, 0, 500, 1),
        (7, 20, 20, 7),
        (64, 3, 3, 64),
    ],
)
def test_number_of_shards(num_shards, rows, asked, wanted):
    settings = SplitSettings(num_shards=num_shards, records_per_shard=10)
    assert number_of_shards(settings, rows, asked) == wanted


def test_shards_know_what_their_results_will_join(tmp_path):
    told = LeftOver(asked=500, answered=3, settings={"dtype": "float32"})
    with DatasetWriter(tmp_path / "records", RECORDS) as writer:
        writer.write(ROWS)
        writer.manifest["left_over"] = told.as_json()
    result = run(SplitConfig(records=str(tmp_path / "records"), num_shards=10, shards=str(tmp_path / "shards")))
    assert result.metadata["shards"] == shard_names(2)
    for shard in shard_names(2):
        manifest = open_dataset(tmp_path / "shards" / shard, RECORDS).manifest
        assert LeftOver.of(manifest, rows=1) == told
        assert "left_over" not in origin(manifest)["facts"]


def test_no_records_folder(tmp_path):
    with pytest.raises(StageError, match=r"no _manifest\.json, wanted a finished records/2 folder"):
        run(SplitConfig(records=str(tmp_path / "none"), shards=str(tmp_path / "shards")))


def test_output_is_a_file(tmp_path):
    records = sealed(tmp_path / "records", ROWS)
    (tmp_path / "shards").write_text("")
    with pytest.raises(StageError, match="is or lies below a file"):
        run(SplitConfig(records=records, shards=str(tmp_path / "shards")))
