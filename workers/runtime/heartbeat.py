"""The heartbeats of a worker process: one thread that sends them, and learns which work is to stop.

    every heartbeat_seconds increment the heartbeat of the worker and of each claim; write what is done without a claim
    every second            read which held jobs are to stop (cancelled, expired) and what is paused; after a change of
                            the pauses the next heartbeats come sooner

A claim's `ClaimHandle` has both as flags, `stop` and `lost`: its work looks at them, or waits for `changed`.
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
from jobs.fleet.health import give_sign
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
                self._counts += Counter()  # drops counts of zero

        return end

    @contextmanager
    def count_work(self, queue: str) -> Iterator[None]:
        end = self.begin(queue)
        try:
            yield
        finally:
            end()

    def counts(self) -> list[list[str | int]]:
        """Return the counts for the worker's row: queue, model, project, number."""
        with self._lock:
            return [[*what, count] for what, count in sorted(self._counts.items())]


log = logging.getLogger(__name__)
_EXIT_HEARTBEAT_DIED = 70  # exit status; the supervisor restarts this process
_LEAVING = 5.0  # seconds
_SOON = workers.HEARTBEATS_TO_ACKNOWLEDGE  # heartbeats that are sent sooner, for an operator who drains


@dataclass(eq=False)
class ClaimHandle:
    """A claim for which heartbeats are sent. `stop`: commit and release; `lost`: writes change nothing any more."""

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


class Heartbeat:
    """Register the process as a worker, send heartbeats, watch its claims. `stop` ends it and all of them."""

    def __init__(
        self,
        db: Database,
        worker: Callable[[], Worker],
        *,
        heartbeat_seconds: float,
        stop: threading.Event,
        timings: Timings = Timings(),
    ) -> None:
        self._db = db
        self._worker = worker
        self._interval, self._look_seconds = heartbeat_seconds, timings.heartbeat_look
        self._stop = stop
        self._handles: set[ClaimHandle] = set()
        self._lock = threading.Lock()
        self._missed = Seldom(log, "heartbeat_missed")
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.worker_id = worker().id
        self.listen: Callable[[bool], bool] | None = None  # take messages from the broker, or stop; False: try again
        self._listens = True
        self.off = Paused()  # as of the last read
        self.under_way = UnderWay()
        self._soon = 0

    def start(self) -> None:
        self.off = self._db.retrying(self._join, self._stop)
        self._thread.start()

    def announce(self) -> None:
        """Write the changed state of this worker (ready, models) at once."""
        self._db.retrying(partial(self._send_for_worker, heartbeats=0), self._stop)

    @contextmanager
    def watching(self, job_id: str, epoch: int, shard_n: int | None = None) -> Iterator[ClaimHandle]:
        handle = ClaimHandle(job_id, epoch, shard_n)
        with self._lock:
            self._handles.add(handle)
        if self._stop.is_set():
            handle.end()
        try:
            yield handle
        finally:
            with self._lock:
                self._handles.discard(handle)

    def stop_all(self) -> None:
        """Tell all work to commit and release; begin no new work."""
        self._stop.set()
        self.release_all()

    def release_all(self) -> None:
        """Tell all work to commit and release; new work may begin."""
        for handle in self._current():
            handle.end()

    def leave(self) -> None:
        """End cleanly: tell all work to stop, and delete the worker's row."""
        self.stop_all()
        self.join()  # or a heartbeat in progress would register the worker again
        try:
            with self._db.write() as session:
                workers.leave(session, self.worker_id)
                quarantine.leave(session, self.worker_id)
        except DatabaseBusy:
            log.warning("worker_row_left_behind")

    def join(self) -> None:
        self._thread.join(_LEAVING)

    def _run(self) -> None:
        """Send heartbeats; end the process when that fails: other workers take over its work."""
        try:
            self._watch()
        except BaseException:
            log.exception("heartbeat_died")
            logging.shutdown()
            os._exit(_EXIT_HEARTBEAT_DIED)

    def _watch(self) -> None:
        waited = self._interval
        while not self._stop.wait(min(self._look_seconds, self._interval)):
            waited += min(self._look_seconds, self._interval)
            try:
                if waited >= self._interval or self._soon:
                    waited, self._soon = 0.0, max(0, self._soon - 1)
                    self._send_all()
                self._look()
            except DatabaseBusy:
                self._missed.warn()
                waited = self._interval
        for handle in self._current():
            handle.end()
        try:  # a supervisor that kills this process for taking too long is no death of an engine
            with self._db.write() as session:
                quarantine.excuse(session, self.worker_id)
        except DatabaseBusy:
            log.warning("worker_not_excused")

    def _join(self, session: Session) -> Paused:
        workers.register(session, self._worker())
        return pauses.current_pauses(session)

    def _send_all(self) -> None:
        holds = self._current()
        claims = {
            (handle.job_id, handle.shard_n, handle.epoch): handle for handle in holds if handle.shard_n is not None
        }
        with self._db.write() as session:
            self._send_for_worker(session)
            lost = shards.heartbeat(session, list(claims))
            lost_jobs = [
                handle
                for handle in holds
                if handle.shard_n is None and not _send_for_job(session, handle, self.worker_id)
            ]
            off = pauses.current_pauses(session)
        give_sign(self._worker().pool)
        for handle in [claims[key] for key in lost] + lost_jobs:
            # or its end was just written: the transaction of its work finds out
            log.info("claim_lost", extra={"job_id": handle.job_id, "shard": handle.shard_n, "epoch": handle.epoch})
            handle.end(lost=True)
        self._apply_pauses(off)

    def _apply_pauses(self, off: Paused) -> None:
        """Take no messages while this worker is paused: its claims would be refused, and others can take them."""
        if off != self.off:
            self.off, self._soon = off, _SOON
        listens = self.worker_id not in off.of(Scope.WORKER)
        if listens != self._listens and self.listen is not None and self.listen(listens):
            self._listens = listens
            log.info("worker_resumed" if listens else "worker_paused", extra={"worker": self.worker_id})

    def _send_for_worker(self, session: Session, heartbeats: int = 1) -> None:
        worker = self._worker()
        worker.other_work = self.under_way.counts()
        columns = (
            "models", "state", "restarts", "slots", "other_work", "host_devices", "engines", "training",
            "sandbox_lacks",
        )  # fmt: skip
        if not workers.heartbeat(
            session, worker.id, heartbeats=heartbeats, **{name: getattr(worker, name) for name in columns}
        ):
            workers.register(session, worker)  # its row was deleted as that of a dead worker
            quarantine.lives(session, worker.id)

    def _look(self) -> None:
        """Stop the work on shards whose job no longer runs; note what is paused."""
        holds = [handle for handle in self._current() if handle.shard_n is not None and not handle.ended]
        job_ids = {handle.job_id for handle in holds}
        with self._db.read() as session:
            off = pauses.current_pauses(session)
            its = select(Job.id).where(Job.id.in_(job_ids), Job.state == JobState.RUNNING)
            running = set(session.scalars(its)) if job_ids else set()
        for handle in holds:
            if handle.job_id not in running:
                handle.end()
        if off != self.off:
            self._apply_pauses(off)

    def _current(self) -> list[ClaimHandle]:
        with self._lock:
            return list(self._handles)


def _send_for_job(session: Session, handle: ClaimHandle, worker_id: str) -> bool:
    return ledger.heartbeat(session, handle.job_id, handle.epoch, worker_id)
