"""Measures: counted where things happen, where no stored row could tell them cheaply. `api.health.metrics` shows them.

    ENGINE    an answered line, from the engine's being asked to its answer      by model
    WAIT      a job, from when it could begin to the first claim on its lines    by kind
    ENDED     a job, from when it could begin to its end                         by kind
    WEBHOOK   a delivery, from its event to the receiver's acceptance
    RESTARTS  an engine's new start in a worker that lives                       by pool
    REFUSALS  an attempt of the dispatcher to publish that the broker refused
    ELECTIONS a dispatcher that begins to lead

Failures of the database and the storage, by reason, are counted outside of transactions: `jobs.platform.failures`. The
next transaction of their process takes them along.

    transaction ──insert──▶ measure_change ──the leading dispatcher──▶ added to the few rows of `measure`, and deleted

Each is written in the transaction of what it counts: exactly once, even if the process dies. All processes would count
in the same few rows, and a row that each transaction updates is one lock for all workers of all hosts. So a transaction
inserts a row of its own, which waits for nobody.
"""

from bisect import bisect_left
from collections.abc import Iterable
from functools import cache
from itertools import chain
from typing import Any, Final

from sqlalchemy import delete, event, insert, select
from sqlalchemy.orm import Session, SessionTransaction

from jobs.clock import now
from jobs.db.base import table_of
from jobs.db.engine import OWN, UNSEEN, WRITE_ROWS, inserting
from jobs.fleet.tables import Measure, MeasureChange
from jobs.ledger import dependencies
from jobs.ledger.tables import Job
from jobs.platform import failures

ENGINE: Final = "engine"
WAIT: Final = "wait"
ENDED: Final = "ended"
WEBHOOK: Final = "webhook"
RESTARTS: Final = "restarts"
REFUSALS: Final = "refusals"
ELECTIONS: Final = "elections"

#: Upper bounds of the buckets, in seconds. A later version may have others: rows keep their own.
BOUNDS: Final = (
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 10800.0, 43200.0, 86400.0,
)  # fmt: skip
NO_BOUND: Final = "+Inf"

_BOUNDS: Final = (*(str(bound) for bound in BOUNDS), NO_BOUND)
_PENDING: Final = "measures"
_FAILURES: Final = "failures"
_table = table_of(Measure)
_CHANGE: Final = insert(table_of(MeasureChange))

Sums = dict[tuple[str, str, str], tuple[int, float]]  # name, label, bound → how often, and seconds


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


def observe_wait(session: Session, job: Job) -> None:
    observe(session, WAIT, job.kind, now() - _could_begin(session, job))


def observe_end(session: Session, job: Job) -> None:
    observe(session, ENDED, job.kind, now() - _could_begin(session, job))


def _could_begin(session: Session, job: Job) -> float:
    return max(job.created_at, job.not_before or 0.0, dependencies.last_completion(session, job.id))


def _add(session: Session, key: tuple[str, str, str], times: int, seconds: float) -> None:
    pending = session.info.setdefault(_PENDING, {})
    before, took = pending.get(key, (0, 0.0))
    pending[key] = (before + times, took + seconds)


@event.listens_for(Session, "before_commit")
def _write(session: Session) -> None:
    if session.info.get(OWN):
        session.info[_FAILURES] = taken = failures.take()
        for (what, reason), times in taken.items():
            count(session, what, reason, times)
    pending = session.info.pop(_PENDING, None)
    if pending:
        changes = [[*key, times, seconds] for key, (times, seconds) in pending.items()]
        session.connection().execute(_CHANGE, {"changes": changes})


def rows(session: Session) -> list[Measure]:
    """Return all counts, those included that are not added up yet.

    What is added up meanwhile is missing or there twice, unless the session sees one snapshot of the database.
    """
    stored = select(Measure.name, Measure.label, Measure.le, Measure.count, Measure.seconds)
    sums: Sums = {(name, label, le): (times, took) for name, label, le, times, took in session.execute(stored)}
    _merge(sums, session.scalars(select(MeasureChange.changes)))
    return [
        Measure(name=name, label=label, le=le, count=times, seconds=seconds)
        for (name, label, le), (times, seconds) in sums.items()
    ]


def has_changes(session: Session) -> bool:
    """Return whether a change waits to be added up."""
    return session.scalar(select(MeasureChange.id).limit(1)) is not None


def add_up(session: Session, limit: int = WRITE_ROWS) -> int:
    """Add up to `limit` changes to the counts, and return their number: each once, whichever process dies."""
    oldest = select(MeasureChange.id, MeasureChange.changes).order_by(MeasureChange.id).limit(limit)
    changes = session.execute(oldest.with_for_update(skip_locked=True)).all()
    if not changes:
        return 0
    sums: Sums = {}
    _merge(sums, (row.changes for row in changes))
    connection = session.connection()
    connection.execute(
        _adding(connection.dialect.name),
        [
            {"name": name, "label": label, "le": le, "count": times, "seconds": seconds}
            for (name, label, le), (times, seconds) in sorted(sums.items())
        ],
    )
    added = delete(MeasureChange).where(MeasureChange.id.in_([row.id for row in changes]))
    session.execute(added, execution_options=UNSEEN)
    return len(changes)


def _merge(sums: Sums, changes: Iterable[Iterable[Any]]) -> None:
    for name, label, le, times, seconds in chain.from_iterable(changes):
        before, took = sums.get((name, label, le), (0, 0.0))
        sums[name, label, le] = (before + times, took + seconds)


@event.listens_for(Session, "after_commit")
def _forget_failures(session: Session) -> None:
    session.info.pop(_FAILURES, None)


@event.listens_for(Session, "after_transaction_end")
def _return_failures(session: Session, transaction: SessionTransaction) -> None:
    """Count again what a transaction has taken that was not committed."""
    if transaction.parent is None:
        failures.add(session.info.pop(_FAILURES, {}))


@cache
def _adding(dialect: str) -> Any:
    new = inserting(dialect)(_table)
    sums = {name: _table.c[name] + new.excluded[name] for name in ("count", "seconds")}
    return new.on_conflict_do_update(index_elements=["name", "label", "le"], set_=sums)
