"""Reads evaluations by what their models learnt from, compares them, and says what follows."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.verdict.config import ARMS, EVERYTHING, RANDOM, SELECTED, UNTUNED, VerdictConfig, split_arm
from components.verdict.differences import Findings, findings, sentence
from components.verdict.page import write_page
from free2ds_common.checkpoints import read_json_object
from free2ds_common.datasets import Dataset, open_dataset
from free2ds_common.errors import StageError
from free2ds_common.evaluation import Answers, read_answers
from free2ds_common.redact import redacted_values
from free2ds_common.result import Counts, StageResult
from free2ds_common.schemas import EVALUATION
from free2ds_common.storage import atomic_writer

logger = logging.getLogger(__name__)


# What the evaluations of earlier releases were answered by.
OWN = "own"
# From so many on, an interval's understatement is left unsaid.
_FEW_SEEDS = 5


@dataclass(frozen=True)
class Costs:
    """What the work took.

    Attributes:
        selecting_hours: From the start of the selection's run to its end.
        selecting_device_hours: By model ("llava", "mgm", "text") the hours of this run's devices; of what was computed.
        computed: Results that its models computed.
        reused: Results that it took from a results store.
        training_device_hours: Arm to the hours of all its trainings, times their devices; None where one is not known.
        records: Arm to the records that each training learnt from; None where one is not known.
    """

    selecting_hours: float
    selecting_device_hours: Mapping[str, float]
    computed: int
    reused: int
    training_device_hours: Mapping[str, float | None]
    records: Mapping[str, float | None]


def run(config: VerdictConfig) -> StageResult:
    """Write the comparison and the page.

    Raises:
        StageError: Wrong settings, an evaluation that is missing, has no arm or is of other questions, or no summary.
    """
    config.check()
    tuned = _labelled(config)
    untuned = open_dataset(config.untuned, EVALUATION)
    _require_alike(untuned, tuned)
    every: dict[str, dict[int, Mapping[str, Answers]]] = {UNTUNED: {0: read_answers(untuned)}}
    for name in ARMS:
        for (arm, seed), one in sorted(tuned.items()):
            if arm == name:
                every.setdefault(name, {})[seed] = read_answers(one)
    baseline = EVERYTHING if EVERYTHING in every else UNTUNED
    found = findings(every, baseline, config.resamples, config.seed)
    costs = _costs(config, tuned)
    said = sentence(found)
    logger.info("%s", said)
    content = {
        "sentence": said,
        **asdict(found),
        "costs": asdict(costs),
        "model": untuned.manifest["model"],
        "model_fingerprint": untuned.manifest["model_fingerprint"],
        "benchmarks": untuned.manifest["benchmarks"],
        "arms_asked": config.arms,
        "resamples": config.resamples,
        "seed": config.seed,
        "warnings": warnings(found) + _harness_warnings([untuned, *tuned.values()]),
        "lmms_eval": _lmms_eval(untuned, tuned),
    }
    with atomic_writer(Path(config.comparison), "w") as handle:
        json.dump(redacted_values(content), handle, indent=1)
    write_page(config.report, content, found)
    rows = sum(one.num_rows for one in (untuned, *tuned.values()))
    metrics = {f"difference_{label}": one.value for label, one in found.mean.items()}
    metrics |= {"beat": float(found.count("beat")), "lost": float(found.count("lost"))}
    metrics |= {f"{column}_{arm}": one.value for column, arms in found.arms.items() for arm, one in arms.items()}
    return StageResult(Counts(read=rows, written=rows), metrics, {"sentence": said, "arms": config.arms})


def warnings(found: Findings) -> list[str]:
    """What a reader has to know before believing the sentence."""
    said = []
    fewest = min(found.seeds[SELECTED], found.seeds[RANDOM])
    if fewest == 1:
        said.append("Selected or random was trained once: the intervals know of other questions, not of another seed.")
    elif fewest < _FEW_SEEDS:
        # A resample's variance is (n - 1) / n of what it stands for.
        share = math.sqrt((fewest - 1) / fewest)
        said.append(f"With {fewest} trainings the intervals show about {share:.0%} of the spread between seeds.")
    if len(found.differences) > 1:
        said.append(
            f"Of {len(found.differences)} comparisons at 95 %, {len(found.differences) / 20:.2g} come out by chance "
            "alone where there is no difference."
        )
    return said


def _harness_warnings(evaluations: Sequence[Dataset]) -> list[str]:
    """That the models were not asked alike, if so."""
    found = sorted({one.manifest.get("harness", OWN) for one in evaluations})
    return [f"The answers come from different harnesses: {', '.join(found)}."] if len(found) > 1 else []


def _lmms_eval(untuned: Dataset, tuned: Mapping[tuple[str, int], Dataset]) -> dict[str, dict[str, float]]:
    """What lmms-eval itself made of the same answers: by benchmark and metric, arm to the mean over its seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for (arm, _), one in {(UNTUNED, 0): untuned, **tuned}.items():
        for benchmark, metrics in one.manifest.get("lmms_eval", {}).get("metrics", {}).items():
            for name, value in metrics.items():
                found.setdefault(f"{benchmark} {name}", {}).setdefault(arm, []).append(value)
    return {name: {arm: sum(some) / len(some) for arm, some in arms.items()} for name, arms in found.items()}


def _labelled(config: VerdictConfig) -> dict[tuple[str, int], Dataset]:
    """The evaluations by arm and seed.

    Raises:
        StageError: They are not those of `config.arms`, one each.
    """
    found: dict[tuple[str, int], Dataset] = {}
    for folder in config.evaluations:
        one = open_dataset(folder, EVALUATION)
        label = one.manifest.get("label", "")
        if label not in config.arms:
            raise StageError(
                f"{folder}: its label is {label!r}, wanted one of {', '.join(config.arms)}. Evaluate it with --label."
            )
        if split_arm(label) in found:
            raise StageError(f"{folder}: a second evaluation of {label}. Give one of each.")
        found[split_arm(label)] = one
    if missing := [arm for arm in config.arms if split_arm(arm) not in found]:
        raise StageError(f"evaluations: none of {', '.join(missing)}. Evaluate every arm, or leave it out of arms.")
    return found


def _require_alike(untuned: Dataset, tuned: Mapping[tuple[str, int], Dataset]) -> None:
    """Refuse what cannot be compared: models that began from another one, or were asked other files' questions.

    Raises:
        StageError: Something is known to differ.
    """
    first = untuned.manifest
    for one in tuned.values():
        label, began_from = one.manifest["label"], one.manifest.get("training", {}).get("model_fingerprint")
        if began_from not in (None, first["model_fingerprint"]):
            raise StageError(
                f"evaluations: {label} began from another model ({began_from}) than the untuned one "
                f"({first['model_fingerprint']}). Train and evaluate all from the same."
            )
        if one.manifest["benchmarks"] != first["benchmarks"]:
            names = sorted(
                name
                for name in {*one.manifest["benchmarks"], *first["benchmarks"]}
                if one.manifest["benchmarks"].get(name) != first["benchmarks"].get(name)
            )
            raise StageError(
                f"evaluations: {label} was asked other files of {', '.join(names)} than the untuned model. Evaluate "
                "every model on the same."
            )


def _costs(config: VerdictConfig, tuned: Mapping[tuple[str, int], Dataset]) -> Costs:
    """What summary and evaluations say of the work.

    Raises:
        StageError: The summary is none.
    """
    try:
        summary: dict[str, Any] = read_json_object(Path(config.summary))
        selecting = summary["run"]["seconds"] / 3600
        reuse = summary["reuse"].values()
        # Summaries of earlier versions do not say.
        seconds = summary.get("device_seconds", {})
    except (FileNotFoundError, KeyError):
        raise StageError(f"{config.summary}: is no summary of a selection. Give its run's summary.json.") from None
    hours: dict[str, float | None] = {}
    records: dict[str, float | None] = {}
    for name in ARMS:
        told = [one.manifest.get("training", {}) for (arm, _), one in tuned.items() if arm == name]
        if told:
            known = [one["device_hours"] for one in told if "device_hours" in one]
            hours[name] = sum(known) if len(known) == len(told) else None
            counted = [one["records"] for one in told if "records" in one]
            records[name] = sum(counted) / len(told) if len(counted) == len(told) else None
    return Costs(
        selecting_hours=selecting,
        selecting_device_hours={model: one / 3600 for model, one in seconds.items()},
        computed=sum(one["computed"] for one in reuse),
        reused=sum(one["reused"] for one in reuse),
        training_device_hours=hours,
        records=records,
    )
