"""Settings and ports of the evaluate stage, and of its converter."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from free2ds_common.errors import SettingError
from free2ds_common.settings import (
    InputFile,
    InputFolder,
    ModelSettings,
    NewOutput,
    Output,
    RejectSettings,
    SeedSettings,
    require_at_least,
    require_choice,
)

PROMPTS = ("v1", "chat")
OWN, LMMS_EVAL = "own", "lmms-eval"
HARNESSES = (OWN, LMMS_EVAL)
OFFICIAL = ("vqav2", "gqa", "vizwiz", "scienceqa", "textvqa", "pope", "mme", "mmbench", "seed")


def split_folders(text: str) -> list[str]:
    """The folders of a text that holds several, separated by commas."""
    return [folder.strip() for folder in text.split(",") if folder.strip()]


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(SeedSettings, RejectSettings, ModelSettings):
    """Settings of the stage.

    Attributes:
        benchmarks: Benchmark folders or their URIs, separated by commas.
        benchmark_versions: Which files lie in them, as resolve found it: others are refused; empty for any.
        model: Folder, object-store URI or hub id of the model, in transformers' layout.
        harness: own, or lmms-eval for a cross-check: slower, LLaVA alone, and only where it is installed.
        prompt: v1 (LLaVA's conversation) or chat (the model's own template).
        max_new_tokens: Longest answer in tokens, EOS included, where the benchmark does not set its own.
        batch_size: Questions that are answered together, fewer if memory runs out; 0: 64 on a GPU, 16 on a CPU.
        max_reject_fraction: Largest accepted share of questions without an answer (unusable picture, prompt too long).
        baseline_uri: Folder or URI of the evaluation that Rel. % is relative to; empty for none.
        resamples: Bootstrap resamples of the intervals; 0 for no intervals.
        seed: Seed of the bootstrap.
        label: What the model is in a verdict, such as selected:42: what it learnt from, a colon and a seed.
    """

    SEED_BITS: ClassVar[int] = 32
    OPTIONS: ClassVar[tuple[str, ...]] = ("batch_size", "dtype", "harness", "max_new_tokens", "prompt")

    benchmarks: str
    benchmark_versions: str = ""
    model: str = "llava-hf/llava-1.5-7b-hf"
    harness: str = OWN
    prompt: str = "v1"
    max_new_tokens: int = 128
    batch_size: int = 0
    max_reject_fraction: float = 0.0
    baseline_uri: str = ""
    resamples: int = 1000
    label: str = ""

    @property
    def folders(self) -> list[str]:
        """The benchmarks one by one."""
        return split_folders(self.benchmarks)

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        if not self.folders:
            raise SettingError("benchmarks", "is empty, wanted benchmark folders separated by commas.")
        require_choice("harness", self.harness, HARNESSES)
        require_choice("prompt", self.prompt, PROMPTS)
        require_at_least("max_new_tokens", self.max_new_tokens, 1)
        require_at_least("batch_size", self.batch_size, 0)
        require_at_least("resamples", self.resamples, 0)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(EvaluateSettings):
    """Ask a model the questions of benchmarks and judge every answer.

    Attributes:
        evaluation: Output folder, evaluation/1: one row per question.
        metrics: Output file, JSON: per benchmark and relative to the baseline, with intervals.
    """

    evaluation: Output
    metrics: Output


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Make a benchmark folder from a benchmark's official files.

    Attributes:
        benchmark: vqav2, gqa, vizwiz, scienceqa, textvqa, pope, mme, mmbench or seed.
        files: Its official files, in the order that the README of the stage names.
        images: Folder of its pictures; empty where they are in the files.
        output: Folder to write.
        source: Where the files come from, for the folder's benchmark.json.
        revision: Their release or date.
        name: What the benchmark is called in results; empty for the name above.
    """

    benchmark: str
    files: Sequence[InputFile]
    output: NewOutput
    source: str
    revision: str
    images: InputFolder = ""
    name: str = ""

    def check(self) -> None:
        """Refuse a benchmark that is not known.

        Raises:
            SettingError: Its name is none of `OFFICIAL`.
        """
        require_choice("benchmark", self.benchmark, OFFICIAL)
