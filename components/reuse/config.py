"""Settings and ports of the reuse stage, and of the step behind it."""

from dataclasses import dataclass

from free2ds_common.settings import CacheSettings, InputFolder, Output, PictureSettings, Settings


@dataclass(frozen=True, kw_only=True)
class ReuseSettings(PictureSettings, CacheSettings):
    """Settings of the stage: what the attention stages will be asked for.

    Attributes:
        llava_model: Folder, object-store URI or hub id of LLaVA-1.5.
        llava_revision: Its version, as resolve found it; of a branch or tag no results are known.
        llava_options: Options of the llava_attention stage: name=value, separated by blanks.
        mgm_model: Folder, object-store URI or hub id of MGM.
        mgm_revision: Its version, as resolve found it; of a branch or tag no results are known.
        mgm_options: Options of the mgm_attention stage: name=value, separated by blanks.
        on_gpu: Whether the models will run on a GPU, which decides the number format auto.
    """

    llava_model: str
    llava_revision: str = "main"
    llava_options: str = ""
    mgm_model: str
    mgm_revision: str = "main"
    mgm_options: str = ""
    on_gpu: bool = False


@dataclass(frozen=True, kw_only=True)
class ReuseConfig(ReuseSettings):
    """Divide the records, for each model, into those that earlier runs have scored and those that are left over.

    Attributes:
        records: Input folder, records/2: ingest's.
        llava_finished: Output folder, attention/1 by LLaVA: the records whose outcome is known.
        mgm_finished: Output folder, attention/1 by MGM: the same.
        llava_missing: Output folder, records/2: the others.
        mgm_missing: Output folder, records/2: the same.
    """

    records: InputFolder
    llava_finished: Output
    mgm_finished: Output
    llava_missing: Output
    mgm_missing: Output


@dataclass(frozen=True, kw_only=True)
class DemandSettings(Settings):
    """Settings of the step that says what the attention stages need of a cluster: none of its own."""


@dataclass(frozen=True, kw_only=True)
class DemandConfig(DemandSettings):
    """Say what the attention stages need of a cluster."""
