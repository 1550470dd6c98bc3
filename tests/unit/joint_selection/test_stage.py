"""The whole stage on small inputs: counts, policies, invariants. The report has its own tests."""

from pathlib import Path

import numpy as np
import pytest

from components.joint_selection.stage import run
from free2ds_common.datasets import MANIFEST, DatasetWriter, open_dataset
from free2ds_common.errors import StageError
from free2ds_common.result import Counts
from free2ds_common.schemas import TEXT_SCORES
from tests.support.selection import chosen_ids, ids_after, read_json, rows_of

pytestmark = pytest.mark.usefixtures("without_report")


def test_counts(inputs):
    assert run(inputs.config()).counts == Counts(read=40, written=10, dropped=30, rejected=0)


def test_columns(inputs):
    config = inputs.config()
    run(config)
    rows = rows_of(config)
    assert list(rows[0]) == [
        "unique_id",
        "record_key",
        "source",
        "iou",
        "image_score",
        "text_similarity",
        "text_score",
        "combined",
        "probability",
        "llava_outcome",
        "mgm_outcome",
        "selected",
        "id",
        "image",
        "position",
        "question",
        "num_turns",
        "cluster",
    ]
    assert [row["unique_id"] for row in rows] == list(range(1, 41))
    assert [row["record_key"] for row in rows] == [inputs.key(number) for number in range(40)]
    assert [row["source"] for row in rows] == (["x", "y", "z"] * 14)[:40]
    assert [row["id"] for row in rows] == [str(number) for number in range(40)]
    assert [row["image"] for row in rows[:6]] == ["a.png", "b.png", "a.png", None, None, None]
    assert [row["position"] for row in rows] == list(range(2, 82, 2))
    assert rows[5]["question"] == "<image>\nQuestion 5?"
    assert [row["num_turns"] for row in rows[:4]] == [1, 2, 3, 1]
    assert [row["cluster"] for row in rows[:8]] == [0, 1, 2, 3, 4, 5, 6, 0]
    assert [row["text_similarity"] for row in rows] == inputs.similarity.tolist()
    assert [row["llava_outcome"] for row in rows] == inputs.outcomes[0]
    assert [row["mgm_outcome"] for row in rows] == inputs.outcomes[1]
    assert [row["unique_id"] for row in rows if row["selected"]] == [
        record["unique_id"] for record in read_json(config.selected)
    ]
    assert sum(row["probability"] for row in rows) == pytest.approx(1)


def test_iou_against_python_sets(inputs):
    config = inputs.config()
    run(config)
    for number, row in enumerate(rows_of(config)):
        if number in (3, 4, 5, 7):
            assert row["iou"] is None
        else:
            first, second = (set(np.argsort(-maps[number])[:172].tolist()) for maps in inputs.maps)
            assert row["iou"] == len(first & second) / len(first | second)


def test_combined_is_half_of_each_side_or_the_text_alone(inputs):
    config = inputs.config(missing_iou="text")
    run(config)
    for row in rows_of(config):
        image = row["text_score"] if row["iou"] is None else row["image_score"]
        assert row["combined"] == pytest.approx(0.5 * image + 0.5 * row["text_score"])


def test_a_record_without_an_iou_has_its_text_quantile(make_inputs):
    """The only one stands in the middle of its kind, and so in that of the other 39."""
    inputs = make_inputs()
    inputs.text_only(20)
    inputs.outcomes[0][7] = "ok"
    inputs.similarity = np.arange(40) / 40
    config = inputs.write().config()
    run(config)
    rows = rows_of(config)
    others = sorted((row["combined"] for row in rows if row["iou"] is not None), reverse=True)
    assert len(others) == 39
    assert rows[20]["combined"] == pytest.approx(others[19])


@pytest.mark.parametrize("output", ["selected", "random"])
def test_chosen_records_are_in_input_order_and_untouched(inputs, output):
    config = inputs.config()
    run(config)
    records = read_json(getattr(config, output))
    assert len(records) == 10
    numbers = [int(record["id"]) for record in records]
    assert numbers == sorted(numbers)
    for number, record in zip(numbers, records, strict=True):
        image = None if number in (3, 4, 5) else "ab"[number % 2] + ".png"
        assert record == {"id": str(number), "image": image, "note": "ü \ud800", "unique_id": number + 1}


def test_the_random_control_is_of_the_same_size_and_another(inputs):
    config = inputs.config(temperature=0.01)
    run(config)
    assert len(chosen_ids(config, "random")) == 10
    assert set(chosen_ids(config, "random")) != set(chosen_ids(config))


def test_scores_say_what_made_them(inputs):
    config = inputs.config(alpha=0.25)
    run(config)
    manifest, summary = read_json(Path(config.scores) / MANIFEST), read_json(config.summary)
    for name in ("parameters", "models", "counts"):
        assert manifest[name] == summary[name]


def test_many_records_are_written_in_blocks(inputs, monkeypatch):
    config = inputs.config()
    run(config)
    whole = rows_of(config)
    monkeypatch.setattr("components.joint_selection.outputs._WRITE_ROWS", 7)
    run(config)
    assert rows_of(config) == whole


@pytest.mark.parametrize("stratify", ["", "source"])
@pytest.mark.parametrize(("shards", "seed"), [(1, 0), (3, 1), (2, 2)])
def test_order_and_shards_do_not_change_the_selection(inputs, make_inputs, shards, seed, stratify):
    config = inputs.config(num_samples=20, stratify=stratify)
    order = np.random.default_rng(seed).permutation(40)
    other = make_inputs(order=order, shards=shards).write().config(num_samples=20, stratify=stratify)
    assert sorted(ids_after(config)) == sorted(ids_after(other))
    assert sorted(chosen_ids(config, "random")) == sorted(chosen_ids(other, "random"))


@pytest.mark.parametrize(
    ("policy", "pool", "written", "fourth"),
    [
        ("calibrated", 40, 10, {"iou": None, "image_score": None}),
        ("text", 40, 10, {"iou": None, "image_score": None}),
        ("reference", 40, 10, {"iou": None, "image_score": 1.0}),
        ("exclude", 36, 9, {"iou": None, "combined": None, "probability": 0.0, "selected": False}),
    ],
)
def test_missing_iou_policies(inputs, policy, pool, written, fourth):
    config = inputs.config(missing_iou=policy)
    result = run(config)
    assert result.metrics["pool"] == pool
    assert result.counts.written == written
    row = rows_of(config)[3]
    assert {name: row[name] for name in fourth} == fourth
    assert policy != "text" or row["combined"] == row["text_score"]


def test_exact_number_and_top(inputs):
    config = inputs.config(num_samples=7, sampler="top")
    run(config)
    rows = rows_of(config)
    best = sorted(rows, key=lambda row: -row["combined"])[:7]
    assert {row["unique_id"] for row in rows if row["selected"]} == {row["unique_id"] for row in best}
    assert read_json(config.summary)["tilt"]["overlap_with_top"] == 1.0


@pytest.mark.parametrize(("alpha", "column"), [(0.0, "image_score"), (1.0, "text_score")])
def test_alpha_at_its_ends(inputs, alpha, column):
    config = inputs.config(alpha=alpha)
    run(config)
    for row in rows_of(config):
        assert row["combined"] == row[column] or row["iou"] is None


def test_stratified(inputs):
    config = inputs.config(stratify="source", num_samples=20)
    run(config)
    selected = {name: row["selected"] for name, row in read_json(config.summary)["sources"].items()}
    # Of 14, 13 and 13 records half: the odd one of the last two is drawn.
    assert selected["x"] == 7
    assert sorted([selected["y"], selected["z"]]) == [6, 7]


def test_unusable_pictures_are_rejected_and_counted(make_inputs):
    inputs = make_inputs()
    inputs.outcomes[0][9] = "image_missing"
    inputs.outcomes[1][9] = "image_missing"
    inputs.outcomes[1][10] = "image_unreadable"
    config = inputs.write().config()
    assert run(config).counts == Counts(read=40, written=9, dropped=29, rejected=2)
    assert read_json(config.summary)["reasons"] == {"image_missing": 1, "image_unreadable": 1}
    for row in rows_of(config)[9:11]:
        assert row["combined"] is None
        assert row["probability"] == 0
        assert not row["selected"]


def test_too_many_unusable_pictures(make_inputs):
    inputs = make_inputs()
    inputs.outcomes[0][9] = "image_missing"
    inputs.outcomes[1][10] = "image_unreadable"
    message = r"attention and text scores: 2 of 40 records rejected \(image_missing 1, image_unreadable 1\)"
    with pytest.raises(StageError, match=message):
        run(inputs.write().config(max_reject_fraction=0.01))


def test_records_without_attention_rows_are_ranked_and_counted(inputs):
    config = inputs.config(llava_attention=[str(inputs.folder / "llava1")], max_reject_fraction=0.5)
    assert run(config).counts.rejected == 0
    assert read_json(config.summary)["reasons"] == {"not_scored": 20}
    row = rows_of(config)[1]
    assert row["llava_outcome"] == "not_scored"
    assert row["iou"] is None
    assert row["combined"] is not None


def test_too_many_records_without_attention_rows(inputs):
    with pytest.raises(StageError, match=r"20 of 40 records rejected \(not_scored 20\)"):
        run(inputs.config(llava_attention=[str(inputs.folder / "llava1")]))


def test_missing_text_scores_are_rejected_counted_and_named(inputs, make_inputs, caplog):
    few = make_inputs(order=range(30)).write()
    config = inputs.config(text_scores=few.config().text_scores, max_reject_fraction=0.25)
    assert run(config).counts == Counts(read=40, written=7, dropped=23, rejected=10)
    assert "text_scores: no score for 10 records (first ids: 31, 32, 33, 34, 35)" in caplog.text
    assert read_json(config.summary)["reasons"] == {"no_text_score": 10}
    rows = rows_of(config)
    assert [row["text_similarity"] for row in rows[30:]] == [None] * 10
    assert not any(row["selected"] for row in rows[30:])
    assert sum(row["probability"] for row in rows) == pytest.approx(1)


def test_too_many_missing_text_scores(inputs, make_inputs):
    few = make_inputs(order=range(30)).write()
    message = r"10 of 40 records rejected \(no_text_score 10\), more than max_reject_fraction 0\.05"
    with pytest.raises(StageError, match=message):
        run(inputs.config(text_scores=few.config().text_scores))


@pytest.mark.parametrize("port", ["text_scores", "llava_attention", "mgm_attention"])
def test_ids_in_no_record_do_not_change_the_selection(inputs, make_inputs, port):
    few = make_inputs(order=range(30)).write()
    foreign = {port: getattr(inputs.config(), port)}
    wanted = ids_after(few.config())
    assert ids_after(few.config(**foreign, max_reject_fraction=0.5)) == wanted
    with pytest.raises(StageError, match=rf"{port}: 10 ids that are not in records, 30 that are; more than"):
        run(few.config(**foreign))


def test_all_scores_equal(make_inputs):
    inputs = make_inputs()
    inputs.maps[:] = inputs.maps[0, 0]
    inputs.similarity[:] = 0.5
    config = inputs.write().config()
    assert len(ids_after(config)) == 10
    summary = read_json(config.summary)
    assert summary["all_scores_equal"] is True
    assert summary["tilt"]["weight_ratio"] == 1.0
    assert summary["tilt"]["effective_sample_size"] == pytest.approx(40)


def test_the_log_says_how_far_the_draw_leans(inputs, caplog):
    caplog.set_level("INFO")
    run(inputs.config())
    assert "Selected 10 of 40 records that could be drawn." in caplog.text


def test_an_overview_is_written_where_one_is_wanted(inputs):
    config = inputs.config(overview=str(inputs.folder / "overview.md"))
    run(config)
    assert Path(config.overview).read_text().startswith("# Free2DS selection\n")


def test_a_record_without_a_text_score_has_neither_turns_nor_cluster(inputs):
    inputs.write()
    config = inputs.config(max_reject_fraction=1.0)
    rows = open_dataset(config.text_scores, TEXT_SCORES).table().to_pylist()
    with DatasetWriter(config.text_scores, TEXT_SCORES) as writer:
        writer.write(rows[1:])
    run(config)
    assert [(row["num_turns"], row["cluster"]) for row in rows_of(config)[:2]] == [(None, None), (2, 1)]


@pytest.mark.parametrize(("length", "kept"), [(200, "ü" * 200), (201, "ü" * 199 + "…")])
def test_a_long_question_is_shortened(inputs, length, kept):
    inputs.question = "ü" * length
    config = inputs.write().config()
    run(config)
    assert rows_of(config)[0]["question"] == kept


def test_when_and_how_it_ran_does_not_change_the_scores(inputs, monkeypatch):
    config, found = inputs.config(), []
    for threads, started in (("1", "2001-09-09T01:46:40+00:00"), ("4", "2002-09-09T01:46:40+00:00")):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        monkeypatch.setenv("FREE2DS_STARTED", started)
        monkeypatch.setenv("FREE2DS_COMMAND", f"free2ds run {threads}")
        run(config)
        found.append({path.name: path.read_bytes() for path in Path(config.scores).iterdir()})
        assert read_json(config.summary)["run"]["threads"] == int(threads)
    assert found[0] == found[1]
