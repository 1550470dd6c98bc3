"""The commands that read what runs have left: where a selection comes from, what differs between two, releases."""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from free2ds_common.launch.package import Package
from free2ds_common.storage import atomic_writer

if TYPE_CHECKING:
    from free2ds_common.launch.results import Results

_PLACE = "folder with a run's results, the selection in it (path or URI), or with --host the id of a run"


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands to a command line.

    Args:
        command: Makes a parser of a name, the work and the names of option groups.
    """
    lineage = command("lineage", _lineage, "cluster")
    lineage.add_argument("place", help=_PLACE)
    compare = command("compare", _compare, "cluster")
    compare.add_argument("first", help=_PLACE)
    compare.add_argument("second", help="the same of another run")
    compare.add_argument(
        "--records", default="", metavar="FILE", help="write every record that came in or dropped out, as JSON lines"
    )
    release = command("release", _release, "cluster")
    release.add_argument("place", help=_PLACE)
    release.add_argument("--output-dir", required=True, help="the folder to write; new, or empty")
    verify = command("verify", _verify)
    verify.add_argument("folder", help="a folder that release has written")
    for parser in (lineage, compare):
        parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    for parser in (lineage, compare, release):
        parser.add_argument(
            "--pipeline-root", default="", help="where the installation keeps artifacts, if the run does not say"
        )


def _lineage(package: Package, arguments: argparse.Namespace) -> int:
    """Print where a selection comes from: data set, models and images, by what its run wrote down."""
    from free2ds_common.launch.lineage import lineage_of, tree

    found = lineage_of(_results(arguments.place, arguments))
    print(json.dumps(found, indent=1) if arguments.json else "\n".join(tree(found)))
    return 0


def _compare(package: Package, arguments: argparse.Namespace) -> int:
    """Print what differs between two runs: inputs, parameters, and which records came in or dropped out."""
    from free2ds_common.launch.compare import compare, lines

    found = compare(_results(arguments.first, arguments), _results(arguments.second, arguments))
    if arguments.json:
        print(json.dumps(found.as_json(), indent=1))
    else:
        print("\n".join(lines(found, arguments.first, arguments.second)))
    if arguments.records:
        with atomic_writer(arguments.records, "w") as handle:
            for change, changes in (("came in", found.came_in), ("dropped out", found.dropped_out)):
                handle.writelines(json.dumps({"change": change, **asdict(one)}) + "\n" for one in changes)
    return 0


def _release(package: Package, arguments: argparse.Namespace) -> int:
    """Write a selection, its random control and a card as one folder, to hand on."""
    from free2ds_common.launch.release import write_release

    card = write_release(_results(arguments.place, arguments), Path(arguments.output_dir))
    print(f"{arguments.output_dir}: {_told(card)}")
    if card["as_text"]:
        print(f"warning: values of {', '.join(card['as_text'])} had several types and are JSON texts there.")
    if refused := card["counts"]["not_for_llava"]:
        print(f"warning: LLaVA's trainer stops at {refused:,} records, whose speakers do not take turns.")
    return 0


def _verify(package: Package, arguments: argparse.Namespace) -> int:
    """Check that a release is whole and holds what its card says."""
    from free2ds_common.launch.release_check import check_release

    print(f"{arguments.folder}: whole; {_told(check_release(Path(arguments.folder)))}")
    return 0


def _told(card: Mapping[str, Any]) -> str:
    counts = card["counts"]
    return (
        f"{counts['selected']:,} selected and {counts['random']:,} random records of {counts['pool']:,}, "
        f"selection {card['selection_sha256']['selected']}"
    )


def _results(place: str, arguments: argparse.Namespace) -> "Results":
    """The results that a word of the command line means."""
    from free2ds_common.launch.results import Results

    if "/" in place or os.path.exists(place):
        return Results.at(place)
    from free2ds_common.launch.cluster_commands import connect

    backend, kube = connect(arguments)
    return Results.of_run(backend, place, arguments.pipeline_root, kube)
