"""The attention stage: a shard of records in, a map for each of them out. Both models' stages run it."""

import contextlib
import itertools
import json
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from free2ds_common.checkpoints import fingerprint, resolve_model
from free2ds_common.datasets import Dataset, DatasetWriter, first_difference, open_dataset
from free2ds_common.errors import StageError
from free2ds_common.inference.asked import CAPTURE_VERSION, DECIDING, known_settings, remember_settings
from free2ds_common.inference.attention_checks import (
    answered_by_model,
    require_a_finite_map,
    require_a_usable_picture,
    require_promised,
)
from free2ds_common.inference.attention_results import AttentionResults, open_results, terse_metadata, unasked
from free2ds_common.inference.attention_rows import Record, Scored, rows_in_order
from free2ds_common.inference.auto import load_auto
from free2ds_common.inference.device import (
    choose_device,
    device_name,
    dtype_name,
    log_peak_memory,
    torch_dtype,
)
from free2ds_common.inference.model import VisionLanguageModel
from free2ds_common.left_over import LeftOver
from free2ds_common.lineage import MADE_FROM, made_from
from free2ds_common.result import Counts, StageResult
from free2ds_common.schemas import GRID, RECORDS, attention_schema
from free2ds_common.settings import AUTO, AttentionConfig
from free2ds_common.storage import require_folder

# What the manifest says where no model was loaded.
NO_DEVICE = "none, all results were there"
_ROWS_PER_PART = 10_000
# Rows in a table: with a table for each row, every row would take 7 KB until its part is full.
_ROWS_PER_WRITE = 256


class Loader(Protocol):
    """Loads the stage's own model."""

    def __call__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> VisionLanguageModel:
        """Load a model folder; raises StageError for another model."""


def run_attention(config: AttentionConfig, system: str, load: Loader, log: logging.Logger) -> StageResult:
    """Write where a model looks for every record of a shard, in the shard's order.

    The model is loaded if there is something to ask it.

    Args:
        config: Settings and ports.
        system: System text of the stage's prompt.
        load: Loads the stage's own model.
        log: The stage's logger, so that every line says which of the two models it is about.

    Raises:
        StageError: Wrong settings, no such shard or model, no GPU where one is required, a model with other settings
            than the results that its own will join, or none of the shard's pictures can be used or gets a finite map.
        Stopped: The system asked the process to end; what was computed is in the results store.
    """
    config.check()
    device = choose_device(config.require_gpu)
    log.info("%s runs on: %s", config.model, device_name(device))
    shard = open_dataset(config.shard, RECORDS)
    left_over = LeftOver.of(shard.manifest, shard.num_rows)
    records = list(shard.rows(["unique_id", "record_key", "image", "question"]))
    on_gpu = device.type == "cuda"
    settings = dict(left_over.settings) or known_settings(config, on_gpu=on_gpu)
    with contextlib.ExitStack() as stack:
        model = results = None
        if settings:
            results = stack.enter_context(_look_up(config, settings, records, log))
        if results is None or _asks_model(records, results):
            dtype = torch_dtype(config.dtype, device)
            model = _load(config, system, load, device, dtype)
            found = _settings(config, model, dtype)
            require_promised(config.model, found, left_over.settings)
            remember_settings(config, found, model.folders, on_gpu=on_gpu)
            if results is None or first_difference(found, settings, DECIDING):
                stack.close()
                results = stack.enter_context(_look_up(config, found, records, log))
            settings = found
        else:
            log.info("all results are there: %s is not loaded", config.model)
            settings |= {"model": config.model, "revision": config.revision, "device": NO_DEVICE}
        log.info("%d records, %s on %s in %s", len(records), config.model, settings["device"], settings["dtype"])
        by_outcome, num_steps, reused = _write(Scored(config, records, left_over, model, settings, results, log))
    log_peak_memory(log, device)
    metrics = {f"outcome_{outcome}": float(count) for outcome, count in sorted(by_outcome.items())}
    metrics["generated_tokens"] = float(num_steps)
    metrics |= {"reused": float(reused), "computed": float(answered_by_model(by_outcome) - reused)}
    counts = Counts(read=len(records), written=sum(by_outcome.values()))
    terse = terse_metadata(_display_name(config, shard), settings, len(records))
    return StageResult(counts, metrics, {**settings, "outcomes": dict(by_outcome)}, terse)


def _look_up(
    config: AttentionConfig, settings: Mapping[str, Any], records: Sequence[Record], log: logging.Logger
) -> contextlib.AbstractContextManager[AttentionResults]:
    """See that the pictures' folder is there, and `open_results`."""
    if any(record["image"] for record in records):
        require_folder("image_root_uri", config.image_root_uri)
    return open_results(config, settings, records, log)


def _asks_model(records: Sequence[Record], results: AttentionResults) -> bool:
    """Whether there is a record that only the model knows the outcome of."""
    return any(unasked(record) is None and index not in results.reused for index, record in enumerate(records))


def _load(
    config: AttentionConfig, system: str, load: Loader, device: torch.device, dtype: torch.dtype
) -> VisionLanguageModel:
    """The model that the settings ask for.

    Raises:
        StageError: It cannot be loaded, or it is the stage's own model with another grid than the method's.
    """
    folder = Path(resolve_model(config.model, config.revision))
    if config.model_type == AUTO:
        return load_auto(folder, device, dtype, system, config.prompt)
    model = load(folder, device, dtype)
    if model.grid != GRID:
        raise StageError(
            f"{folder}: {model.grid} x {model.grid} vision tokens, wanted the {GRID} x {GRID} of the method's pair "
            "of models. Use model_type auto to compare maps of different grids."
        )
    return model


def _settings(config: AttentionConfig, model: VisionLanguageModel, dtype: torch.dtype) -> dict[str, Any]:
    """What decides the maps, for the manifest and the artifact's metadata, as JSON has it."""
    settings = {
        "model": config.model,
        "revision": config.revision,
        "model_fingerprint": ", ".join(map(fingerprint, model.folders)),
        "prompt": dict(model.prompt_settings),
        "max_new_tokens": config.max_new_tokens,
        "preprocessing": dict(model.preprocessing),
        "dtype": dtype_name(dtype),
        "device": device_name(model.device),
        "grid": model.grid,
        "capture_version": CAPTURE_VERSION,
    }
    # A tuple of the processor's is a list in what is compared with it.
    found: dict[str, Any] = json.loads(json.dumps(settings))
    return found


def _display_name(config: AttentionConfig, shard: Dataset) -> str:
    """What tells the artifact from those of other shards and models."""
    number, of = shard.manifest.get("shard"), shard.manifest.get("num_shards")
    name = f"{config.SHORT_NAME} attention"
    return name if number is None else f"{name}, shard {number + 1} of {of}"


def _write(scored: Scored) -> tuple[Counter[str], int, int]:
    """Answer the records and write attention/1.

    Returns:
        How many records had which outcome, the tokens generated, and how many answers are of earlier runs.
    """
    config, records, results, settings = scored.config, scored.records, scored.results, scored.settings
    by_outcome: Counter[str] = Counter()
    of_earlier_runs: Counter[str] = Counter()
    num_steps = 0
    started = time.monotonic()
    with DatasetWriter(config.attention, attention_schema(settings["grid"] ** 2), _ROWS_PER_PART) as writer:
        writer.manifest[MADE_FROM] = made_from(shard=config.shard)
        rows = rows_in_order(scored)
        while some := list(itertools.islice(rows, _ROWS_PER_WRITE)):
            writer.write(
                [
                    {
                        "unique_id": records[row.index]["unique_id"],
                        "record_key": records[row.index]["record_key"],
                        "num_steps": row.num_steps,
                        "outcome": row.outcome,
                        "map": row.map,
                    }
                    for row in some
                ]
            )
            by_outcome.update(row.outcome for row in some)
            of_earlier_runs.update(row.outcome for row in some if row.index in results.reused)
            num_steps += sum(row.num_steps for row in some)
        require_a_usable_picture(config, records, by_outcome, scored.left_over)
        require_a_finite_map(config, by_outcome, settings["dtype"], scored.left_over, scored.log)
        reused = answered_by_model(of_earlier_runs)
        counts = {"reused": reused, "computed": answered_by_model(by_outcome) - reused}
        writer.manifest.update(settings, outcomes=dict(by_outcome), **counts)
        # What it cost, on one device: no part of the content, nor of what decides it.
        writer.manifest["device_seconds"] = round(time.monotonic() - started, 3) if scored.model else 0.0
    return by_outcome, num_steps, reused
