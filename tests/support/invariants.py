"""What is true of the ledger after every single transaction, whoever crashed before it.

I1  nothing lost       a live job is held, or its next step is owed, or one of its shards runs
I2  complete           an ended job has every line exactly once
I3  nothing twice      segments of a shard do not overlap, and its sums are theirs; one event per move
I5  monotone           states only follow the arrows; `History` watches that nothing ended changes
I6  no zombie          no segment is of an epoch that the shard has not reached
I7  audited            one row per move, each an arrow of the table
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.models import Audit, Event, Job, Outbox, Segment, Shard
from jobs.payloads import BATCH_EVENTS
from jobs.queues import Task
from jobs.states import CLOSING, MOVES, TERMINAL, JobState, ShardState

_TOKENS = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")


def violations(session: Session) -> list[str]:
    """Everything that is not as it must be, in words."""
    return [
        f"{job.id} ({job.state}): {wrong}" for job in session.scalars(select(Job)) for wrong in _of_job(session, job)
    ]


def _of_job(session: Session, job: Job) -> Iterator[str]:
    shards = session.scalars(select(Shard).where(Shard.job_id == job.id)).all()
    owed = {(row.task, row.shard_n) for row in session.scalars(select(Outbox).where(Outbox.job_id == job.id))}
    yield from _next_step(job, shards, owed)
    for shard in shards:
        segments = session.scalars(select(Segment).where(Segment.job_id == job.id, Segment.n == shard.n)).all()
        yield from _counted_once(shard, segments)
    yield from _told(job, session.execute(select(Event.seq, Event.type).where(Event.subject_id == job.id)).all())
    yield from _audited(job, session.scalars(select(Audit).where(Audit.target == job.id).order_by(Audit.id)).all())


def _next_step(job: Job, shards: Sequence[Shard], owed: set[tuple[str, int]]) -> Iterator[str]:
    state = JobState(job.state)
    busy = job.worker_id is not None or any(shard.state == ShardState.RUNNING for shard in shards)
    if state in TERMINAL:
        if owed or busy or job.worker_id:
            yield f"ended, and yet {owed or 'held'}"
    elif state == JobState.RUNNING:
        pending = {shard.n for shard in shards if shard.state == ShardState.PENDING}
        missing = {n for n in pending if (Task.RUN, n) not in owed}
        if missing:
            yield f"shards {missing} wait and are owed to nobody"
        if not pending and not busy:
            yield "every shard is done and it still runs"
    else:
        task = Task.FINISH if state in CLOSING else Task.PLAN
        if not busy and (task, -1) not in owed:
            yield f"{task} is owed to nobody"


def _counted_once(shard: Shard, segments: Sequence[Segment]) -> Iterator[str]:
    covered = good = 0
    for segment in segments:
        lines = int.from_bytes(segment.covered, "little")
        if covered & lines:
            yield f"shard {shard.n}: lines {covered & lines:b} are there twice"
        if segment.epoch > shard.epoch:
            yield f"shard {shard.n}: a segment of epoch {segment.epoch}, which never was"
        covered |= lines
        good |= int.from_bytes(segment.good, "little")
    if (shard.done, shard.failed) != (covered.bit_count(), (covered & ~good).bit_count()):
        yield f"shard {shard.n}: says {shard.done}, {shard.failed} and has {covered:b}, {good:b}"
    everything = (1 << shard.lines) - 1
    if covered & ~everything or (shard.state == ShardState.DONE and covered != everything):
        yield f"shard {shard.n} is {shard.state} with {covered:b} of {shard.lines} lines"
    wrong = [name for name in _TOKENS if getattr(shard, name) != sum(getattr(segment, name) for segment in segments)]
    if wrong:
        yield f"shard {shard.n}: {wrong} are not the sums of its segments"


def _told(job: Job, events: Sequence[Any]) -> Iterator[str]:
    if sorted(event.seq for event in events) != list(range(1, job.event_seq + 1)):
        yield f"events {sorted(event.seq for event in events)}, and {job.event_seq} were counted"
    ends = [event.type for event in events if event.type in BATCH_EVENTS.values()]
    if ends != ([BATCH_EVENTS[job.state]] if job.state in TERMINAL else []):
        yield f"told of {ends}"


def _audited(job: Job, rows: Sequence[Audit]) -> Iterator[str]:
    path = [JobState(row.destination or "") for row in rows]
    if len(path) != job.event_seq or path[0] != JobState.QUEUED or path[-1] != job.state:
        yield f"audited {path}"
    wrong = [f"{source} -> {target}" for source, target in pairwise(path) if target not in MOVES[source]]
    if wrong:
        yield f"went {wrong}"


class History:
    """Looks at all jobs from time to time: what has ended never changes again."""

    def __init__(self) -> None:
        self._ended: dict[str, tuple[Any, ...]] = {}

    def look(self, session: Session) -> list[str]:
        ended = session.execute(select(*Job.__table__.columns).where(Job.state.in_(TERMINAL)))
        return [f"{row.id} changed" for row in ended if self._ended.setdefault(row.id, tuple(row)) != tuple(row)]
