"""Outbox messages: enqueued once, in order, only where the job is ready for them, gone when the work is claimed."""

import time

import pytest
from sqlalchemy import delete, select

from jobs.db.engine import Database
from jobs.ledger import ledger, outbox, shards
from jobs.ledger.tables import Outbox
from jobs.queues import Queue, Task
from jobs.security.tables import Project
from tests.support import sample_jobs
from tests.support.sample_jobs import outbox_messages, planning, running, submitted

pytestmark = pytest.mark.dialects

SOON = 4_000_000_000.0


@pytest.fixture(autouse=True)
def _projects(db: Database) -> None:
    with db.write() as session:
        session.add_all([Project(id=f"proj_{n}", name=f"p{n}", created_at=1.0) for n in (1, 2, 3)])


def due(db: Database, queue: str = Queue.GENERATE, project: str = "proj_1", limit: int = 10) -> list[tuple[str, int]]:
    with db.read() as session:
        return [(message.job_id, message.shard_n) for message in outbox.due(session, queue, project, SOON, limit)]


def test_a_message_enqueued_twice_is_pending_once(db: Database) -> None:
    job = submitted(db)

    with db.write() as session:
        outbox.enqueue(session, job, Task.PLAN, Queue.PLAN)
        outbox.enqueue(session, job, Task.RUN, Queue.GENERATE, [])

    assert outbox_messages(db, job.id) == [("plan", -1)]


def test_publication_of_claimed_message_does_not_mark_next_message(db: Database) -> None:
    """Only when its work is claimed and another message is enqueued, the first one is noted as published."""
    with db.write() as session:
        session.execute(delete(Outbox))
    submitted(db)
    with db.read() as session:
        heard = session.scalars(select(Outbox.id)).one()
    with db.write() as session:
        session.execute(delete(Outbox))
    submitted(db)

    with db.write() as session:
        outbox.mark_published(session, [heard])

    with db.read() as session:
        assert outbox.unclaimed_messages(session) == []


def test_messages_are_due_by_priority_then_deadline_then_age(db: Database) -> None:
    late, soon, first, urgent = (
        submitted(db, deadline=300.0),
        submitted(db, deadline=100.0),
        submitted(db, deadline=100.0),
        submitted(db, deadline=900.0, priority=5),
    )

    assert due(db, Queue.PLAN) == [(job.id, -1) for job in (urgent, soon, first, late)]
    assert due(db, Queue.PLAN, limit=2) == [(urgent.id, -1), (soon.id, -1)]
    assert due(db, Queue.PLAN, project="proj_2") == []


def test_the_shards_of_a_job_that_is_being_planned_are_not_due(db: Database) -> None:
    claim = planning(db)
    with db.write() as session:
        shards.cut(session, claim, Queue.GENERATE, sample_jobs.cuts(claim.job.id, [1, 1]))
    before = due(db)

    with db.write() as session:
        ledger.begin_running(session, claim, total=2, model="tiny", queue=Queue.GENERATE)

    assert (before, due(db)) == ([], [(claim.job.id, 0), (claim.job.id, 1)])


def test_a_delayed_message_is_not_due_before_its_time(db: Database) -> None:
    claim = planning(db)
    with db.write() as session:
        ledger.release(session, claim.job.id, claim.epoch, delay=60)

    with db.read() as session:
        now = time.time()
        assert outbox.due(session, Queue.PLAN, "proj_1", now, 10) == []
        assert outbox.waiting_projects(session, Queue.PLAN, now) == []
        assert len(outbox.due(session, Queue.PLAN, "proj_1", now + 61, 10)) == 1
        assert outbox.waiting_projects(session, Queue.PLAN, now + 61) == ["proj_1"]


def test_a_message_names_ids_and_nothing_else(db: Database) -> None:
    job = submitted(db)

    with db.read() as session:
        (message,) = outbox.due(session, Queue.PLAN, "proj_1", SOON, 1)

    assert (message.task, message.queue, message.job_id, message.shard_n, message.project_id) == (
        "plan", "cpu.plan", job.id, -1, "proj_1",
    )  # fmt: skip


def test_a_published_message_is_unclaimed_until_its_work_is_claimed(db: Database) -> None:
    jobs = [submitted(db), submitted(db)]
    with db.read() as session:
        messages = outbox.due(session, Queue.PLAN, "proj_1", SOON, 10)

    with db.write() as session:
        outbox.mark_published(session, [message.id for message in messages])
    with db.read() as session:
        unclaimed = {(row.job_id, row.publish_count) for row in outbox.unclaimed_messages(session)}
        elsewhere = outbox.unclaimed_messages(session, [Queue.GENERATE])
    with db.write() as session:
        ledger.claim(session, jobs[0].id, Task.PLAN, "worker")

    assert unclaimed == {(jobs[0].id, 1), (jobs[1].id, 1)}
    assert elsewhere == []
    assert due(db, Queue.PLAN) == []
    with db.read() as session:
        assert [row.job_id for row in outbox.unclaimed_messages(session, [Queue.PLAN])] == [jobs[1].id]


def test_publish_count_is_incremented_by_each_publication(db: Database) -> None:
    submitted(db)

    for _ in range(3):
        with db.write() as session:
            outbox.mark_published(session, session.scalars(select(Outbox.id)).all())

    with db.read() as session:
        assert session.scalars(select(Outbox.publish_count)).all() == [3]


def test_only_projects_with_something_to_publish_wait(db: Database) -> None:
    submitted(db, project_id="proj_1")
    submitted(db, project_id="proj_3")
    with db.write() as session:
        outbox.mark_published(session, session.scalars(select(Outbox.id).where(Outbox.project_id == "proj_1")).all())

    with db.read() as session:
        assert outbox.waiting_projects(session, Queue.PLAN, SOON) == ["proj_3"]
        assert outbox.waiting_projects(session, Queue.GENERATE, SOON) == []


def test_queue_depth_reports_count_and_oldest_time(db: Database) -> None:
    running(db, [1, 1])
    submitted(db)

    with db.read() as session:
        depth = outbox.depth(session)

    assert {queue: count for queue, (count, _) in depth.items()} == {"gpu.generate": 2, "cpu.plan": 1}
    assert all(0 <= time.time() - oldest < 60 for _, oldest in depth.values())


def test_a_message_of_a_rolled_back_transaction_was_never_pending(db: Database) -> None:
    job = running(db, [1])

    with sample_jobs.rolled_back(db) as session:
        outbox.forget(session, job.id)
        outbox.enqueue(session, job, Task.FINISH, Queue.PLAN)

    assert outbox_messages(db, job.id) == [("run", 0)]


@pytest.mark.postgres
def test_publishing_passes_over_a_message_that_is_being_claimed(postgres: Database) -> None:
    job, other = submitted(postgres), submitted(postgres)
    with postgres.read() as session:
        ids = session.scalars(select(Outbox.id).order_by(Outbox.id)).all()

    with postgres.write() as claiming:
        ledger.claim(claiming, job.id, Task.PLAN, "worker")
        with postgres.write() as session:
            outbox.mark_published(session, ids)

    with postgres.read() as session:
        assert [(row.job_id, row.publish_count) for row in outbox.unclaimed_messages(session)] == [(other.id, 1)]


@pytest.mark.parametrize("seconds", [5, 90, 86_400, -86_400])
def test_message_without_delay_is_due_regardless_of_process_clock(
    db: Database, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    with monkeypatch.context() as other:
        other.setattr("jobs.ledger.outbox.now", lambda: time.time() + seconds)
        job = submitted(db)

    with db.read() as session:
        assert outbox.waiting_projects(session, Queue.PLAN, time.time()) == ["proj_1"]
        assert [message.job_id for message in outbox.due(session, Queue.PLAN, "proj_1", time.time(), 1)] == [job.id]


def test_a_delayed_message_of_a_clock_that_was_set_back_since_is_due(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submitted(db)
    with db.write() as session, monkeypatch.context() as ahead:
        outbox.forget(session, job.id)
        ahead.setattr("jobs.ledger.outbox.now", lambda: time.time() + 86_400)
        outbox.enqueue(session, job, Task.PLAN, Queue.PLAN, delay=outbox.MAX_DELAY)

    with db.read() as session:
        assert outbox.waiting_projects(session, Queue.PLAN, time.time()) == ["proj_1"]


def test_longest_delay_is_respected_despite_clock_difference(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    job = submitted(db)
    with db.write() as session, monkeypatch.context() as ahead:
        outbox.forget(session, job.id)
        ahead.setattr("jobs.ledger.outbox.now", lambda: time.time() + 5)
        outbox.enqueue(session, job, Task.PLAN, Queue.PLAN, delay=outbox.MAX_DELAY)

    with db.read() as session:
        assert outbox.waiting_projects(session, Queue.PLAN, time.time()) == []


def test_a_message_that_came_back_before_it_was_noted_as_published_is_not_noted(db: Database) -> None:
    job = submitted(db)
    with db.write() as session:
        ids = session.scalars(select(Outbox.id)).all()
        seen = time.time()
        outbox.unpublish(session, Task.PLAN, job.id, delay=1.0)

        outbox.mark_published(session, ids, seen)

        assert session.scalars(select(Outbox.published_at)).all() == [None]
        assert outbox.due(session, Queue.PLAN, "proj_1", time.time(), 1) == []
        assert len(outbox.due(session, Queue.PLAN, "proj_1", time.time() + 2, 1)) == 1
