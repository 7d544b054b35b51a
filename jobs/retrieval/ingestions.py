"""Submit jobs that add files to a vector store, and publish their results.

A client attaches files, a verification repairs missing ones, a source adds its documents. A client's files are added to
each of the store's indexes, by one job for each; the client's own job fills the index in use.

Versions of files become visible with the segment that counts them, in one transaction.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.errors import ClaimLost, NotFound
from jobs.ids import new_id
from jobs.ledger import kinds, ledger, shards
from jobs.ledger.kinds import Payload
from jobs.ledger.shards import ShardClaim, Tally
from jobs.ledger.tables import Job, Segment
from jobs.retrieval import attachments, indexes, source_items
from jobs.retrieval.attachments import Attachment, Made, Settled
from jobs.retrieval.indexes import index_of
from jobs.retrieval.tables import VectorStore

# ── the kind ──

NAME: Final = "ingestion"
#: Id prefixes: of jobs that clients see as file batches, and of other ingestions.
FILE_BATCH: Final = "vsfb_"
SINGLE: Final = "ing_"
EVENTS: Final[dict[str, str]] = {
    "succeeded": "vector_store.file_batch.completed",
    "failed": "vector_store.file_batch.failed",
    "expired": "vector_store.file_batch.failed",
    "cancelled": "vector_store.file_batch.cancelled",
}


class Ingestion(Payload):
    """Add files to a vector store. The rows of `vector_store_file` name the files, by line.

    `index_id` is the target index, unless that is the store's own row. No client has requested a job that is `beside`,
    and its files cause no events. With `source_id`, planning finds the files that the source has and the store lacks;
    with `again`, also those that the source failed to read before.
    """

    store_id: str
    index_id: str | None = None
    beside: bool = False
    source_id: str | None = None
    again: bool = False


# ── submitting ──


def submit(
    session: Session,
    store: VectorStore,
    files: Sequence[Attachment],
    *,
    actor: str,
    prefix: str = SINGLE,
    source_id: str | None = None,
    after: Sequence[str] = (),
    **columns: Any,
) -> Job:
    """Submit the jobs with the rows of their files, in the caller's transaction, and return the first job.

    All jobs wait for those in `after`. Planning finds the files of a source; it has one job.

    Raises: NotFound, Expired, InvalidRequest.
    """
    if indexes.lock(session, store.id) is None:
        raise NotFound(f"No vector store found with id '{store.id}'.", param="vector_store_id")
    first, *others = indexes.all_of(session, store)
    if source_id is not None:
        return begin(session, first, 0, actor=actor, id=new_id(prefix), source_id=source_id, **columns)
    job = create_ingestion(session, first, files, actor=actor, prefix=prefix, after=after, **columns)
    for other in others:
        create_ingestion(
            session, other, files, actor=actor, beside=True, after=after, key_id=job.key_id, request_id=job.request_id
        )
    return job


def create_ingestion(
    session: Session,
    index: VectorStore,
    files: Sequence[Attachment],
    *,
    actor: str,
    prefix: str = SINGLE,
    beside: bool = False,
    **columns: Any,
) -> Job:
    """Submit the job for one index."""
    job = begin(session, index, len(files), actor=actor, beside=beside, id=new_id(prefix), **columns)
    attachments.attach(session, index, job, files)
    return job


def begin(
    session: Session,
    index: VectorStore,
    total: int,
    *,
    actor: str,
    beside: bool = False,
    source_id: str | None = None,
    again: bool = False,
    after: Sequence[str] = (),
    **columns: Any,
) -> Job:
    """Submit the job; the caller writes the rows of its files."""
    index_id = index.id if index.parent_id else None
    payload = Ingestion(store_id=index.root, index_id=index_id, beside=beside, source_id=source_id, again=again)
    job = Job(
        project_id=index.project_id,
        kind=NAME,
        model=index.model,
        payload=payload.model_dump(mode="json", exclude_defaults=True),
        total=total,
        **kinds.of(NAME).times(now()),
        **columns,
    )
    return ledger.submit(session, job, actor=actor, after=after)


# ── results ──


def commit(
    session: Session, claim: ShardClaim, seq: int, made: Sequence[Made], tally: Tally, dimensions: int, *, last: bool
) -> None:
    """Publish versions, count lines and record events; with `last`, end the shard. Idempotent.

    `tally` has the tokens; the lines are counted here, since a file may have been removed from its store meanwhile.
    """
    job = ledger.lock(session, claim.job.id)
    if job is None:
        raise ClaimLost
    if session.get(Segment, (claim.job.id, claim.n, claim.epoch, seq)) is not None:
        return  # committed before; only the reply was lost
    store = indexes.keep(session, index_of(job.payload))
    settled = attachments.publish(session, store, made) if store else Settled(removed=list(made))
    counted = _count(tally, settled)
    if counted.covered:
        shards.commit(session, claim, seq, "", 0, counted, last=last)
    elif last:
        shards.finish_empty(session, claim)
    if store is not None:
        source_items.replace(session, store, settled.completed)
        _tell(session, job, settled)
    else:
        attachments.enqueue_cleanup(session, job, dimensions)
    if last:
        ledger.advance_job(session, job.id, actor=f"worker:{claim.worker_id}")


def _count(tally: Tally, settled: Settled) -> Tally:
    counted = replace(tally, covered=0, good=0, outcomes={})
    for line in settled.completed:
        counted.covered |= 1 << line.line
        counted.good |= 1 << line.line
    for line in settled.failed + settled.removed:
        counted.covered |= 1 << line.line
        name = f"error:{line.error[0] if line.error else 'removed'}"
        counted.outcomes[name] = counted.outcomes.get(name, 0) + 1
    return counted


def _tell(session: Session, job: Job, settled: Settled) -> None:
    for kind, made in (("completed", settled.completed), ("failed", settled.failed)):
        ids = [row.file_id for row in made]
        attachments.tell(session, job, f"vector_store.file.{kind}", ids, seq=job.event_seq + 1)
