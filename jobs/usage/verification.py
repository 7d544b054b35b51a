"""Check that the usage of batches is what the ledger says: to the token, whichever processes died.

    usage_minute, usage_change ──by day, project, key, endpoint──▶ compare ◀── segments, with their jobs

Segments go when retention removes the shards of their job, so what is older cannot be compared.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from sqlalchemy import BigInteger, cast, func, select
from sqlalchemy.orm import Session

from jobs.ledger import kinds
from jobs.ledger.tables import TOKENS, Job, Segment
from jobs.usage import minutes
from jobs.usage.tables import UsageChange, UsageMinute

_DAY: Final = 86_400


class UsageGroup(NamedTuple):
    """A group of usage that is compared. `day` is its beginning in UTC, in unix seconds."""

    day: int
    project_id: str
    key_id: str
    endpoint: str


class UsageDifference(NamedTuple):
    """Tokens of a group (input, cached, output, reasoning) that the ledger and the usage do not have alike."""

    group: UsageGroup
    ledger: tuple[int, ...]
    usage: tuple[int, ...]


Tokens = dict[UsageGroup, tuple[int, ...]]


def differences(session: Session, since: int) -> Iterator[UsageDifference]:
    """Yield the groups that differ, from the minute of `since` on. The session sees one snapshot of the database."""
    start = minutes.minute_of(since)
    stored, usage = _ledger_tokens(session, start), _usage_tokens(session, start)
    none = (0,) * len(TOKENS)
    for group in sorted(stored.keys() | usage.keys()):
        pair = stored.get(group, none), usage.get(group, none)
        if pair[0] != pair[1]:
            yield UsageDifference(group, *pair)


def first_minute(session: Session) -> int | None:
    """Return the minute of the first usage of a batch that is added up; None where there is none."""
    return session.scalar(select(func.min(UsageMinute.minute)).where(UsageMinute.batch))


def _ledger_tokens(session: Session, start: int) -> Tokens:
    is_batch = Job.kind.in_(kinds.names(lambda kind: kind.is_batch))
    rounds = session.get_bind().dialect.name != "sqlite"  # a cast does, on PostgreSQL
    seconds = cast(func.floor(Segment.created_at) if rounds else Segment.created_at, BigInteger)
    day = seconds - seconds % _DAY
    keys = day, Job.project_id, func.coalesce(Job.key_id, ""), func.coalesce(Job.endpoint, "")
    sums = (func.sum(getattr(Segment, name)) for name in TOKENS)
    rows = select(*keys, *sums).join(Job, Job.id == Segment.job_id).where(is_batch, Segment.created_at >= start)
    return {
        UsageGroup(int(row[0]), *row[1:4]): tuple(map(int, row[4:])) for row in session.execute(rows.group_by(*keys))
    }


def _usage_tokens(session: Session, start: int) -> Tokens:
    day = UsageMinute.minute - UsageMinute.minute % _DAY
    keys = day, UsageMinute.project_id, UsageMinute.key_id, UsageMinute.endpoint
    sums = (func.sum(getattr(UsageMinute, name)) for name in TOKENS)
    rows = select(*keys, *sums).where(UsageMinute.batch, UsageMinute.minute >= start).group_by(*keys)
    tokens = {UsageGroup(int(row[0]), *row[1:4]): tuple(map(int, row[4:])) for row in session.execute(rows)}
    changes = minutes.merge(session.scalars(select(UsageChange.rows)))
    for (minute, key), amounts in changes.items():
        if key.batch and minute >= start:
            group = UsageGroup(minute - minute % _DAY, key.project_id, key.key_id, key.endpoint)
            its = (getattr(amounts, name) for name in TOKENS)
            before = tokens.get(group, (0,) * len(TOKENS))
            tokens[group] = tuple(map(sum, zip(before, its, strict=True)))
    return {group: sums for group, sums in tokens.items() if any(sums)}
