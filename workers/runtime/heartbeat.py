"""The keeper: one thread per worker process that beats for what the process holds and listens for what stops it.

    every beat_seconds      worker.beat += 1, and the beat of each held claim; what is under way without one
    every second            which held jobs are to stop (cancelled, expired), which claims are no longer ours; what has
                            the operator paused? When that has changed, the next beats come sooner

A claim's `Hold` carries the two answers as flags; whoever works looks at them or waits for `changed`.
"""

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.db.engine import Database
from jobs.errors import DatabaseBusy
from jobs.fleet import quarantine, workers
from jobs.fleet.tables import Worker
from jobs.ledger import ledger, pauses, shards
from jobs.ledger.pauses import Paused, Scope
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.logs import Seldom
from jobs.timings import Timings


class UnderWay:
    """Count the work of a process that has no claim (requests of interactive clients, removals), from any thread.

    The counts are by queue, model and project. Each heartbeat writes them, so that `drain` knows when such work has
    ended. See `jobs.fleet.workers`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = Counter[tuple[str, str, str]]()

    def begin(self, queue: str, model: str = "", project_id: str = "") -> Callable[[], None]:
        """Count work that begins; return a function to call when it has ended."""
        what = (queue, model, project_id)
        with self._lock:
            self._counts[what] += 1

        def end() -> None:
            with self._lock:
                self._counts[what] -= 1
                self._counts += Counter()  # what is at none goes

        return end

    @contextmanager
    def at(self, queue: str) -> Iterator[None]:
        end = self.begin(queue)
        try:
            yield
        finally:
            end()

    def told(self) -> list[list[str | int]]:
        """Return the counts as they stand in the worker's row: queue, model, project, how many."""
        with self._lock:
            return [[*what, count] for what, count in sorted(self._counts.items())]


log = logging.getLogger(__name__)
_DEAF = 70  # exit status: the supervisor starts us again
_LEAVING = 5.0  # seconds
_SOON = workers.BEATS_TO_HEAR  # beats that come sooner, for whoever drains


@dataclass(eq=False)
class Hold:
    """A claim under watch. `stop`: finish up and give back; `lost`: what you produce is dropped."""

    job_id: str
    epoch: int
    shard_n: int | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    lost: threading.Event = field(default_factory=threading.Event)
    changed: threading.Event = field(default_factory=threading.Event)

    def end(self, *, lost: bool = False) -> None:
        (self.lost if lost else self.stop).set()
        self.changed.set()

    @property
    def ended(self) -> bool:
        return self.stop.is_set() or self.lost.is_set()


class Keeper:
    """Registers the process as a worker, beats, watches. `stop` ends it and everything it holds."""

    def __init__(
        self,
        db: Database,
        worker: Callable[[], Worker],
        *,
        beat_seconds: float,
        stop: threading.Event,
        timings: Timings = Timings(),
    ) -> None:
        self._db = db
        self._worker = worker
        self._beat, self._look_seconds = beat_seconds, timings.heartbeat_look
        self._stop = stop
        self._holds: set[Hold] = set()
        self._lock = threading.Lock()
        self._missed = Seldom(log, "beat_missed")
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self.worker_id = worker().id
        self.listen: Callable[[bool], bool] | None = None  # take doorbells from the broker, or stop; False: try again
        self._listens = True
        self.off = Paused()  # what is paused, as far as we have heard
        self.under_way = UnderWay()
        self._soon = 0

    def start(self) -> None:
        self.off = self._db.retrying(self._join, self._stop)
        self._thread.start()

    def announce(self) -> None:
        """Say at once what changed about this worker (ready, models)."""
        self._db.retrying(partial(self._beat_worker, beats=0), self._stop)

    @contextmanager
    def holding(self, job_id: str, epoch: int, shard_n: int | None = None) -> Iterator[Hold]:
        hold = Hold(job_id, epoch, shard_n)
        with self._lock:
            self._holds.add(hold)
        if self._stop.is_set():
            hold.end()
        try:
            yield hold
        finally:
            with self._lock:
                self._holds.discard(hold)

    def stop_all(self) -> None:
        """Everything held is told to finish up and give back; nothing new is begun."""
        self._stop.set()
        for hold in self._held():
            hold.end()

    def leave(self) -> None:
        """A clean end: everything held is told to stop, the worker's row goes."""
        self.stop_all()
        self.join()  # or a beat that is under way would register us again
        try:
            with self._db.write() as session:
                workers.leave(session, self.worker_id)
                quarantine.leave(session, self.worker_id)
        except DatabaseBusy:
            log.warning("worker_row_left_behind")

    def join(self) -> None:
        self._thread.join(_LEAVING)

    def _run(self) -> None:
        """A worker that can't beat is taken for dead while it works: it had better be."""
        try:
            self._watch()
        except BaseException:
            log.exception("keeper_died")
            logging.shutdown()
            os._exit(_DEAF)

    def _watch(self) -> None:
        waited = self._beat
        while not self._stop.wait(min(self._look_seconds, self._beat)):
            waited += min(self._look_seconds, self._beat)
            try:
                if waited >= self._beat or self._soon:
                    waited, self._soon = 0.0, max(0, self._soon - 1)
                    self._beat_all()
                self._look()
            except DatabaseBusy:
                self._missed.warn()
                waited = self._beat
        for hold in self._held():
            hold.end()
        try:  # whoever kills us because we take too long is no engine
            with self._db.write() as session:
                quarantine.excuse(session, self.worker_id)
        except DatabaseBusy:
            log.warning("worker_not_excused")

    def _join(self, session: Session) -> Paused:
        workers.register(session, self._worker())
        return pauses.paused(session)

    def _beat_all(self) -> None:
        holds = self._held()
        claims = {(hold.job_id, hold.shard_n, hold.epoch): hold for hold in holds if hold.shard_n is not None}
        with self._db.write() as session:
            self._beat_worker(session)
            lost = shards.beat(session, list(claims))
            lost_jobs = [
                hold for hold in holds if hold.shard_n is None and not _beat_job(session, hold, self.worker_id)
            ]
            off = pauses.paused(session)
        for hold in [claims[key] for key in lost] + lost_jobs:
            # or its end was written this moment, which no beat can tell: whoever is fenced says so
            log.info("claim_gone", extra={"job_id": hold.job_id, "shard": hold.shard_n, "epoch": hold.epoch})
            hold.end(lost=True)
        self._heed(off)

    def _heed(self, off: Paused) -> None:
        """A paused worker would be refused its claims; one that does not listen leaves the doorbells to others."""
        if off != self.off:
            self.off, self._soon = off, _SOON
        wanted = self.worker_id not in off.of(Scope.WORKER)
        if wanted != self._listens and self.listen is not None and self.listen(wanted):
            self._listens = wanted
            log.info("worker_resumed" if wanted else "worker_paused", extra={"worker": self.worker_id})

    def _beat_worker(self, session: Session, beats: int = 1) -> None:
        worker = self._worker()
        worker.unclaimed = self.under_way.told()
        told = ("models", "state", "restarts", "slots", "unclaimed", "place", "holds")
        if not workers.beat(session, worker.id, beats=beats, **{name: getattr(worker, name) for name in told}):
            workers.register(session, worker)  # taken for dead (stopped, or a database restored): here we are again
            quarantine.lives(session, worker.id)

    def _look(self) -> None:
        """A claim on a shard ends when its job no longer runs."""
        holds = [hold for hold in self._held() if hold.shard_n is not None and not hold.ended]
        wanted = {hold.job_id for hold in holds}
        with self._db.read() as session:
            off = pauses.paused(session)
            its = select(Job.id).where(Job.id.in_(wanted), Job.state == JobState.RUNNING)
            running = set(session.scalars(its)) if wanted else set()
        for hold in holds:
            if hold.job_id not in running:
                hold.end()
        if off != self.off:
            self._heed(off)

    def _held(self) -> list[Hold]:
        with self._lock:
            return list(self._holds)


def _beat_job(session: Session, hold: Hold, worker_id: str) -> bool:
    return ledger.beat(session, hold.job_id, hold.epoch, worker_id)
