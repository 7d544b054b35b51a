"""Totals: running sums over all jobs that have ended, so that no scrape of the metrics reads the jobs themselves.

    end of a job ──its transaction──▶ audit row ──sealed──▶ counted: the leading dispatcher adds the job to `total`
                                          └─ not counted yet: a reader adds the few jobs of these rows itself

The transactions that end jobs write nothing for this and wait for nobody. Each end has one row in the audit log, seals
have no gaps, and the last seal that was counted moves on in the transaction that adds to the sums: each job counts
once, whichever process dies, and also if an earlier version sealed its row.

    name          label    part
    jobs          kind     the state that they ended in
    items         model    completed, failed
    tokens        model    input, cached, output, reasoning
    outcomes      model    a word of `workers.runtime.outcomes`
    lost_leases
"""

from collections import Counter
from functools import cache
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, func, select, union_all
from sqlalchemy.orm import Session

from jobs.db.base import table_of
from jobs.db.engine import WRITE_ROWS, inserting
from jobs.ledger import audit, tables
from jobs.ledger.states import TERMINAL
from jobs.ledger.tables import Audit, AuditHead, Job, Outcome, Total

JOBS: Final = "jobs"
ITEMS: Final = "items"
TOKENS: Final = "tokens"
OUTCOMES: Final = "outcomes"
LOST_LEASES: Final = "lost_leases"

Key = tuple[str, str, str]  # name, label, part

_table = table_of(Total)
_ENDS = and_(Audit.action == "job.move", Audit.destination.in_(TERMINAL))
_COUNTED = select(func.coalesce(func.max(AuditHead.counted), 0)).where(AuditHead.id == audit.HEAD).scalar_subquery()
#: The jobs that ended and are not counted. Each part of it has an index.
_UNCOUNTED = union_all(
    select(Audit.target).where(Audit.seal > _COUNTED, _ENDS), select(Audit.target).where(Audit.seal.is_(None), _ENDS)
)
#: The columns of a job that are added up by model.
_SUMMED: Final = {
    (ITEMS, "completed"): Job.completed,
    (ITEMS, "failed"): Job.failed,
    **{(TOKENS, name.removesuffix("_tokens")): getattr(Job, name) for name in tables.TOKENS},
}


def is_counted() -> ColumnElement[bool]:
    """Return the condition that a job which has ended is in the sums."""
    return Job.id.not_in(_UNCOUNTED)


def sums_of(session: Session, name: str) -> Counter[tuple[str, str]]:
    """Return the sums of a name over all jobs that have ended, by label and part.

    What a transaction counts meanwhile is in neither or in both of what is read here, unless the session sees one
    snapshot of the database.
    """
    rows = session.execute(select(Total.label, Total.part, Total.count).where(Total.name == name))
    sums = Counter({(label, part): count for label, part, count in rows})
    for (later, label, part), count in _sums(session, Job.id.in_(_UNCOUNTED)).items():
        if later == name:
            sums[label, part] += count
    return sums


def has_uncounted(session: Session) -> bool:
    """Return whether a sealed row of the audit log was not looked at."""
    return session.scalar(select(Audit.id).where(Audit.seal > _COUNTED).limit(1)) is not None


def count(session: Session, limit: int = WRITE_ROWS) -> int:
    """Add the jobs whose ends are among the next `limit` sealed rows to the sums; return the number of these rows."""
    head = audit.lock_head(session)
    following = select(Audit.seal, Audit.action, Audit.destination, Audit.target).where(
        Audit.seal > (head.counted or 0)
    )
    rows = session.execute(following.order_by(Audit.seal).limit(limit)).all()
    if not rows:
        return 0
    ends = [row.target for row in rows if row.action == "job.move" and row.destination in TERMINAL]
    _add(session, _sums(session, Job.id.in_(ends)))
    head.counted = rows[-1].seal
    return len(rows)


def _sums(session: Session, which: ColumnElement[bool]) -> Counter[Key]:
    sums = Counter[Key]()
    columns = (Job.kind, Job.state, Job.model, Job.lost_leases, *_SUMMED.values())
    for kind, state, model, lost, *values in session.execute(select(*columns).where(which)):
        sums[JOBS, kind, state] += 1
        sums[LOST_LEASES, "", ""] += lost
        for (name, part), value in zip(_SUMMED, values, strict=True):
            sums[name, model or "", part] += value
    outcomes = select(Job.model, Outcome.name, Outcome.count).join(Outcome, Outcome.job_id == Job.id).where(which)
    for model, name, times in session.execute(outcomes):
        sums[OUTCOMES, model or "", name] += times
    return sums


def _add(session: Session, sums: Counter[Key]) -> None:
    rows = [
        {"name": name, "label": label, "part": part, "count": times}
        for (name, label, part), times in sorted(sums.items())
    ]
    if rows:
        connection = session.connection()
        connection.execute(_adding(connection.dialect.name), rows)


@cache
def _adding(dialect: str) -> Any:
    insert = inserting(dialect)(_table)
    more = {"count": _table.c.count + insert.excluded["count"]}
    return insert.on_conflict_do_update(index_elements=["name", "label", "part"], set_=more)
