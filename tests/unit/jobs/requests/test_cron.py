"""Times of cron expressions, in the time zones of people."""

from datetime import UTC, datetime

import pytest

from jobs.errors import InvalidRequest
from jobs.requests.cron import next_after


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("cron", "zone", "after", "expected"),
    [
        ("0 3 * * *", "UTC", "2026-11-25T02:59:59", "2026-11-25T03:00:00"),
        ("0 3 * * *", "UTC", "2026-11-25T03:00:00", "2026-11-26T03:00:00"),
        ("*/15 * * * *", "UTC", "2026-11-25T10:01:00", "2026-11-25T10:15:00"),
        ("0 9 * * mon", "Europe/Zurich", "2026-11-25T00:00:00", "2026-11-30T08:00:00"),
        ("30 2 * * *", "Europe/Zurich", "2026-03-28T12:00:00", "2026-03-29T01:00:00"),  # 02:30 does not exist that day
        ("0 0 29 2 *", "UTC", "2026-01-01T00:00:00", "2028-02-29T00:00:00"),
    ],
)
def test_the_next_time(cron: str, zone: str, after: str, expected: str) -> None:
    assert next_after(cron, zone, at(after)) == at(expected)


@pytest.mark.parametrize(
    ("cron", "zone"),
    [
        ("every day", "UTC"),
        ("61 * * * *", "UTC"),
        ("* * * *", "UTC"),
        ("0 3 * * *", "Mars/Olympus"),
        ("0 3 * * *", "../../etc"),
        ("0 0 30 2 *", "UTC"),
    ],
)
def test_invalid_cron_expression_or_time_zone_is_refused(cron: str, zone: str) -> None:
    with pytest.raises(InvalidRequest):
        next_after(cron, zone, at("2026-11-25T00:00:00"))
