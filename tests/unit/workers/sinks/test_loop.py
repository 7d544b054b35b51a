"""The sending of feeds to sinks: in order, each event until it is received, and never in the way of a job."""

import threading
from pathlib import Path

import pytest
from sqlalchemy import update

from jobs.db.engine import Database
from jobs.fleet.models_file import Models
from jobs.fleet.tables import Worker
from jobs.ledger import feed_cursors
from jobs.platform.storage import DiskStorage
from jobs.settings import Settings
from jobs.webhooks.tables import Event, FeedCursor
from tests.support.sample_jobs import close, finishing
from tests.support.tuned_versions import number_events
from workers.runtime.context import Context, WorkerStatus
from workers.runtime.heartbeat import Heartbeat
from workers.sinks.loop import send_due, sinks_of
from workers.sinks.sink import EventRefused, SinkUnavailable


class Recording:
    """A sink that keeps what it is sent. `failures` are raised for the next events, None where one is received."""

    name = "openlineage"

    def __init__(self) -> None:
        self.received: list[int] = []
        self.failures: list[Exception | None] = []

    def send(self, _db: Database, event: Event) -> bool:
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        self.received.append(event.position or 0)
        return True


@pytest.fixture
def context(sqlite: Database, tmp_path: Path) -> Context:
    config = Settings(data_dir=tmp_path, database_url=sqlite.url)
    stop = threading.Event()
    heartbeat = Heartbeat(sqlite, Worker, heartbeat_seconds=60, stop=stop)
    storage = DiskStorage(tmp_path / "files")
    return Context(config, sqlite, storage, "w", stop, WorkerStatus(), heartbeat, Models(config))


def ended_job(context: Context, project: str = "proj_1") -> None:
    close(context.db, finishing(context.db, project_id=project).id)
    number_events(context.db)


def later(context: Context) -> None:
    with context.db.write() as session:
        session.execute(update(FeedCursor).values(due_at=0.0))


def cursor(context: Context) -> FeedCursor:
    with context.db.read() as session:
        return session.get_one(FeedCursor, ("openlineage", "proj_1"))


def test_events_come_in_order_and_once(context: Context) -> None:
    sink = Recording()
    ended_job(context)

    sent = [send_due(context, sink), send_due(context, sink)]
    ended_job(context)
    send_due(context, sink)

    assert sent == [True, False]
    assert sink.received == list(range(1, 9))


def test_events_wait_until_the_sink_is_back(context: Context) -> None:
    sink = Recording()
    sink.failures = [None, SinkUnavailable("the server cannot be reached (ConnectError).")]
    ended_job(context)

    sent = [send_due(context, sink), send_due(context, sink)]
    assert sent == [True, False]
    assert (sink.received, cursor(context).position, cursor(context).failures) == ([1], 1, 1)
    later(context)
    send_due(context, sink)

    assert sink.received == [1, 2, 3, 4]
    assert cursor(context).failures == 0


@pytest.mark.parametrize("failure", [EventRefused("status 400"), ValueError("a bug")], ids=["refused", "bug"])
def test_an_event_that_is_never_taken_holds_up_no_other(context: Context, failure: Exception) -> None:
    sink = Recording()
    sink.failures = [None, failure]
    ended_job(context)

    send_due(context, sink)

    assert sink.received == [1, 3, 4]
    assert cursor(context).position == 4


def test_event_without_a_noted_receipt_is_sent_twice(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Recording()
    ended_job(context)
    with monkeypatch.context() as killed:
        killed.setattr(feed_cursors, "advance", _die)
        with pytest.raises(KeyboardInterrupt):
            send_due(context, sink)

    waits = send_due(context, sink)  # for the claim of the killed process
    later(context)
    send_due(context, sink)

    assert not waits
    assert sink.received == [1, 1, 2, 3, 4]


def _die(*_: object) -> None:
    raise KeyboardInterrupt


def test_sink_continues_behind_events_that_retention_removed(context: Context) -> None:
    sink = Recording()
    ended_job(context)
    with context.db.write() as session:
        session.query(Event).delete()

    sent = [send_due(context, sink), send_due(context, sink)]
    ended_job(context)
    send_due(context, sink)

    assert sent == [True, False]
    assert sink.received == [5, 6, 7, 8]


def test_failure_of_a_project_delays_no_other_project(context: Context) -> None:
    sink = Recording()
    sink.failures = [SinkUnavailable("the server answered with status 503.")]
    ended_job(context)
    ended_job(context, "proj_2")

    send_due(context, sink)
    send_due(context, sink)

    assert sink.received == [1, 2, 3, 4]
    assert cursor(context).position == 0


def test_each_url_that_is_set_makes_a_sink(tmp_path: Path) -> None:
    both = Settings(data_dir=tmp_path, mlflow_url="http://m:5000", openlineage_url="http://marquez:5000")

    assert sinks_of(Settings(data_dir=tmp_path)) == []
    assert [sink.name for sink in sinks_of(both)] == ["mlflow", "openlineage"]
