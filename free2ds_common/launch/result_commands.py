"""The commands that read what runs have left: where a selection comes from, and what differs between two runs."""

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

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
    for parser in (lineage, compare):
        parser.add_argument("--json", action="store_true", help="print JSON instead of text")
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


def _results(place: str, arguments: argparse.Namespace) -> "Results":
    """The results that a word of the command line means."""
    from free2ds_common.launch.results import Results

    if "/" in place or os.path.exists(place):
        return Results.at(place)
    from free2ds_common.launch.cluster_commands import connect

    backend, kube = connect(arguments)
    return Results.of_run(backend, place, arguments.pipeline_root, kube)
