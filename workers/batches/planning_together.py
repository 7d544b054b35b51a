"""Planning small inputs together: what one doorbell names is read first, then claimed and planned in one transaction.

    doorbell ─▶ read, check and cut each, in memory ─▶ claim and plan all that are free: one transaction
                    └─ larger, or not the first try, or out of the ordinary ─▶ one at a time, see
                    `workers.lifecycle`

No claim is held meanwhile: so little is read sooner than a claim is written. Two that read the same meet at the claim,
and of one who dies nothing is left but doorbells that will be rung again.
"""

import logging
from collections.abc import Mapping, Sequence

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from jobs.batches import batches
from jobs.errors import DatabaseBusy, NotFound, StorageAway, StorageFull
from jobs.inference import responses
from jobs.ledger import ledger
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.queues import Task
from workers.batches.planning import Planner
from workers.runtime.attempts import Abandoned
from workers.runtime.context import Context

log = logging.getLogger(__name__)

_UNTOUCHED = select(Job).where(
    Job.id.in_(bindparam("ids", expanding=True)),
    Job.state == JobState.QUEUED,
    Job.epoch == 0,
    Job.kind.in_((*batches.NAMES, responses.KIND)),
    Job.retry_of.is_(None),
)


def plan_small(context: Context, job_ids: Sequence[str]) -> list[str]:
    """Plan those of the jobs that are small, all or none; return the ids of the others."""
    drafts = {} if context.low_on_disk() else _drafts(context, job_ids)
    if drafts and not _planned(context, drafts):
        return list(job_ids)
    return [job_id for job_id in job_ids if job_id not in drafts]


def _drafts(context: Context, job_ids: Sequence[str]) -> dict[str, Planner]:
    """The plans of those whose input is small, by job; in order of their ids, as rows are locked."""
    with context.db.read() as session:
        jobs = session.scalars(_UNTOUCHED, {"ids": job_ids}).all()
    places: dict[tuple[str, str, str], str] = {}
    planners = {job.id: Planner(context, ledger.JobClaim(job, 0, ""), places=places) for job in jobs}
    return {job_id: planners[job_id] for job_id in sorted(planners) if _drafted(planners[job_id])}


def _drafted(planner: Planner) -> bool:
    """What goes wrong goes wrong again where it is planned alone, and is dealt with there."""
    try:
        return planner.draft()
    except (Abandoned, NotFound, StorageAway, StorageFull):
        return False
    except Exception:
        log.exception("draft_failed", extra={"job_id": planner.claim.job.id})
        return False


def _planned(context: Context, drafts: Mapping[str, Planner]) -> bool:
    """False: one of them cannot be planned, and nothing was written. One at a time, the others can."""
    try:
        context.db.retrying(lambda session: _plan(session, drafts, context.worker_id), context.stop)
    except DatabaseBusy:
        raise
    except Exception:
        log.exception("planning_together_failed", extra={"jobs": len(drafts)})
        return False
    return True


def _plan(session: Session, drafts: Mapping[str, Planner], worker_id: str) -> None:
    """Run twice, it finds nothing to claim. Rows of jobs are locked by their ids, then those of projects by theirs."""
    claims = [ledger.claim(session, job_id, Task.PLAN, worker_id) for job_id in drafts]
    for claim in sorted(filter(None, claims), key=lambda claim: claim.job.project_id):
        if claim.epoch == 1:
            drafts[claim.job.id].conclude(session, claim)
        else:  # somebody has planned it in part, since it was read
            ledger.put_back(session, claim.job.id, claim.epoch)
