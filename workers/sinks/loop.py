"""Send the feeds of all projects to the sinks, each in a thread of its own, in the processes of the pool `io`.

    feed ── a claimed cursor of `feed_cursor` ─┬─▶ MlflowRegistry   a version is there, or its stage changed
                                               └─▶ OpenLineage      a job began or ended

What writes the events knows nothing of these threads: a sink that is slow or away holds up no job.
"""

import logging
import threading
from collections.abc import Sequence
from typing import Final

from jobs.errors import DatabaseBusy
from jobs.ledger import feed, feed_cursors
from jobs.ledger.feed_cursors import CursorClaim
from jobs.settings import Settings
from jobs.webhooks.tables import Event
from workers.runtime.context import Context
from workers.sinks.mlflow_registry import MlflowRegistry
from workers.sinks.openlineage import OpenLineage
from workers.sinks.sink import EventRefused, FeedSink, SinkUnavailable

log = logging.getLogger(__name__)
#: Events that are read at once.
_EVENTS: Final = 100
#: What a claim lasts from each receipt on: longer than the requests about one event take.
_CLAIM_SECONDS: Final = 180.0


def start(context: Context) -> None:
    """Start a thread for each sink of the deployment. They end with the process, wherever they are."""
    for sink in sinks_of(context.config):
        threading.Thread(target=_run, args=(context, sink), name=sink.name, daemon=True).start()


def sinks_of(config: Settings) -> list[FeedSink]:
    """Return the sinks whose URL is set."""
    sinks: list[FeedSink] = [MlflowRegistry(config)] if config.mlflow_url else []
    return [*sinks, OpenLineage(config)] if config.openlineage_url else sinks


def _run(context: Context, sink: FeedSink) -> None:
    while not context.stop.is_set():
        try:
            busy = send_due(context, sink)
        except DatabaseBusy:
            log.warning("sink_waits_for_database", extra={"sink": sink.name})
            busy = False
        if not busy:
            context.stop.wait(context.timings.sink_look)


def send_due(context: Context, sink: FeedSink) -> bool:
    """Send events of the project that has been due for the longest time; return False where none is due."""
    with context.db.read() as session:
        ready = feed_cursors.due(session, sink.name)
    if ready is None:
        return False
    with context.db.write() as session:
        claimed = feed_cursors.claim(session, ready, _CLAIM_SECONDS)
    if claimed is not None:
        with context.db.read() as session:
            events = feed.after(session, claimed.project_id, claimed.position, _EVENTS)
        _send(context, sink, claimed, events)
    return True


def _send(context: Context, sink: FeedSink, claimed: CursorClaim, events: Sequence[Event]) -> None:
    """Send events in their order until one fails, and note each receipt."""
    position = claimed.position
    for event in events:
        try:
            counts = _offer(context, sink, event)
        except SinkUnavailable as error:
            if claimed.failures == 0:
                log.warning("sink_unavailable", extra={"sink": sink.name, "failure": str(error)})
            with context.db.write() as session:
                feed_cursors.record_failure(session, claimed, position)
            return
        position = event.position or position
        if counts:
            with context.db.write() as session:
                renewed = feed_cursors.advance(session, claimed, position, _CLAIM_SECONDS)
            if renewed is None:
                return
            claimed = renewed
    with context.db.write() as session:
        feed_cursors.release(session, claimed, position if events else claimed.end)


def _offer(context: Context, sink: FeedSink, event: Event) -> bool:
    """Send an event; return whether the sink has received or refused something. An event that it refuses is logged."""
    try:
        return sink.send(context.db, event)
    except (SinkUnavailable, DatabaseBusy):
        raise
    except EventRefused as error:
        log.warning("sink_refused_event", extra={"sink": sink.name, "event_id": event.id, "failure": str(error)})
    except Exception:  # a bug: what happened later is sent all the same
        log.exception("sink_broken", extra={"sink": sink.name, "event_id": event.id})
    return True
