"""What a retry goes by: the last job before it that ran, as long as it is known what became of its lines.

Retention takes the first shard of a job before all else of it: without that one, what is left is only a part.
"""

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from jobs.ledger.states import JobState
from jobs.ledger.tables import Job, Shard

EXPIRED = "results_expired"


def last_run(session: Session, job_id: str) -> Job | None:
    """That job, or if it never ran, the one that it was to run again. None: no line was ever run."""
    job = session.get(Job, job_id)
    while job is not None and job.in_progress_at is None:
        job = session.get(Job, job.retry_of) if job.retry_of else None
    return job


def known(session: Session, job: Job) -> bool:
    """Whether it can be told what failed or is missing, of one that ran. Ask it after what it is to hold for."""
    if job.state == JobState.FAILED and job.retry_of is None:
        return True  # all of its input file is
    return bool(session.scalar(select(exists().where(Shard.job_id == job.id, Shard.n == 0))))


def expired(job: Job) -> str:
    return f"What became of the lines of job '{job.id}' is kept no longer. Submit its input as a new batch."
