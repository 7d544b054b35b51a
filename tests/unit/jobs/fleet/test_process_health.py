"""A container's health check finds a process that is alive, and one that is not, on both databases."""

import threading

import pytest

from jobs.clock import now
from jobs.db.engine import Database
from jobs.fleet import health, workers
from jobs.fleet.leadership import Leadership
from jobs.fleet.tables import Worker
from jobs.platform import processes
from jobs.settings import Settings


def register(db: Database, **changes: object) -> None:
    host, pid, started = processes.me()
    facts = {"id": "cpu-1", "pool": "cpu", "host": host, "pid": pid, "started": started, "queues": [], "models": []}
    facts |= {"slots": 1, "created_at": now(), "seen_at": now()}
    with db.write() as session:
        workers.register(session, Worker(**(facts | changes)))


@pytest.fixture
def config(db: Database) -> Settings:
    return Settings(database_url=db.url)


def test_a_worker_that_sends_heartbeats_is_well(db: Database, config: Settings) -> None:
    register(db)

    assert health.ailing(config, "cpu") == ""


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seen_at": now() - 3600}, "has sent a heartbeat for"),
        ({"pool": "io"}, "no worker of cpu on this host"),
        ({"host": "elsewhere"}, "no worker of cpu on this host"),
        ({"started": 1}, "no worker of cpu on this host"),
    ],
)
def test_a_worker_that_is_silent_or_not_here_is_not_well(
    db: Database, config: Settings, changes: dict[str, object], told: str
) -> None:
    register(db, **changes)

    assert told in health.ailing(config, "cpu")


def test_dispatchers_are_well_while_one_of_them_leads(db: Database, config: Settings) -> None:
    assert health.ailing(config, "dispatcher") == "no dispatcher leads"

    leadership = Leadership(config, db)
    assert leadership.take()
    try:
        assert health.ailing(config, "dispatcher") == ""
        assert leadership.holds()
    finally:
        leadership.drop()
    threading.Event().wait(0.2)  # PostgreSQL lets go when the connection has ended
    assert health.ailing(config, "dispatcher") == "no dispatcher leads"


def test_a_database_that_is_away_is_said() -> None:
    config = Settings(database_url="postgresql+psycopg://nobody@127.0.0.1:1/none")

    assert health.ailing(config, "io") == "the database does not answer"


@pytest.mark.parametrize("arguments", [[], ["web"], ["cpu", "gpu"]])
def test_a_role_that_has_no_check_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="one of dispatcher, cpu"):
        health.main(arguments)


def test_the_check_ends_quietly_or_says_what_is_wrong(
    db: Database, config: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "settings", lambda: config)
    register(db)

    health.main(["cpu"])
    with pytest.raises(SystemExit, match="no worker of io on this host"):
        health.main(["io"])
