"""`evaluate`'s engine against plain `generate` in batches: answers of 1 to 10 tokens, random weights, on a CPU.

    python -m benchmarks.evaluate [--quick | --size large]

Both are greedy, in float32, with the same batch size, limit of new tokens and pictures. Plain takes the questions in
the file's order, padded on the left; its pictures are prepared before the clock starts, ours are read and prepared
within.
"""

import argparse
import dataclasses
import logging
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from benchmarks.attention import COUNTDOWN, GREEDY, IMAGE_TOKEN, SYSTEM_TOKENS, Bench
from benchmarks.bounds import Bounds, in_turns
from components.evaluate.answering import replies
from components.evaluate.benchmark import Benchmark, BenchmarkQuestion
from free2ds_common.inference.capture import ATTENTION_NAME
from free2ds_common.inference.device import default_batch_size
from free2ds_common.inference.generation import PictureGroup, Question
from free2ds_common.inference.prompts import Prompt

LONGEST = 10
# EOS comes after the answer.
MAX_NEW_TOKENS = LONGEST + 1
QUESTIONS, ROUNDS = 48, 5
# VizWiz has 1 question per picture, MME 2, MMBench with its rotations about 4, POPE 6 in each of three files.
PER_PICTURE = (1, 2, 4, 6)
BATCH = default_batch_size(torch.device("cpu"))


def prompt(text: str) -> Prompt:
    """The prompt of question "number length": 6 to 41 tokens, of which the last makes an answer of that length."""
    number, length = map(int, text.split())
    generator = torch.Generator().manual_seed(number)
    count = int(torch.randint(5, 41, (1,), generator=generator))
    asked = torch.randint(COUNTDOWN + 200, IMAGE_TOKEN - 1, (count,), generator=generator).tolist()
    # One more token for EOS.
    return Prompt((1, *range(COUNTDOWN + 200, COUNTDOWN + 199 + SYSTEM_TOKENS)), (*asked, COUNTDOWN + length + 1))


class Compared:
    """One random LLaVA, one benchmark, and the two ways through it."""

    def __init__(self, size: str, per_picture: int, questions: int, folder: Path) -> None:
        """Draw the pictures and ask `questions` questions, as many about each."""
        self.bench = Bench(size)
        self.model = dataclasses.replace(
            self.bench.ours, prompt=prompt, text_prompt=prompt, decode=lambda tokens: " ".join(map(str, tokens))
        )
        asked = []
        for number in range(questions):
            image = f"{number // per_picture}.jpg"
            if number % per_picture == 0:
                Image.effect_noise((640, 480), 60).convert("RGB").save(folder / image, quality=90)
            # 7 and 10 have no common divisor: every length comes as often.
            asked.append(BenchmarkQuestion(str(number), image, f"{number} {1 + 7 * number % LONGEST}", ("x",)))
        self.benchmark = Benchmark("bench", "gqa", tuple(asked), str(folder), MAX_NEW_TOKENS, {})
        pixels = {one.image: self.model.preprocess(Image.open(folder / str(one.image))) for one in asked}
        self.groups = [
            PictureGroup(pixels[one.image], (Question(number, prompt(one.question)),))
            for number, one in enumerate(asked)
        ]

    def ours(self) -> list[str]:
        """Answers of the stage's way through a benchmark."""
        self.model.decoder.config._attn_implementation = ATTENTION_NAME
        found = replies(self.model, self.benchmark, MAX_NEW_TOKENS, BATCH, logging.getLogger("benchmarks"))
        return [reply.text for reply in sorted(found, key=lambda reply: reply.index)]

    @torch.inference_mode()
    def plain(self, packed: bool = False) -> list[str]:
        """Answers of `generate`, `packed` with the same linear layers as ours."""
        model = self.bench.packed if packed else self.bench.model
        model.model.language_model.config._attn_implementation = "sdpa"
        said: list[str] = []
        for inputs in self.bench.batches(self.groups, BATCH):
            tokens = model.generate(**inputs, **{**GREEDY, "max_new_tokens": MAX_NEW_TOKENS})
            said += map(self._text, tokens[:, inputs["input_ids"].shape[1] :].tolist())
        return said

    def _text(self, tokens: Sequence[int]) -> str:
        """Up to EOS; what comes after it is padding."""
        assert self.model.decode is not None
        return self.model.decode(tokens[: tokens.index(GREEDY["eos_token_id"]) + 1])


def compare(bounds: Bounds, size: str, per_picture: int, questions: int, repeats: int) -> None:
    """Time of plain over ours, by the clock and of the processor."""
    with tempfile.TemporaryDirectory() as folder:
        compared = Compared(size, per_picture, questions, Path(folder))
        said = compared.ours()
        if said != compared.plain() or {len(text.split()) for text in said} != set(range(2, MAX_NEW_TOKENS + 1)):
            raise RuntimeError("both ways should give the same answers, of 1 to 10 tokens and EOS")
        name = f"{size}_{per_picture}_per_picture"
        rounds = in_turns(
            repeats,
            warm_up=False,
            ours=compared.ours,
            plain=compared.plain,
            packed=partial(compared.plain, packed=True),
        )
        print(f"{name}, s per question: {rounds.per_record(questions)}")
        print(f"{name}, plain with packed layers / ours: {rounds.processor.ratio('packed', 'ours'):.2f}")
        print(f"{name}, plain / ours by the clock: {rounds.ratio('plain', 'ours'):.2f}")
        bounds.at_least(f"speed_over_plain_{name}", rounds.processor.ratio("plain", "ours"), 1.5)


def main() -> int:
    """Measure; returns 1 when a bound is not kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="tiny model, one round: to see that it runs")
    parser.add_argument("--size", choices=("small", "large"), default="small", help="of the model; large takes long")
    options = parser.parse_args()
    size, rounds = ("tiny", 1) if options.quick else (options.size, ROUNDS)
    torch.set_num_threads(1)
    bounds = Bounds()
    for per_picture in PER_PICTURE:
        compare(bounds, size, per_picture, QUESTIONS, rounds)
    return bounds.report()


if __name__ == "__main__":
    sys.exit(main())
