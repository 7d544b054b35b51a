"""Messages on their way to the broker: which is published next, how, and when an unclaimed one is published again.

The next message is a function of the rows in SQL and of earlier turns, so that a table of cases tests it. It is fair
between projects by weight, and inside a project by priority, deadline and age. A project's load is what it has running
and published; the project with the least load per weight is served first, one message at a time. A high priority
therefore overtakes the project's own work and never another project's share.

Where more projects wait than there are slots, most have no load at all. Then they take turns: start-time fair queueing
(Goyal, Vin, Cheng 1996), each message costing a project what it takes of a slot over its weight. An idle
project does not save turns up.

A project that comes when all slots are taken waits while others finish. In return its first messages come before
those of others, but they take no other project's last slot.

That is not enough where a message takes a whole process, and for long (`jobs.queues.PROCESS_POOLS`): nobody is served
before somebody finishes. There a project has messages and claims for half of the processes at most, in all queues of
the pool together, also where no other project waits.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final, Protocol

from kombu.exceptions import OperationalError

from jobs.ledger.outbox import DueMessage
from jobs.platform.limiters import VirtualTime
from jobs.settings import Settings
from workers import app

#: Messages in flight per live slot: one being handled, one on its way, so that no slot waits for a tick.
MESSAGES_PER_SLOT: Final = 2


@dataclass(slots=True)
class SlotShare:
    """The slots of a pool that one project may take, and those that each has taken with claims and messages."""

    limit: float = inf
    taken: dict[str, float] = field(default_factory=dict)

    def admits(self, message: DueMessage) -> bool:
        """Return whether the message's project may have it in flight. A small one holds its slot for no time."""
        limit = self.limit if message.slot_weight >= 1 else MESSAGES_PER_SLOT * self.limit
        return self.taken.get(message.project_id, 0.0) + message.slot_weight <= limit

    def take(self, message: DueMessage) -> None:
        self.taken[message.project_id] = self.taken.get(message.project_id, 0.0) + message.slot_weight


def admitted_ids(messages: Iterable[DueMessage], shares: Mapping[str, SlotShare]) -> set[int]:
    """Return the ids of the messages, the first ones first, that `shares` admit by queue; `shares` are moved on."""
    admitted = set()
    for message in messages:
        share = shares.get(message.queue)
        if share is None or share.admits(message):
            admitted.add(message.id)
            if share is not None:
                share.take(message)
    return admitted


@dataclass(slots=True)
class FairSchedule:
    """The progress of each project on one queue; projects that are not ahead of all others are not stored.

    A project that had nothing waiting and nothing in flight before may be served `head_start` slots before its turn.
    """

    head_start: float = 0.0
    _time: VirtualTime[str] = field(default_factory=VirtualTime)
    _left: dict[str, float] = field(default_factory=dict)  # of the head start, for each project with work

    def look(self, here: Iterable[str], busy: Iterable[str]) -> None:
        """Note which projects have work waiting now, and which had messages in flight."""
        working = {name: self._left.get(name, 0) for name in busy}
        self._left = {name: self._left.get(name, self.head_start) for name in here} | working

    def favoured_projects(self, here: Iterable[str]) -> list[str]:
        """Return the projects that have some of their head start left."""
        return [name for name in here if self._left.get(name, 0) > 0]

    def start_time(self, project: str) -> float:
        return self._time.start(project)

    def take(self, project: str, slot_weight: float, weight: float) -> None:
        """Charge a project for a message that is published."""
        if self._left.get(project, 0) > 0:
            self._left[project] -= slot_weight
        self._time.advance(project)
        self._time.charge(project, slot_weight / weight)


def choose(
    waiting: Mapping[str, Sequence[DueMessage]],
    load: Mapping[str, float],
    weights: Mapping[str, float],
    room: float,
    fair_schedule: FairSchedule | None = None,
    share: SlotShare | None = None,
) -> list[DueMessage]:
    """Choose messages of `waiting` (each project's in its own order) until `room` is taken: each takes its share of it.

    `fair_schedule` is the queue's, and is moved on; so is `share`, the pool's. A project whose next message exceeds it
    gets no other message either: its order stays.
    """
    fair_schedule, share = fair_schedule or FairSchedule(), share or SlotShare()
    queues = {
        project: deque(messages) for project, messages in waiting.items() if messages and share.admits(messages[0])
    }
    loads = {project: load.get(project, 0.0) for project in queues}
    chosen: list[DueMessage] = []
    fair_schedule.look(queues, load)

    def priority(name: str) -> tuple[float, float, str]:
        return loads[name] / weights.get(name, 1.0), fair_schedule.start_time(name), name

    while queues and room > 0:
        project = min(queues, key=priority)
        hurried = fair_schedule.favoured_projects(queues)
        if hurried and project not in hurried and loads[project] > 0:
            project = min(hurried, key=priority)
        chosen.append(queues[project].popleft())
        slot_weight = chosen[-1].slot_weight
        fair_schedule.take(project, slot_weight, weights.get(project, 1.0))
        share.take(chosen[-1])
        room -= slot_weight
        loads[project] += slot_weight
        if not queues[project] or not share.admits(queues[project][0]):
            del queues[project]
    return chosen


_MAX_REDELIVERY = 60.0


class BrokerUnavailable(Exception):
    """The broker takes no messages now."""


class Publisher(Protocol):
    """Publish messages. Raises BrokerUnavailable."""

    def publish(self, task: str, queue: str, arguments: Sequence[object]) -> None: ...


class CeleryPublisher:
    """Publish through Celery on one connection; every failure of the connection is `BrokerUnavailable`."""

    def __init__(self, config: Settings) -> None:
        self._app = app.build(config)

    def publish(self, task: str, queue: str, arguments: Sequence[object]) -> None:
        try:
            self._app.send_task(
                task, args=list(arguments), queue=self._declare_queue(queue), ignore_result=True, retry=False
            )
        except (OperationalError, OSError) as error:
            raise BrokerUnavailable(str(error)) from error

    def _declare_queue(self, name: str) -> str:
        """Declare the queue of a model that has one of its own, which this process does not know yet."""
        if name not in self._app.amqp.queues:
            self._app.amqp.queues.add(app.queue(name, self._app.conf.broker_url))
        return name


@dataclass(slots=True)
class Redelivery:
    """The times at which unclaimed messages are published again, on the dispatcher's own clock: later each time."""

    clock: Callable[[], float]
    first: float
    _again: dict[int, float] = field(default_factory=dict)

    def overdue(self, unclaimed: Sequence[DueMessage]) -> list[DueMessage]:
        at = self.clock()
        self._again = {row.id: self._again.get(row.id, at + self._delay(row.publish_count)) for row in unclaimed}
        return [row for row in unclaimed if self._again[row.id] <= at]

    def note_publication(self, row_id: int, times: int) -> None:
        self._again[row_id] = self.clock() + self._delay(times)

    def _delay(self, times: int) -> float:
        return min(self.first * (1 << min(max(times - 1, 0), 10)), max(_MAX_REDELIVERY, self.first))
