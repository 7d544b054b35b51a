"""Shards of a running job: claimed, committed segment by segment, released or revoked.

    pending ──claim──▶ running ──last segment──▶ done
       ▲                  │
       ├─ release, revoke ┤              the next attempt runs only the lines that no segment covers
       └─ requeue ────────┘              what is left of it is for the workers of another queue

Every write carries the claim's epoch. A segment's file is durable before its row; the row and the shard's sums
are one transaction. `stalls` counts claims lost without any commit: past a limit the shard is run one line at a
time, with `isolated_line` committed first, so that the line that kills its worker is known.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import ColumnElement, Executable, and_, delete, exists, literal_column, or_, select, update
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.base import row_of
from jobs.db.engine import execute_and_count
from jobs.errors import ClaimLost
from jobs.ledger import kinds, ledger, measures, outbox, pauses, statements
from jobs.ledger.kinds import SegmentUsage
from jobs.ledger.states import JobState, ShardState
from jobs.ledger.tables import Job, Outbox, Shard
from jobs.queues import Task

#: The maximum size of a shard; a line that is larger has a shard of its own.
MAX_BYTES: Final = 4 << 20
#: A running shard. The state is a literal: with a parameter SQLite can't use the partial index.
IS_RUNNING = Shard.state == literal_column("'running'")


@dataclass(frozen=True, slots=True)
class ShardClaim:
    """The right to answer the lines of a shard that are not `covered` yet (a bitmap, bit 0 first)."""

    job: Job
    n: int
    epoch: int
    worker_id: str
    first_line: int
    lines: int
    offset: int
    length: int
    stalls: int
    isolated_line: int | None
    isolated_attempts: int
    faults: dict[int, list[int]]  # as `workers.runtime.output_lines.FailureHistory` keeps them
    covered: int
    queue: str | None = None  # where it is run for now, if not in its job's queue


@dataclass(slots=True)
class Tally:
    """The results of one segment: lines covered, good and cut off (bitmaps as ints), tokens, lines by outcome."""

    covered: int = 0
    good: int = 0
    cut_off: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    took: list[float] = field(default_factory=list)  # seconds in the engine, of each line that it answered
    requests: int = 0  # lines that the engine was asked for, or that the cache or another line answered
    from_cache: Counter[str] = field(default_factory=Counter)  # requests and tokens of answers from the cache

    @property
    def done(self) -> int:
        return self.covered.bit_count()

    @property
    def failed(self) -> int:
        return (self.covered & ~self.good).bit_count()

    def tokens(self) -> dict[str, int]:
        return {
            "input_tokens": self.input_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "reasoning_tokens": self.reasoning_tokens,
        }


def segment_path(job_id: str, n: int, epoch: int, seq: int) -> str:
    return f"jobs/{job_id}/{n:06d}-{epoch}-{seq}.jsonl"  # each folder to be made costs a sync


def cut(session: Session, claim: ledger.JobClaim, queue: str, shards: Sequence[Shard]) -> None:
    """Add planned shards and their messages, which are not published until the job runs. Raises ClaimLost.

    Run twice it adds them once: `uncut` has removed what an earlier planning left.
    """
    ledger.assert_claim(session, claim)
    if not shards or _exists(session, statements.SHARD_IS_THERE, its_job=claim.job.id, its_n=shards[0].n):
        return  # the first commit's answer was lost
    session.connection().execute(statements.ADD_SHARD, list(map(row_of, shards)))
    outbox.enqueue(session, claim.job, Task.RUN, queue, (shard.n for shard in shards))


def uncut(session: Session, claim: ledger.JobClaim, limit: int) -> int:
    """Remove shards of an earlier planning whose claim was lost; return their number."""
    ledger.assert_claim(session, claim)
    old = list(session.scalars(select(Shard.n).where(Shard.job_id == claim.job.id).limit(limit)))
    if not old:
        return 0
    session.execute(delete(Shard).where(Shard.job_id == claim.job.id, Shard.n.in_(old)))
    session.execute(
        delete(Outbox).where(Outbox.job_id == claim.job.id, Outbox.task == Task.RUN, Outbox.shard_n.in_(old))
    )
    return len(old)


def claim(session: Session, job_id: str, n: int, worker_id: str, *, queue: str | None = None) -> ShardClaim | None:
    """Take a pending shard of a running job; return None when there is nothing to take (a stale message).

    `queue` must equal `Shard.queue`: a message may be older than the requeueing of the shard.
    """
    job = ledger.lock(session, job_id)
    if job is None or job.state != JobState.RUNNING or pauses.refuses(session, Task.RUN, job, n, worker_id, queue):
        return None
    outbox.remove_claimed(session, Task.RUN, job_id, n, queue or job.queue or kinds.lenient(job.kind).run_queue)
    its: dict[str, Any] = {"its_job": job_id, "its_n": n}
    values = {**its, "its_worker": worker_id, "at": now()}
    if queue is None:
        taken = session.connection().execute(statements.TAKE_SHARD, values)
    else:
        taken = session.connection().execute(statements.TAKE_SHARD_THERE, {**values, "its_queue": queue})
    shard = taken.first()
    if shard is None:
        return None
    if n == 0 and shard.epoch == 1:  # the first message of its job, and the first claim
        measures.observe_wait(session, job)
    if job.waiting_for not in (None, "model"):  # only an answer shows that the model is there
        ledger.wait_for(session, job_id, None)
    return ShardClaim(
        job=job,
        n=n,
        epoch=shard.epoch,
        worker_id=worker_id,
        first_line=shard.first_line,
        lines=shard.lines,
        offset=shard.offset,
        length=shard.length,
        stalls=shard.stalls,
        isolated_line=shard.isolated_line,
        isolated_attempts=shard.isolated_attempts,
        faults={int(line): times for line, times in (shard.faults or {}).items()},
        covered=covered_lines(session, job_id, n),
        queue=shard.queue,
    )


def covered_lines(session: Session, job_id: str, n: int) -> int:
    """Return the lines of a shard that a segment covers, as a bitmap."""
    lines = 0
    for (bitmap,) in session.connection().execute(statements.COVERED, {"its_job": job_id, "its_n": n}):
        lines |= int.from_bytes(bitmap, "little")
    return lines


def outcomes(session: Session, job_id: str, n: int) -> Counter[str]:
    """Return how many lines of a shard have each outcome, by its segments."""
    counts = Counter[str]()
    for (counted,) in session.connection().execute(statements.OUTCOMES, {"its_job": job_id, "its_n": n}):
        counts.update(counted or {})
    return counts


def commit(
    session: Session, claim: ShardClaim, seq: int, path: str, length: int, tally: Tally, *, last: bool
) -> Job | None:
    """Add a segment and its sums; with `last` the shard is done and its job, returned, is locked. Raises ClaimLost.

    Run twice it counts once.
    """
    job = ledger.lock(session, claim.job.id) if last else None  # of two last shards one sees the other end
    its = {"its_job": claim.job.id, "its_n": claim.n, "its_epoch": claim.epoch}
    waits = (job or claim.job).waiting_for is not None
    if tally.covered and (seq or waits):  # noted before this claim, or during it
        session.connection().execute(statements.ANSWERED, {"its_job": claim.job.id})
    if _exists(session, statements.SEGMENT_IS_THERE, **its, its_seq=seq):
        return job  # the first commit's answer was lost
    counts = {"done": tally.done, "failed": tally.failed, **tally.tokens()}
    more = {f"its_{name}": count for name, count in counts.items()}
    ending = {}
    if last:
        earlier = outcomes(session, claim.job.id, claim.n) if seq or claim.covered else Counter[str]()
        ending = _end_values(earlier + Counter(tally.outcomes))
    if not statements.changes_one(session, statements.COUNT, {**its, **more, **ending}):
        raise ClaimLost
    size = (claim.lines + 7) // 8
    at = now()
    segment = {
        "job_id": claim.job.id,
        "n": claim.n,
        "epoch": claim.epoch,
        "seq": seq,
        "path": path,
        "length": length,
        "covered": tally.covered.to_bytes(size, "little"),
        "good": tally.good.to_bytes(size, "little"),
        "cut_off": tally.cut_off.to_bytes(size, "little"),
        "outcomes": tally.outcomes,
        "created_at": at,
        **counts,
    }
    session.connection().execute(statements.ADD_SEGMENT, segment)
    measures.observe_all(session, measures.ENGINE, claim.job.model or "", tally.took)
    if record_segment := kinds.lenient(claim.job.kind).record_segment:
        whole = {"requests": tally.requests, **tally.tokens()}
        record_segment(session, claim.job, SegmentUsage(at, whole, tally.from_cache))
    return job


def finish_empty(session: Session, claim: ShardClaim) -> Job | None:
    """End a shard whose lines were all covered by earlier attempts. Run twice it ends once. Raises ClaimLost."""
    job = ledger.lock(session, claim.job.id)
    done = _end_values(outcomes(session, claim.job.id, claim.n))
    if execute_and_count(session, update(Shard).where(_claim_filter(claim)).values(done)) == 1:
        return job
    shard = session.get(Shard, (claim.job.id, claim.n))
    if shard is None or (shard.state, shard.epoch) != (ShardState.DONE, claim.epoch):
        raise ClaimLost
    return job


def record_isolated_attempt(session: Session, claim: ShardClaim, line: int) -> None:
    """Note which line is tried in isolation, and how often it was, before it is run. Raises ClaimLost."""
    times = claim.isolated_attempts + 1 if line == claim.isolated_line else 1
    attempt = update(Shard).where(_claim_filter(claim)).values(isolated_line=line, isolated_attempts=times)
    if execute_and_count(session, attempt) != 1:
        raise ClaimLost


def note_progress(session: Session, claim: ShardClaim) -> None:
    """Note that a claim has advanced its shard without a segment: losing it is not a stall. Raises ClaimLost."""
    progress = update(Shard).where(_claim_filter(claim)).values(progressed=True, stalls=0)
    if execute_and_count(session, progress) != 1:
        raise ClaimLost


def heartbeat(session: Session, claims: Sequence[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Increment the heartbeat of each (job, n, epoch); return those that are no longer held."""
    lost = []
    for job_id, n, epoch in sorted(claims):
        held = {"its_job": job_id, "its_n": n, "its_epoch": epoch}
        if not statements.changes_one(session, statements.HEARTBEAT_SHARD, held):
            lost.append((job_id, n, epoch))
    return lost


def release(session: Session, claim: ShardClaim, *, delay: float = 0.0, waiting_for: str | None = None) -> None:
    """End a claim by its holder: nothing counts against the shard. Do nothing when the claim was lost.

    Nor does an attempt of an isolated line count: only a line that kills its worker does not come here.
    """
    ledger.lock(session, claim.job.id)
    session.execute(
        update(Shard).where(_claim_filter(claim)).values(faults={str(n): k for n, k in claim.faults.items()})
    )
    said_so = or_(
        Shard.isolated_line.is_distinct_from(claim.isolated_line), Shard.isolated_attempts != claim.isolated_attempts
    )
    tried = update(Shard).where(_claim_filter(claim), said_so, Shard.isolated_attempts > 0)
    session.execute(tried.values(isolated_attempts=Shard.isolated_attempts - 1))
    freed = _free(session, claim.job.id, claim.n, claim.epoch, stalled=False, delay=delay)
    if freed and waiting_for is not None:
        ledger.wait_for(session, claim.job.id, waiting_for)
    ledger.advance_job(session, claim.job.id, actor=f"worker:{claim.worker_id}")


def requeue_to_job_queue(session: Session, claim: ShardClaim) -> None:
    """Hand a shard on to the queue of its job, when the part of this queue is done. Raises ClaimLost.

    Run twice it is handed on once.
    """
    job = ledger.lock(session, claim.job.id)
    onward = {"state": ShardState.PENDING, "epoch": Shard.epoch + 1, "worker_id": None, "queue": None}
    onward |= {"stalls": 0, "isolated_line": None, "isolated_attempts": 0}
    requeued = update(Shard).where(_claim_filter(claim)).values(onward)
    if execute_and_count(session, requeued) == 1 and job is not None:
        if job.state == JobState.RUNNING:
            outbox.enqueue(session, job, Task.RUN, job.queue or kinds.lenient(job.kind).run_queue, (claim.n,))
        return ledger.advance_job(session, claim.job.id, actor=f"worker:{claim.worker_id}")
    shard = session.get(Shard, (claim.job.id, claim.n))
    if shard is None or shard.queue is not None:
        raise ClaimLost
    return None


def revoke_lease(session: Session, job_id: str, n: int, epoch: int, heartbeat: int) -> bool:
    """Revoke a claim whose heartbeat stood still at `heartbeat` for a lease; return False if it moved after all."""
    ledger.lock(session, job_id)
    still = select(Shard).where(
        Shard.job_id == job_id, Shard.n == n, Shard.epoch == epoch, Shard.heartbeat == heartbeat
    )
    shard = session.scalar(still.with_for_update())
    if shard is None or not _free(session, job_id, n, epoch, stalled=not shard.progressed, delay=0.0):
        return False
    session.execute(update(Job).where(Job.id == job_id).values(lost_leases=Job.lost_leases + 1))
    ledger.advance_job(session, job_id, actor="dispatcher")
    return True


def revoke_running(session: Session, job_id: str) -> None:
    """Revoke the claims on the running shards of a job that is stopping: their later writes change nothing."""
    ledger.lock(session, job_id)
    running = select(Shard.n, Shard.epoch).where(Shard.job_id == job_id, Shard.state == ShardState.RUNNING)
    for n, epoch in session.execute(running.order_by(Shard.n)).all():
        _free(session, job_id, n, epoch, stalled=False, delay=0.0)
    ledger.advance_job(session, job_id, actor="dispatcher")


def stopping(session: Session) -> Sequence[str]:
    """Return jobs that are to end and of which shards still run."""
    states = (JobState.CANCELLING, JobState.EXPIRING)
    jobs = select(Shard.job_id).join(Job, Job.id == Shard.job_id).where(IS_RUNNING, Job.state.in_(states))
    return session.scalars(jobs.distinct()).all()


def is_message_missing(session: Session) -> bool:
    """Return whether a pending shard lacks its message. The query takes long, so it locks nothing."""
    return session.execute(_WITHOUT_MESSAGE.limit(1)).first() is not None


def restore_messages(session: Session, limit: int = 200) -> int:
    """Enqueue the message of each pending shard of a running job that lacks it; return their number."""
    lost = session.execute(_WITHOUT_MESSAGE.limit(limit)).all()
    for job, n, queue in lost:
        outbox.enqueue(session, job, Task.RUN, queue or job.queue or kinds.lenient(job.kind).run_queue, (n,))
    return len(lost)


def running(session: Session) -> list[tuple[str, int, int, int, str]]:
    """Return the claims on shards: job, n, epoch, heartbeat, worker."""
    columns = (Shard.job_id, Shard.n, Shard.epoch, Shard.heartbeat, Shard.worker_id)
    statement = select(*columns).where(IS_RUNNING, Shard.worker_id.is_not(None)).order_by(Shard.job_id, Shard.n)
    return [
        (job_id, n, epoch, heartbeat, worker or "")
        for job_id, n, epoch, heartbeat, worker in session.execute(statement)
    ]


_WITHOUT_MESSAGE = (
    select(Job, Shard.n, Shard.queue)
    .join(Shard, Shard.job_id == Job.id)
    .where(
        Job.state == JobState.RUNNING,
        Shard.state == ShardState.PENDING,
        ~exists().where(Outbox.job_id == Shard.job_id, Outbox.shard_n == Shard.n, Outbox.task == Task.RUN),
    )
)


def _free(session: Session, job_id: str, n: int, epoch: int, *, stalled: bool, delay: float) -> bool:
    claim_filter = and_(Shard.job_id == job_id, Shard.n == n, Shard.epoch == epoch, Shard.state == ShardState.RUNNING)
    freed = (
        update(Shard)
        .where(claim_filter)
        .values(
            state=ShardState.PENDING,
            epoch=Shard.epoch + 1,
            worker_id=None,
            stalls=Shard.stalls + (1 if stalled else 0),
        )
    )
    if execute_and_count(session, freed) != 1:
        return False
    job = session.get_one(Job, job_id)
    if job.state == JobState.RUNNING:
        queue = session.scalar(select(Shard.queue).where(Shard.job_id == job_id, Shard.n == n))
        outbox.enqueue(session, job, Task.RUN, queue or job.queue or kinds.lenient(job.kind).run_queue, (n,), delay)
    return True


def _end_values(counts: Mapping[str, int]) -> dict[str, Any]:
    return {"state": ShardState.DONE, "worker_id": None, "finished_at": now(), "outcomes": dict(counts)}


def _exists(session: Session, statement: Executable, **its: Any) -> bool:
    return session.connection().execute(statement, its).first() is not None


def _claim_filter(claim: ShardClaim) -> ColumnElement[bool]:
    return and_(
        Shard.job_id == claim.job.id,
        Shard.n == claim.n,
        Shard.epoch == claim.epoch,
        Shard.state == ShardState.RUNNING,
    )
