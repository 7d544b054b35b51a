"""Doorbells on their way to the broker: how one is published, and when one that nobody heard is published again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kombu.exceptions import OperationalError

from jobs.ledger.tables import Outbox
from jobs.settings import Settings
from workers import app

_MAX_RERING = 60.0


class BrokerAway(Exception):
    """The broker takes nothing now."""


class Ringer(Protocol):
    """Publish doorbells. Raises BrokerAway."""

    def ring(self, task: str, queue: str, arguments: Sequence[object]) -> None: ...


class CeleryRinger:
    """Publish through Celery on one connection; every failure of the connection is `BrokerAway`."""

    def __init__(self, config: Settings) -> None:
        self._app = app.build(config)

    def ring(self, task: str, queue: str, arguments: Sequence[object]) -> None:
        try:
            self._app.send_task(
                task, args=list(arguments), queue=self._declared(queue), ignore_result=True, retry=False
            )
        except (OperationalError, OSError) as error:
            raise BrokerAway(str(error)) from error

    def _declared(self, name: str) -> str:
        """Declare the queue of a model that has one of its own, which this process does not know yet."""
        if name not in self._app.amqp.queues:
            self._app.amqp.queues.add(app.queue(name, self._app.conf.broker_url))
        return name


@dataclass(slots=True)
class Rings:
    """When each unheard doorbell is to be rung again, on the dispatcher's own clock: later each time."""

    clock: Callable[[], float]
    first: float
    _again: dict[int, float] = field(default_factory=dict)

    def overdue(self, unheard: Sequence[Outbox]) -> list[Outbox]:
        at = self.clock()
        self._again = {row.id: self._again.get(row.id, at + self._delay(row.rings)) for row in unheard}
        return [row for row in unheard if self._again[row.id] <= at]

    def rung(self, row_id: int, times: int) -> None:
        self._again[row_id] = self.clock() + self._delay(times)

    def _delay(self, times: int) -> float:
        return min(self.first * (1 << min(max(times - 1, 0), 10)), max(_MAX_RERING, self.first))
