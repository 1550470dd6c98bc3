"""Settings and ports of the split stage."""

from dataclasses import dataclass

from free2ds_common.errors import SettingError
from free2ds_common.settings import InputFolder, Output, Settings, require_at_least

# The last stage gets two lists with one artifact per shard, and Kubeflow starts no step with an input above 128 KiB.
MAX_SHARDS = 64


@dataclass(frozen=True, kw_only=True)
class SplitSettings(Settings):
    """Settings of the stage.

    Attributes:
        num_shards: Parts of the whole data set that a model scores side by side, up to 64; of what is left over of it,
            in proportion. 0: by records_per_shard.
        records_per_shard: Records in a part on average, where num_shards is 0; more where 64 parts are too few.
    """

    num_shards: int = 0
    records_per_shard: int = 10_000

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        if not 0 <= self.num_shards <= MAX_SHARDS:
            raise SettingError(
                "num_shards", f"got {self.num_shards}, wanted 1 to {MAX_SHARDS}, or 0 (by records_per_shard)."
            )
        require_at_least("records_per_shard", self.records_per_shard, 1)


@dataclass(frozen=True, kw_only=True)
class SplitConfig(SplitSettings):
    """Divide the records into shards; all records of one picture stay together.

    Attributes:
        records: Input folder, records/2.
        shards: Output folder: one records/2 folder per shard.
    """

    records: InputFolder
    shards: Output
