"""All stages in one process, one after the other: what a run computes and selects, in seconds."""

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from components.bert_features.config import BertFeaturesConfig
from components.bert_features.stage import run as run_bert
from components.cluster_scoring.config import ClusterScoringConfig
from components.cluster_scoring.stage import run as run_clusters
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


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        selected: The bytes of selected.json.
        reused: Results from the store, by model.
        computed: Results computed, by model.
        answered: Records or messages with a result of the model, by model.
    """

    selected: bytes
    reused: dict[str, int]
    computed: dict[str, int]
    answered: dict[str, int]


def run_stages(
    work: Path,
    example: Path,
    cache_uri: str,
    num_shards: int = 2,
    dataset: str = "dataset.json",
    earlier: Path | None = None,
) -> Outcome:
    """Run all stages in an empty folder.

    Args:
        work: Emptied first.
        example: Holds the data set, images/ and models/, as examples.make writes them.
        cache_uri: The results store; empty for none.
        num_shards: Shards.
        dataset: File name of the data set.
        earlier: An earlier run's folder: its clusters and ranges are used, and its selection is compared with.
    """
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    records, images, models = str(work / "records"), str(example / "images"), example / "models"
    run_ingest(
        IngestConfig(
            dataset_uri=str(example / dataset), image_root_uri=images, records=records, rejects=str(work / "rejects")
        )
    )
    shards = run_split(SplitConfig(records=records, num_shards=num_shards, shards=str(work / "shards")))
    attention: dict[str, list[str]] = {"llava": [], "mgm": []}
    reused, computed, answered = ({"llava": 0, "mgm": 0, "text": 0} for _ in range(3))
    for shard in shards.metadata["shards"]:
        for name, config, run in (
            ("llava", LlavaAttentionConfig, run_llava),
            ("mgm", MgmAttentionConfig, run_mgm),
        ):
            attention[name].append(str(work / f"{name}-{shard}"))
            result = run(
                config(
                    shard=str(work / "shards" / shard),
                    image_root_uri=images,
                    model=str(models / name),
                    max_new_tokens=8,
                    batch_size=4,
                    cache_uri=cache_uri,
                    attention=attention[name][-1],
                )
            )
            reused[name] += int(result.metrics["reused"])
            computed[name] += int(result.metrics["computed"])
            outcomes = result.metadata["outcomes"]
            answered[name] += sum(outcomes.get(outcome, 0) for outcome in ("ok", "eos_only", "non_finite"))
    text = run_bert(
        BertFeaturesConfig(
            records=records, model=str(models / "bert"), features=str(work / "features"), cache_uri=cache_uri
        )
    )
    reused["text"], computed["text"] = int(text.metrics["reused"]), int(text.metrics["computed"])
    answered["text"] = int(text.metrics["distinct_messages"])
    run_clusters(
        ClusterScoringConfig(
            features=[str(work / "features")],
            num_clusters=5,
            kmeans_uri=str(earlier / "baseline") if earlier else "",
            scores=str(work / "text"),
            kmeans=str(work / "kmeans"),
        )
    )
    run_selection(
        JointSelectionConfig(
            records=records,
            llava_attention=attention["llava"],
            mgm_attention=attention["mgm"],
            text_scores=str(work / "text"),
            kmeans=str(work / "kmeans"),
            baseline=str(work / "baseline"),
            previous_selected_uri=str(earlier / "selected.json") if earlier else "",
            selected=str(work / "selected.json"),
            scores=str(work / "scores"),
            report=str(work / "report.html"),
            summary=str(work / "summary.json"),
            random=str(work / "random.json"),
        )
    )
    return Outcome((work / "selected.json").read_bytes(), reused, computed, answered)


def grow(example: Path, source: str, target: str, extra: Path, seed: int = 0) -> int:
    """Write a data set of another one's records and a few of a second example's, shuffled; returns how many are new.

    Args:
        example: Holds the data set, and gets the second one's pictures.
        source: File name of the data set.
        target: File name of the new one.
        extra: Another example, its pictures under names of their own.
        seed: Of the order.
    """
    records = json.loads((example / source).read_text())
    new = json.loads((extra / "dataset.json").read_text())
    for record in new:
        record["id"] = f"new-{record['id']}"
        if "image" in record:
            moved = f"new/{record['image']}"
            (example / "images" / moved).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(extra / "images" / record["image"], example / "images" / moved)
            record["image"] = moved
    together = records + new
    random.Random(seed).shuffle(together)
    (example / target).write_text(json.dumps(together))
    return len(new)
