"""Cron expressions: the times at which schedules and sources are due."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from jobs.errors import InvalidRequest


def next_after(cron: str, timezone: str, at: float) -> float:
    """Return the first matching time after `at`, in unix seconds.

    Raises InvalidRequest, also for an unknown time zone.
    """
    try:
        zone = ZoneInfo(timezone)
    except (KeyError, OSError, ValueError) as error:  # an unknown zone, a folder, a path
        message = f"'{timezone}' is not a time zone."
        raise InvalidRequest(message, param="timezone", code="invalid_value") from error
    try:
        return next(CronSim(cron, datetime.fromtimestamp(at, UTC).astimezone(zone))).timestamp()
    except (CronSimError, StopIteration) as error:
        message = f"'{cron}' is not a cron expression, or it matches no day."
        raise InvalidRequest(message, param="cron", code="invalid_value") from error
