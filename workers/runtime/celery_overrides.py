"""The two parts of Celery's worker that this project replaces, named in `workers.app`."""

from functools import partial
from typing import Any

from celery.concurrency import thread
from celery.worker import consumer
from kombu.asynchronous import get_event_loop

_MAX_SECONDS = 4


class TaskPool(thread.TaskPool):  # type: ignore[misc]  # Celery has no types
    """Run tasks in threads as Celery's own pool does, and wake the consumer's loop when a task ends.

    Without prefetching the consumer takes nothing while every thread is busy, and sleeps until a socket is readable, up
    to a second. Celery's pool makes no socket readable when a task ends, unless it sends the events that Flower reads.
    """

    def on_apply(self, *args: Any, **kwargs: Any) -> thread.ApplyResult:
        result = super().on_apply(*args, **kwargs)
        result.f.add_done_callback(_wake)
        return result


class Consumer(consumer.Consumer):  # type: ignore[misc]
    """Look for a lost broker every few seconds.

    Celery's own consumer waits two seconds longer each time, in the end half a minute.
    """

    def ensure_connected(self, conn: Any) -> Any:
        conn.ensure_connection = partial(conn.ensure_connection, interval_max=_MAX_SECONDS)
        return super().ensure_connected(conn)


def _wake(_ended: object) -> None:
    if (loop := get_event_loop()) is not None:
        loop.call_soon(_nothing)


def _nothing() -> None:
    """Return at once: being scheduled makes the loop begin a new round."""
