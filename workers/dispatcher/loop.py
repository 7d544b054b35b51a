"""The dispatcher: the only publisher and the only housekeeper. `python -m workers.dispatcher`.

    every tick (100 ms)    ring what is due, as far as the live slots go       outbox ─▶ broker
    every second           leases, dead workers, deadlines, stopping jobs, audit seals, due webhooks
    every minute           retention

While work flows a tick is a fifth of that, and looks at jobs alone.

Several may run; one leads. What it observes (leases, rings) it observes on its own monotonic clock, and a new
leader starts afresh. It needs neither Celery's worker nor its beat; a broker that is unavailable delays rings alone.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil

from sqlalchemy import ColumnElement, Select, func, literal, select
from sqlalchemy.orm import Session

import jobs.known_kinds  # noqa: F401 (fills the table that every move of a job looks at)
from jobs import logs
from jobs.clock import now
from jobs.db.engine import Database
from jobs.db.hosts import claim_host
from jobs.errors import DatabaseBusy
from jobs.files.tables import File
from jobs.fleet import workers as fleet
from jobs.fleet.leadership import Leadership
from jobs.fleet.models_file import Models, ModelsFileError, Registry
from jobs.ledger import measures, outbox, pauses, shards, shares
from jobs.ledger.outbox import Ring
from jobs.ledger.pauses import Paused, Scope
from jobs.ledger.tables import Job, Outbox, Shard
from jobs.platform.storage import Storage, open_storage
from jobs.queues import Queue, Task
from jobs.security.tables import Project
from jobs.settings import Settings, settings
from jobs.timings import Timings
from workers.dispatcher.maintenance import Housekeeper
from workers.dispatcher.publisher import BrokerUnavailable, CeleryRinger, Ringer, Rings, Turns, choose

log = logging.getLogger(__name__)

#: Doorbells out per live slot: one being answered, one on its way, so that no slot waits for a tick.
RINGS_PER_SLOT = 2
#: While doorbells go out, the next look comes so many times sooner: small jobs free their slots before a tick is over.
_HASTE = 5
_BROKER_PAUSE = 2.0


@dataclass(frozen=True, slots=True)
class Out:
    """Doorbells and claims that are out: queue → project → what they take of slots."""

    shares: dict[str, dict[str, float]] = field(default_factory=dict)

    def room(self, queue: str, slots: int) -> float:
        """What may go out besides."""
        return RINGS_PER_SLOT * slots - sum(self.shares.get(queue, {}).values())


class Dispatcher:
    """One tick at a time, so that tests drive it by hand."""

    def __init__(
        self,
        config: Settings,
        db: Database,
        storage: Storage,
        ringer: Ringer,
        clock: Callable[[], float] = time.monotonic,
        timings: Timings = Timings(),
    ) -> None:
        self.config, self._timings = config, timings
        self.db = db
        self.clock = clock
        self._ringer = ringer
        self._shard = shares.of_shards(config)
        self._asked = _running(self._shard), _CLAIMED, _rung(self._shard)
        self._rings = Rings(clock, config.rering_seconds)
        self._models = Models(config)
        self._unread = logs.Seldom(log, "models_file.unread")
        self._house = Housekeeper(config, db, storage, clock, self._registry, timings)
        self._again: dict[Task, float] = {}  # when what has no job is rung again
        self._turns: dict[str, Turns] = {}  # of each queue
        self._futile: dict[tuple[str, str], tuple[outbox.Served, float]] = {}  # of a queue's project; until when
        self._unsaid: tuple[list[int], float] = [], 0.0  # rung, but not written down; as of when they were due
        self._broker_back = 0.0
        self._kept_at = self._stood_at = float("-inf")
        self._all_seen = False  # by the last tick: it looked at more than jobs

    def tick(self) -> bool:
        """Ring what is due; once a second also keep house. Whether anything was rung that was new.

        It rings where the house can't be kept too: that may fail for longer, and time and again.
        """
        try:
            self._look_after()
        finally:
            flows = self._ring_due()
        return flows

    def _look_after(self) -> None:
        if self.clock() - self._kept_at >= min(1.0, self.config.lease_seconds / 4):
            self._kept_at = self.clock()
            self._house.keep()
            self._ring_unheard()
        self._all_seen = self.clock() - self._stood_at >= self.config.tick_seconds
        if self._all_seen:
            self._stood_at = self.clock()
            self._ring_standing()

    def rest(self) -> float:
        """How many seconds the next tick may wait for something to be written."""
        due = float("inf") if self._all_seen else self._stood_at + self.config.tick_seconds - self.clock()
        return min(self._timings.dispatch_idle, due)

    def _ring_due(self) -> bool:
        if self.clock() < self._broker_back:
            return False
        self._say_rung()
        seen = now()
        with self.db.read() as session:
            waiting = set(session.scalars(_WAITING))
            if not waiting:
                return False
            off, workers = pauses.paused(session), fleet.alive(session)
            waiting -= off.of(Scope.QUEUE)
            slots = {queue: count for queue, count in fleet.slots(workers).items() if queue in waiting}
            served = fleet.served(workers, self._registry()) if slots else {}
            out = self._out(session) if slots else Out()
            chosen = {
                queue: self._choose(session, queue, count, out, off, served.get(queue, outbox.ALL), seen)
                for queue, count in slots.items()
            }
        if any(chosen.values()):
            self._publish([peal for queue, rings in chosen.items() for peal in peals(rings, slots[queue])], seen)
        return any(chosen.values())

    def _choose(
        self, session: Session, queue: str, slots: int, out: Out, off: Paused, served: outbox.Served, at: float
    ) -> list[Ring]:
        room = out.room(queue, slots)
        if room <= 0:
            return []
        most = ceil(room) * (outbox.PLANS if queue == Queue.PLAN else 1)
        projects = outbox.waiting_projects(session, queue, at)
        projects = [project for project in projects if not self._is_futile(queue, project, served)]
        due = partial(outbox.due, session, queue, at=at, served=served, only=off.free, shard=self._shard)
        more = max(most, ceil(room * shares.TOGETHER / max(1, len(projects))))
        waiting = {project: _filling(due, project, room, most, more) for project in projects}
        for project, rings in waiting.items():
            if not rings and served != outbox.ALL and outbox.due(session, queue, project, at, 1, only=off.free):
                self._futile[queue, project] = served, self.clock() + self._timings.dispatch_idle
        weights: dict[str, float] = {}
        if len(projects) > 1:
            weights = dict(session.execute(select(Project.id, Project.weight).where(Project.id.in_(projects))).all())
        turns = self._turns.setdefault(queue, Turns())
        turns.head_start = 2 * RINGS_PER_SLOT * slots  # half of it is its share anyway
        return choose(waiting, out.shares.get(queue, {}), weights, room, turns)

    def _out(self, session: Session) -> Out:
        """Per queue and project: what is running, and rung but not yet claimed."""
        out = Out()
        for statement in self._asked:
            for queue, project, share in session.execute(statement):
                projects = out.shares.setdefault(queue or "", {})
                projects[project] = projects.get(project, 0.0) + share
        return out

    def _is_futile(self, queue: str, project: str, served: outbox.Served) -> bool:
        """Whether all of it waits for models, as of a second ago at most: to pass over a million takes half of one."""
        kept, until = self._futile.get((queue, project), (outbox.ALL, 0.0))
        if kept == served and self.clock() < until:
            return True
        self._futile.pop((queue, project), None)
        return False

    def _registry(self) -> Registry | None:
        """None while nobody can say which models there are: nothing is held back for that."""
        try:
            return self._models.now()
        except ModelsFileError as error:
            self._unread.warn(reason=str(error))
            return None

    def _publish(self, peals: Sequence[Sequence[Ring | Outbox]], seen: float) -> None:
        """Ring, then say so: a crash between the two rings twice, which harms nothing. A peal is one message."""
        self._say_rung()
        rung, refused = list[int](), False
        self._unsaid = rung, seen
        try:
            for rings in peals:
                first = rings[0]
                ids = [ring.job_id for ring in rings]
                self._ringer.ring(
                    first.task, first.queue, ids if first.shard_n == outbox.JOB else [*ids, first.shard_n]
                )
                for ring in rings:
                    rung.append(ring.id)
                    self._rings.rung(ring.id, ring.rings + 1)
        except BrokerUnavailable:
            log.warning("broker_unavailable", extra={"waiting": sum(map(len, peals)) - len(rung)})
            self._broker_back = self.clock() + _BROKER_PAUSE
            refused = True
        self._say_rung(refused)

    def _say_rung(self, refused: bool = False) -> None:
        """Before this can be written nothing more is rung: it would be the same again and again."""
        rung, seen = self._unsaid
        if not rung and not refused:
            return
        with self.db.write() as session:
            outbox.rung(session, rung, seen)
            if refused:
                measures.count(session, measures.REFUSALS, "", 1)
        self._unsaid = [], 0.0

    def _ring_unheard(self) -> None:
        """Doorbells that nobody heard are rung again: the broker may have lost them."""
        if self.clock() < self._broker_back:
            return
        seen = now()
        with self.db.read() as session:
            unheard = outbox.unheard(session)
            live = fleet.slots(fleet.alive(session)) if unheard else {}
            if len(unheard) == outbox.UNHEARD:  # of queues that nobody serves there may be as many, and older ones
                unheard = outbox.unheard(session, live)
        again = [row for row in self._rings.overdue(unheard) if row.queue in live]
        if again:
            log.info("rung_again", extra={"doorbells": len(again)})
            self._publish([[row] for row in again], seen)

    def _ring_standing(self) -> None:
        """Work that has no job (webhooks, removals) wakes whoever does it, at once and then every re-ring."""
        waiting = self._house.standing()
        self._again = {task: at for task, at in self._again.items() if task in waiting}
        for task, queue in waiting.items():
            if self.clock() < max(self._again.get(task, float("-inf")), self._broker_back):
                continue
            self._again[task] = self.clock() + self.config.rering_seconds
            try:
                self._ringer.ring(task, queue, [])
            except BrokerUnavailable:
                self._broker_back = self.clock() + _BROKER_PAUSE
                with self.db.write() as session:
                    measures.count(session, measures.REFUSALS, "", 1)


#: What each tick asks, built once.
_WAITING = select(Outbox.queue).where(Outbox.rung_at.is_(None)).distinct()
_CLAIMED = (
    select(literal(Queue.PLAN.value), Job.project_id, func.count())
    .where(Job.worker_id.is_not(None))
    .group_by(Job.project_id)
)


def _running(shard: ColumnElement[float]) -> Select[str, str, float]:
    return (
        select(func.coalesce(Shard.queue, Job.queue), Job.project_id, func.sum(shard))
        .select_from(Job)
        .join(Shard, Shard.job_id == Job.id)
        .where(shards.HELD)
        .group_by(func.coalesce(Shard.queue, Job.queue), Job.project_id)
    )


def _rung(shard: ColumnElement[float]) -> Select[str, str, float]:
    return (
        select(Outbox.queue, Outbox.project_id, func.sum(outbox.share(shard)))
        .outerjoin(Job, Job.id == Outbox.job_id)
        .outerjoin(File, outbox.INPUT)
        .outerjoin(Shard, outbox.SHARD)
        .where(Outbox.rung_at.is_not(None))
        .group_by(Outbox.queue, Outbox.project_id)
    )


def _filling(due: Callable[..., Sequence[Ring]], project: str, room: float, most: int, more: int) -> Sequence[Ring]:
    """So many of a project as would fill the room: more than are looked at first where these are small."""
    rings = due(project, limit=most)
    if len(rings) < most or sum(ring.share for ring in rings) >= room:
        return rings
    return due(project, limit=more)


def peals(rings: Sequence[Ring], slots: int) -> list[list[Ring]]:
    """One message for several jobs that are planned in no time, so that every slot has its share; the others one each.

    In order.
    """
    small = sum(ring.task == Task.PLAN and ring.share < 1 for ring in rings)
    share = min(outbox.PLANS, ceil(small / slots))
    found: list[list[Ring]] = []
    filling: list[Ring] = []
    for ring in rings:
        if ring.task != Task.PLAN or ring.share == 1:
            found.append([ring])
        elif filling and len(filling) < share:
            filling.append(ring)
        else:
            found.append(filling := [ring])
    return found


def main() -> None:
    """Run until SIGTERM; lead when it is our turn."""
    config = settings()
    logs.configure(config.log_level)
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    db = Database(config.database, patience=10)
    claim_host(db)
    leadership = Leadership(config, db)
    while not stop.is_set():
        if leadership.take():
            _lead(config, db, leadership, stop)
        else:
            stop.wait(1.0)
    leadership.drop()
    db.close()


def _lead(
    config: Settings, db: Database, leadership: Leadership, stop: threading.Event, timings: Timings = Timings()
) -> None:
    """Lead until told to stop or until the leadership is lost; starts every observation afresh."""
    log.info("dispatcher_leads")
    dispatcher = Dispatcher(config, db, open_storage(config.storage), CeleryRinger(config), timings=timings)
    busy = logs.Seldom(log, "database_busy")
    while not stop.is_set() and leadership.holds():
        try:
            flows = dispatcher.tick()
            leadership.wait(config.tick_seconds / (_HASTE if flows else 1), dispatcher.rest(), stop)
        except DatabaseBusy:
            busy.warn()
            stop.wait(0.5)
