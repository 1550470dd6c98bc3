"""The attention engine on a GPU at 7B shapes, with random weights: records per second, memory, and where the time goes.

    python -m benchmarks.attention_gpu rates speed profile [--batch 32 64 128]
    python -m benchmarks.attention_gpu dtypes --models FOLDER

Needs a CUDA device with room for a 7B model. No bounds: cards differ. `speed` compares within one run.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile
from transformers import CLIPVisionConfig, ConvNextConfig, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm

from benchmarks.attention import GREEDY, Bench, check_lengths, make_groups, spread
from components.llava_attention.model import load_llava
from components.mgm_attention.model import Mgm, load_mgm
from free2ds_common.inference import generation
from free2ds_common.inference.decode_graphs import DecodeGraphs
from free2ds_common.inference.generation import AnswerGenerator, PictureGroup, Question
from free2ds_common.inference.lean_llama import LeanAttention, LeanRMSNorm, make_lean

TOP = 172
ANSWERS = ("2-5", "2-100")
# torch's class has no annotations.
_event: Callable[[], Any] = partial(torch.cuda.Event, enable_timing=True)


def say(**values: object) -> None:
    """One line of JSON, floats to four digits."""
    print(json.dumps({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in values.items()}), flush=True)


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Median time on the device, after one round to warm up."""
    times: list[float] = []
    for _ in range(repeats + 1):
        start, end = _event(), _event()
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return sorted(times[1:])[repeats // 2]


def rates() -> None:
    """What the card does at most: matrix products in bf16, and copies within its memory."""
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(2**30, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    say(
        card=torch.cuda.get_device_name(),
        torch=torch.__version__,
        tflops_bf16=2 * 8192**3 / seconds(lambda: left @ right) / 1e12,
        copy_tb_per_s=2 * source.nbytes / seconds(lambda: target.copy_(source)) / 1e12,
    )


@contextmanager
def transformers_own(bench: Bench) -> Iterator[None]:
    """Norms and attention as transformers has them."""
    ours = [part for part in bench.model.modules() if isinstance(part, LeanRMSNorm | LeanAttention)]
    for part in ours:
        part.__class__ = LlamaRMSNorm if isinstance(part, LeanRMSNorm) else LlamaAttention
    try:
        yield
    finally:
        make_lean(bench.model)


def plain(bench: Bench, groups: Sequence[PictureGroup], batch: int, ours: bool = False) -> None:
    """Greedy generation by transformers: with its own layers, or with ours."""
    with nullcontext() if ours else transformers_own(bench):
        bench.plain(groups, batch)


def kernel_by_kernel(bench: Bench, groups: Sequence[PictureGroup], batch: int) -> None:
    """Our way without CUDA graphs."""
    with mock.patch.object(generation, "_takes_graphs", return_value=False):
        bench.answer(groups, batch)


def plain_static(bench: Bench, groups: Sequence[PictureGroup], batch: int) -> None:
    """Greedy generation with a static cache, whose steps transformers compiles."""
    bench.model.model.language_model.config._attn_implementation = "sdpa"
    with transformers_own(bench):
        for inputs in bench.batches(groups, batch):
            bench.model.generate(**inputs, **GREEDY, cache_implementation="static")


def answer_lengths(name: str, count: int) -> list[int]:
    """Tokens per answer: "2-5" in turn, or "2-100", half of them under 10."""
    return [2 + number % 4 for number in range(count)] if name == "2-5" else spread(count)


def speed(
    bench: Bench, batches: Sequence[int], chosen: Sequence[str], answers: Sequence[str], batches_long: int
) -> None:
    """Records per second and peak memory, short answers (2 to 5 tokens) and a spread of them (2 to 100).

    One round each after a shorter one to warm up.
    """
    for batch in batches:
        count = batches_long * batch
        for name in answers:
            lengths = answer_lengths(name, count)
            # As they come in a data set: long answers among short ones.
            order = torch.randperm(count, generator=torch.Generator().manual_seed(1)).tolist()
            lengths = [lengths[place] for place in order]
            groups, pairs = make_groups(1, lengths), make_groups(2, lengths)
            if name == "2-5":
                check_lengths(bench, groups, lengths)
            warm = make_groups(1, lengths[:batch])
            ways: dict[str, Callable[[Sequence[PictureGroup]], object]] = {
                "ours": partial(bench.answer, batch=batch),
                "ours_two_per_picture": partial(bench.answer, batch=batch),
                "ours_without_graphs": partial(kernel_by_kernel, bench, batch=batch),
                "plain": partial(plain, bench, batch=batch),
                "plain_with_our_layers": partial(plain, bench, batch=batch, ours=True),
                "plain_static": partial(plain_static, bench, batch=batch),
            }
            for way in chosen:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                ways[way](warm)
                torch.cuda.synchronize()
                start = time.perf_counter()
                ways[way](pairs if way == "ours_two_per_picture" else groups)
                torch.cuda.synchronize()
                taken = time.perf_counter() - start
                peak = torch.cuda.max_memory_allocated() / 2**30
                say(answers=name, batch=batch, way=way, records_per_s=count / taken, peak_gib=peak)


@contextmanager
def phases(found: dict[str, float]) -> Iterator[None]:
    """Add up the device's time of each phase of the engine, gaps included; capture and replay are parts of decode."""
    marks: list[tuple[str, Any, Any]] = []

    def timed(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            start, end = _event(), _event()
            start.record()
            result = function(*arguments, **options)
            end.record()
            marks.append((name, start, end))
            return result

        return call

    batch, generator = generation._Batch, AnswerGenerator
    with (
        mock.patch.object(batch, "admit", timed("prefill", batch.admit)),
        mock.patch.object(batch, "decode", timed("decode", batch.decode)),
        mock.patch.object(generator, "_encode", timed("encode", generator._encode)),
        mock.patch.object(DecodeGraphs, "_capture", timed("capture", DecodeGraphs._capture)),
        mock.patch.object(torch.cuda.CUDAGraph, "replay", timed("replay", torch.cuda.CUDAGraph.replay)),
    ):
        yield
    torch.cuda.synchronize()
    for name, start, end in marks:
        found[name] = found.get(name, 0.0) + start.elapsed_time(end) / 1000
        found[f"{name}_passes"] = found.get(f"{name}_passes", 0) + 1


def shares(bench: Bench, batches: Sequence[int], top: int) -> None:
    """Where the time goes: by phase, by kernel, and how long the device waits for the host."""
    for batch in batches:
        count = 4 * batch
        for name in ANSWERS:
            groups = make_groups(1, answer_lengths(name, count))
            bench.answer(groups[: 2 * batch], batch)
            found: dict[str, float] = {}
            torch.cuda.synchronize()
            start = time.perf_counter()
            with phases(found):
                bench.answer(groups, batch)
            say(answers=name, batch=batch, total=time.perf_counter() - start, **found)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            bench.answer(make_groups(1, answer_lengths("2-5", batch)), batch)
            torch.cuda.synchronize()
        kernels = sorted(
            (event.time_range.start, event.time_range.end)
            for event in profiler.events()
            if event.device_type.name == "CUDA"
        )
        busy = sum(end - begin for begin, end in kernels)
        idle = sum(max(0.0, later[0] - earlier[1]) for earlier, later in pairwise(kernels))
        say(batch=batch, kernels=len(kernels), busy_s=busy / 1e6, idle_between_s=idle / 1e6)
        print(profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=top, max_name_column_width=70))


def encoders(batches: Sequence[int]) -> None:
    """Pictures per second of MGM's two encoders and the mining between them, bf16, 768 px."""
    text = LlamaConfig(hidden_size=4096, intermediate_size=64, num_hidden_layers=1, vocab_size=64)
    clip = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    convnext = ConvNextConfig(hidden_sizes=[192, 384, 768, 1536], depths=[3, 3, 27, 3], drop_path_rate=0.0)
    with torch.device("cuda"):
        model = Mgm(text, clip, convnext, -2).to(torch.bfloat16).eval()
    with torch.inference_mode():
        for batch in batches:
            pixels = torch.randn(batch, 3, 768, 768, device="cuda")
            torch.cuda.reset_peak_memory_stats()
            taken = seconds(partial(model.image_features, pixels))
            peak = torch.cuda.max_memory_allocated() / 2**30
            whole, low = taken, seconds(partial(_clip_alone, model, pixels))
            say(mgm_encoders_batch=batch, pictures_per_s=batch / whole, clip_share=low / whole, peak_gib=peak)


def _clip_alone(model: Mgm, pixels: torch.Tensor) -> None:
    small = torch.nn.functional.interpolate(pixels, size=(336, 336), mode="bilinear", align_corners=False)
    model.vision_tower(small.to(torch.bfloat16), output_hidden_states=True)


def dtypes(models: Path) -> None:
    """Maps of both small models on the GPU, by dtype, against the CPU's in fp32; needs a folder like shared/parity."""
    records = [r for r in json.loads((models / "samples.json").read_text()) if r.get("image")]
    for name, load in (("llava_hf", load_llava), ("mgm", load_mgm)):
        wanted: dict[int, generation.Answer] = {}
        for device, dtype in (
            ("cpu", torch.float32),
            ("cuda", torch.float32),
            ("cuda", torch.bfloat16),
            ("cuda", torch.float16),
        ):
            model = load(models / "models" / name, torch.device(device), dtype)
            groups = [
                PictureGroup(
                    model.preprocess(Image.open(models / "images" / record["image"]).convert("RGB")),
                    (Question(10 * number + turn, model.prompt(question)),),
                )
                for number, record in enumerate(records)
                for turn, question in enumerate(
                    [m["value"].replace("<image>", "").strip() for m in record["conversations"][::2]][:4]
                )
            ]
            found = {answer.index: answer for answer in AnswerGenerator(model, 100, 8).generate(groups)}
            wanted = wanted or found
            same = [i for i, answer in found.items() if answer.tokens == wanted[i].tokens]
            maps = [(found[i].map, wanted[i].map) for i in found]
            pairs = [(one, other) for one, other in maps if one is not None and other is not None]
            moved = sum(set(a.topk(TOP).indices.tolist()) != set(b.topk(TOP).indices.tolist()) for a, b in pairs)
            alike = [(found[i].map, wanted[i].map) for i in same]
            say(
                model=name,
                device=device,
                dtype=str(dtype),
                answers=len(found),
                same_tokens=len(same),
                maps=len(pairs),
                largest_difference=max(float((a - b).abs().max()) for a, b in pairs),
                largest_where_tokens_are_the_same=max(
                    (float((a - b).abs().max()) for a, b in alike if a is not None and b is not None), default=0.0
                ),
                maps_with_another_top_set=moved,
            )


def main() -> int:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+", choices=("rates", "speed", "profile", "encoders", "dtypes"))
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--ways", nargs="+", default=["ours", "ours_two_per_picture", "ours_without_graphs", "plain"])
    parser.add_argument("--answers", nargs="+", choices=ANSWERS, default=ANSWERS, help="tokens per answer, for speed")
    parser.add_argument("--batches-long", type=int, default=4, help="records over the batch size, for speed")
    parser.add_argument("--rows", type=int, default=25, help="rows of the profiler's table")
    parser.add_argument("--models", type=Path, help="a folder with samples.json, images/ and models/")
    options = parser.parse_args()
    if "rates" in options.parts:
        rates()
    if "dtypes" in options.parts:
        dtypes(options.models)
    if "encoders" in options.parts:
        encoders(options.batch)
    if {"speed", "profile"} & set(options.parts):
        bench = Bench("7b", "cuda", torch.bfloat16)
        if "profile" in options.parts:
            shares(bench, options.batch[:1], options.rows)
        if "speed" in options.parts:
            speed(bench, options.batch, options.ways, options.answers, options.batches_long)
    return 0


if __name__ == "__main__":
    sys.exit(main())
