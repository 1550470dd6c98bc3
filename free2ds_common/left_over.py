"""What the reuse stage tells the stages behind it, in the manifest of the records that it leaves over for a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LEFT_OVER = "left_over"


@dataclass(frozen=True)
class LeftOver:
    """The results that the records at hand will join.

    Attributes:
        asked: Records that the run asks the model about, finished ones too.
        answered: Of them, those whose answer is in the results store.
        settings: Settings that decided those answers, which new ones have to share; empty where none are known.
    """

    asked: int
    answered: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, manifest: Mapping[str, Any], rows: int) -> "LeftOver":
        """Read a manifest; records of which it says nothing are all that the run asks about.

        Args:
            manifest: Of records/2.
            rows: Its rows.
        """
        found = manifest.get(LEFT_OVER)
        return cls(rows) if found is None else cls(found["asked"], found["answered"], found["settings"])

    def as_json(self) -> dict[str, Any]:
        """The manifest's entry `LEFT_OVER`."""
        return {"asked": self.asked, "answered": self.answered, "settings": dict(self.settings)}
