"""The finetune stage against a bare PyTorch loop that shares no code with it: losses, tokens per second; and kill -9.

`python -m benchmarks.finetune`: the examples' tiny LLaVA on a CPU. The loop has adapters, schedule, prompt and pictures
written out by hand; it is given the initial adapters and the order of the records.
"""

import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import sentencepiece
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from transformers import LlavaConfig, LlavaForConditionalGeneration, set_seed
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from benchmarks.bounds import Bounds
from components.finetune.checkpoints import Checkpoints
from components.finetune.config import FinetuneConfig
from components.finetune.model import load_trained
from components.finetune.order import GroupedSampler
from components.finetune.samples import read_samples
from components.finetune.trainer import LoraTrainer
from components.finetune.training import Work, train
from examples.make import make

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
BOS, EOS = 1, 2
RECORDS, STEPS, ROUNDS = 160, 20, 5
# Layers of the decoder that get adapters.
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Adapted(nn.Module):
    """A linear layer with a low-rank one beside it."""

    def __init__(self, layer: nn.Linear, start: torch.Tensor, scale: float) -> None:
        """Begin with `start`, (rank, in), and nothing added."""
        super().__init__()
        self.layer, self.scale = layer, scale
        self.down = nn.Parameter(start.clone())
        self.up = nn.Parameter(torch.zeros(layer.out_features, len(start)))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The layer's output and the adapter's."""
        beside: torch.Tensor = inputs @ self.down.T @ self.up.T * self.scale
        found: torch.Tensor = self.layer(inputs) + beside
        return found


class BareLoop:
    """A training without transformers' Trainer, peft and our collator."""

    def __init__(self, config: FinetuneConfig, order: Sequence[int], starts: dict[str, torch.Tensor]) -> None:
        """Load the model.

        Args:
            config: Settings.
            order: Records, step after step.
            starts: First matrix of each adapter, by the layer's name.
        """
        self.config, self.order = config, order
        self.records = json.loads(Path(config.selected).read_text(encoding="utf-8"))
        self.words = sentencepiece.SentencePieceProcessor(model_file=f"{config.model}/tokenizer.model")
        self.clip = CLIPImageProcessorPil.from_pretrained(config.model)
        self.model = LlavaForConditionalGeneration.from_pretrained(config.model, dtype=torch.float32)
        self.model.requires_grad_(False)
        self.image_token = self.model.config.image_token_id
        self.vision_tokens = vision_tokens(self.model.config)
        adapters = []
        for name, layer in list(self.model.model.language_model.named_modules()):
            if name.rpartition(".")[2] in ADAPTED:
                adapter = Adapted(layer, starts[name], config.lora_alpha / config.lora_rank)
                self.model.model.language_model.set_submodule(name, adapter)
                adapters += [adapter.down, adapter.up]
        projector = list(self.model.model.multi_modal_projector.parameters())
        for parameter in projector:
            parameter.requires_grad_(True)
        self.trained = [*adapters, *projector]
        self.optimizer = torch.optim.AdamW([{"params": adapters}, {"params": projector}], weight_decay=0.0)
        self.model.train()

    def tokens(self, record: dict[str, Any]) -> tuple[list[int], list[int]]:
        """Ids and labels of a record, the prompt written out as LLaVA's trainer does."""
        ids, labels = [BOS], [-100]
        said = [turn["value"] for turn in record["conversations"]]
        for number in range(0, len(said) - 1, 2):
            question, text = said[number], SYSTEM + " " if number == 0 else ""
            if number == 0 and "image" in record:
                start = [*self.words.encode(f"{text}USER: "), *[self.image_token] * self.vision_tokens]
                ids, labels = ids + start, labels + [-100] * len(start)
                asked = "\n" + question.replace("<image>", "").strip()
            else:
                asked = f"{text}USER: {question}"
            round_ids = [*self.words.encode(f"{asked} ASSISTANT: {said[number + 1]}"), EOS]
            masked = len(self.words.encode(f"{asked} ASSISTANT:"))
            ids, labels = ids + round_ids, labels + [-100] * masked + round_ids[masked:]
        return ids, labels

    def picture(self, record: dict[str, Any]) -> torch.Tensor:
        """A record's picture, padded to a square in the mean colour."""
        picture = Image.open(Path(self.config.image_root_uri) / record["image"]).convert("RGB")
        side = max(picture.size)
        ground = Image.new("RGB", (side, side), tuple(int(255 * mean) for mean in self.clip.image_mean))
        ground.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        pixels: torch.Tensor = self.clip(ground, return_tensors="pt").pixel_values[0]
        return pixels

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Records that pass together."""
        records = [self.records[index] for index in indices]
        rows = [self.tokens(record) for record in records]
        ids = nn.utils.rnn.pad_sequence([torch.tensor(row[0]) for row in rows], batch_first=True, padding_value=EOS)
        labels = nn.utils.rnn.pad_sequence([torch.tensor(row[1]) for row in rows], batch_first=True, padding_value=-100)
        mask = torch.stack([(torch.arange(ids.shape[1]) < len(row[0])).long() for row in rows])
        batch = {"input_ids": ids, "labels": labels, "attention_mask": mask}
        if pictures := [self.picture(record) for record in records if "image" in record]:
            batch["pixel_values"] = torch.stack(pictures)
        return batch

    def run(self) -> tuple[list[float], float]:
        """Train; returns the loss of each step, and tokens per second of the processor."""
        size, micro = self.config.batch_size, self.config.micro_batch_size
        steps = [self.order[start : start + size] for start in range(0, len(self.order), size)]
        warm = math.ceil(self.config.warmup_fraction * len(steps))
        losses, tokens, start = [], 0, time.process_time()
        for number, step in enumerate(steps):
            share = (
                number / warm if number < warm else (1 + math.cos(math.pi * (number - warm) / (len(steps) - warm))) / 2
            )
            for group, rate in zip(
                self.optimizer.param_groups,
                (self.config.learning_rate, self.config.projector_learning_rate),
                strict=True,
            ):
                group["lr"] = rate * share
            batches = [self.batch(step[first : first + micro]) for first in range(0, len(step), micro)]
            learnt = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
            total = 0.0
            for batch in batches:
                labels = batch.pop("labels")
                logits = self.model(**batch).logits[:, :-1]
                loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum") / learnt
                torch.autograd.backward(loss)
                total += loss.item()
                tokens += int(batch["attention_mask"].sum())
            nn.utils.clip_grad_norm_(self.trained, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses.append(total)
        return losses, tokens / (time.process_time() - start)


def vision_tokens(config: LlavaConfig) -> int:
    """Tokens that a picture becomes."""
    side: int = config.vision_config.image_size // config.vision_config.patch_size
    return side * side


def settings(data: Path, out: Path, **changes: object) -> FinetuneConfig:
    """Settings of a training on example data, in float32 and without dropout."""
    given: dict[str, Any] = {
        "selected": str(data / "dataset.json"),
        "image_root_uri": str(data / "images"),
        "model": str(data / "models" / "llava"),
        "dtype": "float32",
        "batch_size": 8,
        "micro_batch_size": 4,
        "lora_rank": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "gradient_checkpointing": False,
        "tuned_model": str(out / "model"),
        "adapter": str(out / "adapter"),
        "report": str(out / "report.html"),
    }
    return FinetuneConfig(**{**given, **changes})


def bare_loop(config: FinetuneConfig) -> BareLoop:
    """The bare loop with the stage's initial adapters and order."""
    cpu, folder = torch.device("cpu"), Path(config.model)
    set_seed(config.seed)
    trained = load_trained(config, folder, cpu, torch.float32)
    samples = read_samples(
        *(config.selected, folder, trained.tokenizer, trained.image_token, EOS, trained.vision_tokens),
        max_length=config.max_length,
    )
    order = list(GroupedSampler(samples.lengths, samples.has_picture, config.batch_size, config.seed))
    inner, suffix = "base_model.model.model.language_model.", ".lora_A.default.weight"
    state = trained.network.state_dict()
    starts = {
        name.removeprefix(inner).removesuffix(suffix): start for name, start in state.items() if name.endswith(suffix)
    }
    return BareLoop(config, order, starts)


def stage_run(config: FinetuneConfig, scratch: Path) -> tuple[list[float], float]:
    """The stage's training in this process: the loss of each step, and tokens per second of the processor."""
    seconds, ours = [], LoraTrainer.train

    def timed(trainer: LoraTrainer, **options: object) -> None:
        start = time.process_time()
        ours(trainer, **options)
        seconds.append(time.process_time() - start)

    with mock.patch.object(LoraTrainer, "train", timed):
        outcome = train(Work(config, Path(config.model), "cpu", 1, Checkpoints("", {}, scratch), None))
    tokens = sum(step["tokens"] for step in outcome.history)
    return [step["loss"] for step in outcome.history], tokens / seconds[0]


def killed_and_resumed(data: Path, work: Path, chance: random.Random) -> tuple[list[float], list[float], int]:
    """Losses of an undisturbed run and of one that was killed with -9 and run again; and the step after which."""

    def command(out: Path, **changes: object) -> list[str]:
        config = asdict(settings(data, out, lora_dropout=0.05, gradient_checkpointing=True, **changes))
        options = [
            f"--{name.replace('_', '-')}={value}" for name, value in config.items() if not isinstance(value, bool)
        ]
        return [sys.executable, "-m", "components.finetune", *options]

    def losses(out: Path) -> list[float]:
        found = json.loads((out / "adapter" / "training.json").read_text(encoding="utf-8"))
        return [step["loss"] for step in found["history"]]

    subprocess.run(command(work / "whole"), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    cache, after = work / "cache", chance.randrange(1, 12)
    again = command(work / "killed", cache_uri=str(cache), checkpoint_steps=1)
    process = subprocess.Popen(again, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(cache.glob(f"finetune/*/checkpoint-{after}/complete.json")):
        if process.poll() is not None:
            raise RuntimeError(f"the run to be killed after step {after} ended before")
        time.sleep(0.01)
    time.sleep(chance.random() / 2)  # in a step or while a checkpoint is written
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(again, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return losses(work / "whole"), losses(work / "killed"), after


def main() -> int:
    """Measure; returns the exit code."""
    bounds = Bounds()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data, work = Path(folder) / "data", Path(folder)
        make(data, RECORDS, seed=7)
        config = settings(data, work / "out")
        ratios = []
        for number in range(ROUNDS):
            found, speed = stage_run(config, work / f"scratch-{number}")
            wanted, bare_speed = bare_loop(config).run()
            print(
                f"round {number + 1}: {speed:.0f} tokens a second of processor time, bare loop {bare_speed:.0f}",
                flush=True,
            )
            ratios.append(speed / bare_speed)
        difference = max(abs(one - other) for one, other in zip(found, wanted, strict=True))
        bounds.at_least("steps_compared", len(found), STEPS)
        bounds.at_most("largest_difference_of_a_step's_loss", difference, 1e-5)
        bounds.at_least("tokens_per_second_over_bare_loop", sorted(ratios)[ROUNDS // 2], 0.9)
        whole, resumed, after = killed_and_resumed(data, work, random.Random())
        print(f"killed after step {after} of {len(whole)}")
        bounds.at_most(
            "steps_whose_loss_differs_after_kill_9", sum(a != b for a, b in zip(whole, resumed, strict=True)), 0
        )
    return bounds.report()


if __name__ == "__main__":
    sys.exit(main())
