"""One training, in this process or in several with a GPU each."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from transformers import PrinterCallback, TrainingArguments, set_seed

from components.finetune.checkpoints import KEPT, Checkpoints
from components.finetune.collate import Collator
from components.finetune.config import FinetuneConfig
from components.finetune.model import TrainedModel, load_trained, write_merged
from components.finetune.samples import Samples, read_samples
from components.finetune.schedule import Schedule, check_rejects, counted, schedule, unusable
from components.finetune.trainer import LoraTrainer, StepRecorder
from free2ds_common.errors import StageError, first_line
from free2ds_common.inference.device import torch_dtype
from free2ds_common.redact import redacted
from free2ds_common.result import Counts
from free2ds_common.retry import StoreError
from free2ds_common.runlog import configure_logging
from free2ds_common.stopping import Stopped, stop_requests
from free2ds_common.storage import require_folder, room_on_disk

logger = logging.getLogger(__name__)

_GPU_PICTURE_WORKERS = 4
# Errors that are one sentence, by the names that torchrun's launcher hands on.
_OURS: Mapping[str, type[Exception]] = {
    "StageError": StageError,
    "SettingError": StageError,
    "StoreError": StoreError,
    "Stopped": Stopped,
}


@dataclass(frozen=True)
class Work:
    """What a process of a training needs to know.

    Attributes:
        config: Settings and ports.
        folder: The model's.
        device_type: "cuda" or "cpu".
        processes: That train, on all machines.
        checkpoints: Where they go.
        last: The checkpoint to go on from; None to begin.
    """

    config: FinetuneConfig
    folder: Path
    device_type: str
    processes: int
    checkpoints: Checkpoints
    last: Path | None


@dataclass(frozen=True)
class Outcome:
    """What came of a training.

    Attributes:
        history: One entry per step, those before a restart too; see `LoraTrainer`.
        counts: Records in and out.
        rejected: Unusable records per reason.
        truncated: Records that were cut off.
        trained_parameters: Numbers that were trained.
        peak_gpu_gib: Most memory in use on the first GPU; 0 on a CPU.
    """

    history: list[dict[str, Any]]
    counts: Counts
    rejected: Counter[str]
    truncated: int
    trained_parameters: int
    peak_gpu_gib: float


def train_in_processes(work: Work, launch: LaunchConfig | None = None) -> Outcome:
    """Train, and write adapter and merged model; raises as `train`.

    Args:
        work: What to do.
        launch: How the processes of several machines find each other; None for one machine.
    """
    if work.processes == 1:
        return train(work)
    # torchrun, with a function in place of a script.
    launch = launch or LaunchConfig(
        run_id="finetune",
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=work.processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=1,
    )
    try:
        outcomes: dict[int, Outcome] = elastic_launch(launch, _train_as_told)(work)
    except ChildFailedError as error:
        raise _meant_by(error) from error
    except SignalException:
        # The processes were told too, and given time for a checkpoint.
        raise Stopped("stopped as asked to: run again to go on") from None
    return outcomes[min(outcomes)]


def _train_as_told(work: Work) -> Outcome:
    """`train` in a process of its own; what it raises ends the others, which would wait for this one."""
    configure_logging()
    return train(work)


def _meant_by(error: ChildFailedError) -> Exception:
    """What a process that failed had to say: the others fail with it, and have less to say."""
    in_time = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
    said = {rank: str(_words(failure.message)) for rank, failure in in_time}
    for text in said.values():
        name, _, sentence = text.partition(": ")
        if name in _OURS:
            return _OURS[name](sentence)
    rank, text = next(iter(said.items()))
    return RuntimeError(f"process {rank} ended: {first_line(RuntimeError(text))}")


def _words(message: object) -> object:
    """Of a process that failed: an object with the error's text, or a text of torch's own."""
    return message["message"] if isinstance(message, dict) else message


def train(work: Work) -> Outcome:
    """The work of one process; the first one also writes.

    Raises:
        StageError: The records, their pictures or the model are not what they should be, or a loss is no number.
        StoreError: A store does not answer.
        Stopped: The system asked it to end; a checkpoint is kept.
    """
    config = work.config
    set_seed(config.seed)
    args = TrainingArguments(**_arguments(work))  # first: it gives each process its device
    device = args.device
    trained = load_trained(config, work.folder, device, torch_dtype(config.dtype, device))
    samples = read_samples(
        config.selected,
        work.folder,
        trained.tokenizer,
        image_token=trained.image_token,
        eos=trained.eos,
        vision_tokens=trained.vision_tokens,
        max_length=config.max_length,
    )
    if samples.has_picture.any():
        require_folder("image_root_uri", config.image_root_uri)
    plan = schedule(config, len(samples), work.processes, device)
    check_rejects(config, samples, plan, [])
    args.per_device_train_batch_size, args.gradient_accumulation_steps = plan.micro_batch_size, plan.accumulation
    stopping = stop_requests() if config.cache_uri else nullcontext(lambda: False)
    with stopping as stop_requested, room_on_disk(work.checkpoints.folder):
        logger.info(
            "%d records (%d with pictures, %d cut off), %d steps of %d x %d x %d records",
            *(len(samples), samples.has_picture.sum(), samples.truncated),
            *(plan.steps, plan.processes, plan.accumulation, plan.micro_batch_size),
        )
        return _trained(work, trained, samples, plan, args, stop_requested)


def _trained(
    work: Work,
    trained: TrainedModel,
    samples: Samples,
    plan: Schedule,
    args: TrainingArguments,
    stop_requested: Callable[[], bool],
) -> Outcome:
    config = work.config
    collator = Collator(
        image_root_uri=config.image_root_uri,
        preprocess=trained.preprocess,
        picture_shape=trained.picture_shape,
        image_token=trained.image_token,
        vision_tokens=trained.vision_tokens,
        pad_token=trained.eos,
    )
    trainer = LoraTrainer(config, trained.network, args, samples, collator)
    recorder = StepRecorder(trainer, plan, work.checkpoints, stop_requested)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(recorder)
    trainer.train(resume_from_checkpoint=str(work.last) if work.last else None)
    if recorder.stopped:
        raise Stopped(f"stopped as asked to after step {trainer.state.global_step} of {plan.steps}: run again to go on")
    # transformers adds an entry about the whole.
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    outcome = Outcome(
        history=history,
        counts=counted(config, samples, plan, history),
        rejected=samples.rejected + unusable(plan, history),
        truncated=samples.truncated,
        trained_parameters=sum(p.numel() for p in trained.network.parameters() if p.requires_grad),
        peak_gpu_gib=torch.cuda.max_memory_allocated() / 2**30 if args.device.type == "cuda" else 0.0,
    )
    if trainer.is_world_process_zero():
        with room_on_disk(config.tuned_model):
            _write_adapter(trained, config)
            write_merged(trained, Path(config.tuned_model))
    trainer.accelerator.wait_for_everyone()
    return outcome


def _write_adapter(trained: TrainedModel, config: FinetuneConfig) -> None:
    """Write the adapters; they name the model by what the user calls it, not by where it lies on this machine."""
    trained.network.peft_config["default"].base_model_name_or_path = redacted(config.model)
    trained.network.save_pretrained(config.adapter)
    (Path(config.adapter) / "README.md").unlink(missing_ok=True)  # a form to fill in


def _arguments(work: Work) -> dict[str, Any]:
    """Transformers' arguments but for the sizes of batches."""
    config, on_gpu = work.config, work.device_type == "cuda"
    workers = config.picture_workers or (_GPU_PICTURE_WORKERS if on_gpu else 0)
    dtype = torch_dtype(config.dtype, torch.device(work.device_type))
    return {
        "output_dir": str(work.checkpoints.folder),
        "num_train_epochs": config.num_epochs,
        "max_steps": config.max_steps or -1,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": config.warmup_fraction,
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
        "seed": config.seed,
        "bf16": dtype == torch.bfloat16,
        "use_cpu": not on_gpu,
        "activation_checkpointing": config.gradient_checkpointing,
        # The other kind fails with several processes.
        "activation_checkpointing_kwargs": {"use_reentrant": False} if config.gradient_checkpointing else None,
        # A batch of text alone leaves the projector out.
        "ddp_find_unused_parameters": True,
        "ddp_backend": "gloo" if work.processes > 1 and not on_gpu else None,
        "save_strategy": "steps" if config.cache_uri else "no",
        "save_steps": config.checkpoint_steps,
        "save_total_limit": KEPT,
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "dataloader_num_workers": workers,
        # Clients of stores do not survive a fork.
        "dataloader_multiprocessing_context": "spawn" if workers else None,
        "dataloader_pin_memory": on_gpu,
    }
