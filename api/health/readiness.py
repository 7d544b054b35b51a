"""Report whether the waiting work of each queue is claimed, and whether the broker has memory for interactive requests.

Both are observed from this process, on a clock that never jumps.
"""

import threading
import time
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass

from sqlalchemy import Select, func, literal, select, true
from sqlalchemy.orm import Session

from api.ttl_cache import Recent
from jobs.clock import now
from jobs.db.engine import Database
from jobs.fleet import workers
from jobs.fleet.tables import Worker
from jobs.inference.admission import is_any_full
from jobs.ledger import outbox, pauses
from jobs.ledger.tables import Job, Outbox
from jobs.queues import Queue, sharing
from jobs.settings import Settings

#: Seconds without a claim of a queue while its work waits, after which the queue is stuck.
STUCK_SECONDS = 60.0


class BrokerWatch:
    """A reading of whether the broker is full, at most `keep_seconds` old. Usable from any thread."""

    def __init__(self, config: Settings, keep_seconds: float) -> None:
        self._config = config
        self._recent = Recent[bool](keep_seconds)

    def is_full(self) -> bool:
        return self._recent.get(lambda: is_any_full(self._config))


@dataclass(frozen=True, slots=True)
class Observation:
    """An observation of the deployment."""

    depth: dict[str, int]
    oldest: dict[str, float]
    slots: dict[str, int]
    loading: list[tuple[str, workers.Loading]]  # by queue
    last_heartbeat: float | None
    stuck: list[str]  # queues


class Watch:
    """Remember when each queue was last seen to progress: its claims are held, or its oldest message has changed."""

    def __init__(self, keep_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._moved: dict[str, tuple[int, float]] = {}  # by queue: the oldest message, and when it last progressed
        self._lock = threading.Lock()
        self._recent = Recent[Observation](keep_seconds)
        self._checked = Recent[bool](keep_seconds)

    def check(self, db: Database) -> None:
        """Return if the database has answered within `keep_seconds`. Raises: DatabaseBusy."""

        def ask() -> bool:
            with db.read() as session:
                return bool(session.scalar(select(literal(1))))

        self._checked.get(ask)

    def standing(self, db: Database) -> Observation:
        """Observe the deployment, or return a recent observation.

        Raises: DatabaseBusy.
        """

        def look() -> Observation:
            with db.read() as session:
                return self._look(session)

        return self._recent.get(look)

    def _look(self, session: Session) -> Observation:
        at = now()
        waiting = outbox.depth(session)
        present = workers.present(session)
        slots = workers.slots(workers.alive(session))
        last_heartbeat = session.scalar(select(func.max(Worker.seen_at)))
        return Observation(
            depth={queue: count for queue, (count, _) in waiting.items()},
            oldest={queue: round(max(at - since, 0.0), 1) for queue, (_, since) in waiting.items()},
            slots=slots,
            loading=[
                (queue, loading) for worker in present for loading in workers.loads(worker) for queue in worker.queues
            ],
            last_heartbeat=last_heartbeat,
            stuck=self._stuck(session, at, waiting.keys() & {*slots, Queue.PLAN.value}),
        )

    def _stuck(self, session: Session, at: float, queues: Set[str]) -> list[str]:
        """Return those of the queues with work that has waited too long without a claim of the same queue.

        Jobs that wait for a model or for disk space, and paused ones, do not count: they state their reason.
        """
        off, claims = pauses.current_pauses(session), workers.claims_by_project(session)
        stuck, moved = [], dict[str, tuple[int, float]]()
        with self._lock:
            for queue in sorted(queues - off.of(pauses.Scope.QUEUE)):
                first = session.execute(_oldest(queue, at, _own_share(queue, claims), off)).one_or_none()
                if first is None:
                    continue
                oldest, since = first[0], self._clock()
                if not claims.get(queue) and queue in self._moved and self._moved[queue][0] == oldest:
                    since = self._moved[queue][1]
                moved[queue] = oldest, since
                if self._clock() - since > STUCK_SECONDS and at - first[1] > STUCK_SECONDS:
                    stuck.append(queue)
            self._moved = moved
        return stuck


def _oldest(queue: str, at: float, others: Collection[str], off: pauses.Paused) -> Select[int, float]:
    """Return the query of the oldest message of a queue that is due and neither blocked nor of `others`."""
    waiting = Outbox.due_at <= at, outbox.ready(at), Job.waiting_for.is_(None), Outbox.project_id.not_in(others)
    free = true() if off.free is None else off.free
    due = select(Outbox.id, Outbox.due_at).join(Job, Job.id == Outbox.job_id)
    return due.where(Outbox.queue == queue, *waiting, free).order_by(Outbox.id).limit(1)


def _own_share(queue: str, claims: Mapping[str, Collection[str]]) -> set[str]:
    """Return the projects that hold claims in a pool of processes of a queue: they may wait for their own work."""
    return {project for name in sharing(queue) for project in claims.get(name, ())}
