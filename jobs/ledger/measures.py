"""Measures: counted where things happen, where no stored row could tell them cheaply. `api.health.metrics` shows them.

    ENGINE    an answered line, from the engine's being asked to its answer      by model
    WAIT      a job, from when it could begin to the first claim on its lines    by kind
    ENDED     a job, from when it could begin to its end                         by kind
    WEBHOOK   a delivery, from its event to the receiver's acceptance
    RESTARTS  an engine's new start in a worker that lives                       by pool
    REFUSALS  an attempt of the dispatcher to publish that the broker refused

Each is written in the transaction of what it counts: exactly once, even if the process dies. All processes count in the
same few rows, so these are the last that a transaction touches, in one order: they are locked no longer than a commit
takes, by no transaction that waits for another lock.
"""

from bisect import bisect_left
from collections.abc import Iterable
from functools import cache
from typing import Any, Final

from sqlalchemy import event
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.base import table_of
from jobs.db.engine import inserting
from jobs.fleet.tables import Measure
from jobs.ledger import dependencies
from jobs.ledger.tables import Job

ENGINE: Final = "engine"
WAIT: Final = "wait"
ENDED: Final = "ended"
WEBHOOK: Final = "webhook"
RESTARTS: Final = "restarts"
REFUSALS: Final = "refusals"

#: Upper bounds of the buckets, in seconds. A later version may have others: rows keep their own.
BOUNDS: Final = (
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 10800.0, 43200.0, 86400.0,
)  # fmt: skip
NO_BOUND: Final = "+Inf"

_BOUNDS: Final = (*(str(bound) for bound in BOUNDS), NO_BOUND)
_PENDING: Final = "measures"
_table = table_of(Measure)


def observe(session: Session, name: str, label: str, seconds: float) -> None:
    """Count an observation of `seconds` in its bucket. A negative time, from a clock that was set back, counts as 0."""
    took = max(seconds, 0.0)
    _add(session, (name, label, _BOUNDS[bisect_left(BOUNDS, took)]), 1, took)


def observe_all(session: Session, name: str, label: str, seconds: Iterable[float]) -> None:
    for value in seconds:
        observe(session, name, label, value)


def count(session: Session, name: str, label: str, times: int) -> None:
    """Count an event that has no duration `times` times."""
    _add(session, (name, label, NO_BOUND), times, 0.0)


def waited(session: Session, job: Job) -> None:
    observe(session, WAIT, job.kind, now() - _could_begin(session, job))


def ended(session: Session, job: Job) -> None:
    observe(session, ENDED, job.kind, now() - _could_begin(session, job))


def _could_begin(session: Session, job: Job) -> float:
    return max(job.created_at, job.not_before or 0.0, dependencies.completed_at(session, job.id))


def _add(session: Session, key: tuple[str, str, str], times: int, seconds: float) -> None:
    pending = session.info.setdefault(_PENDING, {})
    before, took = pending.get(key, (0, 0.0))
    pending[key] = (before + times, took + seconds)


@event.listens_for(Session, "before_commit")
def _write(session: Session) -> None:
    pending = session.info.pop(_PENDING, None)
    if pending:
        connection = session.connection()
        rows = [
            {"name": name, "label": label, "le": le, "count": times, "seconds": seconds}
            for (name, label, le), (times, seconds) in sorted(pending.items())
        ]
        connection.execute(_adding(connection.dialect.name), rows)


@cache
def _adding(dialect: str) -> Any:
    insert = inserting(dialect)(_table)
    sums = {name: _table.c[name] + insert.excluded[name] for name in ("count", "seconds")}
    return insert.on_conflict_do_update(index_elements=["name", "label", "le"], set_=sums)
