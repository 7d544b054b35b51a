"""The feed of a project: every committed event has its position once, and no reader passes over a late commit."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select, update

from jobs.db.engine import Database
from jobs.ledger import events, feed
from jobs.webhooks.tables import Delivery, Event
from tests.support.sample_jobs import close, finishing, rolled_back, submitted


def told(db: Database, subject: str, seq: int, *, at: float = 1.0, project: str = "proj_1") -> None:
    with db.write() as session:
        facts: dict[str, Any] = {"subject_id": subject, "seq": seq, "project_id": project, "type": "t", "data": {}}
        event = events.record(session, **facts)
        session.execute(update(Event).where(Event.id == event.id).values(created_at=at))


def number(db: Database, limit: int = 200) -> int:
    with db.write() as session:
        return feed.number(session, limit)


def read(db: Database, after: int = 0, limit: int = 100, project: str = "proj_1") -> list[tuple[str, int, int | None]]:
    with db.read() as session:
        return [(row.subject_id, row.seq, row.position) for row in feed.after(session, project, after, limit)]


def test_every_move_of_a_job_is_in_the_feed_once_it_is_numbered(db: Database) -> None:
    job = finishing(db)
    close(db, job.id)

    before = read(db)
    numbered = number(db)

    assert (before, numbered) == ([], 4)
    assert read(db) == [(job.id, n, n) for n in (1, 2, 3, 4)]
    assert read(db, after=1, limit=2) == [(job.id, 2, 2), (job.id, 3, 3)]
    with db.read() as session:
        assert not feed.unnumbered(session)
        assert feed.bounds(session, "proj_1") == (4, 0)


def test_projects_count_for_themselves(db: Database) -> None:
    for n, project in enumerate(["a", "b", "a"], 1):
        told(db, f"job_{n}", 1, at=float(n), project=project)
    number(db)

    assert read(db, project="a") == [("job_1", 1, 1), ("job_3", 1, 2)]
    assert read(db, project="b") == [("job_2", 1, 1)]


@pytest.mark.postgres
def test_reader_sees_late_committed_event(postgres: Database) -> None:
    """The event that was written first is committed last, after a reader has gone on to the other one."""
    early, late = threading.Event(), threading.Event()

    def slow() -> None:
        with postgres.write() as session:
            events.record(session, subject_id="slow", seq=1, project_id="proj_1", type="t", data={})
            session.flush()
            early.set()
            assert late.wait(30)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(slow)
        assert early.wait(30)
        submitted(postgres, id="batch_fast")
        number(postgres)
        first = read(postgres)
        late.set()
        done.result(30)
    number(postgres)

    assert first == [("batch_fast", 1, 1)]
    assert read(postgres, after=1) == [("slow", 1, 2)]


def test_events_of_job_keep_order_despite_clock_skew(db: Database) -> None:
    told(db, "b", 1, at=50.0)
    told(db, "b", 2, at=10.0)  # by a process whose clock is behind
    told(db, "a", 1, at=20.0)
    told(db, "c", 1, at=60.0)
    number(db)

    assert read(db) == [("a", 1, 1), ("b", 1, 2), ("b", 2, 3), ("c", 1, 4)]


def test_many_events_are_numbered_page_by_page(db: Database) -> None:
    for seq in range(1, 6):
        told(db, "job", seq)

    assert [number(db, 2) for _ in range(4)] == [2, 2, 1, 0]
    assert read(db) == [("job", n, n) for n in range(1, 6)]


@pytest.mark.postgres
def test_two_processes_that_number_at_once_give_each_position_once(postgres: Database) -> None:
    for seq in range(1, 7):
        told(postgres, "job", seq)
    start = threading.Barrier(2)

    def work(_: int) -> int:
        start.wait()
        return number(postgres, 3)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    while number(postgres):
        pass

    assert read(postgres) == [("job", n, n) for n in range(1, 7)]


def test_numbering_that_is_rolled_back_leaves_no_gap(db: Database) -> None:
    told(db, "job", 1)
    with rolled_back(db) as session:
        assert feed.number(session) == 1
    number(db)

    assert read(db) == [("job", 1, 1)]


def test_old_events_are_deleted_and_feed_bounds_advance(db: Database) -> None:
    for seq in range(1, 5):
        told(db, "job", seq, at=float(seq))
        number(db)
    with db.write() as session:
        first = session.scalars(select(Event.id).where(Event.seq == 1)).one()
        facts = {"project_id": "proj_1", "event_id": first, "due_at": 1.0, "created_at": 1.0}
        session.add(Delivery(id="wh_1", endpoint_id="we_1", **facts))

    with db.write() as session:
        keys = feed.forgettable(session, 3.5, 10)
        feed.forget(session, keys, 3.5)

    assert sorted(keys) == [("job", 2), ("job", 3)]  # a delivery of the first is still pending
    with db.read() as session:
        assert feed.bounds(session, "proj_1") == (4, 3)
    assert read(db, after=3) == [("job", 4, 4)]


def test_an_event_without_a_position_is_not_forgotten(db: Database) -> None:
    told(db, "job", 1)

    with db.read() as session:
        assert feed.forgettable(session, 5.0, 10) == []
