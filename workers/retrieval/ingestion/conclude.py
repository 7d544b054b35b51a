"""The end of an ingestion: its counts, then the vector database is put in order."""

import logging
from collections import Counter

from sqlalchemy import select

from jobs.ledger import ledger
from jobs.ledger.ledger import JobClaim
from jobs.ledger.states import CLOSING, JobState
from jobs.ledger.tables import Job, Segment
from jobs.retrieval.indexes import index_of
from jobs.retrieval.tables import VectorStore
from workers.runtime.attempts import stop_all
from workers.runtime.context import Context
from workers.runtime.heartbeat import Hold
from workers.vectors.base import VectorsAway
from workers.vectors.open_vectors import store_of

log = logging.getLogger(__name__)


def conclude(context: Context, claim: JobClaim, _hold: Hold) -> None:
    """Bring the claimed job to its end. Raises Fenced."""
    job = claim.job
    if job.state != JobState.FINISHING:
        stop_all(context, claim, CLOSING[JobState(job.state)])
    with context.db.read() as session:
        values = {**ledger.sums(session, job.id), "total": job.total}
        counts = Counter[str]()
        for outcomes in session.scalars(select(Segment.outcomes).where(Segment.job_id == job.id)):
            counts.update(outcomes or {})
    context.db.retrying(lambda session: ledger.close(session, claim, values, [], counts))
    log.info("ingestion_closed", extra={"job_id": job.id, "files": job.total, **values})


def tend(context: Context, job: Job) -> None:
    """Put the vectors in order after a job's claim. It is only for speed: whatever keeps it from that is harmless."""
    with context.db.read() as session:
        store = session.get(VectorStore, index_of(job.payload))
    if store is None or not store.dimensions:
        return
    try:
        context.vectors.tend(store_of(store))
    except VectorsAway as error:
        log.warning("vectors_not_tended", extra={"store": store.id, "error": str(error)})
