"""The whole stage on small inputs: counts, policies, invariants, errors."""

import json
import re

import numpy as np
import pyarrow as pa
import pytest

from components.joint_selection.config import DrawSettings
from components.joint_selection.draw import record_noise
from components.joint_selection.selection import Candidates, select
from components.joint_selection.stage import run
from free2ds_common.datasets import DatasetWriter, open_dataset
from free2ds_common.errors import StageError
from free2ds_common.schemas import SCORES, TEXT_SCORES, attention_schema, kmeans_schema


def read(path):
    return json.loads(open(path, encoding="utf-8").read())


def chosen_ids(config, name="selected"):
    return [record["id"] for record in read(getattr(config, name))]


def table_of(config):
    return open_dataset(config.scores, SCORES).table().to_pylist()


def test_counts_and_columns(inputs):
    config = inputs.config()
    result = run(config)
    rows = table_of(config)
    assert (result.counts.read, result.counts.written, result.counts.dropped, result.counts.rejected) == (40, 10, 30, 0)
    assert (
        list(rows[0])
        == (
            "unique_id record_key source iou image_score text_similarity text_score combined probability "
            "llava_outcome mgm_outcome selected"
        ).split()
    )
    assert [row["unique_id"] for row in rows] == list(range(1, 41))
    assert sum(row["selected"] for row in rows) == 10 == len(read(config.selected))
    assert sum(row["probability"] for row in rows) == pytest.approx(1)
    without = [row["unique_id"] for row in rows if row["iou"] is None]
    assert without == [4, 5, 6, 8]
    for row in rows:
        image = row["image_score"] if row["iou"] is not None else row["text_score"]
        assert row["combined"] == pytest.approx(0.5 * image + 0.5 * row["text_score"])
    assert (rows[3]["llava_outcome"], rows[7]["llava_outcome"], rows[7]["mgm_outcome"]) == (
        "text_only",
        "eos_only",
        "ok",
    )


def test_selected_records_are_in_input_order_and_untouched(inputs):
    config = inputs.config()
    run(config)
    records = read(config.selected)
    assert [record["unique_id"] for record in records] == sorted(record["unique_id"] for record in records)
    for record in records:
        assert record["unique_id"] == int(record["id"]) + 1
        assert record["note"] == "ü \ud800"


def test_same_command_same_bytes(inputs):
    config = inputs.config()
    run(config)
    first = [open(path, "rb").read() for path in (config.selected, config.report, config.summary)]
    run(config)
    assert [open(path, "rb").read() for path in (config.selected, config.report, config.summary)] == first


@pytest.mark.parametrize("stratify", ["", "source"])
@pytest.mark.parametrize(("shards", "seed"), [(1, 0), (3, 1), (2, 2)])
def test_order_and_shards_do_not_change_the_selection(inputs, make_inputs, shards, seed, stratify):
    config = inputs.config(num_samples=20, stratify=stratify)
    run(config)
    order = np.random.default_rng(seed).permutation(40)
    other = make_inputs(order=order, shards=shards).write().config(num_samples=20, stratify=stratify)
    run(other)
    assert sorted(chosen_ids(config)) == sorted(chosen_ids(other))
    assert sorted(chosen_ids(config, "random")) == sorted(chosen_ids(other, "random"))


@pytest.mark.parametrize(("policy", "pool"), [("text", 40), ("reference", 40), ("exclude", 36)])
def test_missing_iou_policies(inputs, policy, pool):
    config = inputs.config(missing_iou=policy)
    result = run(config)
    assert result.metrics["pool"] == pool and result.counts.written == int(0.25 * pool)
    row = table_of(config)[3]
    if policy == "reference":
        assert row["iou"] is None and row["image_score"] == 1.0
    elif policy == "exclude":
        assert row["combined"] is None and row["probability"] == 0 and not row["selected"]
    else:
        assert row["image_score"] is None and row["combined"] == row["text_score"]


def test_exact_number_and_top(inputs):
    config = inputs.config(num_samples=7, sampler="top")
    run(config)
    rows = table_of(config)
    best = sorted(rows, key=lambda row: -row["combined"])[:7]
    assert {row["unique_id"] for row in rows if row["selected"]} == {row["unique_id"] for row in best}
    assert read(config.summary)["tilt"]["overlap_with_top"] == 1.0


def test_alpha_at_its_ends(inputs):
    for alpha, column in ((0.0, "image_score"), (1.0, "text_score")):
        config = inputs.config(alpha=alpha)
        run(config)
        assert all(row["combined"] == row[column] for row in table_of(config) if row["iou"] is not None)


def test_random_control_is_of_the_same_size_and_another(inputs):
    config = inputs.config(temperature=0.01)
    run(config)
    assert len(chosen_ids(config, "random")) == 10
    assert set(chosen_ids(config, "random")) != set(chosen_ids(config))


def test_stratified(inputs):
    config = inputs.config(stratify="source", num_samples=20)
    run(config)
    sources = read(config.summary)["sources"]
    assert {name: row["selected"] for name, row in sources.items()} == {"x": 7, "y": 7, "z": 6}


def test_tilt_of_strata_is_that_of_one_distribution(make_inputs):
    inputs = make_inputs()
    inputs.maps[:] = inputs.maps[0, 0]
    inputs.similarity[:] = 0.5
    for sampler, overlap in (("top", 1.0), ("gumbel", None)):
        config = inputs.write().config(stratify="source", sampler=sampler)
        run(config)
        tilt = read(config.summary)["tilt"]
        assert tilt["effective_sample_size"] == pytest.approx(40)
        assert overlap is None or tilt["overlap_with_top"] == overlap


def test_strata_have_weights_and_a_line_of_their_own():
    """Two sources whose scores do not overlap, equal in the first one."""
    similarity = np.array([0.9, 0.1, 0.9, 0.2, 0.9, 0.3, 0.9, 0.4])
    source = pa.array(["low", "high"] * 4).dictionary_encode()
    noise = record_noise(pa.array([f"{number}" for number in range(8)]), 0)
    settings = DrawSettings(
        ratio=0.5, num_samples=0, alpha=1, temperature=1, sampler="gumbel", missing_iou="text",
        text_normalization="reference", stratify="source", seed=0,
    )  # fmt: skip
    found = select(settings, Candidates(np.full(8, np.nan), similarity, np.zeros(8, bool), source, noise))
    np.testing.assert_allclose(found.edge, [0, 0.875] * 4)
    high = found.probability[1::2]
    np.testing.assert_allclose(found.probability[::2], 0.25)
    assert found.tilt["weight_ratio"] == pytest.approx(high.max() / high.min()) == pytest.approx(np.exp(0.375))


def test_unusable_pictures_are_rejected_and_counted(make_inputs):
    inputs = make_inputs()
    inputs.outcomes[0][9] = "image_missing"
    inputs.outcomes[1][9] = "image_missing"
    inputs.outcomes[1][10] = "image_unreadable"
    config = inputs.write().config()
    result = run(config)
    assert (result.counts.read, result.counts.written, result.counts.rejected) == (40, 9, 2)
    assert read(config.summary)["reasons"] == {"image_missing": 1, "image_unreadable": 1}
    rows = table_of(config)
    assert not rows[9]["selected"] and rows[9]["probability"] == 0
    with pytest.raises(
        StageError, match="attention and text scores: 2 of 40 records rejected .image_missing 1, image_unreadable 1."
    ):
        run(inputs.config(max_reject_fraction=0.01))


def test_records_without_attention_rows(make_inputs, caplog):
    inputs = make_inputs(shards=20)
    config = inputs.write().config(llava_attention=[str(inputs.folder / f"llava{shard}") for shard in range(1, 20)])
    result = run(config)
    assert table_of(config)[19]["llava_outcome"] == "not_scored"
    assert result.counts.rejected == 0 and read(config.summary)["reasons"] == {"not_scored": 2}
    assert "llava_attention: no row for 2 records (first ids: 20, 40)" in caplog.text
    with pytest.raises(StageError, match="not_scored 2"):
        run(inputs.config(llava_attention=config.llava_attention, max_reject_fraction=0.01))


def test_all_scores_equal(make_inputs):
    inputs = make_inputs()
    inputs.maps[:] = inputs.maps[0, 0]
    inputs.similarity[:] = 0.5
    config = inputs.write().config()
    run(config)
    summary = read(config.summary)
    assert summary["all_scores_equal"] and summary["tilt"]["weight_ratio"] == 1.0
    assert "All scores are equal: the draw is uniform." in open(config.report).read()
    run(inputs.config(sampler="top"))
    assert "the highest scores were taken" not in open(config.report).read()
    assert len(chosen_ids(config)) == 10


def test_another_grid_is_compared_on_the_smaller(make_inputs):
    inputs = make_inputs()
    inputs.write()
    for shard in range(2):
        rows = []
        for row in open_dataset(inputs.folder / f"mgm{shard}", attention_schema()).rows():
            coarse = (
                None if row["map"] is None else np.asarray(row["map"]).reshape(12, 2, 12, 2).sum(axis=(1, 3)).ravel()
            )
            rows.append({**row, "map": coarse})
        with DatasetWriter(inputs.folder / f"mgm{shard}", attention_schema(144)) as writer:
            writer.write(rows)
            writer.manifest.update({**inputs.manifest, "grid": 12})
    config = inputs.config()
    run(config)
    assert read(config.summary)["grids"] == {"llava": 24, "mgm": 12, "compared_on": 12}
    assert sum(row["iou"] is not None for row in table_of(config)) == 36


def test_report_stands_alone(inputs):
    config = inputs.config()
    run(config)
    page = open(config.report, encoding="utf-8").read()
    assert "<script" not in page and not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert page.count("data:image/jpeg;base64,") >= 9
    assert "Selected 10 of 40 records that could be drawn." in page and len(page) < 8_000_000


def test_report_without_pictures(inputs):
    config = inputs.config(image_root_uri=str(inputs.folder / "elsewhere"))
    run(config)
    assert "picture not shown: image_missing" in open(config.report).read()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": 0.0}, r"ratio: got 0, wanted a number in \(0, 1\]"),
        ({"ratio": 1.5}, "ratio: got 1.5"),
        ({"ratio": float("nan")}, "ratio: got nan"),
        ({"ratio": 0.001}, "is no record at all"),
        ({"alpha": -0.1}, r"alpha: got -0.1, wanted a number in \[0, 1\]"),
        ({"temperature": 0.0}, "temperature: got 0, wanted a number above 0"),
        ({"temperature": float("inf")}, "temperature: got inf"),
        ({"top_percent": 0}, r"top_percent: got 0, wanted a number in \(0, 100\]"),
        ({"num_samples": -1}, "num_samples: got -1"),
        ({"num_samples": 41}, "num_samples: got 41, but only 40 records can be drawn"),
        ({"seed": -1}, "seed: got -1"),
        ({"sampler": "best"}, "sampler: got 'best', wanted one of gumbel, reference, top"),
        ({"missing_iou": "zero"}, "missing_iou: got 'zero', wanted one of exclude, reference, text"),
        ({"text_normalization": "z"}, "text_normalization: got 'z', wanted one of rank, reference"),
        ({"stratify": "image"}, "stratify: got 'image'"),
        ({"records": "/nowhere"}, "no _manifest.json"),
        ({"llava_attention": []}, "llava_attention: no attention/1 folder given"),
        ({"kmeans": "/nowhere"}, "no _manifest.json"),
    ],
)
def test_wrong_settings(inputs, changes, message):
    with pytest.raises(StageError, match=message):
        run(inputs.config(**changes))


def test_parts_of_different_models_are_refused(inputs, make_inputs):
    other = make_inputs()
    other.manifest["model_fingerprint"] = "g"
    other.write()
    with pytest.raises(
        StageError, match="llava_attention: parts of different runs, model_fingerprint 'f' in .* but 'g'"
    ):
        run(inputs.config(llava_attention=[str(inputs.folder / "llava0"), str(other.folder / "llava1")]))


def test_the_same_shard_twice(inputs):
    part = str(inputs.folder / "mgm0")
    with pytest.raises(StageError, match=r"mgm_attention: .*20 records \(first ids: 2, 4, 6, 8, 10\) there twice"):
        run(inputs.config(mgm_attention=[part, part]))


@pytest.mark.parametrize(("port", "schema"), [("text", TEXT_SCORES), ("mgm0", attention_schema())])
def test_a_row_twice_in_one_folder(inputs, port, schema):
    rows = list(open_dataset(inputs.folder / port, schema).rows())
    with DatasetWriter(inputs.folder / port, schema) as writer:
        writer.write([*rows, rows[2]])
        writer.manifest.update(inputs.manifest)
    name = rf"1 records \(first ids: {rows[2]['unique_id']}\) there twice"
    with pytest.raises(StageError, match=name):
        run(inputs.config())


def test_nothing_to_draw_from(make_inputs):
    inputs = make_inputs()
    inputs.outcomes = [["eos_only"] * 40, ["eos_only"] * 40]
    config = inputs.write().config(missing_iou="exclude")
    with pytest.raises(StageError, match="none of the 40 records can be drawn: no record has an IoU, and missing_iou"):
        run(config)


def write_kmeans(folder, sizes, **manifest):
    with DatasetWriter(folder, kmeans_schema(2)) as writer:
        writer.write(
            [
                {"cluster": number, "num_turns": size, "typical_message": "" if size == 0 else f"message {number}",
                 "centroid": [0.0, 0.0]}
                for number, size in enumerate(sizes)
            ]
        )  # fmt: skip
        writer.manifest.update(manifest)
    return str(folder)


def test_clusters_in_the_report(inputs):
    config = inputs.config(kmeans=write_kmeans(inputs.folder / "kmeans", [5, 0, 35]))
    run(config)
    page = open(config.report).read()
    assert "3 clusters of messages" in page and "message 2" in page and "(empty text)" not in page
    assert "1 clusters have no message" in page


def test_kmeans_of_another_run_is_refused(inputs):
    kmeans = write_kmeans(inputs.folder / "kmeans", [40], seed=7)
    with pytest.raises(StageError, match="kmeans: .* is not of the text scores' run, seed 7 but theirs is None"):
        run(inputs.config(kmeans=kmeans))


def test_attention_of_other_records(inputs, make_inputs):
    shuffled = make_inputs(order=reversed(range(40))).write()
    with pytest.raises(StageError, match="scored for other records. Use one run's folders"):
        run(inputs.config(mgm_attention=shuffled.config().mgm_attention))


def test_missing_text_scores_are_rejected_counted_and_named(inputs, make_inputs, caplog):
    few = make_inputs(order=range(30)).write()
    config = inputs.config(text_scores=few.config().text_scores, max_reject_fraction=0.25)
    result = run(config)
    assert "text_scores: no score for 10 records (first ids: 31, 32, 33, 34, 35)" in caplog.text
    assert (result.counts.read, result.counts.written, result.counts.rejected) == (40, 7, 10)
    assert read(config.summary)["reasons"] == {"no_text_score": 10}
    rows = table_of(config)
    assert all(row["text_similarity"] is None and not row["selected"] for row in rows[30:])
    assert sum(row["probability"] for row in rows) == pytest.approx(1)
    with pytest.raises(StageError, match="10 of 40 records rejected .no_text_score 10., more than max_reject_fraction"):
        run(inputs.config(text_scores=config.text_scores))


@pytest.mark.parametrize("port", ["text_scores", "llava_attention", "mgm_attention"])
def test_ids_that_are_not_in_records_are_counted_and_named(inputs, make_inputs, caplog, port):
    few = make_inputs(order=range(30)).write()
    foreign = {port: getattr(inputs.config(), port)}
    config = few.config(**foreign, max_reject_fraction=0.5)
    wanted = chosen_after(few.config(max_reject_fraction=0.5))
    assert chosen_after(config) == wanted
    assert read(config.summary)["unknown_ids"][port] == 10
    assert re.search(rf"{port}: 10 ids that are not in records \(first: 3\d, 3\d", caplog.text)
    assert f"{port} holds 10 ids that are not in the data set" in open(config.report).read()
    with pytest.raises(StageError, match=f"{port}: 10 ids that are not in records, 30 that are; more than"):
        run(few.config(**foreign))


def chosen_after(config):
    run(config)
    return chosen_ids(config)


def test_overview_and_counted_steps(make_inputs):
    inputs = make_inputs()
    inputs.outcomes[0][9] = "image_missing"
    inputs.records_manifest = {
        "counts": {"read": 43, "written": 40, "dropped": 0, "rejected": 3},
        "reject_reasons": {"image_missing": 2, "not_json": 1},
        "dataset_uri": "gs://b/d.json",
    }
    config = inputs.write().config(overview=str(inputs.folder / "overview.md"), missing_iou="exclude")
    run(config)
    lines = open(config.overview).read().splitlines()
    for line in (
        "| read from the data set | 43 |  |",
        "| rejected by ingest | 3 | image_missing 2, not_json 1 |",
        "| usable | 40 |  |",
        "| rejected later | 1 | image_missing 1 |",
        "| left out | 4 | no IoU, and missing_iou is exclude |",
        "| could be drawn | 35 |  |",
        "| selected | 8 |  |",
    ):
        assert line in lines
    page = open(config.report).read()
    assert "gs://b/d.json" in page and "image_missing 2, not_json 1" in page


def test_report_names_models_and_versions(make_inputs):
    inputs = make_inputs()
    inputs.manifest["model_fingerprint"] = "sha256 abc"
    config = inputs.write().config()
    run(config)
    page = open(config.report).read()
    assert page.count("sha256 abc") == 2 and "<th>pyarrow</th>" in page


def test_sources_may_hold_dollars(make_inputs):
    inputs = make_inputs()
    inputs.sources = ["a_$5/b_$6", "cost$_$", "z"]
    config = inputs.write().config()
    run(config)
    assert "a_$5/b_$6" in open(config.report).read()


def test_a_store_that_does_not_answer_costs_pictures_not_the_selection(inputs, monkeypatch, caplog):
    class HttpError(Exception):
        """As gcsfs has one: no OSError."""

    def refuse(image_root_uri, image):
        raise HttpError("503")

    monkeypatch.setattr("components.joint_selection.gallery.load_picture", refuse)
    config = inputs.config()
    run(config)
    assert "picture not shown: the store did not answer" in open(config.report).read()
    assert "b.png: HttpError: 503" in caplog.text and len(chosen_ids(config)) == 10


@pytest.mark.parametrize("change", [{"map": None}, {"outcome": "eos_only"}])
def test_a_map_without_its_outcome_is_refused(inputs, change):
    folder = inputs.folder / "mgm0"
    rows = list(open_dataset(folder, attention_schema()).rows())
    rows[0] = {**rows[0], **change}
    with DatasetWriter(folder, attention_schema()) as writer:
        writer.write(rows)
        writer.manifest.update(inputs.manifest)
    with pytest.raises(StageError, match=r"mgm_attention: .*1 records \(first ids: 2\) with outcome ok and no map, or"):
        run(inputs.config())


def test_top_is_not_called_a_draw(inputs):
    config = inputs.config(sampler="top")
    run(config)
    page = open(config.report).read()
    assert "Nothing was drawn at random: the highest scores were taken." in page and "times as likely" not in page


def test_placeholders_are_not_shown_in_the_report(make_inputs):
    config = make_inputs().write().config()
    run(config)
    assert "&lt;image&gt;" not in open(config.report).read()
