"""Celery's pool of threads, which tells the consumer when a thread becomes free.

Without prefetching the consumer takes nothing while every thread is busy, and sleeps until a socket stirs, up to a
second. Nothing stirs when a task of this pool ends, unless it sends the events that only Flower wants.
"""

from typing import Any

from celery.concurrency import thread
from kombu.asynchronous import get_event_loop


class TaskPool(thread.TaskPool):  # type: ignore[misc]
    """As Celery's own, and it wakes the loop."""

    def on_apply(self, *args: Any, **kwargs: Any) -> thread.ApplyResult:
        result = super().on_apply(*args, **kwargs)
        result.f.add_done_callback(_wake)
        return result


def _wake(_ended: object) -> None:
    if (loop := get_event_loop()) is not None:
        loop.call_soon(_nothing)


def _nothing() -> None:
    """The loop looks around before it sleeps again."""
