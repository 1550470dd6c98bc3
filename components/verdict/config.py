"""Settings and ports of the verdict stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from free2ds_common.errors import SettingError
from free2ds_common.settings import InputFile, InputFolder, Output, SeedSettings, require_at_least

SELECTED, RANDOM, EVERYTHING, UNTUNED = "selected", "random", "everything", "untuned"
# What a model may have learnt from.
ARMS = (SELECTED, RANDOM, EVERYTHING)
# As of finetune's own.
_ARM_SEED_BITS = 31


@dataclass(frozen=True, kw_only=True)
class VerdictSettings(SeedSettings):
    """Settings of the stage.

    Attributes:
        arms: Trainings that have to be there, each as what was learnt from (selected, random or everything), a colon
            and the training's seed; selected and random at least once.
        resamples: Bootstrap resamples of the intervals.
        seed: Seed of the bootstrap.
    """

    SEED_BITS: ClassVar[int] = 32

    arms: list[str]
    resamples: int = 1000

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        require_at_least("resamples", self.resamples, 1)
        for arm in self.arms:
            split_arm(arm)
        if len(set(self.arms)) < len(self.arms):
            raise SettingError("arms", f"got {', '.join(self.arms)}, with one of them twice.")
        for wanted in (SELECTED, RANDOM):
            if wanted not in {split_arm(arm)[0] for arm in self.arms}:
                raise SettingError("arms", f"got {', '.join(self.arms) or 'none'}, wanted {wanted} among them.")


@dataclass(frozen=True, kw_only=True)
class VerdictConfig(VerdictSettings):
    """Say from evaluations whether training on the selection beat training on a random draw.

    Attributes:
        untuned: Input folder, evaluation/1 of the model before any training.
        evaluations: Input folders, evaluation/1 of the trained models, each with an arm as label.
        summary: Input file, summary.json of the selection.
        comparison: Output file, JSON: every number of the page.
        report: Output file, a page with Rel. %, differences, costs and what follows.
    """

    untuned: InputFolder
    evaluations: Sequence[InputFolder]
    summary: InputFile
    comparison: Output
    report: Output


def split_arm(arm: str) -> tuple[str, int]:
    """What was learnt from, and the seed.

    Raises:
        SettingError: The text is no arm, or its seed is too large.
    """
    name, _, seed = arm.partition(":")
    if name not in ARMS or not (seed.isascii() and seed.isdigit()):
        raise SettingError("arms", f"got {arm!r}, wanted one of {', '.join(ARMS)}, a colon and a seed: selected:42.")
    if int(seed) >= 2**_ARM_SEED_BITS:
        raise SettingError("arms", f"got {arm!r}, wanted a seed of at most {2**_ARM_SEED_BITS - 1}.")
    return name, int(seed)
