"""Jobs whose key or project has ended: they are cancelled with what they have, by the leading dispatcher.

    key revoked, expired; owner deleted; project archived ──▶ claims do nothing ──▶ cancelling, with the code of why

A job that is finishing has run already, and keeps its results. The keys of a person expire with each login: the jobs
that the person made go on for as long as the person may make them. They end with a key that somebody revokes.
"""

from collections.abc import Collection
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, and_, bindparam, exists, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.ledger import ledger
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.security.keys import ENDS, HAS_EXPIRED, end_by, find_key, join_owner
from jobs.security.tables import Account, ApiKey, Project

_IS_OPEN: Final = Job.state.in_((JobState.QUEUED, JobState.RUNNING))
#: Why the jobs of a key end; null where they go on.
_END: Final = end_by(and_(HAS_EXPIRED, Account.id.is_(None)))
#: Why a key has no work done any more, by code.
REFUSALS: Final = {**ENDS, "missing_scope": "The API key, or its owner, may not do this work any more."}
#: Keys and projects whose jobs one round ends.
_OWNERS_AT_ONCE: Final = 50


def _with_jobs(owner: Any, of_job: ColumnElement[bool], ended: ColumnElement[bool]) -> Select[Any]:
    """Return the statement of the ended keys or projects that have jobs to end: each is one look into an index."""
    return select(owner.id).where(ended, exists().where(of_job, _IS_OPEN)).limit(_OWNERS_AT_ONCE)


_ENDED_KEYS: Final = join_owner(
    _with_jobs(ApiKey, Job.key_id == ApiKey.id, _END.is_not(None)).outerjoin(Project, Project.id == ApiKey.project_id)
)
_ARCHIVED: Final = _with_jobs(Project, Job.project_id == Project.id, Project.archived_at.is_not(None))
_ENDS_OF_JOBS: Final = join_owner(
    select(Job.id, _END).join(Project, Project.id == Job.project_id).outerjoin(ApiKey, ApiKey.id == Job.key_id)
).where(Job.id.in_(bindparam("its_jobs", expanding=True)), _END.is_not(None))
_END_OF_KEY: Final = join_owner(
    select(_END).select_from(ApiKey).outerjoin(Project, Project.id == ApiKey.project_id)
).where(ApiKey.id == bindparam("its_key"))


def find_ends(session: Session, job_ids: Collection[str]) -> dict[str, str]:
    """Return those of some jobs whose key or project has ended, each with the code of why."""
    return dict(session.execute(_ENDS_OF_JOBS, {"its_jobs": list(job_ids), "at": now()}).all())


def find_refusal(session: Session, key_id: str, permission: str | None) -> str | None:
    """Return the code of why a key has no work done any more that takes a permission, if one; None while it has."""
    code: str | None = session.scalar(_END_OF_KEY, {"its_key": key_id, "at": now()})
    if code is None and permission is not None:
        key = find_key(session, key_id)
        return None if key is not None and permission in key.permissions else "missing_scope"
    return code


def jobs_to_end(session: Session, limit: int) -> list[str]:
    """Return some queued and running jobs whose key or project has ended."""
    jobs: list[str] = []
    for owners, column in ((_ENDED_KEYS, Job.key_id), (_ARCHIVED, Job.project_id)):
        ids = session.scalars(owners, {"at": now()}).all()
        if ids:
            jobs += session.scalars(select(Job.id).where(column.in_(ids), _IS_OPEN).limit(limit))
    return list(dict.fromkeys(jobs))[:limit]  # an archived project ends its keys too


def end_job(session: Session, job_id: str, *, actor: str) -> bool:
    """Cancel a job whose key or project has ended; return whether that was so and the job was not ending by itself."""
    job = ledger.lock(session, job_id)
    code = find_ends(session, [job_id]).get(job_id)
    if job is None or code is None or job.state not in (JobState.QUEUED, JobState.RUNNING):
        return False
    ledger.cancel(
        session, job_id, actor=actor, error={"code": code, "message": ENDS[code], "line": None, "param": None}
    )
    return True
