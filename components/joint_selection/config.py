"""Settings and ports of the joint_selection stage, and of its sweep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from free2ds_common.errors import SettingError
from free2ds_common.settings import (
    InputFolder,
    Output,
    PictureSettings,
    RejectSettings,
    SeedSettings,
    require_choice,
    require_fraction,
)

SAMPLERS = ("gumbel", "reference", "top")
MISSING_IOU = ("calibrated", "text", "reference", "exclude")
TEXT_NORMALIZATION = ("reference", "rank")
STRATIFY = ("", "source")


@dataclass(frozen=True, kw_only=True)
class SampleSettings(SeedSettings):
    """How much is drawn, from what, and with which seed.

    Attributes:
        ratio: Share of the records to select, in (0, 1].
        num_samples: Exact number to select; 0 means "use ratio".
        stratify: source draws within each source in proportion; empty draws over all records.
        seed: Seed of the draw and of the random control.
    """

    SEED_BITS: ClassVar[int] = 32

    ratio: float = 0.2
    num_samples: int = 0
    stratify: str = ""

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        require_fraction("ratio", self.ratio, zero_allowed=False)
        if self.num_samples < 0:
            raise SettingError("num_samples", f"got {self.num_samples}, wanted 0 (use ratio) or the number to select.")
        require_choice("stratify", self.stratify, STRATIFY)


@dataclass(frozen=True, kw_only=True)
class DrawSettings(SampleSettings):
    """What decides the selection, given IoU and text similarity of every record.

    Attributes:
        alpha: Weight of the text side, in [0, 1].
        temperature: Temperature of the softmax over the scores, above 0; a low one leans more towards high scores.
        sampler: gumbel (keyed by record), reference (numpy's draw, bit for bit) or top (the highest scores).
        missing_iou: What ranks a record without an IoU: calibrated (its text quantile among such records, in combined
            scores of the others), text (its text score alone), reference (IoU 0) or exclude.
        text_normalization: reference (min-max) or rank.
    """

    alpha: float = 0.5
    temperature: float = 1.0
    sampler: str = "gumbel"
    missing_iou: str = "calibrated"
    text_normalization: str = "reference"

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        require_fraction("alpha", self.alpha)
        if not 0 < self.temperature < float("inf"):
            raise SettingError("temperature", f"got {self.temperature:g}, wanted a number above 0.")
        require_choice("sampler", self.sampler, SAMPLERS)
        require_choice("missing_iou", self.missing_iou, MISSING_IOU)
        require_choice("text_normalization", self.text_normalization, TEXT_NORMALIZATION)


@dataclass(frozen=True, kw_only=True)
class JointSelectionSettings(DrawSettings, RejectSettings, PictureSettings):
    """Settings of the stage.

    Attributes:
        top_percent: Share of an attention map's positions that count as looked at, in percent, (0, 100].
        previous_selected_uri: selected.json of an earlier run, its scores beside it: the report says what came in since
            and what dropped out, and why; empty for none.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = (
        "missing_iou",
        "sampler",
        "stratify",
        "temperature",
        "text_normalization",
        "top_percent",
    )

    top_percent: float = 30.0
    previous_selected_uri: str = ""
    image_root_uri: str = ""

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        if not 0 < self.top_percent <= 100:
            raise SettingError("top_percent", f"got {self.top_percent:g}, wanted a number in (0, 100].")


@dataclass(frozen=True, kw_only=True)
class JointSelectionConfig(JointSelectionSettings):
    """Join where the two models look with how typical the text is, and draw the records worth training on.

    Attributes:
        records: Input folder, records/2.
        llava_attention: Input folders, attention/1 by LLaVA: one per shard, and one of what was finished before.
        mgm_attention: Input folders, attention/1 by MGM: the same.
        text_scores: Input folder, text_scores/2.
        kmeans: Input folder, kmeans/1, for the report's section on clusters; empty for none.
        selected: Output file, LLaVA JSON: the chosen records in input order, untouched but for unique_id.
        scores: Output folder, scores/2, one row per record: every score, both outcomes, probability, selected.
        report: Output file: one self-contained HTML page.
        summary: Output file, JSON: counts, tilt, parameters; its scalars are metrics.
        random: Output file, LLaVA JSON: a random draw of the same size, the control to train against.
        overview: Output file, Markdown: the report in a few lines; empty for none.
        baseline: Output folder, kmeans/1 with the ranges of the scores, the kmeans_uri of later runs; empty for none.
    """

    records: InputFolder
    llava_attention: Sequence[InputFolder]
    mgm_attention: Sequence[InputFolder]
    text_scores: InputFolder
    selected: Output
    scores: Output
    report: Output
    summary: Output
    random: Output
    kmeans: InputFolder = ""
    overview: Output = ""
    baseline: Output = ""

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        if self.baseline and not self.kmeans:
            raise SettingError("baseline", "needs kmeans, of which it is made. Give both or none.")


@dataclass(frozen=True, kw_only=True)
class SweepConfig(SampleSettings):
    """Show what other settings would select from the scores of an earlier run; no model is run.

    Attributes:
        scores: Input folder, scores/2 of an earlier selection.
        alpha: Values of alpha, separated by commas.
        temperature: Values of temperature, separated by commas.
        sampler: Values of sampler, separated by commas.
        missing_iou: Values of missing_iou, separated by commas.
        text_normalization: Values of text_normalization, separated by commas.
        output: Output file, JSON: all tables in full; empty for none.
    """

    scores: InputFolder
    alpha: str = str(DrawSettings.alpha)
    temperature: str = str(DrawSettings.temperature)
    sampler: str = DrawSettings.sampler
    missing_iou: str = DrawSettings.missing_iou
    text_normalization: str = DrawSettings.text_normalization
    output: Output = ""
