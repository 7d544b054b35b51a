"""How soon a worker hears a broker again that was away."""

from functools import partial
from typing import Any

from celery.worker import consumer

_LONGEST_SECONDS = 4


class Consumer(consumer.Consumer):  # type: ignore[misc]  # Celery has no types
    """Looks for it every few seconds; Celery's own waits two seconds longer each time, in the end half a minute."""

    def ensure_connected(self, conn: Any) -> Any:
        conn.ensure_connection = partial(conn.ensure_connection, interval_max=_LONGEST_SECONDS)
        return super().ensure_connected(conn)
