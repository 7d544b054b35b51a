"""Jobs at any point of their life, in one line of a test."""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.db.engine import Database
from jobs.errors import ClaimLost, Conflict, DatabaseBusy
from jobs.fleet import quarantine
from jobs.fleet.tables import EngineDeath
from jobs.ledger import ledger, shards
from jobs.ledger.ledger import JobClaim
from jobs.ledger.shards import ShardClaim, Tally
from jobs.ledger.states import JobState
from jobs.ledger.tables import Audit, Job, Outbox, Segment, Shard
from jobs.queues import Queue, Task
from jobs.webhooks.tables import Event

FAR = 4_000_000_000.0  # a deadline that never comes
_numbers = itertools.count()


def new_job(**changes: Any) -> Job:
    facts: dict[str, Any] = {
        "id": f"batch_{next(_numbers)}",
        "project_id": "proj_1",
        "kind": "generation",
        "endpoint": "/v1/chat/completions",
        "payload": {},
        "deadline": FAR,
        "created_at": 1.0,
    }
    return Job(**(facts | changes))


def submitted(db: Database, *, after: Sequence[str] = (), **changes: Any) -> Job:
    with db.write() as session:
        return ledger.submit(session, new_job(**changes), actor="test", after=after)


def planning(db: Database, **changes: Any) -> JobClaim:
    job = submitted(db, **changes)
    return claim_job(db, job.id, Task.PLAN)


def running(db: Database, lines: Sequence[int] = (4,), on: Queue = Queue.GENERATE, **changes: Any) -> Job:
    """Create a job whose shards, of so many lines each, wait to be claimed."""
    claim = planning(db, **changes)
    with db.write() as session:
        shards.cut(session, claim, on, cuts(claim.job.id, lines))
    with db.write() as session:
        return ledger.begin_running(session, claim, total=sum(lines), model=changes.get("model", "tiny"), queue=on)


def finishing(db: Database, lines: Sequence[int] = (4,), **changes: Any) -> Job:
    job = running(db, lines, **changes)
    for n, count in enumerate(lines):
        answer(db, claim_shard(db, job.id, n), range(count), last=True)
    return job


def quarantined(session: Session, model: str, host_devices: str = "h") -> None:
    """Its engine did not come up twice there, and two times are enough."""
    for n in range(2):
        death = EngineDeath(
            id=f"{model}-{host_devices}-{n}",
            host_devices=host_devices,
            model=model,
            entry="e",
            worker_id="w",
            starting=True,
            error="it did not come up",
            suspects=["batch_1 shard 0"],
            lines=["no device"],
            created_at=1.0,
        )
        quarantine.note(session, death, quarantine.QuarantineLimits(2, 60.0, 900.0))


def cuts(job_id: str, lines: Sequence[int], first: int = 0) -> list[Shard]:
    starts = list(itertools.accumulate(lines, initial=0))
    return [
        Shard(job_id=job_id, n=first + n, first_line=starts[n], lines=count, offset=starts[n] * 10, length=count * 10)
        for n, count in enumerate(lines)
    ]


def claim_job(db: Database, job_id: str, task: Task, worker: str = "planner") -> JobClaim:
    with db.write() as session:
        claim = ledger.claim(session, job_id, task, worker)
    assert claim is not None
    return claim


def claim_shard(db: Database, job_id: str, n: int = 0, worker: str = "worker") -> ShardClaim:
    with db.write() as session:
        claim = shards.claim(session, job_id, n, worker)
    assert claim is not None
    return claim


def lose(db: Database, job_id: str, n: int = 0) -> bool:
    """Revoke the lease of a shard; return whether it was held."""
    with db.write() as session:
        held = {(job, shard): (epoch, heartbeat) for job, shard, epoch, heartbeat, _ in shards.running(session)}
        return shards.revoke_lease(session, job_id, n, *held[(job_id, n)])


def tally(lines: Iterable[int], bad: Iterable[int] = ()) -> Tally:
    """Count 3 tokens in for each line, 1 of them cached, and 2 out, 1 of them reasoning."""
    covered = sum(1 << line for line in lines)
    count = covered.bit_count()
    return Tally(covered, covered & ~sum(1 << line for line in bad), 0, 3 * count, count, 2 * count, count)


def answer(
    db: Database, claim: ShardClaim, lines: Iterable[int], *, seq: int = 0, last: bool = False, bad: Iterable[int] = ()
) -> None:
    """Commit one segment, as a worker does."""
    with db.write() as session:
        path = shards.segment_path(claim.job.id, claim.n, claim.epoch, seq)
        shards.commit(session, claim, seq, path, 100, tally(lines, bad), last=last)
        if last:
            ledger.advance_job(session, claim.job.id, actor="worker")


def close(db: Database, job_id: str, **values: Any) -> Job:
    claim = claim_job(db, job_id, Task.FINISH, "finisher")
    with db.write() as session:
        return ledger.close(session, claim, values, [])


def job(db: Database, job_id: str) -> Job:
    with db.read() as session:
        return session.get_one(Job, job_id)


def state(db: Database, job_id: str) -> JobState:
    return JobState(job(db, job_id).state)


def shard(db: Database, job_id: str, n: int = 0) -> Shard:
    with db.read() as session:
        return session.get_one(Shard, (job_id, n))


def segments(db: Database, job_id: str) -> Sequence[Segment]:
    with db.read() as session:
        return session.scalars(select(Segment).where(Segment.job_id == job_id)).all()


def outbox_messages(db: Database, job_id: str) -> list[tuple[str, int]]:
    """Return what is pending for a job: task and shard."""
    with db.read() as session:
        pending = session.execute(
            select(Outbox.task, Outbox.shard_n).where(Outbox.job_id == job_id).order_by(Outbox.id)
        )
        return [(task, n) for task, n in pending]


def history(db: Database, job_id: str) -> list[tuple[str | None, str | None]]:
    """Return the audited moves of a job: from, to."""
    with db.read() as session:
        rows = session.execute(select(Audit.source, Audit.destination).where(Audit.target == job_id).order_by(Audit.id))
        return [(source, destination) for source, destination in rows]


def told(db: Database, job_id: str) -> list[tuple[int, str]]:
    """Return the events of a job: sequence and type."""
    with db.read() as session:
        rows = session.execute(select(Event.seq, Event.type).where(Event.subject_id == job_id).order_by(Event.seq))
        return [(seq, kind) for seq, kind in rows]


def everything(session: Session) -> tuple[Any, ...]:
    """All that a refused call must leave alone."""
    tables = (Job, Shard, Segment, Outbox, Audit, Event)
    return tuple(tuple(map(tuple, session.execute(select(*t.__table__.columns)))) for t in tables)


class _Undo(Exception):
    """Ends a transaction without its commit."""


@contextmanager
def rolled_back(db: Database) -> Iterator[Session]:
    """Yield a transaction that is rolled back."""
    with suppress(_Undo), db.write() as session:
        yield session
        raise _Undo


class LosesAnswers(Database):
    """A database that commits and then, when told to, does not say so."""

    lose_next = False

    @contextmanager
    def write(self) -> Iterator[Session]:
        with super().write() as session:
            yield session
        if self.lose_next:
            self.lose_next = False
            raise DatabaseBusy


def at_once(count: int, work: Callable[[int], object]) -> list[object]:
    """Run `work` with each number below `count` in threads that start together; return what each returned or raised."""
    start = threading.Barrier(count)

    def run(number: int) -> object:
        start.wait()
        try:
            return work(number)
        except (ClaimLost, Conflict) as refusal:
            return refusal

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))
