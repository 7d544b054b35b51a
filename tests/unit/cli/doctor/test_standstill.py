"""Reasons why no worker claims a job: from the database on the deployment's host, elsewhere from `/readyz`."""

import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url, update

from cli.client.progress import Snapshot
from cli.doctor import standstill
from cli.errors import CliError
from jobs.clock import now
from jobs.db.engine import Database
from jobs.fleet import workers
from jobs.fleet.tables import Worker
from jobs.ledger import ledger, pauses
from jobs.ledger.pauses import Scope
from jobs.ledger.tables import Outbox
from jobs.queues import Task
from tests.support import ledgers

Why = Callable[[str], list[str]]


@pytest.fixture
def why(tmp_path: Path, db: Database, monkeypatch: pytest.MonkeyPatch) -> Why:
    monkeypatch.setenv("NIGHTMILL_DATABASE_URL", db.url)
    return lambda job_id: standstill.from_database(job_id, tmp_path)


def works(db: Database, queue: str = "cpu.plan", **changes: Any) -> None:
    facts = {
        "id": "worker-1", "pool": "cpu", "host": "h", "pid": 1, "started": 1, "queues": [queue], "models": ["*"],
        "slots": 1, "state": "ready", "created_at": 1.0, "seen_at": now(),
    }  # fmt: skip
    with db.write() as session:
        workers.register(session, Worker(**facts | changes))


def pause(db: Database, scope: Scope, name: str) -> None:
    with db.write() as session:
        pauses.pause(session, scope, name, actor="operator")


def overdue(db: Database, published_at: float | None = None) -> None:
    with db.write() as session:
        session.execute(update(Outbox).values(due_at=now() - 90, published_at=published_at))


def test_a_paused_queue_is_named_with_what_ends_the_pause(db: Database, why: Why) -> None:
    job = ledgers.submitted(db)
    works(db)
    pause(db, Scope.QUEUE, "cpu.plan")

    assert why(job.id) == ["cpu.plan is paused; `nightmill resume queue cpu.plan` goes on"]


def test_a_paused_model_holds_back_lines_before_any_dispatcher_has_said_so(db: Database, why: Why) -> None:
    job = ledgers.running(db, model="tiny")
    pause(db, Scope.MODEL, "tiny")

    assert why(job.id) == ["its queue, model or project is paused; `nightmill workers` shows what is"]


def test_a_queue_without_a_live_worker_is_named(db: Database, why: Why) -> None:
    queued, running = ledgers.submitted(db), ledgers.running(db)

    assert why(queued.id) == ["no live worker of cpu.plan; `nightmill workers` lists the live workers"]
    assert why(running.id) == ["no live worker of gpu.generate; `nightmill workers` lists the live workers"]


def test_workers_that_take_nothing_are_named_with_why(db: Database, why: Why) -> None:
    job = ledgers.submitted(db)
    works(db)
    works(db, id="worker-2", state="starting")
    pause(db, Scope.WORKER, "worker-1")

    assert why(job.id) == ["no worker of cpu.plan takes work: worker-1 is paused, worker-2 is starting"]


def test_slots_that_are_busy_are_counted(db: Database, why: Why) -> None:
    other, job = ledgers.running(db), ledgers.running(db)
    works(db, "gpu.generate")
    ledgers.claim_shard(db, other.id)

    assert why(job.id) == ["all slots of gpu.generate are busy (1)"]


def test_where_nobody_publishes_it_is_told_that_no_dispatcher_leads(db: Database, why: Why, tmp_path: Path) -> None:
    job = ledgers.submitted(db)
    works(db)
    overdue(db)

    assert why(job.id) == [
        "cpu.plan should have got a message for it 1 min 30 s ago",
        "no dispatcher leads; `nightmill doctor` looks at the processes",
    ]


def test_a_dispatcher_that_leads_is_not_blamed(sqlite: Database, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("NIGHTMILL_DATABASE_URL", sqlite.url)
    job = ledgers.submitted(sqlite)
    works(sqlite)
    overdue(sqlite, published_at=now() - 20)

    with Path(f"{make_url(sqlite.url).database}.dispatcher").open("a") as seat:
        fcntl.flock(seat, fcntl.LOCK_EX)
        [told] = standstill.from_database(job.id, tmp_path)

    assert told == "cpu.plan was sent a message for it 20 s ago, and no worker has claimed it"


def test_a_broker_that_is_away_is_told(db: Database, why: Why, monkeypatch: pytest.MonkeyPatch) -> None:
    job = ledgers.submitted(db)
    works(db)
    overdue(db)
    monkeypatch.setenv("NIGHTMILL_BROKER_URL", "amqp://127.0.0.1:9")

    assert (
        "the broker is unavailable: nothing answers at 127.0.0.1:9; start it, or correct NIGHTMILL_BROKER_URL"
        in why(job.id)
    )


def test_what_a_worker_has_in_hand_waits_for_nothing_unless_that_is_silent(db: Database, why: Why) -> None:
    job = ledgers.submitted(db)
    works(db, id="worker-1")
    with db.write() as session:
        ledger.claim(session, job.id, Task.PLAN, "worker-1")

    assert why(job.id) == ["a worker runs it, and there is no new result yet"]
    works(db, id="worker-1", seen_at=now() - 7210)
    assert why(job.id)[0] == "worker-1 has claimed it, and has sent no heartbeat for 2 h 0 min"


def test_a_job_that_has_just_come_is_not_complained_of(db: Database, why: Why) -> None:
    job = ledgers.submitted(db)
    works(db)

    assert why(job.id) == []


def shown(state: str, position: int | None) -> Snapshot:
    job = {
        "id": "batch_1", "kind": "generation", "state": state, "created_at": 0, "queue_position": position,
        "progress": {"total": 9, "completed": 0, "failed": 0}, "usage": {"input_tokens": 0, "output_tokens": 0},
    }  # fmt: skip
    return Snapshot.of(job)


@pytest.mark.parametrize(
    ("state", "ready", "told"),
    [
        ("queued", {"status": "ready", "workers": {}}, ["no live worker of cpu.plan"]),
        ("finishing", {"status": "ready", "workers": {"gpu.embed": 1}}, ["no live worker of cpu.plan"]),
        ("running", {"status": "ready", "workers": {}}, []),
        ("queued", {"status": "unavailable", "database": "unavailable"}, ["the server's database is unavailable"]),
        ("queued", {}, []),
        ("queued", {"status": "ready", "workers": {"cpu.plan": 1}}, []),
        (
            "running",
            {"status": "stuck", "workers": {"cpu.plan": 1}},
            ["no worker claims any waiting work: `nightmill doctor` on the server's host says why"],
        ),
    ],
)  # fmt: skip
def test_from_elsewhere_readiness_is_asked(state: str, ready: dict[str, Any], told: list[str]) -> None:
    assert standstill.from_readiness(shown(state, None), ready) == told


@pytest.mark.parametrize(
    ("why", "position", "told"),
    [
        (["x"], 2, ["x", "2 of its project's jobs before it"]),
        (["x"], 0, ["x"]),
        ([], 0, ["none of its project's jobs before it"]),
        ([], None, []),
    ],
)
def test_its_place_is_told_too(
    monkeypatch: pytest.MonkeyPatch, why: list[str], position: int | None, told: list[str]
) -> None:
    monkeypatch.setattr(standstill, "from_database", lambda *_: list(why))

    assert standstill.reasons("http://h", shown("queued", position), None) == told


def test_where_this_host_does_not_know_the_job_its_server_is_asked(
    db: Database, why: Why, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.up.readiness.look", lambda _url: {"status": "ready", "workers": {}})

    with pytest.raises(CliError, match="there is no job batch_1"):
        why("batch_1")
    assert standstill.reasons("http://h", shown("queued", None), None) == ["no live worker of cpu.plan"]
