"""Pauses: what is held back, what goes on, and that nothing is lost by them."""

from pathlib import Path

import pytest
from sqlalchemy import select

from jobs.clock import now
from jobs.db.engine import Database
from jobs.fleet import workers
from jobs.ledger import ledger, outbox, pauses, shards
from jobs.ledger.pauses import Scope
from jobs.ledger.states import JobState
from jobs.ledger.tables import Outbox
from jobs.queues import Queue, Task
from jobs.security import keys
from tests.support import sample_jobs
from tests.support.inline_deployment import MODEL, chat_line, jsonl, running
from tests.support.worker_rows import worker_row


def project(db: Database, name: str = "blue") -> str:
    with db.write() as session:
        return keys.ensure_project(session, name).id


def pause(db: Database, scope: Scope, name: str) -> bool:
    with db.write() as session:
        return pauses.pause(session, scope, name, actor="operator")


def resume(db: Database, scope: Scope, name: str) -> bool:
    with db.write() as session:
        return pauses.resume(session, scope, name, actor="operator")


def claim(db: Database, job_id: str, worker: str = "worker") -> shards.ShardClaim | None:
    with db.write() as session:
        return shards.claim(session, job_id, 0, worker)


def names_of(db: Database, job_id: str) -> dict[Scope, str]:
    job = sample_jobs.job(db, job_id)
    return {
        Scope.QUEUE: job.queue or "",
        Scope.MODEL: job.model or "",
        Scope.PROJECT: job.project_id,
        Scope.WORKER: "worker",
        Scope.JOB: job.id,
    }


@pytest.mark.parametrize("scope", Scope)
def test_pause_blocks_claims_and_preserves_message(db: Database, scope: Scope) -> None:
    job = sample_jobs.running(db)
    name = names_of(db, job.id)[scope]
    with db.write() as session:
        outbox.mark_published(session, session.scalars(select(Outbox.id)).all())
    pause(db, scope, name)

    refused = claim(db, job.id)
    pending = sample_jobs.outbox_messages(db, job.id)
    with db.read() as session:
        assert outbox.unclaimed_messages(session) == [], "it waits to be published as if it never had been"
    resume(db, scope, name)

    assert refused is None
    assert pending == [("run", 0)]
    assert claim(db, job.id) is not None


@pytest.mark.parametrize("scope", Scope)
def test_other_projects_are_served_during_an_attack(db: Database, scope: Scope) -> None:
    job = sample_jobs.running(db)
    pause(db, scope, "another")

    assert claim(db, job.id) is not None


def test_a_paused_worker_plans_and_finishes_nothing(db: Database) -> None:
    job = sample_jobs.submitted(db)
    pause(db, Scope.WORKER, "planner")

    with db.write() as session:
        assert ledger.claim(session, job.id, Task.PLAN, "planner") is None
        assert session.scalars(select(Outbox.due_at)).one() > now() + 0.5, "it may be the only one that is idle"
        assert ledger.claim(session, job.id, Task.PLAN, "another") is not None


def test_repeated_pause_and_resume_are_audited_once(db: Database) -> None:
    assert [pause(db, Scope.MODEL, "m") for _ in range(2)] == [True, False]
    assert [resume(db, Scope.MODEL, "m") for _ in range(2)] == [True, False]
    assert sample_jobs.history(db, "m") == [(None, None)] * 2


def test_a_worker_that_leaves_takes_its_pause_along(db: Database) -> None:
    with db.write() as session:
        workers.register(session, worker_row("w", Queue.GENERATE, "*", created_at=now(), seen_at=now()))
    pause(db, Scope.WORKER, "w")

    with db.write() as session:
        alive, everyone = workers.alive(session), workers.all_workers(session)
        workers.leave(session, "w")
        left = pauses.all_pauses(session)

    assert (list(alive), [worker.id for worker in everyone], list(left)) == ([], ["w"], [])


@pytest.mark.parametrize("scope", [Scope.QUEUE, Scope.MODEL, Scope.PROJECT, Scope.JOB])
def test_paused_job_reports_pause_and_continues_after_resume(db: Database, tmp_path: Path, scope: Scope) -> None:
    owner = project(db, "default")
    with running(db, tmp_path) as inline:
        job_id = inline.submit(jsonl([chat_line(f"r{n}", f"hello {n}") for n in range(20)]))
        names = {Scope.QUEUE: Queue.GENERATE.value, Scope.MODEL: MODEL, Scope.PROJECT: owner, Scope.JOB: job_id}
        name = names[scope]
        pause(db, scope, name)
        inline.until(lambda: inline.job(job_id).waiting_for == "pause")
        held = inline.job(job_id)
        resume(db, scope, name)
        (job,) = inline.drain(job_id)

    assert held.state == JobState.RUNNING, "it was planned all the same"
    assert (job.state, job.completed, job.waiting_for) == (JobState.SUCCEEDED, 20, None)


def test_claims_are_counted_in_each_scope_of_running_work(db: Database) -> None:
    job = sample_jobs.running(db)
    sample_jobs.claim_shard(db, job.id)
    planned = sample_jobs.planning(db)

    with db.read() as session:
        other_work = workers.other_work_at(session, Scope.JOB, job.id)
        counts = [workers.claims_at(session, scope, name) for scope, name in names_of(db, job.id).items()]
        planners = workers.claims_at(session, Scope.WORKER, planned.worker_id)
        plans = workers.claims_at(session, Scope.QUEUE, Queue.PLAN)

    assert counts == [1, 1, 1, 1, 1]
    assert (planners, plans, other_work) == (1, 1, 0)
