"""Explain why no worker has taken a job, where the job itself does not report a reason.

Each step of the work is checked:

    pending ──▶ not paused ──▶ a live worker ──▶ a free slot ──▶ published ──▶ claimed
                                                                    └── needs the broker, and a leading dispatcher
"""

import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import redis
from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.clock import duration, now
from jobs.db.engine import Database
from jobs.errors import DatabaseBusy
from jobs.fleet import workers
from jobs.fleet.leadership import Leadership
from jobs.fleet.tables import Worker
from jobs.inference.interactive import address
from jobs.ledger import outbox, pauses
from jobs.ledger.pauses import Scope
from jobs.ledger.states import ShardState
from jobs.ledger.tables import Job, Outbox, Shard
from jobs.queues import Task, largest_share, sharing
from jobs.settings import Settings

_LATE: Final = 10.0  # seconds; an idle dispatcher reads the outbox every second, and redelivers after ten
_SILENT: Final = 60.0  # seconds without a heartbeat; many are due in that time
_BROKER_PATIENCE: Final = 2.0  # seconds
_AMQP_PORT: Final = 5672


class StandstillReason(NamedTuple):
    """Why a job waits: a word for programs, and a sentence."""

    code: str
    text: str


def reasons(session: Session, job: Job) -> tuple[list[StandstillReason], bool]:
    """Return the reasons, and whether a late heartbeat or outbox message puts them in doubt.

    In that case `publishing_faults` may know more.
    """
    message = _next_message(session, job)
    if message is None:
        return _claim_reasons(session, job)
    if paused := _pause_reason(session, job, message):
        return [paused], False
    why, late = _overdue(message)
    if busy := _busy_reasons(session, message):
        return busy[0], busy[1] or late  # a claim of a part of a slot counts as a whole slot
    return why, late


def publishing_faults(config: Settings, db: Database) -> Iterator[StandstillReason]:
    """Yield faults of the broker and of the dispatcher. This may take seconds, so it is the last check."""
    if config.broker_url and not _broker_answers(config.broker_url):
        text = "the broker does not answer; `nightmill doctor` on the server's host says why"
        yield StandstillReason("broker_unavailable", text)
    with suppress(DatabaseBusy):
        if not Leadership(config, db).taken():
            text = "no dispatcher leads; `nightmill doctor` on the server's host looks at the processes"
            yield StandstillReason("no_dispatcher", text)


def _broker_answers(url: str) -> bool:
    try:
        if known := address(url):
            with redis.Redis.from_url(
                known, socket_timeout=_BROKER_PATIENCE, socket_connect_timeout=_BROKER_PATIENCE
            ) as client:
                return bool(client.ping())
        parts = urlsplit(url)
        socket.create_connection((parts.hostname or "localhost", parts.port or _AMQP_PORT), _BROKER_PATIENCE).close()
    except (OSError, ValueError, redis.RedisError):
        return False
    return True


def _claim_reasons(session: Session, job: Job) -> tuple[list[StandstillReason], bool]:
    """Explain a job without pending messages: workers have claimed all of its work. They may be dead."""
    running = select(Shard.worker_id).where(Shard.job_id == job.id, Shard.state == ShardState.RUNNING)
    names = {job.worker_id, *session.scalars(running)} - {None}
    if silent := _silent([worker for worker in workers.all_workers(session) if worker.id in names]):
        text = f"{silent[0].id} has claimed it, and has sent no heartbeat for {_ago(silent[0].seen_at)}"
        return [StandstillReason("worker_silent", text)], True
    running_text = "a worker runs it, and there is no new result yet"
    return [StandstillReason("running", running_text)] if names else [], not names


def _busy_reasons(session: Session, message: Outbox) -> tuple[list[StandstillReason], bool] | None:
    """Return why no worker can claim work of the queue; None where a worker can."""
    alive = workers.alive(session, message.queue)
    if not alive:
        known = [worker for worker in workers.all_workers(session) if message.queue in worker.queues]
        return [_worker_reason(message.queue, known)], False
    slots, busy = workers.slots(alive)[message.queue], workers.claims_at(session, Scope.QUEUE, message.queue)
    if busy < slots:
        return _share_reasons(session, message, alive)
    return [StandstillReason("slots_busy", f"all slots of {message.queue} are busy ({slots})")], bool(_silent(alive))


def _share_reasons(
    session: Session, message: Outbox, alive: Sequence[Worker]
) -> tuple[list[StandstillReason], bool] | None:
    """Return that the project's other work has its share of the pool's processes; None where it has not."""
    claims, queues = workers.claims_by_project(session), sharing(message.queue)
    taken = sum(claims.get(queue, {}).get(message.project_id, 0) for queue in queues)
    slots = workers.slots(alive)[message.queue]
    if not queues or taken < largest_share(slots):
        return None
    text = f"other work of its project has {taken} of {slots} processes, its share; it begins when one of them is free"
    return [StandstillReason("share_taken", text)], bool(_silent(alive))


def _overdue(message: Outbox) -> tuple[list[StandstillReason], bool]:
    waits = now() - message.due_at
    if -outbox.MAX_DELAY <= waits < 0:
        return [StandstillReason("retry_later", f"it will be tried again in {duration(-waits)}")], False
    if waits < _LATE:
        return [], False
    if message.published_at is None:
        text = f"{message.queue} should have got a message for it {duration(waits)} ago"
        return [StandstillReason("not_published", text)], True
    text = f"{message.queue} was sent a message for it {_ago(message.published_at)} ago, and no worker has claimed it"
    return [StandstillReason("not_claimed", text)], True


def _silent(alive: Sequence[Worker]) -> list[Worker]:
    """Return the workers whose heartbeat is late. With equal clocks the leading dispatcher would have removed them."""
    return [worker for worker in alive if now() - worker.seen_at > _SILENT]


def _ago(at: float) -> str:
    return duration(max(now() - at, 0.0))


def _next_message(session: Session, job: Job) -> Outbox | None:
    """Return the oldest pending message that the job's state allows."""
    ready = select(Outbox).join(Job, Job.id == Outbox.job_id).where(Outbox.job_id == job.id, outbox.ready(now()))
    return session.scalar(ready.order_by(Outbox.id).limit(1))


def _pause_reason(session: Session, job: Job, message: Outbox) -> StandstillReason | None:
    off = pauses.current_pauses(session)
    if message.queue in off.of(Scope.QUEUE):
        return StandstillReason(
            "paused", f"{message.queue} is paused; `nightmill resume queue {message.queue}` goes on"
        )
    if message.task != Task.RUN:
        return None
    if pauses.paused_jobs(session, [job.id]):
        return StandstillReason("job_paused", "it is paused by itself, until its client resumes it")
    if not off.stops(job.queue, job.model, job.project_id, job.serves_as):
        return None
    return StandstillReason("paused", "its queue, model or project is paused; `nightmill workers` shows what is")


def _worker_reason(queue: str, known: Sequence[Worker]) -> StandstillReason:
    """Return why the registered workers take no work: paused, loading, or stopping."""
    if not known:
        return StandstillReason("no_worker", f"no live worker of {queue}; `nightmill workers` lists the live workers")
    states = (f"{worker.id} is {'paused' if worker.state == 'ready' else worker.state}" for worker in known)
    return StandstillReason("workers_not_ready", f"no worker of {queue} takes work: {', '.join(states)}")
