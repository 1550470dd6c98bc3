"""Answers of lmms-eval instead of the own engine's: run as a process, its files read back."""

import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from components.evaluate.answering import Reply
from components.evaluate.benchmark import Benchmark
from components.evaluate.config import EvaluateConfig
from components.evaluate.harness_inputs import require_askable, write_task
from components.evaluate.harness_model import complete_model, require_llava
from free2ds_common import outcomes
from free2ds_common.errors import StageError
from free2ds_common.pictures import PictureProblem, load_picture
from free2ds_common.runlog import PROGRESS_INTERVAL_S

# An answer that is empty in a run in which generating failed: lmms-eval goes on, and does not say which it was.
FAILED = "harness_failed"
_PACKAGE = "lmms_eval"
# Its tasks, options and files are its own affair; those of another release were not looked at.
_RELEASE = "0.7."
_EXCEPTION = re.compile(r"\bError (.+) in generating")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LAST_LINES = 20
_DECODERS = 8
# It has to find everything on this machine, and leaves nothing beside its folder.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@dataclass(frozen=True)
class Harnessed:
    """What lmms-eval found.

    Attributes:
        version: Its release.
        replies: Benchmark to a reply for each question, in order.
        metrics: Benchmark to its own metrics, as it writes them: shares of 1, of MME points and of MMBench percent.
        exceptions: Answers that are empty because generating failed.
    """

    version: str
    replies: Mapping[str, Sequence[Reply]]
    metrics: Mapping[str, Mapping[str, float]]
    exceptions: int

    def told(self) -> dict[str, Any]:
        """What manifest and metrics file hold of it."""
        return {"version": self.version, "metrics": self.metrics, "exceptions": self.exceptions}

    def flat(self) -> dict[str, float]:
        """Its metrics by a name of their own, beside the stage's."""
        return {
            f"lmms_eval_{benchmark}_{name}": value
            for benchmark, some in self.metrics.items()
            for name, value in some.items()
        }


def require_lmms_eval(benchmarks: Sequence[Benchmark]) -> str:
    """Refuse what cannot be run, before any work; returns lmms-eval's release.

    Raises:
        StageError: It is not installed, is another release, or cannot ask a benchmark's questions.
    """
    if importlib.util.find_spec(_PACKAGE) is None:
        raise StageError(
            "harness: lmms-eval is not installed here. On this machine run make lmms-eval; on a cluster and with "
            "--runner docker take an image of evaluate that was built with HARNESS=lmms-eval."
        )
    found = version(_PACKAGE)
    if not found.startswith(_RELEASE):
        raise StageError(f"harness: lmms-eval {found} is installed, wanted {_RELEASE}x. Run make lmms-eval.")
    for benchmark in benchmarks:
        require_askable(benchmark)
    return found


def run_lmms_eval(
    config: EvaluateConfig,
    benchmarks: Sequence[Benchmark],
    model: Path,
    device: str,
    dtype: str,
    log: logging.Logger,
) -> Harnessed:
    """Let lmms-eval ask a model the questions.

    Args:
        config: The stage's.
        benchmarks: The questions.
        model: The model's folder.
        device: "cpu" or "cuda".
        dtype: "float32" and its like.
        log: The stage's.

    Raises:
        StageError: It cannot run this, or failed.
    """
    release = require_lmms_eval(benchmarks)
    require_llava(model)
    with tempfile.TemporaryDirectory(prefix="free2ds-lmms-eval-") as scratch:
        work = Path(scratch)
        complete_model(model, work / "model", config.prompt)
        problems = {benchmark.name: _picture_problems(benchmark, log) for benchmark in benchmarks}
        places, names = {}, {}
        for benchmark in benchmarks:
            asked = [
                n for n, question in enumerate(benchmark.questions) if question.image not in problems[benchmark.name]
            ]
            if not asked:
                continue
            places[benchmark.name] = asked
            longest = benchmark.max_new_tokens or config.max_new_tokens
            names[benchmark.name] = write_task(benchmark, asked, longest, _tasks_folder(), work)
        exceptions, metrics, texts = 0, {}, {}
        if names:
            exceptions = _run(_command(work, list(names.values()), device, dtype), work, log)
            metrics = {name: _metrics(work / "out", task) for name, task in names.items()}
            texts = {name: _texts(work / "out", task) for name, task in names.items()}
        for name, asked in places.items():
            if len(texts[name]) != len(asked):
                raise StageError(f"lmms-eval: {len(texts[name])} answers to the {len(asked)} questions of {name}.")
    replies = {}
    for benchmark in benchmarks:
        failed = [_failed(question.image, problems[benchmark.name]) for question in benchmark.questions]
        said = dict(zip(places.get(benchmark.name, ()), texts.get(benchmark.name, ()), strict=True))
        replies[benchmark.name] = [
            Reply(place, reason) if reason else _reply(place, said[place], exceptions)
            for place, reason in enumerate(failed)
        ]
    if exceptions:
        empty = sum(reply.outcome == FAILED for some in replies.values() for reply in some)
        log.warning("lmms-eval: generating failed %d times, %d answers are empty", exceptions, empty)
    return Harnessed(release, replies, metrics, exceptions)


def _failed(image: str | None, problems: Mapping[str, str]) -> str:
    return problems.get(image, "") if image is not None else ""


def _reply(place: int, text: str, exceptions: int) -> Reply:
    return Reply(place, FAILED) if exceptions and not text else Reply(place, outcomes.OK, text, num_tokens=None)


def _picture_problems(benchmark: Benchmark, log: logging.Logger) -> dict[str, str]:
    """Pictures that cannot be used, and why: one of them would end lmms-eval's whole run."""

    def problem(image: str) -> PictureProblem | None:
        try:
            load_picture(benchmark.image_root, image)
        except PictureProblem as found:
            return found
        return None

    images = list(dict.fromkeys(question.image for question in benchmark.questions if question.image is not None))
    with ThreadPoolExecutor(min(_DECODERS, os.cpu_count() or 1)) as pool:
        found = {image: one for image, one in zip(images, pool.map(problem, images), strict=True) if one is not None}
    for one in found.values():
        log.warning("%s", one)
    return {image: one.reason for image, one in found.items()}


def _tasks_folder() -> Path:
    """Its tasks; it is not imported here, which takes seconds and logs to stdout."""
    spec = importlib.util.find_spec(_PACKAGE)
    assert spec is not None
    return Path(next(iter(spec.submodule_search_locations or ()))) / "tasks"


def _command(work: Path, tasks: Sequence[str], device: str, dtype: str) -> list[str]:
    place = "cuda:0" if device == "cuda" else device
    model = {"pretrained": work / "model", "device": place, "device_map": place, "dtype": dtype}
    return [
        *(sys.executable, "-m", _PACKAGE),
        *("--model", "llava_hf", "--model_args", ",".join(f"{name}={value}" for name, value in model.items())),
        *("--tasks", ",".join(tasks), "--include_path", str(work / "tasks")),
        # Its LLaVA answers one question at a time; the newer kind of model class has no LLaVA.
        *("--batch_size", "1", "--force_simple"),
        *("--log_samples", "--output_path", str(work / "out")),
    ]


def _run(command: Sequence[str], work: Path, log: logging.Logger) -> int:
    """Run lmms-eval to its end; returns how often generating failed.

    Raises:
        StageError: It failed, or ended without results: its exit code is 0 even then.
    """
    environment = {**os.environ, **_OFFLINE, "HF_HOME": str(work / "hf"), "HF_DATASETS_CACHE": str(work / "datasets")}
    exceptions, last, told = 0, deque[str](maxlen=_LAST_LINES), time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=work,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        assert process.stdout is not None
        for line in _lines(process.stdout):
            exceptions += _EXCEPTION.search(line) is not None
            last.append(line)
            if time.monotonic() - told >= PROGRESS_INTERVAL_S:
                told = time.monotonic()
                log.info("lmms-eval: %s", line)
        code = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if code or _results(work / "out") is None:
        for line in last:
            log.error("lmms-eval: %s", line)
        wrong = next((line for line in reversed(last) if "rror" in line), last[-1] if last else "it said nothing")
        wrong = wrong.partition("Error during evaluation: ")[2].partition(" Please set")[0] or wrong
        raise StageError(f"lmms-eval failed (exit code {code}): {wrong[-500:]}")
    return exceptions


def _lines(stream: Iterable[str]) -> Iterator[str]:
    """Lines without colours; a bar's states are lines too, as the stream's own line ends include theirs."""
    for line in stream:
        if stripped := _COLOUR.sub("", line).strip():
            yield stripped


def _results(out: Path) -> Path | None:
    """Its table of results, which begins with the date; some tasks write results of their own beside it."""
    return next(out.rglob("[0-9]*_results.json"), None)


def _metrics(out: Path, task: str) -> dict[str, float]:
    """A task's metrics without their errors."""
    path = _results(out)
    assert path is not None
    found = json.loads(path.read_bytes())["results"][task]
    return {
        name.partition(",")[0]: float(value)
        for name, value in found.items()
        if "_stderr" not in name and isinstance(value, int | float) and not isinstance(value, bool)
    }


def _texts(out: Path, task: str) -> list[str]:
    """The answers in the order of the task's questions."""
    paths = list(out.rglob(f"*_samples_{task}.jsonl"))
    rows = [
        json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
    ]
    found = {row["doc_id"]: row["filtered_resps"] for row in rows}
    texts = (one[0] if isinstance(one, list) else one for _, one in sorted(found.items()))
    return [str(text).strip() for text in texts]
