"""Report whether waiting work is being claimed, and whether the broker has memory left for interactive requests.

Both are observed from this process, on a clock that never jumps.
"""

import threading
import time
from dataclasses import dataclass

from sqlalchemy import exists, func, select, true
from sqlalchemy.orm import Session

from api.ttl_cache import Recent
from jobs.clock import now
from jobs.db.engine import Database
from jobs.fleet import workers
from jobs.fleet.tables import Worker
from jobs.inference.admission import any_full
from jobs.ledger import outbox, pauses
from jobs.ledger.states import LIVE, ShardState
from jobs.ledger.tables import Job, Outbox, Shard
from jobs.settings import Settings

#: Seconds without a claim while work waits, after which the deployment is stuck.
STUCK_SECONDS = 60.0


class BrokerWatch:
    """A reading of whether the broker is full, at most `keep_seconds` old. Usable from any thread."""

    def __init__(self, config: Settings, keep_seconds: float) -> None:
        self._config = config
        self._recent = Recent[bool](keep_seconds)

    def is_full(self) -> bool:
        return self._recent.get(lambda: any_full(self._config))


@dataclass(frozen=True, slots=True)
class Standing:
    """An observation of the deployment."""

    depth: dict[str, int]
    oldest: dict[str, float]
    slots: dict[str, int]
    loading: list[tuple[str, workers.Loading]]  # by queue
    last_heartbeat: float | None
    stuck: bool


class Watch:
    """Remember when work was last seen to progress: claims are held, or the oldest outbox message has changed."""

    def __init__(self, keep_seconds: float) -> None:
        self._moved = time.monotonic()
        self._first: int | None = None
        self._lock = threading.Lock()
        self._recent = Recent[Standing](keep_seconds)

    def standing(self, db: Database) -> Standing:
        """Observe the deployment, or return a recent observation.

        Raises: DatabaseBusy.
        """

        def look() -> Standing:
            with db.read() as session:
                return self._look(session)

        return self._recent.get(look)

    def _look(self, session: Session) -> Standing:
        at = now()
        waiting = outbox.depth(session)
        present = workers.present(session)
        last_heartbeat = session.scalar(select(func.max(Worker.seen_at)))
        return Standing(
            depth={queue: count for queue, (count, _) in waiting.items()},
            oldest={queue: round(max(at - since, 0.0), 1) for queue, (_, since) in waiting.items()},
            slots=workers.slots(workers.alive(session)),
            loading=[
                (queue, loading) for worker in present for loading in workers.loads(worker) for queue in worker.queues
            ],
            last_heartbeat=last_heartbeat,
            stuck=self._stuck(session, at),
        )

    def _stuck(self, session: Session, at: float) -> bool:
        """Return whether work has waited too long without a claim.

        Jobs that wait for a model or for disk space, and paused ones, do not count: they state their reason.
        """
        off = pauses.paused(session)
        waiting = Outbox.due_at <= at, outbox.ready(at), Job.waiting_for.is_(None)
        free = Outbox.queue.not_in(off.of(pauses.Scope.QUEUE)), true() if off.free is None else off.free
        due = select(Outbox.id, Outbox.due_at).join(Job, Job.id == Outbox.job_id).where(*waiting, *free)
        first = session.execute(due.order_by(Outbox.id).limit(1)).one_or_none()
        with self._lock:
            tick = time.monotonic()
            if first is None or first[0] != self._first or _held(session):
                self._moved, self._first = tick, first[0] if first else None
                return False
            return tick - self._moved > STUCK_SECONDS and at - first[1] > STUCK_SECONDS


def _held(session: Session) -> bool:
    """Return whether any worker holds a claim."""
    shards = select(exists().where(Shard.state == ShardState.RUNNING))
    jobs = select(exists().where(Job.state.in_(LIVE), Job.worker_id.is_not(None)))
    return bool(session.scalar(shards) or session.scalar(jobs))
