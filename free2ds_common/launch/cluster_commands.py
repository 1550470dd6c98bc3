"""The commands that ask a Kubeflow Pipelines backend: what they take, and what they print."""

import argparse
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from free2ds_common.failure import EXIT_CRASH
from free2ds_common.launch.limits import require_fits
from free2ds_common.launch.package import Package
from free2ds_common.launch.parameters import read_parameters, refuse_local_paths
from free2ds_common.launch.pod_options import PodOptions
from free2ds_common.launch.step_requests import step_requests
from free2ds_common.launch.tables import minute, print_rows, took

if TYPE_CHECKING:
    from kfp_server_api import V2beta1Run

    from free2ds_common.launch.kfp_api.backend import Backend
    from free2ds_common.launch.kfp_api.kube import Kube
    from free2ds_common.launch.kfp_api.schedules import Schedules
    from free2ds_common.launch.kfp_api.why import Sources

NAME = "free2ds"
EXPERIMENT = "free2ds"
Released = Callable[[Package, argparse.Namespace], Package]


def cluster_options() -> argparse.ArgumentParser:
    """What every command takes that asks a backend."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--host", default="", help="address of Kubeflow Pipelines; empty finds it as kubectl would")
    options.add_argument("--ui-host", default="", help="address of its UI, where that is another")
    options.add_argument("--namespace", default="kubeflow", help="of a multi-user installation, and of the pods")
    options.add_argument("--token-file", default="", help="holds a bearer token, for installations that want one")
    options.add_argument(
        "--kubeconfig",
        default="",
        help="shows what pods wait for; empty takes kubectl's own, if it is there",
    )
    options.add_argument("--experiment", default=EXPERIMENT, help="groups runs in the UI")
    return options


class ClusterCommands:
    """The commands, and what they share."""

    def __init__(self, released: Released) -> None:
        """Keep how a package gets the images that the command line names."""
        self._released = released

    def add(self, command: Callable[..., argparse.ArgumentParser]) -> None:
        """Add the commands to a command line.

        Args:
            command: Makes a parser of a name, the work and the names of option groups.
        """
        submit = command("submit", self.submit, "pipeline", "parameters", "images", "pods", "cluster")
        submit.add_argument("--run-name", default="", help="how the UI calls the run; empty: data set and time")
        submit.add_argument("--wait", action="store_true", help="follow the run to its end; exit code 1 if it fails")
        submit.add_argument("--check", action="store_true", help="look whether everything is there, and start nothing")
        self._add_root(submit)
        submit.add_argument(
            "--ignore-nodes", action="store_true", help="submit although no node can take some step now"
        )
        schedule = command("schedule", self.schedule, "pipeline", "parameters", "images", "pods", "cluster")
        schedule.add_argument(
            "--cron", required=True, help="six fields, seconds first: '0 0 3 * * 1' is Mondays at 03:00"
        )
        schedule.add_argument(
            "--time-zone", default="", metavar="NAME", help="of the cron, such as Europe/Berlin; empty for UTC"
        )
        schedule.add_argument("--max-concurrency", type=int, default=1, help="runs at the same time, 1 to 10")
        schedule.add_argument("--name", "--run-name", default=NAME, help="one of the same name is replaced")
        self._add_running(schedule)
        command("schedules", self.schedules, "cluster")
        for name, work in (("pause", self.pause), ("resume", self.resume), ("unschedule", self.unschedule)):
            parser = command(name, work, "cluster")
            parser.add_argument("name", help="of the schedule")
        self._add_running(parser)
        runs = command("runs", self.runs, "cluster")
        runs.add_argument("--limit", type=int, default=20, help="how many, the newest first")
        self._add_root(runs)
        why = command("why", self.why, "cluster")
        why.add_argument("run_id", help="of the run")
        self._add_root(why)
        fetch = command("fetch", self.fetch, "cluster")
        fetch.add_argument("run_id", help="of the run")
        fetch.add_argument("--output-dir", required=True, help="gets what a local run leaves")
        self._add_root(fetch)

    @staticmethod
    def _add_root(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--pipeline-root", default="", help="where the installation keeps artifacts, if the run does not say"
        )

    @staticmethod
    def _add_running(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--running",
            choices=["wait", "terminate"],
            default="wait",
            help="what becomes of a run of the schedule that goes on",
        )

    def submit(self, package: Package, arguments: argparse.Namespace) -> int:
        """Start one run on a cluster."""
        from free2ds_common.launch.kfp_api.cluster_check import check_cluster
        from free2ds_common.launch.kfp_api.runs import run_name, start
        from free2ds_common.launch.kfp_api.versions import upload

        released, values = self._prepared(package, arguments)
        if arguments.check:
            from free2ds_common.launch.preflight import check_inputs

            check_inputs(package, values)
        backend, kube = connect(arguments)
        found = check_cluster(kube, step_requests(released, values), PodOptions.of(arguments), arguments.ignore_nodes)
        for warning in found.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        if arguments.check:
            if found.to_pull:
                print(f"to be pulled: {', '.join(found.to_pull)}")
            print(
                f"all of it is there, as far as this machine can tell, and {backend.host} answers; nothing was started"
            )
            return 0
        version = upload(backend, released)
        name = arguments.run_name or run_name(values, datetime.now(UTC))
        run_id = start(backend, version, values, name, arguments.experiment)
        print(f"started run {run_id} ({name}) in experiment {arguments.experiment}")
        print(f"version {version.name} ({'uploaded' if version.uploaded else 'as before'})")
        print(backend.run_link(run_id), flush=True)
        if not arguments.wait:
            return 0
        return self._wait(run_id, released, _sources(backend, kube, arguments))

    @staticmethod
    def _wait(run_id: str, package: Package, sources: "Sources") -> int:
        """Follow a run; returns the exit code."""
        from free2ds_common.launch.kfp_api.steps import SUCCEEDED, step_names
        from free2ds_common.launch.kfp_api.watch import follow
        from free2ds_common.launch.kfp_api.why import lines

        def waiting(run: "V2beta1Run") -> Iterator[str]:
            yield from (f"{finding.step}: {finding.sentence}" for finding in sources.findings(run))

        try:
            run = follow(sources.backend, run_id, step_names(package.spec), waiting)
        except KeyboardInterrupt:
            print(f"\nThe run goes on: {sources.backend.run_link(run_id)}")
            raise
        print("\n".join(lines(run, sources.findings(run), sources.backend.run_link(run_id))))
        return 0 if run.state == SUCCEEDED else EXIT_CRASH

    def schedule(self, package: Package, arguments: argparse.Namespace) -> int:
        """Start a run on a cluster again and again; a schedule of the same name is replaced."""
        from free2ds_common.launch.kfp_api.cluster_check import check_cluster
        from free2ds_common.launch.kfp_api.cron import next_time
        from free2ds_common.launch.kfp_api.schedules import Schedules, Wanted, check
        from free2ds_common.launch.kfp_api.time_zones import in_utc
        from free2ds_common.launch.kfp_api.versions import upload

        check(arguments.cron, arguments.max_concurrency)
        now = datetime.now(UTC)
        zoned = in_utc(arguments.cron, arguments.time_zone, now) if arguments.time_zone else None
        cron = zoned.cron if zoned else arguments.cron
        first = next_time(cron, now)
        released, values = self._prepared(package, arguments)
        backend, kube = connect(arguments)
        # Its first run may be weeks away: what nodes there are then is not known.
        found = check_cluster(kube, step_requests(released, values), PodOptions.of(arguments), ignore_nodes=True)
        for warning in found.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        wanted = Wanted(
            name=arguments.name,
            version=upload(backend, released),
            values=values,
            cron=cron,
            max_concurrency=arguments.max_concurrency,
            experiment=arguments.experiment,
            description=f"{arguments.cron} in {arguments.time_zone}" if zoned else "",
        )
        made = Schedules(backend, arguments.experiment, print).replace(wanted, arguments.running)
        print(f"scheduled {made} ({arguments.name}: {cron}, UTC) in experiment {arguments.experiment}")
        print(f"The first run starts at {first:%Y-%m-%d %H:%M:%S} UTC, {first.astimezone():%Y-%m-%d %H:%M:%S %Z} here.")
        if zoned and zoned.shift:
            print(zoned.shift)
        at_once = "a run" if arguments.max_concurrency == 1 else f"{arguments.max_concurrency} runs"
        print(f"Times are UTC. A trigger while {at_once} of it goes on is skipped; missed ones are not made up for.")
        return 0

    def schedules(self, package: Package, arguments: argparse.Namespace) -> int:
        """List the schedules of an experiment."""
        from free2ds_common.launch.kfp_api.schedules import Schedules, is_enabled

        backend, _ = connect(arguments)
        rows = [("name", "state", "cron (UTC)", "at once", "since", "id")]
        for schedule in Schedules(backend, arguments.experiment, print).all():
            cron = schedule.trigger.cron_schedule if schedule.trigger else None
            rows.append(
                (
                    schedule.display_name,
                    "enabled" if is_enabled(schedule) else "paused",
                    f"{cron.cron if cron else ''} {f'({given})' if (given := schedule.description) else ''}".strip(),
                    str(schedule.max_concurrency or ""),
                    minute(schedule.created_at),
                    schedule.recurring_run_id,
                )
            )
        print_rows(rows, f"experiment {arguments.experiment} has no schedules")
        return 0

    def pause(self, package: Package, arguments: argparse.Namespace) -> int:
        """Let a schedule start nothing until it is resumed."""
        self._schedules(arguments).pause(arguments.name)
        return 0

    def resume(self, package: Package, arguments: argparse.Namespace) -> int:
        """Let a paused schedule start runs again."""
        self._schedules(arguments).resume(arguments.name)
        return 0

    def unschedule(self, package: Package, arguments: argparse.Namespace) -> int:
        """Delete a schedule once no run of it goes on."""
        self._schedules(arguments).remove(arguments.name, arguments.running)
        return 0

    @staticmethod
    def _schedules(arguments: argparse.Namespace) -> "Schedules":
        from free2ds_common.launch.kfp_api.schedules import Schedules

        return Schedules(connect(arguments)[0], arguments.experiment, print)

    def runs(self, package: Package, arguments: argparse.Namespace) -> int:
        """List the runs of an experiment, the newest first, and what is wrong with them."""
        from free2ds_common.launch.kfp_api.runs import get_run, runs_of

        backend, kube = connect(arguments)
        sources = _sources(backend, kube, arguments)
        rows = [("started (UTC)", "took", "state", "name", "id")]
        notes = []
        for run in islice(runs_of(backend, arguments.experiment), arguments.limit):
            duration = took(run.created_at, run.finished_at)
            rows.append((minute(run.created_at), duration, run.state or "", run.display_name, run.run_id))
            if run.state == "SUCCEEDED":
                continue
            # A list leaves the tasks of its runs out.
            whole = get_run(backend, run.run_id) if run.state == "FAILED" else run
            notes += [f"{run.run_id}: {finding.step}: {finding.sentence}" for finding in sources.findings(whole)]
        print_rows(rows, f"experiment {arguments.experiment} has no runs")
        print("".join(f"\n{note}" for note in notes), end="\n" if notes else "")
        return 0

    def why(self, package: Package, arguments: argparse.Namespace) -> int:
        """Print why a run failed or does not go on, in the failed step's own words."""
        from free2ds_common.launch.kfp_api.runs import get_run
        from free2ds_common.launch.kfp_api.why import lines

        backend, kube = connect(arguments)
        run = get_run(backend, arguments.run_id)
        findings = _sources(backend, kube, arguments).findings(run)
        print("\n".join(lines(run, findings, backend.run_link(arguments.run_id))))
        if not findings:
            print("  nothing is wrong with it, as far as can be seen" + ("" if kube else " without a kubeconfig"))
        return 0

    def fetch(self, package: Package, arguments: argparse.Namespace) -> int:
        """Bring the results of a run from its store into a folder."""
        from free2ds_common.launch.kfp_api.fetch import fetch
        from free2ds_common.launch.local import LOOP_RESULTS, RESULTS

        backend, kube = connect(arguments)
        output_dir = Path(arguments.output_dir)
        fetch(backend, arguments.run_id, output_dir, arguments.pipeline_root, kube)
        print(f"Results of run {arguments.run_id} in {output_dir}:")
        for file_name, meaning in [*RESULTS.values(), *LOOP_RESULTS.values()]:
            if not (output_dir / file_name).exists():
                continue
            print(f"  {file_name:<15} {meaning}")
        return 0

    def _prepared(self, package: Package, arguments: argparse.Namespace) -> tuple[Package, dict[str, Any]]:
        """The pipeline with its images, and its parameters.

        Raises:
            StageError: A setting is wrong.
        """
        values = read_parameters(package, arguments.params_file, arguments.param)
        refuse_local_paths(values, PodOptions.of(arguments).models_folder)
        released = self._released(package, arguments)
        require_fits(released, values)
        return released, values


def connect(arguments: argparse.Namespace) -> tuple["Backend", "Kube | None"]:
    """The backend that the command line names, and the cluster of its kubeconfig.

    Raises:
        StageError: Nothing answers there, or it refuses.
    """
    # Here, not at the top: compiling and local runs need neither client.
    from free2ds_common.launch.kfp_api.backend import Address, Backend
    from free2ds_common.launch.kfp_api.kube import Kube

    backend = Backend(Address(arguments.host, arguments.ui_host, arguments.namespace, arguments.token_file))
    return backend, Kube.find(arguments.kubeconfig, arguments.namespace)


def _sources(backend: "Backend", kube: "Kube | None", arguments: argparse.Namespace) -> "Sources":
    from free2ds_common.launch.kfp_api.why import Sources

    return Sources(backend, kube, arguments.pipeline_root)
