"""Asks a model the questions of benchmarks, judges every answer, and measures against a baseline."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from components.evaluate.answering import Reply, replies
from components.evaluate.benchmark import Benchmark, read_benchmark, require_names
from components.evaluate.config import LMMS_EVAL, EvaluateConfig
from components.evaluate.harness import Harnessed, require_lmms_eval, run_lmms_eval
from components.evaluate.judge import METRICS
from components.evaluate.relative import relative, require_baseline
from free2ds_common import outcomes
from free2ds_common.checkpoints import TRAINING, download_folder, fingerprint, read_json_object, resolve_model
from free2ds_common.datasets import DatasetWriter, open_dataset
from free2ds_common.downloads import local_folder
from free2ds_common.errors import StageError
from free2ds_common.evaluation import Answers, measure, read_answers, tally
from free2ds_common.inference.auto import load_auto
from free2ds_common.inference.device import (
    choose_device,
    default_batch_size,
    device_name,
    dtype_name,
    log_peak_memory,
    torch_dtype,
)
from free2ds_common.inference.prompts import LLAVA_SYSTEM
from free2ds_common.result import Counts, StageResult, check_reject_fraction
from free2ds_common.runlog import Progress
from free2ds_common.schemas import EVALUATION
from free2ds_common.storage import atomic_writer
from free2ds_common.versions import require_versions

logger = logging.getLogger(__name__)

# A benchmark's replies, as they are done.
Answerer = Callable[[Benchmark], Iterator[Reply]]


def run(config: EvaluateConfig) -> StageResult:
    """Write evaluation/1 and the metrics.

    Args:
        config: Settings and ports.

    Raises:
        StageError: Wrong settings, no such benchmark, model or baseline, more questions without an answer than
            allowed, or a baseline of other questions.
    """
    config.check()
    require_versions("benchmarks", config.folders, config.benchmark_versions)
    benchmarks = [read_benchmark(Path(local_folder(uri, str(download_folder())))) for uri in config.folders]
    require_names(benchmarks)
    baseline = _read_baseline(config, benchmarks)
    if config.harness == LMMS_EVAL:
        require_lmms_eval(benchmarks)
    device = choose_device(config.require_gpu)
    dtype = torch_dtype(config.dtype, device)
    logger.info("%s runs on: %s", config.model, device_name(device))
    folder = Path(resolve_model(config.model, config.revision))
    told = {"device": device_name(device), "dtype": dtype_name(dtype), "training": _training(folder)}
    if config.harness == LMMS_EVAL:
        found = run_lmms_eval(config, benchmarks, folder, device.type, dtype_name(dtype), logger)
        settings = {**_settings(config, [folder]), "prompt": {"style": config.prompt}, **told}
        return _evaluate(
            config, benchmarks, baseline, lambda benchmark: iter(found.replies[benchmark.name]), settings, found
        )
    model = load_auto(folder, device, dtype, LLAVA_SYSTEM, config.prompt)
    settings = {
        **_settings(config, model.folders),
        "prompt": dict(model.prompt_settings),
        "preprocessing": dict(model.preprocessing),
        **told,
    }
    batch_size = config.batch_size or default_batch_size(device)

    def answerer(benchmark: Benchmark) -> Iterator[Reply]:
        return replies(model, benchmark, benchmark.max_new_tokens or config.max_new_tokens, batch_size, logger)

    result = _evaluate(config, benchmarks, baseline, answerer, settings)
    log_peak_memory(logger, device)
    return result


def _read_baseline(config: EvaluateConfig, benchmarks: Sequence[Benchmark]) -> Mapping[str, Answers] | None:
    """The answers of the baseline, if there is one: read first, so that a wrong one is known before the work.

    Raises:
        StageError: It is no whole evaluation/1, or nothing can be relative to it.
    """
    if not config.baseline_uri:
        return None
    try:
        found = read_answers(open_dataset(local_folder(config.baseline_uri, str(download_folder())), EVALUATION))
    except StageError as error:
        raise StageError(f"baseline_uri: {error} Wanted the evaluation of an earlier run.") from None
    require_baseline(found, benchmarks)
    return found


def _settings(config: EvaluateConfig, folders: Sequence[Path]) -> dict[str, Any]:
    """What decides the answers, for the manifest and the artifact's metadata."""
    return {
        "label": config.label,
        "model": config.model,
        "revision": config.revision,
        "model_fingerprint": ", ".join(map(fingerprint, folders)),
        "harness": config.harness,
        "max_new_tokens": config.max_new_tokens,
    }


def _training(folder: Path) -> dict[str, Any]:
    """What finetune says of how the model was trained; nothing of a model that it did not make.

    Raises:
        StageError: What it says is no JSON object.
    """
    try:
        told = read_json_object(folder / TRAINING)
    except FileNotFoundError:
        return {}
    kept = {name: told[name] for name in ("model", "model_fingerprint", "selected_sha256", "records") if name in told}
    metrics = told.get("metrics", {})
    return kept | {name: metrics[name] for name in ("device_hours", "steps") if name in metrics}


def _evaluate(
    config: EvaluateConfig,
    benchmarks: Sequence[Benchmark],
    baseline: Mapping[str, Answers] | None,
    answerer: Answerer,
    settings: Mapping[str, Any],
    harnessed: Harnessed | None = None,
) -> StageResult:
    """Answer, judge, write and measure."""
    # Beside this project's own judgement of the same answers, under lmms-eval's name.
    theirs = {} if harnessed is None else {"lmms_eval": harnessed.told()}
    by_outcome: dict[str, Counter[str]] = {}
    empty: dict[str, int] = {}
    with DatasetWriter(config.evaluation, EVALUATION) as writer:
        for benchmark in benchmarks:
            rows = _judged(benchmark, answerer(benchmark))
            writer.write(rows)
            by_outcome[benchmark.name] = Counter(row["outcome"] for row in rows)
            # Judged like any other: POPE's rule makes a yes of it.
            empty[benchmark.name] = sum(row["outcome"] == outcomes.OK and not row["text"] for row in rows)
            if empty[benchmark.name]:
                logger.warning("%s: %d answers are empty.", benchmark.name, empty[benchmark.name])
        found: Counter[str] = sum(by_outcome.values(), Counter())
        counts = Counts(read=found.total(), written=found[outcomes.OK], rejected=found.total() - found[outcomes.OK])
        reasons = {reason: count for reason, count in found.items() if reason != outcomes.OK}
        check_reject_fraction(counts, config.max_reject_fraction, reasons, "evaluate")
        writer.manifest.update(
            {**settings, **theirs},
            benchmarks={one.name: {"metric": one.metric, **one.origin} for one in benchmarks},
            outcomes={name: dict(counts) for name, counts in by_outcome.items()},
            empty_answers=empty,
        )
    metrics = _measure(config, read_answers(open_dataset(config.evaluation, EVALUATION)), baseline)
    with atomic_writer(Path(config.metrics), "w") as handle:
        told = {"outcomes": by_outcome, "empty_answers": empty, "settings": settings}
        json.dump({**metrics, **theirs, **told}, handle, indent=1)
    flat = {name: value["value"] for name, value in metrics["columns"].items()} | metrics["details"]
    flat |= {f"relative_{name}": value["value"] for name, value in metrics["relative"].items()}
    if harnessed is not None:
        flat |= harnessed.flat()
    return StageResult(counts, flat, {**settings, "benchmarks": [one.name for one in benchmarks]})


def _judged(benchmark: Benchmark, found: Iterator[Reply]) -> list[dict[str, Any]]:
    """A row per question, in the benchmark's order."""
    judge = METRICS[benchmark.metric]
    rows: dict[int, dict[str, Any]] = {}
    progress = Progress(len(benchmark.questions), f"questions of {benchmark.name}", logger)
    for reply in found:
        question = benchmark.questions[reply.index]
        answered = reply.outcome == outcomes.OK
        judged, score = judge(reply.text, question) if answered else (None, None)
        rows[reply.index] = {
            "benchmark": benchmark.name,
            "metric": benchmark.metric,
            "question_id": question.id,
            "image": question.image,
            "category": question.category,
            "group": question.group,
            "question": question.question,
            "answers": list(question.answers),
            "text": reply.text,
            "num_tokens": reply.num_tokens,
            "outcome": reply.outcome,
            "judged": judged,
            "score": score,
        }
        progress.add()
    progress.close()
    return [rows[index] for index in range(len(benchmark.questions))]


def _measure(
    config: EvaluateConfig, answers: Mapping[str, Answers], baseline: Mapping[str, Answers] | None
) -> dict[str, Any]:
    """What the metrics file holds beside the settings."""
    columns = measure(answers, config.resamples, config.seed)
    details: dict[str, float] = {}
    for some in answers.values():
        details |= tally(some).details()
    rel = relative(answers, baseline, config.resamples, config.seed) if baseline is not None else {}
    for name, value in columns.items():
        logger.info("%s %.2f", name, value.value)
    return {
        "columns": {name: asdict(value) for name, value in columns.items()},
        "details": details,
        "relative": {name: asdict(value) for name, value in rel.items()},
    }
