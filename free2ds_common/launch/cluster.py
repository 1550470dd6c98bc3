"""Starting runs and schedules on a Kubeflow Pipelines backend."""

import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kfp
import kfp_server_api
import urllib3

from free2ds_common.errors import StageError
from free2ds_common.launch.package import Package

# A number, a range or *, each with a step or not, and lists of them; ? and names as in MON-FRI.
CRON_FIELD = re.compile(r"(\?|(\*|\w+(-\w+)?)(/\d+)?)(,(\*|\w+(-\w+)?)(/\d+)?)*")


@dataclass(frozen=True)
class Backend:
    """Where runs go.

    Attributes:
        host: Address of the API; empty uses KF_PIPELINES_ENDPOINT, the cluster around it, or kubectl's configuration.
        namespace: Of a multi-user installation.
        experiment: Groups runs in the UI.
    """

    host: str
    namespace: str
    experiment: str

    def submit(self, package: Package, values: Mapping[str, Any], run_name: str) -> str:
        """Start one run.

        Args:
            package: The pipeline, with the images that are to run.
            values: Its parameters.
            run_name: How the UI calls the run; empty for a name of KFP's.

        Returns:
            What was started, in one line.

        Raises:
            StageError: The backend does not answer or refuses.
        """
        with self._client() as client, _written(package) as file:
            run = client.create_run_from_pipeline_package(
                str(file), arguments=dict(values), run_name=run_name or None, experiment_name=self.experiment
            )
        return f"started run {run.run_id} in experiment {self.experiment}"

    def schedule(self, package: Package, values: Mapping[str, Any], name: str, cron: str, max_concurrency: int) -> str:
        """Start a run again and again.

        Args:
            package: The pipeline, with the images that are to run.
            values: Its parameters.
            name: Of the schedule.
            cron: As `check_cron` wants it.
            max_concurrency: Runs at the same time, 1 to 10.

        Returns:
            What was scheduled, in one line.

        Raises:
            StageError: A wrong setting, or the backend does not answer or refuses.
        """
        check_cron(cron)
        if not 1 <= max_concurrency <= 10:
            raise StageError(f"--max-concurrency: got {max_concurrency}, wanted 1 to 10.")
        with self._client() as client, _written(package) as file:
            recurring = client.create_recurring_run(
                experiment_id=client.create_experiment(self.experiment).experiment_id,
                job_name=name,
                cron_expression=cron,
                max_concurrency=max_concurrency,
                no_catchup=True,
                params=dict(values),
                pipeline_package_path=str(file),
            )
        return f"scheduled {recurring.recurring_run_id} ({cron}) in experiment {self.experiment}"

    @contextmanager
    def _client(self) -> Iterator[kfp.Client]:
        """A client; what the backend refuses becomes one sentence."""
        client = connect(self.host, self.namespace)
        try:
            yield client
        except kfp_server_api.ApiException as error:
            raise StageError(f"--host: the backend refused ({error.status} {error.reason}): {error.body}") from None


def connect(host: str, namespace: str) -> kfp.Client:
    """A client of a Kubeflow Pipelines backend.

    Args:
        host: As in `Backend`.
        namespace: As in `Backend`.

    Raises:
        StageError: Nothing answers there.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            return kfp.Client(host=host or None, namespace=namespace)
        except (urllib3.exceptions.HTTPError, TimeoutError, OSError) as error:
            where = host or "the default address"
            raise StageError(f"--host: no Kubeflow Pipelines answers at {where} ({error}).") from None


def check_cron(cron: str) -> None:
    """Refuse a schedule that the backend would misread.

    Args:
        cron: Six fields: second, minute, hour, day of month, month, day of week.

    Raises:
        StageError: Another number of fields (a crontab's five are accepted by the backend and misread), a field that is
            none, or a start every second.
    """
    fields = cron.split()
    example = "such as '0 0 3 * * 1' for Mondays at 03:00"
    if len(fields) != 6:
        raise StageError(f"--cron: got {cron!r} with {len(fields)} fields, wanted six, seconds first, {example}.")
    for field in fields:
        if not CRON_FIELD.fullmatch(field):
            raise StageError(f"--cron: {field!r} in {cron!r} is no cron field; wanted six, {example}.")
    if not (fields[0].isdigit() and int(fields[0]) < 60):
        raise StageError(f"--cron: the first field of {cron!r} is the second, wanted a number from 0 to 59, {example}.")


@contextmanager
def _written(package: Package) -> Iterator[Path]:
    """The package as a file, for as long as the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "free2ds.yaml"
        package.write(file)
        yield file
