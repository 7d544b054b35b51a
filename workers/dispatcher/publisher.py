"""Doorbells through Celery."""

import logging
from collections.abc import Sequence

from kombu.exceptions import OperationalError

from jobs.settings import Settings
from workers import app
from workers.dispatcher.away import BrokerAway

log = logging.getLogger(__name__)


class CeleryRinger:
    """Publishes on one connection; whatever goes wrong there is `BrokerAway`."""

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
        """A model may have a queue of its own, which this process has not declared yet."""
        if name not in self._app.amqp.queues:
            self._app.amqp.queues.add(app.queue(name, self._app.conf.broker_url))
        return name
