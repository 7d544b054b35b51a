"""Check what is true of the ledger after every transaction, whoever crashed before it.

I1  nothing lost       a live job is held, or its next step is pending, or one of its shards runs
I2  complete           an ended job has every line exactly once
I3  nothing twice      segments of a shard do not overlap, and its sums are theirs; one event per move
I5  monotone           states only follow the arrows; `History` watches that nothing ended changes
I6  no zombie          no segment is of an epoch that the shard has not reached
I7  audited            one row per move, each an arrow of the table; each end is counted for the metrics
I8  in order           a job with a plan message, a claim or lines has only completed predecessors
I9  one feed           positions of a project's events count from 1 without gaps, and follow the events of each job
I10 counted once       the usage of batches is the sum of the tokens of their jobs' segments
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.batches import batches
from jobs.ledger import dependencies, measures, totals
from jobs.ledger.states import CLOSING, MOVES, TERMINAL, JobState, ShardState
from jobs.ledger.tables import Audit, Job, JobDependency, Outbox, Segment, Shard
from jobs.queues import Task
from jobs.usage import verification
from jobs.webhooks.tables import Event, EventHead

_TOKENS = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")

_UNFINISHED = {JobState.FAILED, JobState.EXPIRED, JobState.CANCELLED}

#: Columns: an object of each row would be most of the time.
_TOLD = select(Event.subject_id, Event.seq, Event.type)
_FEED = select(Event.project_id, Event.position, Event.subject_id, Event.seq).where(Event.position.is_not(None))
_AFTER = select(JobDependency.job_id, Job.id, Job.state).join(Job, Job.id == JobDependency.after_id)
_MOVED = select(Audit.target, Audit.source, Audit.destination).order_by(Audit.id)


@dataclass(frozen=True)
class _Books:
    """Read each table once, by job: a query for each job and shard would cost ten times as much."""

    shards: dict[Any, list[Shard]]
    segments: dict[Any, list[Segment]]
    messages: dict[Any, list[Outbox]]
    told: dict[Any, list[Any]]
    moves: dict[Any, list[Any]]
    predecessors: dict[Any, list[Any]]


def violations(session: Session) -> list[str]:
    """Everything that is not as it must be, in words."""
    books = _Books(
        shards=_by("job_id", session.scalars(select(Shard))),
        segments=_by("job_id", session.scalars(select(Segment))),
        messages=_by("job_id", session.scalars(select(Outbox))),
        told=_by("subject_id", session.execute(_TOLD)),
        moves=_by("target", session.execute(_MOVED)),
        predecessors=_by("job_id", session.execute(_AFTER)),
    )
    jobs = session.scalars(select(Job)).all()
    wrong = [f"{job.id} ({job.state}): {wrong}" for job in jobs for wrong in _of_job(books, job)]
    wrong += _feeds(session)
    ended = sum(job.state in TERMINAL for job in jobs)
    counted = sum(row.count for row in measures.rows(session) if row.name == measures.ENDED)
    if ended != counted:
        wrong.append(f"{ended} jobs have ended, and {counted} are counted as ended")
    if ended != (summed := totals.sums_of(session, totals.JOBS).total()):
        wrong.append(f"{ended} jobs have ended, and {summed} are in the totals")
    wrong += map(str, verification.differences(session, 0))
    return wrong


def _feeds(session: Session) -> list[str]:
    feeds, wrong = _by("project_id", session.execute(_FEED.order_by(Event.position))), list[str]()
    for head in session.scalars(select(EventHead)):
        rows = feeds[head.project_id]
        if [row.position for row in rows] != list(range(1, head.position + 1)):
            wrong.append(f"the feed has {[row.position for row in rows]}, and {head.position} positions were given out")
        seqs = [(row.subject_id, row.seq) for row in sorted(rows, key=lambda row: (row.subject_id, row.position))]
        if seqs != sorted(seqs):
            wrong.append(f"the feed has the events of a subject in this order: {seqs}")
    return wrong


def _by(name: str, rows: Iterable[Any]) -> dict[Any, list[Any]]:
    found = defaultdict[Any, list[Any]](list)
    for row in rows:
        found[getattr(row, name)].append(row)
    return found


def _of_job(books: _Books, job: Job) -> Iterator[str]:
    shards = books.shards[job.id]
    yield from _next_step(job, shards, {(row.task, row.shard_n) for row in books.messages[job.id]})
    for shard in shards:
        yield from _counted_once(shard, [segment for segment in books.segments[job.id] if segment.n == shard.n])
    yield from _told(job, books.told[job.id])
    yield from _audited(job, books.moves[job.id])
    yield from _in_order(job, shards, books.predecessors[job.id], bool(books.messages[job.id]))


def _next_step(job: Job, shards: Sequence[Shard], messages: set[tuple[str, int]]) -> Iterator[str]:
    state = JobState(job.state)
    busy = job.worker_id is not None or any(shard.state == ShardState.RUNNING for shard in shards)
    if state in TERMINAL:
        if messages or busy or job.worker_id:
            yield f"ended, and yet {messages or 'held'}"
    elif state == JobState.RUNNING:
        pending = {shard.n for shard in shards if shard.state == ShardState.PENDING}
        missing = {n for n in pending if (Task.RUN, n) not in messages}
        if missing:
            yield f"shards {missing} wait without a message"
        if not pending and not busy:
            yield "every shard is done and it still runs"
    else:
        task = Task.FINISH if state in CLOSING else Task.PLAN
        if not busy and job.waiting_for != dependencies.WAITING and (task, -1) not in messages:
            yield f"{task} has no message"


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
    ends = [event.type for event in events if event.type in batches.EVENTS.values()]
    if ends != ([batches.EVENTS[job.state]] if job.state in TERMINAL else []):
        yield f"told of {ends}"


def _audited(job: Job, rows: Sequence[Audit]) -> Iterator[str]:
    path = [JobState(row.destination or "") for row in rows]
    if len(path) != job.event_seq or path[0] != JobState.QUEUED or path[-1] != job.state:
        yield f"audited {path}"
    wrong = [f"{source} -> {target}" for source, target in pairwise(path) if target not in MOVES[source]]
    if wrong:
        yield f"went {wrong}"


def _in_order(job: Job, shards: Sequence[Shard], predecessors: Sequence[Any], messages: bool) -> Iterator[str]:
    queued = job.state == JobState.QUEUED
    waits = job.waiting_for == dependencies.WAITING
    begun = job.state in (JobState.RUNNING, JobState.FINISHING, JobState.SUCCEEDED) or shards
    open_ones = [row.id for row in predecessors if row.state != JobState.SUCCEEDED]
    if open_ones and (begun or (queued and (messages or job.worker_id or not waits))):
        yield f"begun, and yet {open_ones} have not completed"
    failed = (job.errors or [{}])[0].get("code") == "dependency_failed"
    if failed and (shards or job.state != JobState.FAILED or not {row.state for row in predecessors} & _UNFINISHED):
        yield "failed for a job that it waited for, and yet it ran, or all of those completed"
    if waits and (not queued or messages or job.worker_id):
        yield f"waits for other jobs, and yet {'a message is pending' if messages else 'it is claimed, or has moved'}"


class History:
    """Looks at all jobs from time to time: what has ended never changes again."""

    def __init__(self) -> None:
        self._ended: dict[str, tuple[Any, ...]] = {}

    def look(self, session: Session) -> list[str]:
        ended = session.execute(select(*Job.__table__.columns).where(Job.state.in_(TERMINAL)))
        return [f"{row.id} changed" for row in ended if self._ended.setdefault(row.id, tuple(row)) != tuple(row)]
