"""Plan and finish the job of an ingestion. `parse` and `index` run its shards.

The rows of its files are cut into shards of a few files each. Planning a sync writes these rows first, see
`workers.retrieval.sources.syncing`. Finishing counts the results, and maintains the vector database.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.db.engine import WRITE_ROWS
from jobs.files.tables import File
from jobs.fleet import access, routing
from jobs.fleet.models_file import ModelsFileError
from jobs.ledger import ledger, shards
from jobs.ledger.ledger import JobClaim
from jobs.ledger.states import CLOSING, JobState
from jobs.ledger.tables import Job, Segment, Shard
from jobs.queues import Queue
from jobs.requests.endpoints import EMBEDDINGS
from jobs.retrieval import reindexing
from jobs.retrieval.indexes import index_of
from jobs.retrieval.tables import VectorStore, VectorStoreFile
from workers.retrieval.sources.syncing import gather
from workers.runtime.attempts import Abandoned, stop_all
from workers.runtime.context import Context
from workers.runtime.heartbeat import ClaimHandle
from workers.vectors.base import VectorsUnavailable
from workers.vectors.open_vectors import store_of

log = logging.getLogger(__name__)
MAX_SHARD_FILES: Final = 32
_SHARDS_AT_ONCE = 50


def plan(context: Context, claim: JobClaim, handle: ClaimHandle) -> None:
    """Cut the job into shards and run it.

    Raises: ClaimLost, Abandoned.
    """
    job = claim.job
    if claim.epoch > 1:  # an earlier attempt may have cut it already
        _remove_cuts(context, claim)
    try:
        model, queue = _resolve_model(context, claim)
    except routing.NotServed as refusal:
        error = {"code": refusal.code, "message": str(refusal), "line": None, "param": "embedding_model"}
        stop_all(context, claim, JobState.FAILED, [error])
        context.db.retrying(lambda session: ledger.reject(session, claim, [error]), context.stop)
        return
    except (routing.NotYet, ModelsFileError):
        raise Abandoned(5.0, "model") from None
    total = gather(context, claim, handle) if "source_id" in job.payload else job.total
    if total is None:
        return
    cuts = list(_cuts(context, job.id, total))
    last = max(0, len(cuts) - 1) // _SHARDS_AT_ONCE * _SHARDS_AT_ONCE
    for start in range(0, last, _SHARDS_AT_ONCE):
        if handle.ended:
            raise Abandoned
        batch = cuts[start : start + _SHARDS_AT_ONCE]
        context.db.retrying(partial(_cut, claim=claim, cuts=batch), context.stop)
        context.db.breathe(context.stop)

    def planned(session: Session) -> None:
        _begin_run(session, claim, cuts[last:], total=total, model=model, queue=queue)

    context.db.retrying(planned, context.stop)


def _begin_run(session: Session, claim: JobClaim, cuts: list[tuple[int, int, int]], **columns: Any) -> None:
    """Run the job; also attach files of a source to the store's other indexes."""
    _cut(session, claim, cuts)
    if source_id := claim.job.payload.get("source_id"):
        reindexing.alongside(session, claim.job, source_id, actor=f"source:{source_id}")
    ledger.begin_running(session, claim, **columns)


def _resolve_model(context: Context, claim: JobClaim) -> tuple[str, str]:
    """Return the store's model and its queue. For a deleted store the answer does not matter: nothing is made."""
    job = claim.job
    with context.db.read() as session:
        store = session.get(VectorStore, index_of(job.payload))
        if store is None:
            return "", Queue.EMBED
        registry, config = context.models.now(), context.config
        work = access.work_of(job, store.model, EMBEDDINGS)
        return store.model, access.resolve(session, config, registry, work).queue


def _cuts(context: Context, job_id: str, total: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, first line and number of lines of each shard.

    A file of unknown size (removed already) counts as empty.
    """
    with context.db.read() as session:
        sizes = dict(
            session.execute(
                select(VectorStoreFile.line, File.bytes)
                .join(File, File.id == VectorStoreFile.id)
                .where(VectorStoreFile.job_id == job_id)
            ).all()
        )
    n, first, held = 0, 0, 0
    for line in range(total):
        size = int(sizes.get(line, 0))
        full = line - first >= MAX_SHARD_FILES or held + size > shards.MAX_BYTES
        if line > first and full:
            yield n, first, line - first
            n, first, held = n + 1, line, 0
        held += size
    if total > first:
        yield n, first, total - first


def _cut(session: Session, claim: JobClaim, cuts: list[tuple[int, int, int]]) -> None:
    rows = [
        Shard(job_id=claim.job.id, n=n, first_line=first, lines=lines, offset=0, length=0, queue=Queue.INGEST)
        for n, first, lines in cuts
    ]
    shards.cut(session, claim, Queue.INGEST, rows)


def _remove_cuts(context: Context, claim: JobClaim) -> None:
    while context.db.retrying(lambda session: shards.uncut(session, claim, WRITE_ROWS), context.stop):
        context.db.breathe(context.stop)


# ── the end ──


def conclude(context: Context, claim: JobClaim, _handle: ClaimHandle) -> None:
    """End the claimed job.

    Raises: ClaimLost.
    """
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
    """Maintain the store's vectors after a job. It only improves speed, so errors are logged and ignored."""
    with context.db.read() as session:
        store = session.get(VectorStore, index_of(job.payload))
    if store is None or not store.dimensions:
        return
    try:
        context.vectors.tend(store_of(store))
    except VectorsUnavailable as error:
        log.warning("vectors_not_tended", extra={"store": store.id, "error": str(error)})
