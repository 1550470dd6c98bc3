"""All stages as commands, one after the other, on the example data: where each reads and what it writes."""

import importlib
import os
from dataclasses import dataclass
from pathlib import Path

# `make faults` asks for more than fits into every run.
FULL = "FREE2DS_FAULTS" in os.environ
NUM_RECORDS = 24
# As `make demo`'s, in order: what each stage is given beside its inputs, and the names of its outputs.
_OPTIONS = {
    "ingest": ("--max-reject-fraction 0.5", "records rejects"),
    "split": ("--num-shards 1", "shards"),
    "llava_attention": ("--max-new-tokens 2", "attention"),
    "mgm_attention": ("--max-new-tokens 2", "attention"),
    "bert_features": ("", "features"),
    "cluster_scoring": ("--num-clusters 3", "scores kmeans"),
    "joint_selection": ("--ratio 0.5", "selected random scores report summary"),
}
STAGES = tuple(_OPTIONS)
_SHARD = "split/shards/shard-00000-of-00001"
# By stage and option: the sealed folders of earlier stages that it reads.
INPUTS = {
    "split": {"records": "ingest/records"},
    "llava_attention": {"shard": _SHARD},
    "mgm_attention": {"shard": _SHARD},
    "bert_features": {"records": "ingest/records"},
    "cluster_scoring": {"features": "bert_features/features"},
    "joint_selection": {
        "records": "ingest/records",
        "llava-attention": "llava_attention/attention",
        "mgm-attention": "mgm_attention/attention",
        "text-scores": "cluster_scoring/scores",
        "kmeans": "cluster_scoring/kmeans",
    },
}


@dataclass(frozen=True)
class Chain:
    """The stages' outputs, each below its name.

    Attributes:
        example: Of `examples.make`.
        work: Where the outputs are.
    """

    example: Path
    work: Path

    def run(self, stage: str, out: Path, **changes: str) -> int:
        """Run one stage; returns its exit code.

        Args:
            stage: Its name.
            out: Where its outputs go.
            **changes: Options that differ.
        """
        options = {option: str(self.work / place) for option, place in INPUTS.get(stage, {}).items()}
        if stage == "ingest":
            options |= {"dataset-uri": str(self.example / "dataset.json")}
        if stage in ("ingest", "llava_attention", "mgm_attention", "joint_selection"):
            options |= {"image-root-uri": str(self.example / "images")}
        model = {"llava_attention": "llava", "mgm_attention": "mgm", "bert_features": "bert"}.get(stage)
        if model:
            options |= {"model": str(self.example / "models" / model)}
        extra, outputs = _OPTIONS[stage]
        options |= {output: str(out / output) for output in outputs.split()}
        options |= {name.replace("_", "-"): value for name, value in changes.items()}
        argv = [*extra.split(), *(word for name, value in options.items() for word in (f"--{name}", value))]
        code: int = importlib.import_module(f"components.{stage}.__main__").main(argv)
        return code


def run_all(folder: Path) -> Chain:
    """Draw the example and run every stage on it."""
    # Here, not at the top: fixtures are loaded by every test.
    from examples.make import make

    make(folder / "example", NUM_RECORDS, seed=7)
    chain = Chain(folder / "example", folder / "work")
    for stage in STAGES:
        if chain.run(stage, chain.work / stage):
            raise RuntimeError(f"{stage} failed")
    return chain
