"""What other settings would select, from stored scores: no model, no maps, seconds."""

import itertools
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from components.joint_selection.chance import Expectation, expect
from components.joint_selection.config import DrawSettings, SweepConfig
from components.joint_selection.doubts import small_strata
from components.joint_selection.draw import record_noise
from components.joint_selection.inputs import outcome_codes
from components.joint_selection.rejected import judge
from components.joint_selection.report.markdown import LEFT, RIGHT, cell, row
from components.joint_selection.scoring import Tilt
from components.joint_selection.selection import Candidates, by_source, select
from free2ds_common.datasets import open_dataset
from free2ds_common.errors import SettingError, StageError
from free2ds_common.schemas import SCORES
from free2ds_common.storage import atomic_writer

logger = logging.getLogger(__name__)

# Settings of which a sweep takes several values; the tables show those that vary, or else the first two.
SWEPT = ("alpha", "temperature", "sampler", "missing_iou", "text_normalization")
_SOURCES_SHOWN, _SOURCE_LENGTH = 20, 60


@dataclass(frozen=True)
class SettingChance:
    """What draws with a setting have on average.

    Attributes:
        overlap: Share in the deterministic top n.
        overlap_random: The same, of a uniform draw.
        mean_combined: Mean combined score.
    """

    overlap: Expectation
    overlap_random: Expectation
    mean_combined: float


@dataclass(frozen=True)
class Sweep:
    """What each combination of settings selects. The fields are those of the JSON output.

    Attributes:
        settings: The combinations.
        tilt: Of the one draw that each makes with this seed.
        chance: What the draws of each have on average.
        expected_overlap: Expected share of each one's draws that is also in another draw, made independently, of each.
        sources: By name: records that any setting may draw ("pool"), and those that each one ("1", "2", ..) selects.
        expected_sources: By name: how many records each setting is expected to select, in the order of the settings.
    """

    settings: list[DrawSettings]
    tilt: list[Tilt]
    chance: list[SettingChance]
    expected_overlap: list[list[float]]
    sources: Mapping[str, Mapping[str, int]]
    expected_sources: Mapping[str, list[Expectation]]

    @property
    def numbers(self) -> list[str]:
        """The combinations' names."""
        return [str(number) for number in range(1, len(self.settings) + 1)]


def run(config: SweepConfig) -> Sweep:
    """Draw with every combination of settings.

    Args:
        config: Settings.

    Raises:
        StageError: Wrong settings, or no such scores.
    """
    settings = combinations(config)
    for one in settings:
        one.check()
    candidates = _read_scores(config.scores, config.seed)
    tilts, masks, pools, expected = [], [], [], []
    warnings: list[str] = []
    for one in settings:
        selection = select(one, candidates)
        tilts.append(selection.tilt)
        masks.append(selection.selected)
        pools.append(selection.in_pool)
        expected.append(expect(one, candidates.source, selection))
        warnings += small_strata(one, candidates, selection)
    for sentence in dict.fromkeys(warnings):
        logger.warning("%s", sentence)
    chances = [SettingChance(one.overlap, one.overlap_random, one.mean_combined) for one in expected]
    common = [[float(one.inclusion @ other.inclusion / one.inclusion.sum()) for other in expected] for one in expected]
    columns = {str(number): mask for number, mask in enumerate(masks, start=1)}
    sources = by_source(candidates.source, pool=np.logical_or.reduce(pools), **columns)
    codes = {name: code for code, name in enumerate(candidates.source.dictionary.to_pylist())}
    expected_sources = {name: [one.sources[codes[name]] for one in expected] for name in sources}
    sweep = Sweep(settings, tilts, chances, common, sources, expected_sources)
    if config.output:
        with atomic_writer(config.output, "w") as handle:
            json.dump(asdict(sweep), handle, indent=1)
    return sweep


def combinations(config: SweepConfig) -> list[DrawSettings]:
    """Every combination of the values given, not yet checked; the last setting varies fastest.

    Raises:
        SettingError: A value that must be a number is none.
    """
    return [
        DrawSettings(
            alpha=alpha,
            temperature=temperature,
            sampler=sampler,
            missing_iou=missing_iou,
            text_normalization=text_normalization,
            ratio=config.ratio,
            num_samples=config.num_samples,
            stratify=config.stratify,
            seed=config.seed,
        )
        for alpha, temperature, sampler, missing_iou, text_normalization in itertools.product(
            _numbers("alpha", config.alpha),
            _numbers("temperature", config.temperature),
            _words(config.sampler),
            _words(config.missing_iou),
            _words(config.text_normalization),
        )
    ]


def as_markdown(sweep: Sweep) -> str:
    """The tables of a sweep, all of expectations: tilt, overlap, composition by source (the largest ones)."""
    return "\n".join([*_tilt_table(sweep), "", *_overlap_table(sweep), "", *_source_table(sweep)])


def _tilt_table(sweep: Sweep) -> list[str]:
    varied = [name for name in SWEPT if len({getattr(one, name) for one in sweep.settings}) > 1]
    shown = varied or list(SWEPT)[:2]
    columns = ("mean score, pool", "mean score, selected", "in top n", "random draw", "weight ratio", "effective n")
    head = ["", *shown, *columns]
    lines = ["## Tilt: what draws have on average, and 95% of them", "", row(head), row([RIGHT] * len(head))]
    for number, one, tilt, chance in zip(sweep.numbers, sweep.settings, sweep.tilt, sweep.chance, strict=True):
        cells = (
            f"{tilt.mean_combined_pool:.4f}",
            f"{chance.mean_combined:.4f}",
            _with_interval(chance.overlap),
            _with_interval(chance.overlap_random),
            f"{tilt.weight_ratio:.3g}",
            f"{tilt.effective_sample_size:.0f}",
        )
        lines.append(row([number, *(str(getattr(one, name)) for name in shown), *cells]))
    return lines


def _overlap_table(sweep: Sweep) -> list[str]:
    numbers = sweep.numbers
    lines = ["## Expected share of a row's draw that is also in an independent draw of a column's", ""]
    lines.append(row(["", *numbers]))
    lines.append(row([RIGHT] * (len(numbers) + 1)))
    lines += [
        row([number, *(f"{share:.1%}" for share in shares)])
        for number, shares in zip(numbers, sweep.expected_overlap, strict=True)
    ]
    return lines


def _source_table(sweep: Sweep) -> list[str]:
    columns = ("pool", *sweep.numbers)
    lines = ["## Records by source, expected", "", row(["source", *columns]), row([LEFT, *[RIGHT] * len(columns)])]
    sources = list(sweep.sources.items())
    for name, counts in sources[:_SOURCES_SHOWN]:
        expected = (f"{one.expected:.1f} ({one.low:.0f} to {one.high:.0f})" for one in sweep.expected_sources[name])
        lines.append(row([cell(name, _SOURCE_LENGTH), str(counts["pool"]), *expected]))
    if len(sources) > _SOURCES_SHOWN:
        lines.append(f"\n{len(sources) - _SOURCES_SHOWN} smaller sources are not shown; --output has them all.")
    return lines


def _with_interval(share: Expectation) -> str:
    return f"{share.expected:.1%}" + (f" ({share.low:.1%} to {share.high:.1%})" if share.spread else "")


def _words(text: str) -> list[str]:
    return [value.strip() for value in text.split(",")]


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(value) for value in _words(text)]
    except ValueError:
        raise SettingError(name, f"got {text!r}, wanted numbers separated by commas.") from None


def _read_scores(folder: str, seed: int) -> Candidates:
    dataset = open_dataset(folder, SCORES)
    if not dataset.num_rows:
        raise StageError(f"scores: {folder} holds no records. Give the scores of a finished selection.")
    names = ["record_key", "source", "iou", "text_similarity", "llava_outcome", "mgm_outcome"]
    table = dataset.table(names).combine_chunks()
    iou, similarity = (table.column(name).to_numpy(zero_copy_only=False) for name in ("iou", "text_similarity"))
    codes = [outcome_codes(table.column(name).combine_chunks()) for name in ("llava_outcome", "mgm_outcome")]
    return Candidates(
        iou=iou,
        text_similarity=similarity,
        rejected=judge(codes, similarity).rejected,
        source=table.column("source").combine_chunks().dictionary_encode(),
        noise=record_noise(table.column("record_key").combine_chunks(), seed),
        normalization=dataset.manifest.get("normalization", {}),
    )
