"""The cron of Kubeflow Pipelines: six fields, seconds first, in UTC."""

import re

from free2ds_common.errors import StageError

# A number, a range or *, each with a step or not, and lists of them; ? and names as in MON-FRI.
_FIELD = re.compile(r"(\?|(\*|\w+(-\w+)?)(/\d+)?)(,(\*|\w+(-\w+)?)(/\d+)?)*")


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
        if not _FIELD.fullmatch(field):
            raise StageError(f"--cron: {field!r} in {cron!r} is no cron field; wanted six, {example}.")
    if not (fields[0].isdigit() and int(fields[0]) < 60):
        raise StageError(f"--cron: the first field of {cron!r} is the second, wanted a number from 0 to 59, {example}.")
