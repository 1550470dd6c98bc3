"""What every stage returns: the four counts, scalars for the metrics view, metadata for the artifacts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from free2ds_common.errors import StageError
from free2ds_common.redact import redacted_values


@dataclass(frozen=True)
class Counts:
    """Records in and out of a stage; `read == written + dropped + rejected` always holds.

    Attributes:
        read: Records that came in.
        written: Records that went out.
        dropped: Usable records that were not selected.
        rejected: Unusable records, each with a reason.
    """

    read: int
    written: int
    dropped: int = 0
    rejected: int = 0

    def __post_init__(self) -> None:
        """Check the sum.

        Raises:
            RuntimeError: The numbers do not add up; a bug in the stage, not the user's fault.
        """
        if self.read != self.written + self.dropped + self.rejected:
            raise RuntimeError(f"counts do not add up: {self}")


@dataclass(frozen=True)
class StageResult:
    """The outcome of one stage.

    Attributes:
        counts: Records in and out.
        metrics: Scalars worth comparing between runs.
        metadata: JSON values for the artifact and the log (parameters, model, reasons); no None values. Credentials of
            URIs are taken out.
        terse: What artifacts carry in place of all that; None for all. Of a step in a loop, whose artifacts are
            collected: each brings what it carries into one input of at most 128 KiB.
        terse_of: The same for single artifacts, by port.
        highlights: A dozen scalars that a metrics artifact shows in place of counts and `metrics`; None for all.
    """

    counts: Counts
    metrics: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    terse: Mapping[str, str | int] | None = None
    terse_of: Mapping[str, Mapping[str, str | int]] = field(default_factory=dict)
    highlights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Take the credentials out."""
        object.__setattr__(self, "metadata", redacted_values(self.metadata))


def exceeds(counts: Counts, max_reject_fraction: float) -> bool:
    """Whether more than `max_reject_fraction` of the records were rejected; exactly as many are allowed."""
    return counts.read > 0 and counts.rejected / counts.read > max_reject_fraction


def check_reject_fraction(counts: Counts, max_reject_fraction: float, reasons: Mapping[str, int], where: str) -> None:
    """Stop the run when too much of the input is unusable.

    Args:
        counts: The stage's counts.
        max_reject_fraction: Largest accepted rejected / read, in [0, 1].
        reasons: Rejected records per reason, named in the message.
        where: What was read, for the message (a URI or a stage name).

    Raises:
        StageError: More than `max_reject_fraction` of the records were rejected; it carries the counts.
    """
    if exceeds(counts, max_reject_fraction):
        listed = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
        raise StageError(
            f"{where}: {counts.rejected} of {counts.read} records rejected ({listed}), more than max_reject_fraction "
            f"{max_reject_fraction:g} allows. Mend the input or raise max_reject_fraction.",
            asdict(counts),
        )
