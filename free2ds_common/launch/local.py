"""Runs the compiled pipeline on this machine and leaves its results in a folder."""

import json
import os
import shutil
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from free2ds_common.launch.containers import container_arguments, stop_containers
from free2ds_common.launch.graph_process import (
    ARGUMENTS,
    CONTAINERS,
    OUTPUTS,
    PIPELINE,
    TASKS,
    GraphFailed,
    run_graph,
)
from free2ds_common.launch.output_folder import REJECTS, UNFINISHED_REJECTS, OutputFolder
from free2ds_common.launch.package import Package
from free2ds_common.run_facts import environment_of

# kfp.local runs at most two iterations of a loop side by side.
SIDE_BY_SIDE = 2
RESULTS = {
    "selected": ("selected.json", "the selected records, LLaVA JSON, in input order"),
    "scores": ("scores", "Parquet, one row per record: every score, both outcomes, probability, selected"),
    "random": ("random.json", "a random draw of the same size: the control to train against"),
    "baseline": ("kmeans", "clusters and ranges; as kmeans_uri of a later run they keep these records' scores"),
    "rejects": (REJECTS, "the unusable records, each with its reason"),
    "report": ("report.html", "the report; open it in a browser"),
    "summary": ("summary.json", "every count, the tilt of the draw, the parameters"),
}
LOOP_RESULTS = {
    "comparison": ("comparison.json", "every model's numbers, differences with intervals, costs"),
    "verdict": ("verdict.html", "whether selecting helped; open it in a browser"),
}


def results_of(outputs: Collection[str]) -> dict[str, tuple[str, str]]:
    """File name and meaning of each result of a pipeline with these outputs: the selection's, and the loop's."""
    return RESULTS | {name: told for name, told in LOOP_RESULTS.items() if name in outputs}


@dataclass(frozen=True, kw_only=True)
class LocalRun:
    """A run on this machine.

    Attributes:
        package: The compiled pipeline, with the images that are to be used.
        values: The parameters that are not left at their defaults, paths absolute.
        num_shards: Iterations of each model's loop at most; 0 if nobody knows them yet.
        output_dir: Gets the results; what an earlier run left there stays until this one has succeeded.
        keep_work: Keep what the stages handed to each other, in a folder below `output_dir`.
        in_images: Run every stage in its image instead of as a process.
        network: Docker network of the containers; empty for Docker's own.
        command: What was typed to start it, without credentials; empty if nothing was.
    """

    package: Package
    values: Mapping[str, Any]
    num_shards: int
    output_dir: Path
    keep_work: bool = False
    in_images: bool = False
    network: str = ""
    command: str = ""


def run_locally(run: LocalRun) -> int:
    """Run the whole pipeline and leave its results in a folder.

    Args:
        run: What to run, and where to.

    Returns:
        0, or what the command exits with after one sentence on stderr.

    Raises:
        StageError: The folder cannot be written to or holds other files, or Docker does not answer.
    """
    wanted = results_of(run.package.spec["root"]["outputDefinitions"]["artifacts"])
    names = [file_name for file_name, _ in wanted.values()]
    start, facts = time.monotonic(), environment_of(time.time(), run.command)
    with OutputFolder(run.output_dir, names, keep_work=run.keep_work) as output:
        print(f"Running on this machine; everything the stages print goes to {output.log_path}", flush=True)
        try:
            output.publish(_results(_run_in(output, run, facts), wanted))
        except GraphFailed as failure:
            print(f"error: {_with_rejects_kept(str(failure), output)}", file=sys.stderr)
            return failure.exit_code
        finally:
            if run.in_images:
                stop_containers(output.work.name)
    print_results(run.output_dir, time.monotonic() - start, wanted)
    return 0


def _run_in(output: OutputFolder, run: LocalRun, facts: Mapping[str, str]) -> dict[str, str]:
    """Run the graph in the work folder; returns the paths of its outputs by name."""
    work = output.work
    # More threads than cores make both shards slower.
    threads = max(1, (os.cpu_count() or 1) // min(SIDE_BY_SIDE, run.num_shards or SIDE_BY_SIDE))
    # On one machine a failure repeats itself.
    run.package.without_retries().write(work / PIPELINE)
    (work / ARGUMENTS).write_text(json.dumps(dict(run.values)), encoding="utf-8")
    # Or Docker makes it, and then it belongs to root.
    (work / TASKS).mkdir()
    if run.in_images:
        containers = container_arguments(run.values, work.name, threads, run.network, facts)
        (work / CONTAINERS).write_text(json.dumps(containers), encoding="utf-8")
    run_graph(work, output.log_path, threads, facts)
    outputs: dict[str, str] = json.loads((work / OUTPUTS).read_text(encoding="utf-8"))
    return outputs


def _results(outputs: Mapping[str, str], wanted: Mapping[str, tuple[str, str]]) -> dict[str, Path]:
    """The results by the names under which they are published.

    Raises:
        GraphFailed: One is missing: kfp.local takes a container that is gone before it looks for a finished one.
    """
    for name in wanted:
        if not os.path.exists(outputs[name]):
            raise GraphFailed(f"kfp.local: the run ended without its output {name}; perhaps a stage was killed.", 1)
    return {file_name: Path(outputs[name]) for name, (file_name, _) in wanted.items()}


def _with_rejects_kept(message: str, output: OutputFolder) -> str:
    """Keep the rejected records of a run that failed; returns the message with their new place in it."""
    kept = output.path / UNFINISHED_REJECTS
    for rejects in output.work.glob(f"{TASKS}/*/ingest/rejects"):
        if rejects.stat().st_size:
            shutil.copy(rejects, kept)
            print(f"The unusable records are in {kept}", file=sys.stderr)
        message = message.replace(str(rejects), str(kept))
    return message


def print_results(output_dir: Path, seconds: float, results: Mapping[str, tuple[str, str]] = RESULTS) -> None:
    """Say where a run's results are and what they mean.

    Args:
        output_dir: Holds them.
        seconds: How long the run took.
        results: File name and meaning of each.
    """
    summary = json.loads((output_dir / "summary.json").read_text(encoding="utf-8"))
    with (output_dir / REJECTS).open(encoding="utf-8") as lines:
        rejected = sum(1 for _ in lines) + summary["counts"]["rejected"]
    print(
        f"\nFinished in {seconds:.0f} s: {summary['counts']['written']:,} of "
        f"{_counted(summary['pool'], 'usable record')} selected, {_counted(rejected, 'record')} unusable, "
        f"{summary['without_iou']:,} ranked without comparing where the models look."
    )
    print(_of_clusters(summary["models"]["text"]))
    for name, reuse in summary["reuse"].items():
        computed = _counted(reuse["computed"], "result")
        print(f"{name}: {computed} computed, {reuse['reused']:,} taken from the results store.")
    for warning in summary["warnings"]:
        print(f"warning: {warning}")
    if "comparison" in results:
        print(json.loads((output_dir / results["comparison"][0]).read_text(encoding="utf-8"))["sentence"])
    made = summary["run"]
    if made["command"]:
        print(f"Command: {made['command']}")
    print(
        f"Started {made['started']}, {_counted(made['threads'], 'thread')} per stage; "
        f"sha256 of the data set: {summary['ingest']['dataset_sha256']}"
    )
    print(f"Results in {output_dir}:")
    for file_name, meaning in results.values():
        print(f"  {file_name:<15} {meaning}")


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _of_clusters(text: Mapping[str, Any]) -> str:
    """How many clusters the text side has, and why so many."""
    asked = text["num_clusters_asked"]
    if "frozen_from" in text:
        return f"Text: {_counted(text['num_clusters'], 'cluster')} of an earlier run (kmeans_uri), not trained anew."
    why = f"num_clusters={asked}" if asked else "num_clusters=0: a 39th, at most 1000"
    clusters, messages = (
        _counted(text["num_clusters"], "cluster"),
        _counted(text["distinct_messages"], "distinct message"),
    )
    return f"Text: {clusters} of {messages} ({why})."
