"""Attention capture against plain generation and against keeping every attention matrix, on random weights.

    python -m benchmarks.attention [--quick]

Every comparison is a ratio within one run. Peak memory is measured in a fresh process per variant.
"""

import argparse
import copy
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    StoppingCriteriaList,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from benchmarks.bounds import Bounds, in_turns
from components.llava_attention.config import LlavaAttentionConfig
from free2ds_common.datasets import DatasetWriter
from free2ds_common.inference.attention_stage import run_attention
from free2ds_common.inference.capture import ATTENTION_NAME
from free2ds_common.inference.device import default_batch_size
from free2ds_common.inference.generation import Answer, AnswerGenerator, PictureGroup, Question
from free2ds_common.inference.heap import resident_bytes
from free2ds_common.inference.lean_llama import make_lean
from free2ds_common.inference.maps import aggregate_steps
from free2ds_common.inference.model import Pixels, VisionLanguageModel
from free2ds_common.inference.packed_linear import pack_linear_layers
from free2ds_common.inference.prefetch import PictureQuestions, prefetch
from free2ds_common.inference.prompts import Prompt
from free2ds_common.runlog import Progress
from free2ds_common.schemas import RECORDS

SIZES = {"tiny": (64, 2), "small": (256, 8), "large": (1024, 16), "7b": (4096, 32)}
VOCABULARY, IMAGE_TOKEN, EOS, PAD = 2000, 1999, 2, 1998
# Tokens 100..200 count down to EOS, so that a prompt's last token sets the length of its answer.
COUNTDOWN = 100
SYSTEM_TOKENS, QUESTION_TOKENS = 33, 24
MAX_NEW_TOKENS = 100
BATCH = 8
GREEDY = {
    "do_sample": False,
    "max_new_tokens": MAX_NEW_TOKENS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "stopping_criteria": StoppingCriteriaList(),
}
PARTS = ("table", "plain", "peaks", "sharing", "known", "long", "same", "pictures", "memory")


class Bench:
    """One random LLaVA and three ways to get its answers."""

    def __init__(self, size: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        """Build the model; `size` is a key of `SIZES`."""
        hidden, layers = SIZES[size]
        torch.manual_seed(0)
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(
                hidden_size=1024 if size == "7b" else 128,
                intermediate_size=4096 if size == "7b" else 256,
                num_hidden_layers=24 if size == "7b" else 4,
                num_attention_heads=16 if size == "7b" else 4,
                image_size=336,
                patch_size=14,
            ),
            text_config=LlamaConfig(
                hidden_size=hidden,
                intermediate_size=hidden * 43 // 16,
                num_hidden_layers=layers,
                num_attention_heads=max(2, hidden // 128),
                vocab_size=VOCABULARY,
                max_position_embeddings=4096,
                eos_token_id=EOS,
                pad_token_id=PAD,
            ),
            image_token_index=IMAGE_TOKEN,
            image_seq_length=576,
            tie_word_embeddings=False,
        )
        with torch.device(device):
            self.model = LlavaForConditionalGeneration(config).to(dtype).eval()
        self._count_down()
        # Packed as the loaders do it; a copy, so that the other ways can also run on transformers' own linear layers.
        captured = self.packed = self.model if device == "cuda" else copy.deepcopy(self.model)
        pack_linear_layers(captured)
        make_lean(captured)
        self.ours = VisionLanguageModel(
            decoder=captured.model.language_model,
            lm_head=captured.lm_head,
            prompt=lambda question: make_prompt(int(question), torch.Generator().manual_seed(0)),
            prompt_settings={},
            preprocess=clip_preprocessing(),
            encode_images=lambda pixels: torch.stack(
                captured.get_image_features(pixels["pixel_values"].to(dtype)).pooler_output
            ),
            grid=24,
            eos_token_ids=frozenset([EOS]),
            context_length=4096,
            preprocessing={},
            folders=(),
        )

    @torch.no_grad()
    def _count_down(self) -> None:
        """Make token n + 1 predict token n: the embedding dominates what the layers add."""
        embeddings = self.model.get_input_embeddings().weight
        embeddings.normal_(0, 3)
        head = self.model.lm_head.weight
        head.copy_(embeddings.roll(-1, 0))
        head[EOS] = embeddings[COUNTDOWN + 1]
        head[:COUNTDOWN].mul_(torch.arange(COUNTDOWN, device=head.device)[:, None] == EOS)
        head[COUNTDOWN + 150 :] = 0
        for layer in self.model.model.language_model.layers:
            layer.self_attn.o_proj.weight.mul_(0.1)
            layer.mlp.down_proj.weight.mul_(0.1)

    def answer(self, groups: Sequence[PictureGroup], batch: int = BATCH, share: bool = True) -> list[Answer]:
        """Our way."""
        self.ours.decoder.config._attn_implementation = ATTENTION_NAME
        return list(AnswerGenerator(self.ours, MAX_NEW_TOKENS, batch, share).generate(groups))

    def batches(self, groups: Sequence[PictureGroup], batch: int) -> Iterator[dict[str, torch.Tensor]]:
        """The same batches as inputs of `generate`, padded on the left."""
        pairs = [(group.pixels["pixel_values"], question) for group in groups for question in group.questions]
        device = self.ours.device
        for start in range(0, len(pairs), batch):
            chunk = pairs[start : start + batch]
            ids = [[*q.prompt.before, *[IMAGE_TOKEN] * 576, *q.prompt.after] for _, q in chunk]
            longest = max(map(len, ids))
            yield {
                "input_ids": torch.tensor([[PAD] * (longest - len(row)) + row for row in ids], device=device),
                "attention_mask": torch.tensor(
                    [[0] * (longest - len(row)) + [1] * len(row) for row in ids], device=device
                ),
                "pixel_values": torch.stack([pixels for pixels, _ in chunk]).to(device, self.ours.dtype),
            }

    @torch.inference_mode()
    def plain(self, groups: Sequence[PictureGroup], batch: int = BATCH, packed: bool = False) -> list[torch.Tensor]:
        """Greedy generation without any attention, `packed` with the same linear layers as ours."""
        model = self.packed if packed else self.model
        model.model.language_model.config._attn_implementation = "sdpa"
        return [model.generate(**inputs, **GREEDY) for inputs in self.batches(groups, batch)]

    @torch.inference_mode()
    def known(self, groups: Sequence[PictureGroup]) -> list[torch.Tensor | None]:
        """The known way: one record at a time, eager attention, every matrix of every step kept."""
        self.model.model.language_model.config._attn_implementation = "eager"
        maps = []
        for inputs in self.batches(groups, 1):
            output = self.model.generate(**inputs, **GREEDY, output_attentions=True, return_dict_in_generate=True)
            start = int((inputs["input_ids"][0] == IMAGE_TOKEN).nonzero()[0])
            rows = [torch.stack([layer[0, :, -1] for layer in step]).mean(dim=(0, 1)) for step in output.attentions]
            maps.append(aggregate_steps(torch.stack([row[start : start + 576].float() for row in rows])))
        return maps


def clip_preprocessing() -> Callable[[Image.Image], Pixels]:
    """CLIP's, at 336 px."""
    processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    return lambda picture: {"pixel_values": processor(picture, return_tensors="pt").pixel_values[0]}


def make_prompt(length: int, generator: torch.Generator) -> Prompt:
    """A prompt with random text whose answer has `length` tokens."""
    before = (1, *range(COUNTDOWN + 200, COUNTDOWN + 199 + SYSTEM_TOKENS))
    text = torch.randint(COUNTDOWN + 200, IMAGE_TOKEN - 1, (QUESTION_TOKENS,), generator=generator).tolist()
    return Prompt(before, (*text, COUNTDOWN + length))


def make_groups(per_picture: int, lengths: Sequence[int], seed: int = 0) -> list[PictureGroup]:
    """Pictures with `per_picture` questions each; question i's answer has `lengths[i]` tokens."""
    generator = torch.Generator().manual_seed(seed)
    questions = [Question(index, make_prompt(length, generator)) for index, length in enumerate(lengths)]
    return [
        PictureGroup(
            {"pixel_values": torch.randn(3, 336, 336, generator=generator)},
            tuple(questions[start : start + per_picture]),
        )
        for start in range(0, len(questions), per_picture)
    ]


def spread(count: int) -> list[int]:
    """Answer lengths 2..100, as short answers mostly are: half of them under 10 tokens."""
    return [int(2 + 98 * ((number + 0.5) / count) ** 3) for number in range(count)]


def check_lengths(bench: Bench, groups: Sequence[PictureGroup], lengths: Sequence[int]) -> None:
    """The countdown works: answers have the wanted lengths, ours and plain alike."""
    found = {answer.index: len(answer.tokens) for answer in bench.answer(groups)}
    if [found[index] for index in range(len(lengths))] != list(lengths):
        raise RuntimeError(f"answers have lengths {found}, wanted {lengths}")


def against_plain(bounds: Bounds, size: str, repeats: int) -> None:
    """Time of ours over plain generation, nothing shared."""
    bench = Bench(size)
    for name, lengths in (("short", [2 + number % 4 for number in range(BATCH)]), ("spread", spread(BATCH))):
        groups = make_groups(1, lengths)
        check_lengths(bench, groups, lengths)
        rounds = in_turns(
            repeats,
            ours=partial(bench.answer, groups, share=False),
            plain=partial(bench.plain, groups, packed=True),
            unpacked=partial(bench.plain, groups),
        )
        print(f"{size} {name}, s per record: {rounds.per_record(BATCH)}")
        bounds.at_most(f"time_ours_over_plain_{size}_{name}", rounds.ratio("ours", "plain"), 1.05)
        bounds.at_most(f"time_ours_over_unpacked_plain_{size}_{name}", rounds.ratio("ours", "unpacked"), 1.05)


def table(size: str) -> None:
    """All three ways with 1, 2 and 4 records per picture, answers of 2 to 100 tokens: one round each, no bounds."""
    bench = Bench(size)
    for per_picture in (1, 2, 4):
        groups = make_groups(per_picture, spread(BATCH))
        rounds = in_turns(
            1,
            warm_up=False,
            plain=partial(bench.plain, groups),
            ours=partial(bench.answer, groups),
            known=partial(bench.known, groups),
        )
        print(f"{size}, {per_picture} per picture, s per record: {rounds.per_record(BATCH)}", flush=True)


def peaks(bounds: Bounds, size: str, repeats: int) -> None:
    """Peak memory of ours over plain generation: medians, since how the heap frays differs from process to process."""
    ours, plain = (statistics.median(peak_memory(size, way) for _ in range(repeats)) for way in ("ours", "plain"))
    known = peak_memory(size, "known")
    print(f"{size}, peak memory above the model's, MB: ours {ours:.0f}, plain {plain:.0f}, known {known:.0f}")
    bounds.at_most(f"memory_ours_over_plain_{size}", ours / plain, 1.10)


def peak_memory(size: str, way: str) -> float:
    """MB above the loaded model's, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.attention", "--memory-of", way, "--size", size]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def memory_of(way: str, size: str) -> None:
    """Child process: print the peak above what the loaded model takes."""
    bench = Bench(size)
    # One tiny run first: libraries and thread pools are not the capture's memory.
    bench.plain(make_groups(1, [2]), 1)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = resident_bytes() / 2**20
    groups = make_groups(1, [100] * 4 + [50] * 4)
    ways: dict[str, Callable[[Sequence[PictureGroup]], object]] = {
        "ours": partial(bench.answer, share=False),
        "plain": partial(bench.plain, packed=True),
        "known": bench.known,
    }
    ways[way](groups)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) / 1024 - before)


def sharing(bounds: Bounds, size: str, repeats: int) -> None:
    """Records per second with 1, 2 and 4 records per picture, the same number of records."""
    bench = Bench(size)
    lengths = [2 + number % 4 for number in range(16)]
    rounds = in_turns(
        repeats,
        one=partial(bench.answer, make_groups(1, lengths), 16),
        two=partial(bench.answer, make_groups(2, lengths), 16),
        four=partial(bench.answer, make_groups(4, lengths), 16),
    )
    print(f"{size}, s per record with 1, 2 and 4 per picture: {rounds.per_record(16)}")
    bounds.at_least(f"sharing_4_over_1_{size}", rounds.ratio("one", "four"), 2.5)


def against_known(bounds: Bounds, size: str, repeats: int) -> None:
    """The known way and ours at the stage's default batch size, two records per picture."""
    bench = Bench(size)
    batch = default_batch_size(torch.device("cpu"))
    lengths = spread(batch)
    groups = make_groups(2, lengths)
    rounds = in_turns(repeats, ours=lambda: bench.answer(groups, batch), known=lambda: bench.known(groups))
    found = {answer.index: answer.map for answer in bench.answer(groups, batch)}
    worst = max(
        float((ours - wanted).abs().max())
        for index, wanted in enumerate(bench.known(groups))
        if wanted is not None and (ours := found[index]) is not None
    )
    print(f"{size}, s per record: {rounds.per_record(batch)}")
    bounds.at_least(f"speed_ours_over_known_{size}", rounds.ratio("known", "ours"), 2)
    bounds.at_most(f"maps_against_known_{size}", worst, 1e-6)


def one_long_answer(bounds: Bounds, size: str, repeats: int) -> None:
    """One 100-token answer among 31 of two tokens, against the 31 plus the one alone."""
    bench = Bench(size)
    mixed = make_groups(1, [2] * 31 + [100])
    rounds = in_turns(
        repeats,
        mixed=lambda: bench.answer(mixed, 32),
        short=lambda: bench.answer(mixed[:31], 32),
        long=lambda: bench.answer(mixed[31:], 32),
    )
    bounds.at_most(f"one_long_answer_{size}", rounds.ratio("mixed", "short", "long"), 1.25)


def same_maps(bounds: Bounds, size: str) -> None:
    """Batched and shared against one record at a time, nothing shared."""
    bench = Bench(size)
    groups = make_groups(4, spread(16))
    wanted = {answer.index: answer for answer in bench.answer(groups, 1, share=False)}
    worst, same_positions = 0.0, True
    for answer in bench.answer(groups, 16):
        one, other = answer.map, wanted[answer.index].map
        if one is not None and other is not None:
            worst = max(worst, float((one - other).abs().max()))
            same_positions &= set(one.topk(172).indices.tolist()) == set(other.topk(172).indices.tolist())
    bounds.at_most(f"maps_against_unbatched_{size}", worst, 1e-6)
    bounds.at_most(f"records_with_another_top_set_{size}", float(not same_positions), 0)


def flat_memory(bounds: Bounds, records: int) -> None:
    """Growth of the stage's resident set over many records after the first 500: tiny model, real pictures."""
    bench = Bench("tiny")
    bench.ours.decoder.config._attn_implementation = ATTENTION_NAME
    resident: list[float] = []

    def measure(progress: Progress, count: int = 1) -> None:
        resident.append(resident_bytes() / 2**20)

    # The stage reports every record.
    with mock.patch.object(Progress, "add", measure), tempfile.TemporaryDirectory() as root:
        for number in range(100):
            Image.effect_noise((64, 48), 60).convert("RGB").save(f"{root}/{number}.jpg", quality=90)
        with DatasetWriter(f"{root}/shard", RECORDS) as writer:
            writer.write(
                [
                    {
                        "unique_id": number + 1,
                        "record_key": f"{number:064x}",
                        "position": number,
                        "image": f"{number // 4 % 100}.jpg",
                        "source": "bench",
                        "question": str(2 + number % 4),
                        "messages": [],
                        "raw": "{}",
                    }
                    for number in range(records)
                ]
            )
        config = LlavaAttentionConfig(
            shard=f"{root}/shard",
            image_root_uri=root,
            model=root,
            max_new_tokens=MAX_NEW_TOKENS,
            dtype="float32",
            attention=f"{root}/attention",
        )
        run_attention(config, "", lambda folder, device, dtype: bench.ours, logging.getLogger("benchmarks"))
    grown = max(resident[500:]) - resident[500]
    print(f"{len(resident)} records: at most {max(resident):.0f} MB, {resident[500]:.0f} MB after 500")
    bounds.at_most(f"memory_growth_mb_{records}_records", grown, 50)


def pictures(bounds: Bounds, size: str) -> None:
    """Share of the time that the model waits for pictures on local disk, decoding and preprocessing included."""
    bench = Bench(size)
    bench.ours.decoder.config._attn_implementation = ATTENTION_NAME
    questions = [question for group in make_groups(1, [2 + n % 4 for n in range(32)]) for question in group.questions]
    waited = 0.0
    with tempfile.TemporaryDirectory() as root:
        for number in range(len(questions)):
            Image.effect_noise((640, 480), 60).convert("RGB").save(f"{root}/{number}.jpg", quality=90)

        def waiting() -> Iterator[PictureGroup]:
            nonlocal waited
            source = prefetch(
                [PictureQuestions(f"{n}.jpg", (question,)) for n, question in enumerate(questions)],
                root,
                bench.ours.preprocess,
                2 * BATCH,
                lambda group, problem: None,
            )
            while True:
                start = time.perf_counter()
                group = next(source, None)
                waited += time.perf_counter() - start
                if group is None:
                    return
                yield group

        start = time.perf_counter()
        answers = list(AnswerGenerator(bench.ours, MAX_NEW_TOKENS, BATCH).generate(waiting()))
        total = time.perf_counter() - start
    print(f"{size}: waited {waited:.3f} s of {total:.1f} s for {len(answers)} pictures")
    bounds.at_most(f"waiting_for_pictures_{size}", waited / total, 0.05)


def main() -> int:
    """Run everything; returns 1 when a bound is not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small model and few repeats: to see that it runs")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="some parts only")
    parser.add_argument("--memory-of", choices=("ours", "plain", "known"), help=argparse.SUPPRESS)
    parser.add_argument("--size", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        memory_of(options.memory_of, options.size)
        return 0
    small, large, repeats = ("tiny", "small", 1) if options.quick else ("small", "large", 5)
    bounds = Bounds()
    parts: dict[str, list[Callable[[], None]]] = {
        "table": [partial(table, size) for size in (small, large)],
        # The small model's rounds take seconds, so there can be more.
        "plain": [partial(against_plain, bounds, small, 3 * repeats), partial(against_plain, bounds, large, repeats)],
        "peaks": [partial(peaks, bounds, size, repeats) for size in (small, large)],
        "sharing": [partial(sharing, bounds, size, repeats) for size in (small, large)],
        "known": [partial(against_known, bounds, large, repeats)],
        "long": [partial(one_long_answer, bounds, small, repeats)],
        "same": [partial(same_maps, bounds, size) for size in (small, large)],
        "pictures": [partial(pictures, bounds, large)],
        "memory": [partial(flat_memory, bounds, 1000 if options.quick else 10_000)],
    }
    for name in options.only or parts:
        for measure in parts[name]:
            measure()
    return bounds.report()


if __name__ == "__main__":
    sys.exit(main())
