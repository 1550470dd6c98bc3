"""Runs the pipeline on this machine or on a cluster, and asks what became of its runs."""

import argparse
import json
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from kfp import dsl

from free2ds_common.errors import StageError
from free2ds_common.failure import run_reported
from free2ds_common.launch import result_commands
from free2ds_common.launch.cache import add_cache_options, cache_of_run
from free2ds_common.launch.cluster_commands import ClusterCommands, cluster_options
from free2ds_common.launch.containers import require_images
from free2ds_common.launch.kubernetes_names import require_registry, require_tag
from free2ds_common.launch.limits import MAX_INPUT_BYTES, MAX_SHARDS, MAX_WORKFLOW_BYTES
from free2ds_common.launch.lint import largest, require_sound
from free2ds_common.launch.local import LocalRun, run_locally
from free2ds_common.launch.package import Package
from free2ds_common.launch.parameter_page import parameter_page
from free2ds_common.launch.parameters import read_mapping, read_parameters, with_absolute_paths
from free2ds_common.launch.pod_options import PodOptions, pod_options
from free2ds_common.redact import redacted
from free2ds_common.runlog import quiet_libraries
from free2ds_common.storage import atomic_writer

EXIT_INTERRUPTED = 130


def main(pipelines: Mapping[str, dsl.base_component.BaseComponent], argv: Sequence[str] | None) -> int:
    """Run one command.

    Args:
        pipelines: What the commands compile and start, by the names that --pipeline takes; the first is the default.
        argv: The command line; None takes the process's own.

    Returns:
        0; 2 after one sentence when the set-up is wrong; 1 when a stage crashed; 130 when interrupted.
    """
    quiet_libraries()
    chosen = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    chosen.add_argument("--pipeline", default="")
    # Before all else: the help lists the parameters of the pipeline that is meant.
    name = chosen.parse_known_args(argv)[0].pipeline
    package = Package.compile(pipelines.get(name, next(iter(pipelines.values()))))
    arguments = command_line(package, list(pipelines)).parse_args(argv)
    arguments.typed = sys.argv[1:] if argv is None else argv
    exit_codes: list[int] = []
    try:
        with _ended_like_interrupted():
            failed = run_reported(arguments.command, lambda: exit_codes.append(arguments.work(package, arguments)))
    except KeyboardInterrupt:
        stopped = "interrupted; every stage was stopped" if arguments.command == "run" else "interrupted"
        print(stopped, file=sys.stderr)
        return EXIT_INTERRUPTED
    return failed or exit_codes[0]


def command_line(package: Package, pipelines: Sequence[str] = ("select", "loop")) -> argparse.ArgumentParser:
    """The parser of all commands.

    Args:
        package: The pipeline that is meant.
        pipelines: The names of all.
    """
    shared = {
        "parameters": _parameter_options(),
        "pipeline": _pipeline_options(pipelines),
        "images": _image_options(),
        "pods": pod_options(),
        "cluster": cluster_options(),
    }
    parser = argparse.ArgumentParser(prog="free2ds", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, work: Callable[[Package, argparse.Namespace], int], *groups: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            parents=[shared[group] for group in groups],
            help=work.__doc__,
            description=work.__doc__,
            epilog=_parameter_listing(package) if "parameters" in groups else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(work=work)
        return added

    run = command("run", _run, "pipeline", "parameters", "images")
    run.add_argument("--output-dir", required=True, help="gets selected.json, scores/, rejects.jsonl, report.html, ...")
    run.add_argument(
        "--runner",
        choices=["subprocess", "docker"],
        default="subprocess",
        help="each stage as a process or in its image",
    )
    run.add_argument("--network", default="", help="Docker network of the stages (--runner docker)")
    run.add_argument("--keep-work", action="store_true", help="keep what the stages hand to each other")
    run.add_argument("--no-cache", action="store_true", help="take no results of earlier runs and keep none")
    planned = command("plan", _plan, "pipeline", "parameters", "images", "pods")
    planned.add_argument("--count-records", action="store_true", help="also of a data set in a store; reads all of it")
    planned.add_argument("--json", action="store_true", help="print JSON instead of text")
    compiled = command("compile", _compile, "pipeline", "images", "pods")
    compiled.add_argument("--output", default="free2ds.yaml", help="the file to write")
    compiled.add_argument(
        "--kubernetes-manifests",
        action="store_true",
        help="write Pipeline and PipelineVersion objects, for kubectl apply",
    )
    compiled.add_argument("--namespace", default="", help="of those objects; empty leaves it to kubectl")
    parameters = command("parameters", _parameters, "pipeline")
    parameters.add_argument("--picture", default="", metavar="FILE", help="draw the run form as PNG; needs Chromium")
    command("lint", _lint, "pipeline")
    ClusterCommands(_for_cluster).add(command)
    result_commands.add(command)
    add_cache_options(command("cache", _cache))
    return parser


def _parameter_listing(package: Package) -> str:
    lines = []
    for name, parameter in package.parameters.items():
        default = "required" if parameter.required else f"default {json.dumps(parameter.default)}"
        lines.append(f"  {name}: {parameter.description} ({default})")
    return "\n".join(["parameters:", *lines])


def _parameter_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--param", action="append", default=[], metavar="NAME=VALUE", help="a parameter; may be repeated"
    )
    options.add_argument(
        "--config",
        "--params-file",
        dest="params_file",
        metavar="FILE",
        default="",
        help="YAML or JSON file of parameters; --param wins over it",
    )
    return options


def _pipeline_options(names: Sequence[str]) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--pipeline",
        choices=names,
        default=names[0],
        help="select records, or the loop: train on them and on as many at random too, and measure whether it helped",
    )
    return options


def _image_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--registry", default="", help="where the images were pushed; empty keeps free2ds-<stage>:dev")
    options.add_argument("--tag", default="", help="the tag they were pushed with")
    options.add_argument(
        "--digests", default="", help="JSON or YAML file of image name and sha256:..., instead of --tag"
    )
    return options


def _run(package: Package, arguments: argparse.Namespace) -> int:
    """Run the whole pipeline on this machine."""
    given = read_parameters(package, arguments.params_file, arguments.param)
    # A machine without a GPU takes longer and does the same; on a cluster it would be a step in the wrong place.
    # Small data sets are tried out here, for which the method's 1000 clusters are too many.
    small: dict[str, Any] = {"gpu_count": "0", "train_gpu_count": "0", "num_clusters": 0}
    values = {name: value for name, value in small.items() if name in package.parameters}
    values |= with_absolute_paths(given)
    values["cache_uri"] = cache_of_run(values.get("cache_uri"), off=arguments.no_cache)
    in_images = arguments.runner == "docker"
    if not in_images and (arguments.registry or arguments.network):
        raise StageError("--registry and --network: only --runner docker uses images. Add it, or leave them out.")
    # Here, not at the top: no other command needs these packages.
    from free2ds_common.launch.preflight import check_inputs

    check_inputs(package, values, only_local=bool(arguments.network))
    # A process runs in none of the images, so that it is not told of one.
    released = _released(package, arguments) if in_images else package
    if in_images:
        require_images(released.images, local_only=not arguments.registry)
    run = LocalRun(
        package=released,
        values=values,
        num_shards=package.with_defaults(values)["num_shards"],
        output_dir=Path(arguments.output_dir).resolve(),
        keep_work=arguments.keep_work,
        in_images=in_images,
        network=arguments.network,
        # Each by itself: what redacts a URI must not see the quotes around it.
        command=shlex.join(["free2ds", *map(redacted, arguments.typed)]),
    )
    return run_locally(run)


def _plan(package: Package, arguments: argparse.Namespace) -> int:
    """Print what a run would do, and start nothing: versions, models, records, what steps ask of a cluster."""
    values = with_absolute_paths(read_parameters(package, arguments.params_file, arguments.param))
    # Here, not at the top: no other command needs these packages.
    from free2ds_common.launch.plan import lines, plan

    found = plan(_for_cluster(package, arguments), values, read_all=arguments.count_records)
    print(json.dumps(found.as_json(), indent=1) if arguments.json else "\n".join(lines(found)))
    return 0


def _compile(package: Package, arguments: argparse.Namespace) -> int:
    """Write the file that a cluster runs."""
    released = _for_cluster(package, arguments)
    require_sound(released)
    if arguments.kubernetes_manifests:
        from free2ds_common.launch.kfp_api.manifests import kubernetes_manifests

        with atomic_writer(arguments.output, "w") as handle:
            yaml.safe_dump_all(kubernetes_manifests(released, arguments.namespace), handle)
        print(f"{arguments.output}: kubectl apply -f {arguments.output}")
        return 0
    if arguments.namespace:
        raise StageError("--namespace: only the objects of --kubernetes-manifests have one. Add it, or leave this out.")
    released.write(Path(arguments.output))
    print(f"{arguments.output}: upload it in the Kubeflow Pipelines UI, or use: free2ds submit")
    return 0


def _parameters(package: Package, arguments: argparse.Namespace) -> int:
    """Print every parameter with its default and meaning, as Markdown; or draw the run form."""
    if arguments.picture:
        from free2ds_common.launch.form_picture import draw_form

        draw_form(package, Path(arguments.picture))
    else:
        print(parameter_page(package))
    return 0


def _lint(package: Package, arguments: argparse.Namespace) -> int:
    """Look for what Kubeflow Pipelines would accept and then do wrong, as compile does."""
    require_sound(package)
    found = largest(package)
    print(
        f"nothing is wrong; with {MAX_SHARDS} shards the input of {found.task} has {found.input_bytes} bytes "
        f"({MAX_INPUT_BYTES} are too many), and the Workflow {found.workflow_bytes} ({MAX_WORKFLOW_BYTES})"
    )
    return 0


def _cache(package: Package, arguments: argparse.Namespace) -> int:
    """Look after a results store: list what it holds, verify, compact or delete it."""
    # Here, not at the top: no other command needs pyarrow.
    from free2ds_common.launch.cache_command import look_after

    return look_after(arguments)


def _for_cluster(package: Package, arguments: argparse.Namespace) -> Package:
    """The pipeline with the images and the pods' options that the command line names.

    Raises:
        StageError: As of `_released`.
        SettingError: As of `PodOptions.applied`.
    """
    return PodOptions.of(arguments).applied(_released(package, arguments))


def _released(package: Package, arguments: argparse.Namespace) -> Package:
    """The pipeline with the images that the command line names.

    Raises:
        StageError: The images are not named completely, or the digest file cannot be read.
    """
    digests = read_mapping("--digests", arguments.digests) if arguments.digests else None
    return package.with_images(released_name(arguments.registry, arguments.tag, digests))


def released_name(registry: str, tag: str, digests: Mapping[str, Any] | None) -> Callable[[str], str]:
    """How an image of the source tree is named where it was pushed.

    Args:
        registry: Where the images are; empty leaves the names alone.
        tag: The tag they were pushed with; unused when there are digests.
        digests: sha256:... by image name ("free2ds-ingest").

    Raises:
        StageError: Only half of the information was given.
    """
    if not registry:
        if tag or digests:
            raise StageError("--tag and --digests: no --registry given. Say where the images were pushed.")
        return lambda image: image
    if not tag and digests is None:
        raise StageError(f"--registry {registry}: neither --tag nor --digests given. Say which images to use.")

    require_registry(registry)
    if digests is None:
        require_tag(tag)

    def name(image: str) -> str:
        stage_image = image.partition(":")[0]
        if digests is None:
            return f"{registry.rstrip('/')}/{stage_image}:{tag}"
        digest = digests.get(stage_image, "")
        if not isinstance(digest, str) or not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            raise StageError(f"--digests: {stage_image} has {digest!r}, wanted sha256: and 64 hex digits.")
        return f"{registry.rstrip('/')}/{stage_image}@{digest}"

    return name


@contextmanager
def _ended_like_interrupted() -> Iterator[None]:
    """Signals that end a process raise KeyboardInterrupt as Ctrl-C does, so that they stop every stage too."""
    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        # Ignored by whoever started this, as nohup does: then it stays so.
        if signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
