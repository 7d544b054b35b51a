"""The dispatcher: it alone publishes, and it alone runs maintenance. `python -m workers.dispatcher`.

    every tick (100 ms)    publish what is due, as far as live slots go        outbox ─▶ broker
    every second           leases, dead workers, deadlines, stopping jobs, audit seals, due webhooks
    every minute           retention

While work flows a tick is a fifth of that, and looks at jobs alone.

Several may run; one leads. What it observes (leases, redeliveries) it observes on its own monotonic clock, and
a new leader starts afresh. It needs neither Celery's worker nor Celery beat; without a broker only messages are
delayed.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from math import ceil

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session

import jobs.known_kinds  # noqa: F401 (fills the table that every move of a job looks at)
from jobs import logs
from jobs.clock import now
from jobs.db.engine import Database
from jobs.db.hosts import claim_host
from jobs.errors import DatabaseBusy
from jobs.files.tables import File
from jobs.fleet import workers as fleet
from jobs.fleet.health import DISPATCHER, give_sign
from jobs.fleet.leadership import ELECTED_AT, Leadership
from jobs.fleet.models_file import Models, ModelsFileError, Registry
from jobs.fleet.tables import Meta, Worker
from jobs.ledger import measures, outbox, pauses, shards, slot_weights
from jobs.ledger.outbox import DueMessage
from jobs.ledger.pauses import Paused, Scope
from jobs.ledger.tables import Job, Outbox, Shard
from jobs.platform.storage import Storage, open_storage
from jobs.queues import PROCESS_POOLS, Queue, Task, largest_share, sharing
from jobs.security.tables import Project
from jobs.settings import Settings, settings
from jobs.timings import Timings
from workers.dispatcher.maintenance import Maintenance
from workers.dispatcher.publisher import (
    MESSAGES_PER_SLOT,
    BrokerUnavailable,
    CeleryPublisher,
    FairSchedule,
    Publisher,
    Redelivery,
    SlotShare,
    admitted_ids,
    choose,
)

log = logging.getLogger(__name__)

#: While messages go out, or wait for a share, the next look comes so many times sooner: small jobs free their slots
#: before a tick is over.
_BUSY_FACTOR = 5
_BROKER_PAUSE = 2.0


@dataclass(frozen=True, slots=True)
class InFlight:
    """Messages and claims in flight: queue → project → the slots that they take."""

    slot_weights: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, queue: str, project: str, slot_weight: float) -> None:
        projects = self.slot_weights.setdefault(queue, {})
        projects[project] = projects.get(project, 0.0) + slot_weight

    def room(self, queue: str, slots: int) -> float:
        """Return the slots that may still be filled with messages. Ingestion leaves one of several to planning."""
        limit = max(slots - 1, 1) if queue == Queue.INGEST else MESSAGES_PER_SLOT * slots
        return limit - sum(self.slot_weights.get(queue, {}).values())

    def shares(self, slots: Mapping[str, int]) -> dict[str, SlotShare]:
        """Return the share of each queue that is shared out; the queues of a pool have one together."""
        shares = {}
        for queues in PROCESS_POOLS.values():
            share = SlotShare(largest_share(max(slots.get(queue, 0) for queue in queues)))
            for queue in queues:
                shares[queue.value] = share
                for project, slot_weight in self.slot_weights.get(queue, {}).items():
                    share.taken[project] = share.taken.get(project, 0.0) + slot_weight
        # A project's next training is not published behind the one that runs: others would wait for it, too.
        training = dict(self.slot_weights.get(Queue.FINETUNE, {}))
        return shares | {Queue.FINETUNE.value: SlotShare(slots.get(Queue.FINETUNE, 0), training)}


class Dispatcher:
    """The dispatcher, one tick at a time, so that tests drive it by hand."""

    def __init__(
        self,
        config: Settings,
        db: Database,
        storage: Storage,
        publisher: Publisher,
        clock: Callable[[], float] = time.monotonic,
        timings: Timings = Timings(),
    ) -> None:
        self.config, self._timings = config, timings
        self.db = db
        self.clock = clock
        self._publisher = publisher
        self._shard = slot_weights.weight_of_shards(config)
        self._running_query, self._publication_query = _running_query(self._shard), _publication_query(self._shard)
        self._redelivery = Redelivery(clock, config.redelivery_seconds)
        self._models = Models(config)
        self._unread = logs.Seldom(log, "models_file.unread")
        self._maintenance = Maintenance(config, db, storage, clock, self._registry, timings)
        self._publish_again_at: dict[Task, float] = {}  # when work without a job is published again
        self._fair_schedules: dict[str, FairSchedule] = {}  # of each queue
        self._chosen_at: dict[str, float] = {}  # when messages of a queue were last published
        self._futile: dict[tuple[str, str], tuple[outbox.Served, float]] = {}  # of a queue's project; until when
        self._unrecorded: tuple[list[int], float] = [], 0.0  # published, not recorded; when they were due
        self._broker_back = 0.0
        self._held_back = False  # whether messages wait for processes of a pool that is shared out
        self._maintained_at = self._full_tick_at = float("-inf")
        self._full_tick = False  # whether the last tick looked at more than jobs

    def tick(self) -> bool:
        """Publish what is due; once a second also run maintenance. Return whether the next tick should come soon.

        That is where something new was published, or waits until its project has less than its share: a process is idle
        from the end of a claim to the next tick. It publishes also where maintenance fails: that may fail for longer,
        and time and again.
        """
        try:
            self._maintain()
        finally:
            flows = self._publish_due()
        return flows

    def _maintain(self) -> None:
        if self.clock() - self._maintained_at >= min(1.0, self.config.lease_seconds / 4):
            self._maintained_at = self.clock()
            self._maintenance.run()
            self._redeliver()
        self._full_tick = self.clock() - self._full_tick_at >= self._timings.dispatch_tick
        if self._full_tick:
            self._full_tick_at = self.clock()
            self._publish_without_jobs()

    def idle_seconds(self) -> float:
        """Return how many seconds the next tick may wait for something to be written."""
        due = float("inf") if self._full_tick else self._full_tick_at + self._timings.dispatch_tick - self.clock()
        return min(self._timings.dispatch_idle, due)

    def _publish_due(self) -> bool:
        if self.clock() < self._broker_back:
            return False
        self._record_publications()
        seen, self._held_back = now(), False
        with self.db.read() as session:
            waiting = set(session.scalars(_WAITING))
            if not waiting:
                return False
            paused, workers = pauses.current_pauses(session), fleet.alive(session)
            waiting -= paused.of(Scope.QUEUE)
            live = fleet.slots(workers)
            slots = {queue: live[queue] for queue in self._sort_queues(waiting & live.keys())}
            served = fleet.served_models(workers, self._registry()) if slots else {}
            out = self._in_flight(session, workers) if slots else InFlight()
            shares = out.shares(live)
            chosen = {
                queue: self._choose(
                    session, queue, count, out, paused, served.get(queue, outbox.ALL), seen, shares.get(queue)
                )
                for queue, count in slots.items()
            }
        self._chosen_at |= {queue: self.clock() for queue, messages in chosen.items() if messages}
        if any(chosen.values()):
            self._publish(
                [batch for queue, messages in chosen.items() for batch in message_batches(messages, slots[queue])], seen
            )
        return any(chosen.values()) or self._held_back

    def _sort_queues(self, queues: Iterable[str]) -> list[str]:
        """Return queues, that of the latest messages last: those of a pool take the same processes."""
        return sorted(queues, key=lambda queue: (self._chosen_at.get(queue, 0.0), queue))

    def _choose(
        self,
        session: Session,
        queue: str,
        slots: int,
        out: InFlight,
        paused: Paused,
        served: outbox.Served,
        at: float,
        share: SlotShare | None,
    ) -> list[DueMessage]:
        room = out.room(queue, slots)
        if room <= 0:
            return []
        limit = ceil(room) * (outbox.PLANS if queue == Queue.PLAN else 1)
        projects = outbox.waiting_projects(session, queue, at)
        projects = [project for project in projects if not self._is_futile(queue, project, served)]
        due = partial(outbox.due, session, queue, at=at, served=served, only=paused.free, shard=self._shard)
        larger_limit = max(limit, ceil(room * slot_weights.SHARDS_PER_SLOT / max(1, len(projects))))
        waiting = {project: _filling(due, project, room, limit, larger_limit) for project in projects}
        for project, messages in waiting.items():
            if not messages and served != outbox.ALL and outbox.due(session, queue, project, at, 1, only=paused.free):
                self._futile[queue, project] = served, self.clock() + self._timings.dispatch_idle
        weights: dict[str, float] = {}
        if len(projects) > 1:
            weights = dict(session.execute(select(Project.id, Project.weight).where(Project.id.in_(projects))).all())
        fair_schedule = self._fair_schedules.setdefault(queue, FairSchedule())
        fair_schedule.head_start = 2 * MESSAGES_PER_SLOT * slots  # half of it is its share anyway
        chosen = choose(waiting, out.slot_weights.get(queue, {}), weights, room, fair_schedule, share)
        self._held_back |= bool(sharing(queue)) and len(chosen) < sum(map(len, waiting.values()))
        return chosen

    def _in_flight(self, session: Session, workers: Sequence[Worker]) -> InFlight:
        """Return what is running, and published but unclaimed, by queue and project."""
        out = self._running_load(session, workers)
        for queue, project, slot_weight in session.execute(self._publication_query):
            out.add(queue, project, slot_weight)
        return out

    def _running_load(self, session: Session, workers: Sequence[Worker]) -> InFlight:
        """Return what is running by queue and project: shards, jobs that are planned or finished, and removals.

        A worker may finish the job whose only shard it ran: that takes a process of its own pool and none of planning.
        """
        out, shared = InFlight(), {worker.id: next(filter(sharing, worker.queues), None) for worker in workers}
        for queue, project, slot_weight in session.execute(self._running_query):
            out.add(queue or "", project, slot_weight)
        for worker_id, project, count in session.execute(_CLAIMED):
            if taken := shared.get(worker_id or ""):
                out.add(taken, project, count)
        for worker in workers:
            for queue, _, project, count in worker.other_work or ():
                if queue == Queue.INGEST:
                    out.add(queue, project, count)
        return out

    def _is_futile(self, queue: str, project: str, served: outbox.Served) -> bool:
        """Return whether all messages of a project waited for models a second ago: a million take half a second."""
        remembered, until = self._futile.get((queue, project), (outbox.ALL, 0.0))
        if remembered == served and self.clock() < until:
            return True
        self._futile.pop((queue, project), None)
        return False

    def _registry(self) -> Registry | None:
        """Return the models; None while the models file cannot be read: nothing is held back for that."""
        try:
            return self._models.now()
        except ModelsFileError as error:
            self._unread.warn(reason=str(error))
            return None

    def _publish(self, message_batches: Sequence[Sequence[DueMessage]], seen: float) -> None:
        """Publish each batch as one message, then record it. After a crash between, it is published twice: harmless."""
        self._record_publications()
        published, refused = list[int](), False
        self._unrecorded = published, seen
        try:
            for messages in message_batches:
                first = messages[0]
                ids = [message.job_id for message in messages]
                self._publisher.publish(
                    first.task, first.queue, ids if first.shard_n == outbox.JOB else [*ids, first.shard_n]
                )
                for message in messages:
                    published.append(message.id)
                    self._redelivery.note_publication(message.id, message.publish_count + 1)
        except BrokerUnavailable:
            log.warning("broker_unavailable", extra={"waiting": sum(map(len, message_batches)) - len(published)})
            self._broker_back = self.clock() + _BROKER_PAUSE
            refused = True
        self._record_publications(refused)

    def _record_publications(self, refused: bool = False) -> None:
        """Record what was published. Until that succeeds nothing more is published: it would be the same again."""
        published, seen = self._unrecorded
        if not published and not refused:
            return
        with self.db.write() as session:
            outbox.mark_published(session, published, seen)
            if refused:
                measures.count(session, measures.REFUSALS, "", 1)
        self._unrecorded = [], 0.0

    def _redeliver(self) -> None:
        """Publish unclaimed messages again, as far as shares go: the broker may have lost them."""
        if self.clock() < self._broker_back:
            return
        seen = now()
        with self.db.read() as session:
            unclaimed = outbox.unclaimed_messages(session, shard=self._shard)
            workers = fleet.alive(session) if unclaimed else []
            live = fleet.slots(workers)
            if len(unclaimed) == outbox.UNCLAIMED:  # older ones of queues without a worker may hide the others
                unclaimed = outbox.unclaimed_messages(session, live, self._shard)
            shares = self._running_load(session, workers).shares(live) if unclaimed else {}
        admitted = admitted_ids([message for message in unclaimed if message.queue in live], shares)
        again = [message for message in self._redelivery.overdue(unclaimed) if message.id in admitted]
        if again:
            log.info("redelivered", extra={"outbox_messages": len(again)})
            self._publish([[row] for row in again], seen)

    def _publish_without_jobs(self) -> None:
        """Publish messages for work without a job (webhooks, removals), at once and then at every redelivery."""
        waiting = self._maintenance.work_without_jobs()
        self._publish_again_at = {task: at for task, at in self._publish_again_at.items() if task in waiting}
        for task, queue in waiting.items():
            if self.clock() < max(self._publish_again_at.get(task, float("-inf")), self._broker_back):
                continue
            self._publish_again_at[task] = self.clock() + self.config.redelivery_seconds
            try:
                self._publisher.publish(task, queue, [])
            except BrokerUnavailable:
                self._broker_back = self.clock() + _BROKER_PAUSE
                with self.db.write() as session:
                    measures.count(session, measures.REFUSALS, "", 1)


#: The statements of each tick, built once.
_WAITING = select(Outbox.queue).where(Outbox.published_at.is_(None)).distinct()
_CLAIMED = (
    select(Job.worker_id, Job.project_id, func.count())
    .where(Job.worker_id.is_not(None))
    .group_by(Job.worker_id, Job.project_id)
)


def _running_query(shard: ColumnElement[float]) -> Select[str, str, float]:
    return (
        select(func.coalesce(Shard.queue, Job.queue), Job.project_id, func.sum(shard))
        .select_from(Job)
        .join(Shard, Shard.job_id == Job.id)
        .where(shards.IS_RUNNING)
        .group_by(func.coalesce(Shard.queue, Job.queue), Job.project_id)
    )


def _publication_query(shard: ColumnElement[float]) -> Select[str, str, float]:
    return (
        select(Outbox.queue, Outbox.project_id, func.sum(outbox.slot_weight(shard)))
        .outerjoin(Job, Job.id == Outbox.job_id)
        .outerjoin(File, outbox.INPUT)
        .outerjoin(Shard, outbox.SHARD)
        .where(Outbox.published_at.is_not(None))
        .group_by(Outbox.queue, Outbox.project_id)
    )


def _filling(
    due: Callable[..., Sequence[DueMessage]], project: str, room: float, limit: int, larger_limit: int
) -> Sequence[DueMessage]:
    """Return as many messages of a project as would fill the room; `more` are looked at where these are small."""
    messages = due(project, limit=limit)
    if len(messages) < limit or sum(message.slot_weight for message in messages) >= room:
        return messages
    return due(project, limit=larger_limit)


def message_batches(messages: Sequence[DueMessage], slots: int) -> list[list[DueMessage]]:
    """Put jobs that are planned in no time together into messages, so that every slot gets some; others get one each.

    The order stays.
    """
    small = sum(message.task == Task.PLAN and message.slot_weight < 1 for message in messages)
    size = min(outbox.PLANS, ceil(small / slots))
    batches: list[list[DueMessage]] = []
    filling: list[DueMessage] = []
    for message in messages:
        if message.task != Task.PLAN or message.slot_weight == 1:
            batches.append([message])
        elif filling and len(filling) < size:
            filling.append(message)
        else:
            batches.append(filling := [message])
    return batches


def main() -> None:
    """Run until SIGTERM; lead when this process gets the leadership."""
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
            give_sign(DISPATCHER)
            stop.wait(1.0)
    leadership.drop()
    db.close()


def _lead(
    config: Settings, db: Database, leadership: Leadership, stop: threading.Event, timings: Timings = Timings()
) -> None:
    """Lead until `stop` is set or the leadership is lost. Every observation starts afresh."""
    log.info("dispatcher_leads")
    with suppress(DatabaseBusy), db.write() as session:
        session.merge(Meta(key=ELECTED_AT, value=str(now())))
        measures.count(session, measures.ELECTIONS, "", 1)
    dispatcher = Dispatcher(config, db, open_storage(config.storage), CeleryPublisher(config), timings=timings)
    busy = logs.Seldom(log, "database_busy")
    while not stop.is_set() and leadership.holds():
        try:
            flows = dispatcher.tick()
            give_sign(DISPATCHER)
            leadership.wait(timings.dispatch_tick / (_BUSY_FACTOR if flows else 1), dispatcher.idle_seconds(), stop)
        except DatabaseBusy:
            busy.warn()
            stop.wait(0.5)
