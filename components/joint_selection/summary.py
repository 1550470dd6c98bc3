"""What summary.json says of a run; the report, the log and the metrics say it from here."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from components.joint_selection.chance import Chance, chance
from components.joint_selection.changes import Changes
from components.joint_selection.config import JointSelectionConfig, JointSelectionSettings
from components.joint_selection.doubts import doubts
from components.joint_selection.inputs import Inputs, counted
from components.joint_selection.rejected import Verdict
from components.joint_selection.scoring import Tilt
from components.joint_selection.selection import Candidates, Selection, by_source
from free2ds_common import __version__
from free2ds_common.result import Counts, StageResult
from free2ds_common.run_facts import RunFacts

Facts = Mapping[str, Any]

# Attention artifacts carry next to nothing, for they are many: all there is to say of the models is said here.
_MODEL_FACTS = (
    *("model", "revision", "model_fingerprint", "dtype", "device", "grid", "max_new_tokens", "capture_version"),
    *("prompt", "preprocessing"),
)
_TEXT_MODEL_FACTS = (
    "model",
    "revision",
    "model_fingerprint",
    "dtype",
    "max_tokens",
    "num_clusters",
    "num_clusters_asked",
    "distinct_messages",
    "order",
    "frozen_from",
    "mean_squared_distance",
    "mean_squared_distance_now",
    "largest_squared_distance",
    "share_beyond_largest",
    "iterations_run",
    "faiss_version",
    "numpy_version",
)
# Every artifact carries the metadata, which must not grow with the data set: so many sources, with names so long.
_SOURCES_IN_METADATA, _NAME_LENGTH = 100, 80


@dataclass(frozen=True)
class Ingest:
    """What ingest did before, as records/2 says; empty where it says nothing.

    Attributes:
        dataset_uri: The data set.
        dataset_sha256: Of its file, hex.
        counts: Records read, written, dropped and rejected.
        reject_reasons: Rejected records by reason.
    """

    dataset_uri: str
    dataset_sha256: str
    counts: Mapping[str, int]
    reject_reasons: Mapping[str, int]

    @classmethod
    def of(cls, manifest: Facts) -> "Ingest":
        """From the manifest of records/2."""
        return cls(
            manifest.get("dataset_uri", ""),
            manifest.get("dataset_sha256", ""),
            manifest.get("counts", {}),
            manifest.get("reject_reasons", {}),
        )


@dataclass(frozen=True)
class SourceCounts:
    """Records of one source.

    Attributes:
        pool: Could be drawn.
        selected: Were drawn.
        random: Are in the random control.
    """

    pool: int
    selected: int
    random: int


@dataclass(frozen=True)
class OutcomeCounts:
    """Records of one outcome, both models' taken together.

    Attributes:
        pool: Could be drawn.
        selected: Were drawn.
        top: Would have been drawn by the "top" sampler.
    """

    pool: int
    selected: int
    top: int


@dataclass(frozen=True)
class Grids:
    """Vision tokens per side.

    Attributes:
        llava: Of LLaVA's maps.
        mgm: Of MGM's maps.
        compared_on: Of what was compared.
    """

    llava: int
    mgm: int
    compared_on: int


@dataclass(frozen=True)
class Models:
    """Facts about each model, by name, from the manifests of what it made.

    Attributes:
        llava: The first image model.
        mgm: The second image model.
        text: The text model and its clusters.
    """

    llava: Facts
    mgm: Facts
    text: Facts


@dataclass(frozen=True)
class Reuse:
    """Where results of a model come from: records, of the text model distinct messages.

    Attributes:
        reused: Results that an earlier run had computed.
        computed: Results that this one did.
    """

    reused: int
    computed: int

    @classmethod
    def of(cls, *manifests: Facts) -> "Reuse | None":
        """All parts together; None where one does not say."""
        if not all({"reused", "computed"} <= manifest.keys() for manifest in manifests):
            return None
        return cls(*(sum(manifest[name] for manifest in manifests) for name in ("reused", "computed")))


@dataclass(frozen=True)
class Summary:
    """A run in numbers. The fields are those of summary.json, in its order.

    Attributes:
        counts: Records in and out of the stage.
        warnings: What is doubtful about the selection, a sentence each.
        reasons: Records that cannot be used or were not scored, by reason.
        unknown_ids: Ids that are in no record, by input port.
        ingest: What happened before.
        pool: Records that could be drawn.
        without_iou: How many of them have no IoU.
        all_scores_equal: Whether the draw was uniform.
        tilt: How far it leans.
        chance: What of that is the settings' doing and what this draw's luck; in metadata only as metrics.
        outcomes: Of each model: records by outcome.
        by_outcome: Records of the pool by why they have no IoU; "ok" are those with one.
        sources: Records by source, the largest source first.
        parameters: Settings and ports; summary.json has the settings, for the ports are gone after the run.
        grids: Of the maps.
        models: What was scored with.
        reuse: By model ("llava", "mgm", "text"): how much of it was computed and how much was there; it decides
            nothing, and is in metadata only as metrics.
        device_seconds: By model as `reuse`: how long this run's devices worked on what was computed.
        changes: Since the earlier selection that the settings name; None where they name none.
        code_version: Of free2ds.
        run: When and how it was made; nothing in it decides the selection.
    """

    counts: Counts
    warnings: tuple[str, ...]
    reasons: Mapping[str, int]
    unknown_ids: Mapping[str, int]
    ingest: Ingest
    pool: int
    without_iou: int
    all_scores_equal: bool
    tilt: Tilt
    chance: Chance
    outcomes: Mapping[str, Mapping[str, int]]
    by_outcome: Mapping[str, OutcomeCounts]
    sources: Mapping[str, SourceCounts]
    parameters: JointSelectionConfig
    grids: Grids
    models: Models
    reuse: Mapping[str, Reuse]
    device_seconds: Mapping[str, float]
    changes: Changes | None
    code_version: str
    run: RunFacts

    @property
    def highlights(self) -> dict[str, float]:
        """A dozen numbers to compare runs by; the page that does lists them by name, so their order is in it."""
        numbers = {
            "selected": self.counts.written,
            "usable": self.pool,
            "rejected": self.counts.rejected + self.ingest.counts.get("rejected", 0),
            "without_iou": self.without_iou,
            "computed": sum(reuse.computed for reuse in self.reuse.values()),
            "reused": sum(reuse.reused for reuse in self.reuse.values()),
            "overlap_with_top": self.tilt.overlap_with_top,
            "overlap_expected": self.chance.overlap.expected,
            "overlap_by_chance": self.tilt.overlap_by_chance,
            "effective_sample_size": self.tilt.effective_sample_size,
            "mean_combined_selected": self.tilt.mean_combined_selected,
            "warnings": len(self.warnings),
        }
        return {f"{place:02d}_{name}": float(value) for place, (name, value) in enumerate(numbers.items(), 1)}

    @property
    def named_parameters(self) -> dict[str, str | int | float]:
        """Settings by name: what decides the result. No ports: their folders are gone after a run."""
        return {field.name: getattr(self.parameters, field.name) for field in fields(JointSelectionSettings)}

    def as_json(self) -> dict[str, Any]:
        """The content of summary.json."""
        return {**asdict(self), "warnings": list(self.warnings), "parameters": self.named_parameters}

    def as_result(self) -> StageResult:
        """What the stage returns: scalars as metrics, everything else as metadata, of the sources the largest ones."""
        metrics = {name: float(value) for name, value in asdict(self.tilt).items()} | self.chance.metrics
        metrics |= {"pool": float(self.pool), "without_iou": float(self.without_iou)}
        for name, count in self.reuse.items():
            metrics |= {f"{name}_reused": float(count.reused), f"{name}_computed": float(count.computed)}
        if self.changes is not None:
            metrics |= {
                "stayed": float(self.changes.stayed),
                "came_in": float(sum(self.changes.came_in.values())),
                "dropped_out": float(sum(self.changes.dropped_out.values())),
            }
        left_out = (
            "counts",
            "tilt",
            "chance",
            "run",
            "reuse",
            "device_seconds",
            *(() if self.changes else ("changes",)),
        )
        metadata = {name: value for name, value in self.as_json().items() if name not in left_out}
        metadata["sources"] = {
            _short_name(name): asdict(row) for name, row in itertools.islice(self.sources.items(), _SOURCES_IN_METADATA)
        }
        if rest := list(self.sources.values())[_SOURCES_IN_METADATA:]:
            metadata["other_sources"] = {"sources": len(rest), **asdict(_sum_of(rest))}
        metadata["dataset_sha256"] = self.ingest.dataset_sha256
        return StageResult(self.counts, metrics, metadata, highlights=self.highlights)


def summarize(
    config: JointSelectionConfig,
    inputs: Inputs,
    verdict: Verdict,
    candidates: Candidates,
    selection: Selection,
    changes: Changes | None,
    run: RunFacts,
) -> Summary:
    """Put the summary together.

    Args:
        config: Settings and ports.
        inputs: What was read.
        verdict: What of it cannot be used.
        candidates: What was drawn from.
        selection: What was drawn.
        changes: Since an earlier selection.
        run: When and how.
    """
    scores = selection.combined[selection.in_pool]
    read, written, rejected = len(candidates.iou), int(selection.selected.sum()), int(verdict.rejected.sum())
    sources = by_source(
        candidates.source, pool=selection.in_pool, selected=selection.selected, random=selection.control
    )
    llava_grid, mgm_grid = inputs.comparison.grids
    return Summary(
        counts=Counts(read=read, written=written, dropped=read - written - rejected, rejected=rejected),
        warnings=doubts(config, inputs, candidates, selection),
        reasons=verdict.reasons,
        unknown_ids=inputs.unknown_ids,
        ingest=Ingest.of(inputs.dataset.manifest),
        pool=int(selection.in_pool.sum()),
        without_iou=int(np.isnan(candidates.iou[selection.in_pool]).sum()),
        all_scores_equal=bool(scores.min() == scores.max()),
        tilt=selection.tilt,
        chance=chance(config, candidates.source, selection),
        outcomes={side.name: counted(side.outcome) for side in inputs.sides},
        by_outcome=_by_outcome(inputs.why_no_iou, selection),
        sources={name: SourceCounts(**row) for name, row in sources.items()},
        parameters=config,
        grids=Grids(llava_grid, mgm_grid, inputs.comparison.grid),
        models=Models(
            llava=_facts(inputs.llava.parts[0].manifest, _MODEL_FACTS),
            mgm=_facts(inputs.mgm.parts[0].manifest, _MODEL_FACTS),
            text=_facts(inputs.text.manifest, _TEXT_MODEL_FACTS),
        ),
        reuse=_reuse(inputs),
        device_seconds=_device_seconds(inputs),
        changes=changes,
        code_version=__version__,
        run=run,
    )


def _reuse(inputs: Inputs) -> dict[str, Reuse]:
    """How much of each model's work an earlier run had done; a model is left out where nothing says so."""
    found = {side.name: Reuse.of(*(part.manifest for part in side.parts)) for side in inputs.sides}
    found["text"] = Reuse.of(inputs.text.manifest)
    return {name: reuse for name, reuse in found.items() if reuse is not None}


def _device_seconds(inputs: Inputs) -> dict[str, float]:
    """How long each model's devices worked, all parts together; a model is left out where nothing says so."""
    manifests = {side.name: [part.manifest for part in side.parts] for side in inputs.sides}
    manifests["text"] = [inputs.text.manifest]
    name = "device_seconds"
    return {
        model: sum(one[name] for one in every) for model, every in manifests.items() if all(name in m for m in every)
    }


def _by_outcome(codes: np.ndarray, selection: Selection) -> dict[str, OutcomeCounts]:
    """Records of the pool by outcome, in the order of `outcomes.ALL`."""
    pool, selected, top = (counted(codes[mask]) for mask in (selection.in_pool, selection.selected, selection.best))
    return {word: OutcomeCounts(count, selected.get(word, 0), top.get(word, 0)) for word, count in pool.items()}


def _short_name(name: str) -> str:
    """A name of any length in few letters; a digest keeps long ones that begin alike apart."""
    if len(name) <= _NAME_LENGTH:
        return name
    return f"{name[:_NAME_LENGTH]}… ({hashlib.sha256(name.encode()).hexdigest()[:12]})"


def _sum_of(rows: Sequence[SourceCounts]) -> SourceCounts:
    return SourceCounts(
        pool=sum(row.pool for row in rows),
        selected=sum(row.selected for row in rows),
        random=sum(row.random for row in rows),
    )


def _facts(manifest: Facts, wanted: tuple[str, ...]) -> dict[str, Any]:
    return {name: manifest[name] for name in wanted if name in manifest}
