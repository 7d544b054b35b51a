"""Results of an ingestion: versions of files come into view with the segment that counts them, in one transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy.orm import Session

from jobs.errors import Fenced
from jobs.ledger import ledger, shards
from jobs.ledger.ledger import JobClaim
from jobs.ledger.payloads import index_of
from jobs.ledger.shards import ShardClaim, Tally
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job, Segment
from jobs.retrieval import attachments, indexes, source_items
from jobs.retrieval.attachments import Made, Settled


def commit(
    session: Session, claim: ShardClaim, seq: int, made: Sequence[Made], tally: Tally, dimensions: int, *, last: bool
) -> None:
    """Publish, count, tell; with `last` the shard is done. Run twice it counts once. Raises Fenced.

    `tally` brings the tokens; the lines are added here, since a file may have been removed from its store meanwhile.
    """
    job = ledger.lock(session, claim.job.id)
    if job is None:
        raise Fenced
    if session.get(Segment, (claim.job.id, claim.n, claim.epoch, seq)) is not None:
        return  # the first commit's answer was lost
    store = indexes.keep(session, index_of(job.payload))
    settled = attachments.publish(session, store, made) if store else Settled(gone=list(made))
    counted = _count(tally, settled)
    if counted.covered:
        shards.commit(session, claim, seq, "", 0, counted, last=last)
    elif last:
        shards.finish_empty(session, claim)
    if store is not None:
        source_items.replace(session, store, settled.completed)
        _tell(session, job, settled)
    else:
        attachments.left_behind(session, job, dimensions)
    if last:
        ledger.settle(session, job.id, actor=f"worker:{claim.worker_id}")


def _count(tally: Tally, settled: Settled) -> Tally:
    counted = replace(tally, covered=0, good=0, outcomes={})
    for one in settled.completed:
        counted.covered |= 1 << one.line
        counted.good |= 1 << one.line
    for one in settled.failed + settled.gone:
        counted.covered |= 1 << one.line
        name = f"error:{one.error[0] if one.error else 'removed'}"
        counted.outcomes[name] = counted.outcomes.get(name, 0) + 1
    return counted


def _tell(session: Session, job: Job, settled: Settled) -> None:
    for kind, made in (("completed", settled.completed), ("failed", settled.failed)):
        ids = [one.file_id for one in made]
        attachments.tell(session, job, f"vector_store.file.{kind}", ids, seq=job.event_seq + 1)


def stop(session: Session, claim: JobClaim, end: JobState, errors: Sequence[Mapping[str, Any]]) -> bool:
    """Before a job comes to an `end` that leaves files: some of them end as it will. Whether there may be more.

    Raises Fenced. Who comes after a death finds those that are left.
    """
    ledger.hold(session, claim)
    job = ledger.lock(session, claim.job.id)
    assert job is not None
    most = attachments.STOPPED_AT_ONCE
    return attachments.stop(session, job, end, errors, seq=job.event_seq + 1, limit=most) == most
