"""transformers' Trainer with two learning rates, an order of its own, and every step's loss in full precision."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from components.finetune.checkpoints import Checkpoints
from components.finetune.collate import PROBLEMS, Collator
from components.finetune.config import FinetuneConfig
from components.finetune.order import GroupedSampler
from components.finetune.samples import Samples
from components.finetune.schedule import Schedule, check_rejects
from free2ds_common.errors import StageError
from free2ds_common.outcomes import IMAGE_FAILURES
from free2ds_common.runlog import Progress

logger = logging.getLogger(__name__)


class LoraTrainer(Trainer):
    """Trains adapters and projector.

    The losses are in `state.log_history`, and so in every checkpoint: one entry per step with `step`, `loss` (mean over
    the answers' tokens), `learning_rates` (adapters, projector), `tokens`, `unusable` (pictures per reason), `seconds`.

    Attributes:
        config: Settings.
        samples: What is learnt from.
        sampler: Their order.
    """

    def __init__(
        self, config: FinetuneConfig, model: nn.Module, args: TrainingArguments, samples: Samples, collator: Collator
    ) -> None:
        """Prepare the training.

        Args:
            config: Settings.
            model: With adapters.
            args: Of transformers.
            samples: What to learn from.
            collator: Makes batches of them.
        """
        self.config, self.samples = config, samples
        self.sampler = GroupedSampler(samples.lengths, samples.has_picture, config.batch_size, config.seed)
        self.step_loss = torch.zeros(())
        self.step_tokens = 0
        self.step_problems: Counter[str] = Counter()
        super().__init__(model=model, args=args, train_dataset=samples, data_collator=collator)

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> GroupedSampler:
        return self.sampler

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW without weight decay; the projector has a learning rate of its own."""
        if getattr(self, "optimizer", None) is None:
            groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    groups[f".{self.config.projector}." in name].append(parameter)
            self.optimizer = torch.optim.AdamW(
                [
                    {"params": groups[False], "lr": self.config.learning_rate},
                    {"params": groups[True], "lr": self.config.projector_learning_rate},
                ],
                weight_decay=0.0,
                fused=self.args.device.type == "cuda",
            )
        return self.optimizer

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """See `Trainer.training_step`; adds to what is known of the step."""
        for reason, detail in inputs.pop(PROBLEMS):
            logger.warning("%s: %s", reason, detail)
            self.step_problems[reason] += 1
        self.step_tokens += int(inputs["attention_mask"].sum())
        if num_items_in_batch is not None and int(num_items_in_batch) == 0:
            raise StageError(
                f"{self.config.image_root_uri}: none of the pictures of a step can be used. Check image_root_uri."
            )
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.step_loss = self.step_loss.to(loss.device) + loss
        return loss

    def take_step(self, stop_requested: bool) -> tuple[dict[str, Any], bool]:
        """What is known of the step that ends, over all processes; begins the next.

        Args:
            stop_requested: Whether this process was asked to end.

        Returns:
            Loss, tokens and unusable pictures of the step; and whether any process was asked to end: all have to do so
            after the same step, or they wait for each other.
        """
        told = [self.step_loss.double(), *(torch.tensor(float(count)) for count in (stop_requested, *self._counts()))]
        sums = torch.stack([value.to(self.args.device) for value in told])
        gathered = self.accelerator.gather(sums[None])
        loss, (stops, tokens, *problems) = gathered[:, 0].mean().item(), gathered[:, 1:].sum(0).tolist()
        self.step_loss, self.step_tokens, self.step_problems = torch.zeros(()), 0, Counter()
        unusable = {reason: int(count) for reason, count in zip(IMAGE_FAILURES, problems, strict=True) if count}
        return {"loss": loss, "tokens": int(tokens), "unusable": unusable}, stops > 0

    def _counts(self) -> list[int]:
        return [self.step_tokens, *(self.step_problems[reason] for reason in IMAGE_FAILURES)]


class StepRecorder(TrainerCallback):
    """Keeps the losses, sets the order of an epoch, publishes checkpoints, and stops where that is asked for.

    Attributes:
        stopped: Whether the training ended early because that was asked for.
    """

    def __init__(
        self, trainer: LoraTrainer, plan: Schedule, checkpoints: Checkpoints, stop_requested: Callable[[], bool]
    ) -> None:
        """Watch a training.

        Args:
            trainer: The training.
            plan: Its steps.
            checkpoints: Where they go.
            stop_requested: Whether to end after the present step.
        """
        self._trainer, self._plan, self._checkpoints = trainer, plan, checkpoints
        self._stop_requested = stop_requested
        self._progress: Progress | None = None
        self._last = 0.0
        self._rates: list[float] = []
        self.stopped = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Start counting."""
        if state.is_world_process_zero:
            self._progress = Progress(self._plan.steps - state.global_step, "steps", logger)
        self._last = time.monotonic()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Choose the epoch's order."""
        self._trainer.sampler.epoch = state.global_step // self._plan.steps_per_epoch

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Keep the step's learning rates: at its end the scheduler has moved on."""
        self._rates = self._trainer.lr_scheduler.get_last_lr()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Keep the step's loss.

        Raises:
            StageError: It is no number, or too many pictures could not be used.
        """
        step, stop = self._trainer.take_step(self._stop_requested())
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        entry = {"step": state.global_step, **step, "learning_rates": self._rates, "seconds": seconds}
        state.log_history.append(entry)
        if not step["loss"] < float("inf"):
            raise StageError(
                f"the loss of step {state.global_step} is {step['loss']}: lower learning_rate, or use dtype float32."
            )
        check_rejects(self._trainer.config, self._trainer.samples, self._plan, state.log_history)
        if self._progress is not None:
            self._progress.add()
        if stop:
            control.should_save = control.should_training_stop = self.stopped = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Publish the checkpoint, once all processes have written their part."""
        self._trainer.accelerator.wait_for_everyone()
        if state.is_local_process_zero and not state.is_world_process_zero:
            self._checkpoints.contribute(state.global_step)
        self._trainer.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            self._checkpoints.publish(state.global_step)
        self._last = time.monotonic()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Stop counting."""
        if self._progress is not None:
            self._progress.close()
