"""A dispatcher that a test drives by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.clock import now
from jobs.db.engine import Database
from jobs.files.tables import File
from jobs.fleet import workers
from jobs.fleet.tables import Worker
from jobs.platform import processes
from jobs.platform.storage import DiskStorage
from jobs.queues import Queue
from jobs.security import keys
from jobs.settings import Settings
from workers.dispatcher.loop import Dispatcher
from workers.dispatcher.publisher import BrokerUnavailable


class Clock:
    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


class FakeBroker:
    """The broker: notes what was published, or is unavailable."""

    def __init__(self) -> None:
        self.published: list[tuple[str, tuple[object, ...]]] = []
        self.away = False

    def publish(self, task: str, queue: str, arguments: Sequence[object]) -> None:
        if self.away:
            raise BrokerUnavailable
        self.published.append((task, tuple(arguments)))


_STEP = 5.0  # seconds: longer than that no dispatcher looks away


class DispatcherHarness:
    """A dispatcher with a clock and a broker of the test's own."""

    def __init__(self, db: Database, folder: Path, **settings: Any) -> None:
        facts = {"lease_seconds": 30, "redelivery_seconds": 10, "shard_lines": 1, **settings}
        self.config = Settings(data_dir=folder, database_url=db.url, **facts)
        self.db, self.clock, self.broker = db, Clock(), FakeBroker()
        self.storage = DiskStorage(folder / "files")
        self.dispatcher = Dispatcher(self.config, db, self.storage, self.broker, self.clock)

    def tick(self, after: float = 0.0) -> list[tuple[str, tuple[object, ...]]]:
        """Let time pass, in which it ticks as well, and return what was published."""
        self.broker.published.clear()
        while after > _STEP:
            self.clock.at += _STEP
            after -= _STEP
            self.dispatcher.tick()
        self.clock.at += after
        self.dispatcher.tick()
        return list(self.broker.published)

    def worker(self, name: str = "w", queue: str = Queue.GENERATE, *others: str, slots: int = 1, **facts: Any) -> str:
        host, pid, started = processes.me()
        row = {"host": host, "pid": pid, "started": started, "models": ["*"], "state": "ready", **facts}
        queues = [queue, *others]
        with self.db.write() as session:
            workers.register(
                session,
                Worker(id=name, pool="p", queues=queues, slots=slots, created_at=now(), seen_at=now(), **row),
            )
        return name

    def heartbeat(self, name: str = "w") -> None:
        with self.db.write() as session:
            assert workers.heartbeat(session, name)


def project_of(db: Database, name: str) -> str:
    with db.write() as session:
        return keys.ensure_project(session, name).id


def new_file(name: str, **facts: Any) -> File:
    given = {"purpose": "batch", "filename": "f", "bytes": 1, "path": f"files/{name}", "created_at": 1.0, **facts}
    return File(id=name, project_id="p", **given)
