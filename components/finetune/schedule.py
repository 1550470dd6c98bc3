"""How records are dealt out to steps, passes and processes; and how many of them may be unusable."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from components.finetune.config import FinetuneConfig
from components.finetune.samples import Samples
from free2ds_common.errors import SettingError
from free2ds_common.result import Counts, check_reject_fraction

# Records that pass together by default.
_ON_GPU, _ON_CPU = 8, 4


@dataclass(frozen=True)
class Schedule:
    """How records are dealt out.

    Attributes:
        processes: Processes that train.
        micro_batch_size: Records that pass a process together.
        accumulation: Passes of a process per step.
        steps_per_epoch: Optimizer steps.
        steps: Of the whole run.
    """

    processes: int
    micro_batch_size: int
    accumulation: int
    steps_per_epoch: int
    steps: int


def schedule(config: FinetuneConfig, num_samples: int, processes: int, device: torch.device) -> Schedule:
    """Deal the records out.

    Args:
        config: Settings.
        num_samples: Usable records.
        processes: That train, each with a device of its own.
        device: Where.

    Raises:
        SettingError: A step's records cannot be dealt out evenly.
    """
    share = config.batch_size // processes
    micro = config.micro_batch_size or min(share, _ON_GPU if device.type == "cuda" else _ON_CPU)
    if not micro or config.batch_size % (processes * micro):
        raise SettingError(
            "batch_size",
            f"got {config.batch_size}, wanted a multiple of {max(1, micro)} records (micro_batch_size) times "
            f"{processes} processes.",
        )
    passes = -(-num_samples // micro)
    passes = -(-passes // processes)
    accumulation = config.batch_size // (processes * micro)
    per_epoch = max(1, -(-passes // accumulation))
    return Schedule(processes, micro, accumulation, per_epoch, config.max_steps or config.num_epochs * per_epoch)


def counted(config: FinetuneConfig, samples: Samples, plan: Schedule, history: Sequence[Mapping[str, Any]]) -> Counts:
    """Records in and out: dropped are those that `max_steps` leaves no step for.

    Args:
        config: Settings.
        samples: The usable records.
        plan: Their steps.
        history: One entry per step; those of the first epoch say which pictures could not be used.
    """
    without_picture = sum(unusable(plan, history).values())
    reached = min(len(samples), plan.steps * config.batch_size)
    return Counts(
        read=samples.num_read,
        written=reached - without_picture,
        dropped=len(samples) - reached,
        rejected=samples.rejected.total() + without_picture,
    )


def unusable(plan: Schedule, history: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """Pictures that could not be used, per reason, each counted once."""
    reasons: Counter[str] = Counter()
    for step in history[: plan.steps_per_epoch]:
        reasons.update(step["unusable"])
    return reasons


def check_rejects(
    config: FinetuneConfig, samples: Samples, plan: Schedule, history: Sequence[Mapping[str, Any]]
) -> None:
    """Stop a training that too many records are unusable for; arguments as of `counted`.

    Raises:
        StageError: More than `max_reject_fraction` of them.
    """
    reasons = samples.rejected + unusable(plan, history)
    check_reject_fraction(counted(config, samples, plan, history), config.max_reject_fraction, reasons, config.selected)
