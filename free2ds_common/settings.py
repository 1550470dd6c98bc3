"""Settings that several stages share, and the checks behind every stage's `check()`. Standard library only.

A setting's default and its one-line description are written once, in the dataclass that holds it. The command lines,
the pipeline's parameters and docs/parameters.md are made from there.
"""

import re
from collections.abc import Collection
from dataclasses import Field, dataclass
from enum import Enum
from typing import Annotated, Any, ClassVar, Protocol

from free2ds_common.errors import SettingError

# Number formats that a model may run in.
DTYPES = ("auto", "float32", "bfloat16", "float16")
PROMPTS = ("method", "chat")
AUTO = "auto"
# A hub id is a name, or owner/name; a path or URI has more to it.
_HUB_ID = re.compile(r"(hf://)?[\w.-]+(/[\w.-]+)?")


class Dataclass(Protocol):
    """Any dataclass: settings and ports of a command."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


class Port(Enum):
    """What lies at a port of a command, a path or a URI (free2ds_common/ports.py)."""

    INPUT_FOLDER = "input folder"
    INPUT_FILE = "input file"
    INPUT = "input"  # a file, or a sealed folder
    OUTPUT = "output"
    NEW_OUTPUT = "new output"  # a folder that is not there yet, or empty
    OUTPUT_OF_FAILURES = "output of failures"  # written even if the stage fails


InputFolder = Annotated[str, Port.INPUT_FOLDER]
InputFile = Annotated[str, Port.INPUT_FILE]
Input = Annotated[str, Port.INPUT]
Output = Annotated[str, Port.OUTPUT]
NewOutput = Annotated[str, Port.NEW_OUTPUT]
OutputOfFailures = Annotated[str, Port.OUTPUT_OF_FAILURES]


def require_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Refuse a name that is not one of `choices`.

    Raises:
        SettingError: `value` is unknown.
    """
    if value not in choices:
        known = ", ".join(choice or "'' (empty)" for choice in sorted(choices))
        raise SettingError(name, f"got {value!r}, wanted one of {known}.")


def require_at_least(name: str, value: float, minimum: float) -> None:
    """Refuse a number below `minimum`, or not a number.

    Raises:
        SettingError: `value` is too small or NaN.
    """
    if not value >= minimum:
        raise SettingError(name, f"got {value:g}, wanted a number of at least {minimum:g}.")


def require_fraction(name: str, value: float, *, zero_allowed: bool = True) -> None:
    """Refuse a number outside [0, 1], or (0, 1] when `zero_allowed` is false.

    Raises:
        SettingError: `value` is out of range or NaN.
    """
    if not 0 <= value <= 1 or (value == 0 and not zero_allowed):
        raise SettingError(name, f"got {value:g}, wanted a number in {'[' if zero_allowed else '('}0, 1].")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the settings of all stages have in common."""

    # Those that few runs change: the run's form has them in one text (free2ds_common/options.py).
    OPTIONS: ClassVar[tuple[str, ...]] = ()

    def check(self) -> None:
        """Refuse what the stage cannot work with.

        Raises:
            SettingError: A setting is out of range.
        """


@dataclass(frozen=True, kw_only=True)
class Versions:
    """What decides Kubeflow's cache beside the settings. The work itself does not read them.

    Attributes:
        dataset_version: Which bytes lie behind dataset_uri, as resolve found it.
        image_root_version: Which files lie behind image_root_uri, as resolve found it.
        kmeans_version: Which files lie behind kmeans_uri, as resolve found it.
        previous_selected_version: Which bytes lie behind previous_selected_uri, as resolve found it.
    """

    dataset_version: str = ""
    image_root_version: str = ""
    kmeans_version: str = ""
    previous_selected_version: str = ""


@dataclass(frozen=True, kw_only=True)
class PictureSettings(Settings):
    """Where a stage finds the pictures.

    Attributes:
        image_root_uri: The folder that the records' images are relative to; empty if no record has an image.
    """

    image_root_uri: str


@dataclass(frozen=True, kw_only=True)
class CacheSettings(Settings):
    """Where a stage keeps what its model computes.

    Attributes:
        cache_uri: The results store, a folder or URI: what models computed before is taken from there, what they
            compute is kept there; empty for none. A local run has a folder in the user's cache unless it is given.
    """

    cache_uri: str = ""


@dataclass(frozen=True, kw_only=True)
class RejectSettings(Settings):
    """How much of its input a stage may refuse.

    Attributes:
        max_reject_fraction: Largest accepted share of unusable records, in [0, 1].
    """

    max_reject_fraction: float = 0.05

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        require_fraction("max_reject_fraction", self.max_reject_fraction)


@dataclass(frozen=True, kw_only=True)
class SeedSettings(Settings):
    """What makes a random stage repeatable.

    Attributes:
        seed: Seed of the stage's random numbers.
    """

    SEED_BITS: ClassVar[int]

    seed: int = 42

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        if not 0 <= self.seed < 2**self.SEED_BITS:
            raise SettingError("seed", f"got {self.seed}, wanted an integer from 0 to {2**self.SEED_BITS - 1}.")


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings):
    """A model and how to run it.

    Attributes:
        model: Folder, object-store URI or hub id of the model.
        revision: Branch, tag or commit of a hub id; not used for a folder or URI.
        dtype: Number format: auto (bfloat16 on a GPU, else float32), float32, bfloat16 or float16.
        require_gpu: Fail at once where the step finds no GPU.
    """

    model: str
    revision: str = "main"
    dtype: str = "auto"
    require_gpu: bool = False

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        if not self.model:
            raise SettingError("model", "is empty, wanted a folder, an object-store URI or a hub id.")
        if not self.revision and _HUB_ID.fullmatch(self.model):
            raise SettingError("revision", f"is empty, wanted a branch, tag or commit of {self.model}.")
        require_choice("dtype", self.dtype, DTYPES)


@dataclass(frozen=True, kw_only=True)
class AttentionSettings(ModelSettings, PictureSettings, CacheSettings):
    """Settings of an attention stage, whichever its model.

    Attributes:
        model_type: The stage's own model, or auto for another image-text-to-text model of transformers.
        prompt: method, or (with model type auto) chat for the model's own chat template.
        vision_tower: Its CLIP encoder, where the model's own entry does not lead to it; empty otherwise.
        max_new_tokens: Longest answer in tokens, EOS included.
        batch_size: Records that generate together, fewer if memory runs out; 0: 64 on a GPU, 16 on a CPU.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = (
        "batch_size",
        "dtype",
        "max_new_tokens",
        "model_type",
        "prompt",
        "revision",
        "vision_tower",
    )
    OWN_TYPE: ClassVar[str]
    # What people call the stage's model.
    SHORT_NAME: ClassVar[str]
    # What config.json calls it; any other is for model type auto.
    ARCHITECTURES: ClassVar[tuple[str, ...]]

    model_type: str
    prompt: str = "method"
    vision_tower: str = ""
    max_new_tokens: int = 100
    batch_size: int = 0

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        require_choice("model_type", self.model_type, (self.OWN_TYPE, AUTO))
        require_choice("prompt", self.prompt, PROMPTS if self.model_type == AUTO else PROMPTS[:1])
        require_at_least("max_new_tokens", self.max_new_tokens, 1)
        require_at_least("batch_size", self.batch_size, 0)


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(AttentionSettings):
    """Settings and ports of an attention stage.

    Attributes:
        shard: Input folder, records/2: one shard of split, or all of ingest's records.
        attention: Output folder, attention/1: one row per record; no map where the outcome says why.
    """

    shard: InputFolder
    attention: Output
