"""How much of a data set a tokenizer does not know: where most is unknown, every text looks alike to the model."""

from dataclasses import dataclass
from pathlib import Path

from free2ds_common.errors import StageError

MAX_UNKNOWN_SHARE = 0.5
# From here on a warning. A vocabulary of another language or without capitals was seen above this.
WARN_UNKNOWN_SHARE = 0.1


@dataclass
class UnknownWords:
    """Counts unknown tokens.

    Attributes:
        where: The model's folder, for the message.
        unknown: Tokens that stand for an unknown word.
        total: All tokens, without special ones.
    """

    where: Path
    unknown: int = 0
    total: int = 0

    @property
    def share(self) -> float:
        """Share of unknown tokens, in [0, 1]."""
        return self.unknown / self.total if self.total else 0.0

    def add(self, unknown: int, total: int) -> None:
        """Count some more."""
        self.unknown += unknown
        self.total += total

    def check(self) -> None:
        """Refuse a tokenizer that does not know the data set.

        Raises:
            StageError: More than `MAX_UNKNOWN_SHARE` is unknown.
        """
        if self.share > MAX_UNKNOWN_SHARE:
            raise StageError(
                f"{self.where}: {self.share:.0%} of {self.total} tokens are unknown words (at most "
                f"{MAX_UNKNOWN_SHARE:.0%} wanted). The tokenizer is not the model's, or knows another language."
            )

    def warning(self) -> str | None:
        """A sentence where the share is worth one."""
        if self.share < WARN_UNKNOWN_SHARE:
            return None
        return f"{self.share:.0%} of {self.total} tokens are unknown words: the tokenizer hardly fits the data set"
