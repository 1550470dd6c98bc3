"""Schedules: a name stands for one, and none is deleted while a run of it goes on.

Deleting a schedule wipes its running workflow and leaves a run that never ends. So: disable, wait for the run or
terminate it, and only then delete.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import kfp_server_api
from kfp_server_api import V2beta1RecurringRun, V2beta1Run

from free2ds_common.errors import StageError
from free2ds_common.launch.kfp_api.backend import Backend, named
from free2ds_common.launch.kfp_api.cron import check_cron
from free2ds_common.launch.kfp_api.runs import experiment_id, is_finished, runs_of
from free2ds_common.launch.kfp_api.versions import Version

# Between two looks at a run that has to end.
POLL_S = 10.0
# Looks after which a run that was terminated should have ended: its pods end in seconds.
TERMINATE_LOOKS = 60
WAIT, TERMINATE = "wait", "terminate"
_ENABLED = "ENABLED"


@dataclass(frozen=True)
class Wanted:
    """A schedule to be made.

    Attributes:
        name: Of the schedule.
        version: What runs.
        values: Parameters of every run.
        cron: As `check_cron` wants it.
        max_concurrency: Runs at the same time, 1 to 10.
        experiment: Groups its runs in the UI.
        description: For people; empty for none.
    """

    name: str
    version: Version
    values: Mapping[str, Any]
    cron: str
    max_concurrency: int
    experiment: str
    description: str = ""


class Schedules:
    """The schedules of an experiment."""

    def __init__(self, backend: Backend, experiment: str, say: Callable[[str], None]) -> None:
        """Keep what is needed.

        Args:
            backend: Where they are.
            experiment: Whose.
            say: Gets a line about everything that is done.
        """
        self._backend, self._experiment, self._say = backend, experiment, say
        self._api = backend.client.recurring_runs

    def all(self, name: str = "") -> list[V2beta1RecurringRun]:
        """The experiment's schedules: V2beta1RecurringRun.

        Args:
            name: Only those of this name; empty for all.
        """
        found = experiment_id(self._backend, self._experiment)
        if not found:
            return []
        options = {"filter": named(name)} if name else {}
        return list(
            self._backend.every(
                "the list of schedules",
                self._api.recurring_run_service_list_recurring_runs,
                "recurring_runs",
                experiment_id=found,
                **options,
            )
        )

    def replace(self, wanted: Wanted, running: str) -> str:
        """Make a schedule, in place of those of the same name.

        What is replaced is deleted last and enabled again if anything goes wrong before: no moment leaves nothing.

        Args:
            wanted: The new one.
            running: `WAIT` for runs of the old ones, or `TERMINATE` them.

        Returns:
            The new one's id.

        Raises:
            StageError: The backend refuses.
        """
        replaced = self.all(wanted.name)
        active = [schedule for schedule in replaced if is_enabled(schedule)]
        try:
            for schedule in replaced:
                self._stop(schedule, running)
            made = self._create(wanted)
        except BaseException:
            for schedule in active:
                self._call(schedule, "enable")
                self._say(f"schedule {schedule.display_name} ({schedule.recurring_run_id}) is enabled again")
            raise
        for schedule in replaced:
            self._delete(schedule)
        return made

    def remove(self, name: str, running: str) -> None:
        """Delete the schedules of a name.

        Args:
            name: Theirs.
            running: `WAIT` for their runs, or `TERMINATE` them.

        Raises:
            StageError: There is none, or the backend refuses.
        """
        for schedule in self._some(name):
            self._stop(schedule, running)
            self._delete(schedule)

    def pause(self, name: str) -> None:
        """Let the schedules of a name start nothing; a run of theirs goes on.

        Raises:
            StageError: There is none, or the backend refuses.
        """
        for schedule in self._some(name):
            self._call(schedule, "disable")
            self._say(f"paused {name} ({schedule.recurring_run_id}); a run of it that has begun goes on")

    def resume(self, name: str) -> None:
        """Let the schedules of a name start runs again; what they missed is not made up for.

        Raises:
            StageError: There is none, or the backend refuses.
        """
        for schedule in self._some(name):
            self._call(schedule, "enable")
            self._say(f"resumed {name} ({schedule.recurring_run_id}); what it missed is not made up for")

    def _some(self, name: str) -> list[V2beta1RecurringRun]:
        found = self.all(name)
        if not found:
            raise StageError(
                f"schedule {name}: experiment {self._experiment} has none of this name. free2ds schedules lists them."
            )
        return found

    def _create(self, wanted: Wanted) -> str:
        check(wanted.cron, wanted.max_concurrency)
        recurring = V2beta1RecurringRun(
            experiment_id=experiment_id(self._backend, wanted.experiment, make=True),
            display_name=wanted.name,
            description=wanted.description or None,
            mode=kfp_server_api.RecurringRunMode.ENABLE,
            pipeline_version_reference=wanted.version.reference,
            runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters=dict(wanted.values)),
            trigger=kfp_server_api.V2beta1Trigger(cron_schedule=kfp_server_api.V2beta1CronSchedule(cron=wanted.cron)),
            max_concurrency=str(wanted.max_concurrency),
            no_catchup=True,
        )
        create = self._api.recurring_run_service_create_recurring_run
        return str(self._backend.call(f"schedule {wanted.name}", create, recurring).recurring_run_id)

    def _stop(self, schedule: V2beta1RecurringRun, running: str) -> None:
        """Disable a schedule and see its runs end.

        Raises:
            StageError: The backend refuses, or a run that was terminated does not end.
        """
        self._call(schedule, "disable")
        told: set[str] = set()
        looks = 0
        while unfinished := self._unfinished(schedule):
            looks += 1
            if running == TERMINATE and looks > TERMINATE_LOOKS:
                raise StageError(
                    f"run {unfinished[0].run_id}: does not end although it was terminated. Delete it in the UI, then "
                    "try again."
                )
            for run in unfinished:
                if run.run_id not in told and running == TERMINATE:
                    terminate = self._backend.client.runs.run_service_terminate_run
                    self._backend.call(f"run {run.run_id}", terminate, run.run_id)
                    self._say(f"terminating its run {run.run_id} ({run.display_name})")
                elif run.run_id not in told:
                    self._say(f"waiting for its run {run.run_id} ({run.display_name}); --running terminate ends it")
                told.add(run.run_id)
            time.sleep(POLL_S)

    def _unfinished(self, schedule: V2beta1RecurringRun) -> list[V2beta1Run]:
        runs = runs_of(self._backend, self._experiment)
        return [run for run in runs if run.recurring_run_id == schedule.recurring_run_id and not is_finished(run)]

    def _delete(self, schedule: V2beta1RecurringRun) -> None:
        self._call(schedule, "delete")
        self._say(f"deleted schedule {schedule.display_name} ({schedule.recurring_run_id})")

    def _call(self, schedule: V2beta1RecurringRun, verb: str) -> None:
        method = getattr(self._api, f"recurring_run_service_{verb}_recurring_run")
        self._backend.call(f"schedule {schedule.display_name}", method, schedule.recurring_run_id)


def is_enabled(schedule: V2beta1RecurringRun) -> bool:
    """Whether a V2beta1RecurringRun starts runs."""
    return bool(schedule.status == _ENABLED)


def check(cron: str, max_concurrency: int) -> None:
    """Refuse what the backend would refuse or misread.

    Raises:
        StageError: As `check_cron`, or another number than 1 to 10 of runs at the same time.
    """
    check_cron(cron)
    if not 1 <= max_concurrency <= 10:
        raise StageError(f"--max-concurrency: got {max_concurrency}, wanted 1 to 10.")
