"""The port that sinks implement."""

from typing import Protocol

from jobs.db.engine import Database
from jobs.webhooks.tables import Event


class SinkUnavailable(Exception):
    """A sink cannot be reached, or takes nothing now. The event is sent again later, and those after it wait."""


class EventRefused(Exception):
    """A sink never takes this event. Those after it are sent."""


class FeedSink(Protocol):
    """A system that receives the events of all projects."""

    name: str

    def send(self, db: Database, event: Event) -> bool:
        """Send what belongs to an event; return False where nothing does.

        Sent again, nothing is there twice. Raises: SinkUnavailable, EventRefused.
        """
        ...
