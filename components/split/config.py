"""Settings and ports of the split stage."""

from dataclasses import dataclass

from free2ds_common.errors import SettingError
from free2ds_common.settings import InputFolder, Output, Settings

# The last stage gets two lists with one artifact per shard, and Kubeflow starts no step with an input above 128 KiB.
MAX_SHARDS = 64


@dataclass(frozen=True, kw_only=True)
class SplitSettings(Settings):
    """Settings of the stage.

    Attributes:
        num_shards: Parts that the models score side by side, 1 to 64; some are empty where there are few pictures.
    """

    num_shards: int = 4

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        if not 1 <= self.num_shards <= MAX_SHARDS:
            raise SettingError("num_shards", f"got {self.num_shards}, wanted 1 to {MAX_SHARDS}.")


@dataclass(frozen=True, kw_only=True)
class SplitConfig(SplitSettings):
    """Divide the records into shards; all records of one picture stay together.

    Attributes:
        records: Input folder, records/2.
        shards: Output folder: one records/2 folder per shard.
    """

    records: InputFolder
    shards: Output
