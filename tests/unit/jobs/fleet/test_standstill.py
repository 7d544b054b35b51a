"""Reasons why no worker claims a job."""

import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url, update

from jobs.clock import now
from jobs.db.engine import Database
from jobs.fleet import standstill, workers
from jobs.ledger import ledger, pauses
from jobs.ledger.pauses import Scope
from jobs.ledger.tables import Job, Outbox
from jobs.queues import Queue, Task
from jobs.settings import Settings
from tests.support import sample_jobs
from tests.support.worker_rows import worker_row

Why = Callable[[str], list[str]]


@pytest.fixture
def why(tmp_path: Path, db: Database) -> Why:
    """Return a function that explains a job in sentences."""
    return lambda job_id: [reason.text for reason in _reasons(db, tmp_path, job_id)]


def _reasons(db: Database, folder: Path, job_id: str, **settings: Any) -> list[standstill.StandstillReason]:
    with db.read() as session:
        reasons, late = standstill.reasons(session, session.get_one(Job, job_id))
    config = Settings(data_dir=folder, database_url=db.url, **settings)
    return [*reasons, *standstill.publishing_faults(config, db)] if late else reasons


def works(db: Database, queue: str = "cpu.plan", **changes: Any) -> None:
    facts = {"pool": "cpu", "slots": 1, "seen_at": now(), **changes}
    with db.write() as session:
        workers.register(session, worker_row("worker-1", queue, "*", **facts))


def pause(db: Database, scope: Scope, name: str) -> None:
    with db.write() as session:
        pauses.pause(session, scope, name, actor="operator")


def overdue(db: Database, published_at: float | None = None) -> None:
    with db.write() as session:
        session.execute(update(Outbox).values(due_at=now() - 90, published_at=published_at))


def test_paused_queue_is_reported_with_resume_command(db: Database, why: Why) -> None:
    job = sample_jobs.submitted(db)
    works(db)
    pause(db, Scope.QUEUE, "cpu.plan")

    assert why(job.id) == ["cpu.plan is paused; `nightmill resume queue cpu.plan` goes on"]


def test_paused_model_is_reported_before_dispatcher_runs(db: Database, why: Why) -> None:
    job = sample_jobs.running(db, model="tiny")
    pause(db, Scope.MODEL, "tiny")

    assert why(job.id) == ["its queue, model or project is paused; `nightmill workers` shows what is"]


def test_a_queue_without_a_live_worker_is_named(db: Database, why: Why) -> None:
    queued, running = sample_jobs.submitted(db), sample_jobs.running(db)

    assert why(queued.id) == ["no live worker of cpu.plan; `nightmill workers` lists the live workers"]
    assert why(running.id) == ["no live worker of gpu.generate; `nightmill workers` lists the live workers"]


def test_workers_that_take_nothing_are_named_with_why(db: Database, why: Why) -> None:
    job = sample_jobs.submitted(db)
    works(db)
    works(db, id="worker-2", state="starting")
    pause(db, Scope.WORKER, "worker-1")

    assert why(job.id) == ["no worker of cpu.plan takes work: worker-1 is paused, worker-2 is starting"]


def test_slots_that_are_busy_are_counted(db: Database, why: Why) -> None:
    other, job = sample_jobs.running(db), sample_jobs.running(db)
    works(db, "gpu.generate")
    sample_jobs.claim_shard(db, other.id)

    assert why(job.id) == ["all slots of gpu.generate are busy (1)"]


def test_project_at_its_process_share_is_reported(db: Database, why: Why) -> None:
    others = [sample_jobs.running(db, [1], Queue.INGEST) for _ in range(2)]
    job, theirs = sample_jobs.submitted(db), sample_jobs.submitted(db, project_id="other")
    for n in range(3):
        works(db, id=f"worker-{n}", queues=[Queue.PLAN, Queue.INGEST])
    for other in others:
        sample_jobs.claim_shard(db, other.id, worker="worker-0")

    assert why(job.id) == [
        "other work of its project has 2 of 3 processes, its share; it begins when one of them is free"
    ]
    assert why(theirs.id) == []


def test_an_overdue_message_names_the_missing_dispatcher(db: Database, why: Why) -> None:
    job = sample_jobs.submitted(db)
    works(db)
    overdue(db)

    assert why(job.id) == [
        "cpu.plan should have got a message for it 1 min 30 s ago",
        "no dispatcher leads; `nightmill doctor` on the server's host looks at the processes",
    ]


def test_a_leading_dispatcher_is_not_blamed(sqlite: Database, tmp_path: Path) -> None:
    job = sample_jobs.submitted(sqlite)
    works(sqlite)
    overdue(sqlite, published_at=now() - 20)

    with Path(f"{make_url(sqlite.url).database}.dispatcher").open("a") as seat:
        fcntl.flock(seat, fcntl.LOCK_EX)
        [reason] = _reasons(sqlite, tmp_path, job.id)

    assert reason.code == "not_claimed"
    assert reason.text == "cpu.plan was sent a message for it 20 s ago, and no worker has claimed it"


@pytest.mark.parametrize("url", ["amqp://127.0.0.1:9", "redis://127.0.0.1:9/0"])
def test_an_unavailable_broker_is_named(sqlite: Database, tmp_path: Path, url: str) -> None:
    job = sample_jobs.submitted(sqlite)
    works(sqlite)
    overdue(sqlite)

    codes = [reason.code for reason in _reasons(sqlite, tmp_path, job.id, broker_url=url)]

    assert codes == ["not_published", "broker_unavailable", "no_dispatcher"]


def test_claimed_job_reports_running_worker_or_missing_heartbeat(db: Database, why: Why) -> None:
    job = sample_jobs.submitted(db)
    works(db, id="worker-1")
    with db.write() as session:
        ledger.claim(session, job.id, Task.PLAN, "worker-1")

    assert why(job.id) == ["a worker runs it, and there is no new result yet"]
    works(db, id="worker-1", seen_at=now() - 7210)
    assert why(job.id)[0] == "worker-1 has claimed it, and has sent no heartbeat for 2 h 0 min"


def test_a_job_that_has_just_come_is_not_complained_of(db: Database, why: Why) -> None:
    job = sample_jobs.submitted(db)
    works(db)

    assert why(job.id) == []
