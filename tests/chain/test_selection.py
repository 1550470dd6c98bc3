"""All stages in order, as a user runs them, on a small example data set."""

import copy
import hashlib
import json
import math
import random

import faiss
import pyarrow.dataset as pads
import pytest
import torch

import pipeline
from components.bert_features.config import BertFeaturesConfig
from components.bert_features.stage import run as run_bert
from components.cluster_scoring.config import ClusterScoringConfig
from components.cluster_scoring.stage import run as run_scoring
from components.ingest.config import IngestConfig
from components.ingest.stage import run as run_ingest
from components.joint_selection.config import JointSelectionConfig
from components.joint_selection.stage import run as run_selection
from components.llava_attention.config import LlavaAttentionConfig
from components.llava_attention.stage import run as run_llava
from components.mgm_attention.config import MgmAttentionConfig
from components.mgm_attention.stage import run as run_mgm
from components.split.config import SplitConfig
from components.split.stage import run as run_split
from examples.make import make
from free2ds_common.launch.limits import COLLECTED_METADATA_BYTES, METADATA_BYTES

NUM_RECORDS = 20
# Outputs that tests read, below the tasks of a kept work folder.
PORTS = ("ingest/records", "cluster-scoring/scores")


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    folder = tmp_path_factory.mktemp("example")
    make(folder, NUM_RECORDS, seed=7)
    records = json.loads((folder / "dataset.json").read_text())
    # One record that cannot be used, in the middle: the numbers behind it must not shift apart.
    records.insert(5, {"id": "broken", "image": "no/such.png", "conversations": records[0]["conversations"]})
    (folder / "dataset.json").write_text(json.dumps(records))
    return folder


def run_pipeline(example, output_dir, **parameters):
    values = {
        "dataset_uri": example / "dataset.json",
        "image_root_uri": example / "images",
        **{f"{name}_model": example / "models" / name for name in ("llava", "mgm", "bert")},
        "num_clusters": 5,
        "max_new_tokens": 8,
        "num_shards": 2,
        **parameters,
    }
    options = [option for name, value in values.items() for option in ("--param", f"{name}={value}")]
    return pipeline.main(["run", "--no-cache", "--output-dir", str(output_dir), "--keep-work", *options])


@pytest.fixture(scope="module")
def first(example, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("runs") / "first"
    assert run_pipeline(example, output_dir) == 0
    return output_dir


def metadata_of_tasks(output_dir):
    """The name of each task and its artifacts' metadata by port; demand has no artifacts."""
    for path in output_dir.glob("work-*/tasks/**/executor_output.json"):
        ports = json.loads(path.read_text()).get("artifacts", {})
        if ports:
            yield path.parent.name, {port: made["artifacts"][0]["metadata"] for port, made in ports.items()}


def test_the_selection_has_the_exact_size_and_the_records_are_untouched(example, first):
    selected = json.loads((first / "selected.json").read_text())
    records = json.loads((example / "dataset.json").read_text())
    del records[5]
    assert len(selected) == 4  # int(20 * 0.2)
    unique_ids = [record.pop("unique_id") for record in selected]
    assert unique_ids == sorted(unique_ids)
    assert selected == [records[unique_id - 1] for unique_id in unique_ids]


def test_every_record_is_accounted_for(first):
    rejects = [json.loads(line) for line in (first / "rejects.jsonl").read_text().splitlines()]
    assert [(reject["index"], reject["reason"], reject["record"]["id"]) for reject in rejects] == [
        (5, "image_missing", "broken")
    ]
    counts, finished = {}, {}
    for task, outputs in metadata_of_tasks(first):
        for port, metadata in outputs.items():
            if "read" in metadata:
                numbers = [metadata[name] for name in ("read", "written", "dropped", "rejected")]
            elif port == "attention":
                # Of a loop, where it carries no more than it must.
                numbers = [metadata["rows"], metadata["rows"], 0, 0]
            elif port.endswith("_finished"):
                finished[port] = metadata["rows"]
                continue
            assert numbers[0] == sum(numbers[1:])
        counts.setdefault(task, []).append(numbers)
    # Without a results store nothing is.
    assert finished == {"llava_finished": 0, "mgm_finished": 0}
    assert {stage: [sum(column) for column in zip(*tasks, strict=True)] for stage, tasks in counts.items()} == {
        "resolve": [0, 0, 0, 0],
        "ingest": [21, 20, 0, 1],
        "reuse": [20, 20, 0, 0],
        "split": [20, 20, 0, 0],
        "split-2": [20, 20, 0, 0],
        "llava-attention": [20, 20, 0, 0],
        "mgm-attention": [20, 20, 0, 0],
        "bert-features": [20, 20, 0, 0],
        "cluster-scoring": [20, 20, 0, 0],
        "joint-selection": [20, 4, 16, 0],
    }
    assert len(counts["llava-attention"]) == len(counts["mgm-attention"]) == 2


def test_scores_hold_every_record_and_agree_with_the_selection(first):
    rows = pads.dataset(sorted((first / "scores").glob("*.parquet"))).to_table().to_pylist()
    assert [row["unique_id"] for row in rows] == list(range(1, NUM_RECORDS + 1))
    selected = json.loads((first / "selected.json").read_text())
    assert [row["unique_id"] for row in rows if row["selected"]] == [record["unique_id"] for record in selected]
    assert sum(row["probability"] for row in rows) == pytest.approx(1)


def test_the_artifacts_carry_what_lineage_asks_for(example, first):
    (path,) = first.glob("work-*/tasks/*/ingest/executor_output.json")
    metadata = json.loads(path.read_text())["artifacts"]["records"]["artifacts"][0]["metadata"]
    assert metadata["display_name"] == "records"
    assert metadata["dataset_uri"] == str(example / "dataset.json")
    digest = hashlib.sha256((example / "dataset.json").read_bytes()).hexdigest()
    assert metadata["dataset_version"] == f"sha256 {digest}"
    assert metadata["code_version"] == "0.1.0"
    # No image: it ran as a process.
    assert metadata["image"] == ""
    for _, outputs in metadata_of_tasks(first):
        for metadata in outputs.values():
            assert metadata["display_name"]
            assert None not in metadata.values()


def test_what_the_artifacts_carry_fits_into_a_step(first):
    """`launch.limits` counts on it."""
    sizes = {}
    for task, outputs in metadata_of_tasks(first):
        for port, metadata in outputs.items():
            sizes.setdefault((task, port), []).append(len(json.dumps(metadata)))
    for model in ("llava", "mgm"):
        for output in ((f"{model}-attention", "attention"), ("reuse", f"{model}_finished")):
            assert max(sizes[output]) <= COLLECTED_METADATA_BYTES, output
    for output in (("ingest", "records"), ("cluster-scoring", "scores"), ("cluster-scoring", "kmeans")):
        assert max(sizes[output]) <= METADATA_BYTES, output


def test_artifacts_are_told_apart_by_their_names(first):
    names = [metadata["display_name"] for _, outputs in metadata_of_tasks(first) for metadata in outputs.values()]
    assert sorted(names) == sorted(
        [
            *("pinned versions", "records", "rejected records", "shards", "text features", "text scores"),
            *("text clusters", "selected records", "scores of all records", "random control", "summary in numbers"),
            *("report", "overview", "clusters and ranges for later runs", "shards"),
            *(f"{model} attention, from earlier runs" for model in ("LLaVA", "MGM")),
            *(f"records for {model} to score" for model in ("LLaVA", "MGM")),
            *(f"{model} attention, shard {shard} of 2" for model in ("LLaVA", "MGM") for shard in (1, 2)),
        ]
    )


def test_the_report_and_the_summary_are_there(first):
    assert (first / "report.html").read_text().lstrip().lower().startswith("<!doctype html>")
    summary = json.loads((first / "summary.json").read_text())
    assert summary["counts"] == {"read": 20, "written": 4, "dropped": 16, "rejected": 0}


def rows_of(folder):
    """The bytes of the table; its manifest names the shards that it was made from."""
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def test_another_run_with_other_shards_and_threads_selects_the_same(example, first, tmp_path):
    # One shard: twice the threads.
    assert run_pipeline(example, tmp_path / "again", num_shards=1) == 0
    assert (tmp_path / "again/selected.json").read_bytes() == (first / "selected.json").read_bytes()
    assert rows_of(tmp_path / "again/scores") == rows_of(first / "scores")


def scores_by_key(folder, *left_out):
    """Rows of scores/ by record key, without what says where in the file a record was."""
    rows = pads.dataset(sorted(folder.glob("*.parquet"))).to_table().to_pylist()
    for row in rows:
        for name in ("unique_id", "position", *left_out):
            del row[name]
    return {row["record_key"]: row for row in rows}


@pytest.fixture
def with_threads():
    """Sets the threads of both libraries that have them; they are as before in the end."""
    before = torch.get_num_threads(), faiss.omp_get_max_threads()

    def use(count):
        torch.set_num_threads(count)
        faiss.omp_set_num_threads(count)

    yield use
    torch.set_num_threads(before[0])
    faiss.omp_set_num_threads(before[1])


def run_stages(example, place, dataset, num_shards):
    """The stages one after the other in this process, as the graph joins them; returns the folder of scores."""
    place.mkdir()
    (place / "dataset.json").write_text(json.dumps(dataset))
    at = {name: str(place / name) for name in ("records", "shards", "features", "text", "kmeans", "scores")}
    models = {name: str(example / "models" / name) for name in ("llava", "mgm", "bert")}
    run_ingest(
        IngestConfig(
            dataset_uri=str(place / "dataset.json"),
            image_root_uri=str(example / "images"),
            records=at["records"],
            rejects=str(place / "rejects"),
        )
    )
    run_split(SplitConfig(records=at["records"], shards=at["shards"], num_shards=num_shards))
    attention = {"llava": [], "mgm": []}
    for side, config, run in (("llava", LlavaAttentionConfig, run_llava), ("mgm", MgmAttentionConfig, run_mgm)):
        for number in range(num_shards):
            attention[side].append(str(place / f"{side}-{number}"))
            run(
                config(
                    shard=f"{at['shards']}/shard-{number:05d}-of-{num_shards:05d}",
                    image_root_uri=str(example / "images"),
                    model=models[side],
                    max_new_tokens=8,
                    attention=attention[side][-1],
                )
            )
    run_bert(BertFeaturesConfig(records=at["records"], model=models["bert"], features=at["features"]))
    run_scoring(ClusterScoringConfig(features=[at["features"]], num_clusters=5, scores=at["text"], kmeans=at["kmeans"]))
    run_selection(
        JointSelectionConfig(
            records=at["records"],
            llava_attention=attention["llava"],
            mgm_attention=attention["mgm"],
            text_scores=at["text"],
            scores=at["scores"],
            **{name: str(place / name) for name in ("selected", "report", "summary", "random")},
        )
    )
    return place / "scores"


# The number of records of a shard decides which of them are answered together.
@pytest.mark.parametrize(("num_shards", "threads"), [(1, 4), (3, 2), (7, 1)])
def test_no_score_depends_on_order_shards_or_threads(example, first, tmp_path, with_threads, num_shards, threads):
    records = json.loads((example / "dataset.json").read_text())
    random.Random(num_shards).shuffle(records)
    with_threads(threads)
    found = run_stages(example, tmp_path / "stages", records, num_shards)
    assert scores_by_key(found) == scores_by_key(first / "scores")


def test_with_kmeans_uri_old_records_keep_their_scores_beside_new_ones(example, first, tmp_path):
    records = json.loads((example / "dataset.json").read_text())
    new = copy.deepcopy(next(record for record in records if record.get("image") and record["id"] != "broken"))
    new["id"], new["conversations"][0]["value"] = "new", "<image>\nHow many of these things would fit into a lorry?"
    records.append(new)
    random.Random(5).shuffle(records)
    (tmp_path / "dataset.json").write_text(json.dumps(records))
    more = {"dataset_uri": tmp_path / "dataset.json", "kmeans_uri": first / "kmeans"}
    assert run_pipeline(example, tmp_path / "later", **more) == 0
    drawn = ("probability", "selected")
    old, now = (scores_by_key(folder / "scores", *drawn) for folder in (first, tmp_path / "later"))
    assert len(now) == len(old) + 1
    # Those without an IoU are ranked among each other: their combined score is the one thing that may move.
    without_iou = {key: row.pop("combined") for key, row in old.items() if row["iou"] is None}
    kept = {key: row for key, row in now.items() if key in old}
    assert {key for key, row in kept.items() if row["iou"] is None} == set(without_iou)
    for key in without_iou:
        del kept[key]["combined"]
    assert kept == old


def naive_minmax(values):
    low, high = min(values), max(values)
    return [1 - (value - low) / (high - low) for value in values]


def naive_gumbel(record_key, seed):
    """Standard Gumbel noise from the first 52 bits of a keyed hash, as docs/method.md, section 5 has it."""
    digest = hashlib.blake2b(record_key.encode(), digest_size=24, key=seed.to_bytes(8, "little")).digest()
    uniform = ((int.from_bytes(digest[:8], "little") >> 12) + 0.5) / 2**52
    return -math.log(-math.log(uniform))


def naive_quantile(sorted_values, share):
    """The value below which a share of the values lies; each stands in the middle of its own part."""
    place = min(max(share * len(sorted_values) - 0.5, 0), len(sorted_values) - 1)
    below = int(place)
    above = min(below + 1, len(sorted_values) - 1)
    return sorted_values[below] + (place - below) * (sorted_values[above] - sorted_values[below])


def tables(work, port):
    """All rows of an output, whichever of a loop's tasks wrote them."""
    files = sorted(path for path in work.glob(f"tasks/*/**/{port}/*.parquet") if ".ranges" not in str(path))
    return pads.dataset(files).to_table().to_pylist()


def naive_selection(work, *, seed, alpha, temperature, top_percent, n):
    """The unique_ids that the method selects, from the maps and text scores that the stages left, row by row."""
    k = max(1, int(576 * top_percent / 100))
    top = {}
    for model in ("llava-attention", "mgm-attention"):
        for row in tables(work, f"{model}/attention"):
            if row["map"] is not None:
                order = sorted(range(576), key=lambda place, row=row: (-row["map"][place], place))
                top[model, row["unique_id"]] = set(order[:k])
    rows = tables(work, "cluster-scoring/scores")
    ious = {}
    for row in rows:
        pair = [top.get((model, row["unique_id"])) for model in ("llava-attention", "mgm-attention")]
        if None not in pair:
            ious[row["unique_id"]] = len(pair[0] & pair[1]) / len(pair[0] | pair[1])
    image = dict(zip(ious, naive_minmax(list(ious.values())), strict=True))
    texts = dict(
        zip(
            [row["unique_id"] for row in rows],
            naive_minmax([row["text_similarity"] for row in rows]),
            strict=True,
        )
    )
    combined = {number: (1 - alpha) * image[number] + alpha * texts[number] for number in image}
    known = sorted(combined.values())
    others = [texts[number] for number in texts if number not in image]
    for number in set(texts) - set(image):
        less, alike = sum(text < texts[number] for text in others), others.count(texts[number])
        combined[number] = naive_quantile(known, (less + alike / 2) / len(others))
    keys = {
        row["unique_id"]: combined[row["unique_id"]] / temperature + naive_gumbel(row["record_key"], seed)
        for row in rows
    }
    return sorted(sorted(keys, key=keys.get)[-n:])


def selected_ids(path):
    return [record["unique_id"] for record in json.loads(path.read_text())]


def test_the_selection_is_the_methods(first):
    """Recomputed from maps and text scores by loops that share nothing with the stage."""
    (work,) = first.glob("work-*")
    expected = naive_selection(work, seed=42, alpha=0.5, temperature=1.0, top_percent=30, n=4)
    assert selected_ids(first / "selected.json") == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": 43, "alpha": 0.5, "temperature": 1.0, "top_percent": 30.0},
        {"seed": 2**31, "alpha": 0.2, "temperature": 0.3, "top_percent": 10.0},
        {"seed": 0, "alpha": 1.0, "temperature": 0.05, "top_percent": 55.0},
    ],
)
def test_the_selection_is_the_methods_with_other_settings(first, settings, tmp_path):
    (work,) = first.glob("work-*")
    folder = {port: str(path) for port in PORTS for path in work.glob(f"tasks/*/{port}")}
    attention = {
        side: sorted(str(path) for path in work.glob(f"tasks/*/**/{side}-attention/attention"))
        for side in ("llava", "mgm")
    }
    outputs = ("selected", "scores", "report", "summary", "random")
    config = JointSelectionConfig(
        records=folder["ingest/records"],
        llava_attention=attention["llava"],
        mgm_attention=attention["mgm"],
        text_scores=folder["cluster-scoring/scores"],
        num_samples=7,
        **settings,
        **{name: str(tmp_path / name) for name in outputs},
    )
    run_selection(config)
    assert selected_ids(tmp_path / "selected") == naive_selection(work, n=7, **settings)
