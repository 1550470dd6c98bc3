"""Settings and ports of the ingest stage."""

from dataclasses import dataclass

from free2ds_common.errors import SettingError
from free2ds_common.settings import Output, OutputOfFailures, PictureSettings, RejectSettings


@dataclass(frozen=True, kw_only=True)
class IngestSettings(PictureSettings, RejectSettings):
    """Settings of the stage.

    Attributes:
        dataset_uri: LLaVA JSON or JSONL file, gzip too: a path or a URI such as gs://bucket/dataset.json.
    """

    dataset_uri: str

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        if not self.dataset_uri:
            raise SettingError("dataset_uri", "is empty, wanted the path or URI of a LLaVA JSON or JSONL file.")


@dataclass(frozen=True, kw_only=True)
class IngestConfig(IngestSettings):
    """Read a LLaVA data set, check every record and its picture, and number the usable ones.

    Attributes:
        records: Output folder, records/2: one row per usable record.
        rejects: Output file: one JSON line per unusable record, with its reason.
    """

    records: Output
    rejects: OutputOfFailures
