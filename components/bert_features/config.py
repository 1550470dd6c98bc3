"""Settings and ports of the bert_features stage."""

from dataclasses import dataclass
from typing import ClassVar

from free2ds_common.errors import SettingError
from free2ds_common.settings import CacheSettings, InputFolder, ModelSettings, Output, require_at_least


@dataclass(frozen=True, kw_only=True)
class BertFeaturesSettings(ModelSettings, CacheSettings):
    """Settings of the stage.

    Attributes:
        model: Folder, object-store URI or hub id of the BERT model.
        batch_tokens: Maximum tokens of one forward pass, padding included; on a CPU a pass may be smaller.
    """

    # What config.json may call the model.
    MODEL_TYPES: ClassVar[tuple[str, ...]] = ("bert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta")
    OPTIONS: ClassVar[tuple[str, ...]] = ("batch_tokens", "dtype", "revision")

    model: str = "google-bert/bert-base-uncased"
    batch_tokens: int = 4096

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        require_at_least("batch_tokens", self.batch_tokens, 1)


@dataclass(frozen=True, kw_only=True)
class BertFeaturesConfig(BertFeaturesSettings):
    """Embed every distinct human message once.

    Attributes:
        records: Input folder, records/2.
        features: Output folder: messages (text_messages/1, the embeddings) and turns (text_turns/1, who said which).
        part: From a shell only: i/n takes the messages whose hash falls into part i of n; 0/1 takes all.
    """

    records: InputFolder
    features: Output
    part: str = "0/1"

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        self.part_numbers()

    def part_numbers(self) -> tuple[int, int]:
        """The two numbers of `part`.

        Raises:
            SettingError: It is not i/n with 0 <= i < n.
        """
        first, slash, second = self.part.partition("/")
        if not slash or not first.isdigit() or not second.isdigit() or int(first) >= int(second):
            raise SettingError("part", f"got {self.part!r}, wanted i/n with i from 0 to n - 1, such as 0/4.")
        return int(first), int(second)
