"""Events: numbered without a gap whoever writes them, and enqueued for those who asked."""

import threading
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import select

from jobs.db.engine import Database
from jobs.errors import ClaimLost, Conflict
from jobs.ledger import events, ledger
from jobs.ledger.states import JobState
from jobs.webhooks.tables import Delivery, Event
from tests.support import sample_jobs
from tests.support.sample_jobs import close, finishing, running, submitted, told


def test_events_of_job_are_numbered_consecutively(db: Database) -> None:
    job = finishing(db)
    close(db, job.id)

    assert [seq for seq, _ in told(db, job.id)] == [1, 2, 3, 4]


def test_a_refused_move_leaves_no_gap(db: Database) -> None:
    job = running(db)
    start = threading.Barrier(6)

    def stop(number: int) -> None:
        start.wait()
        try:
            with db.write() as session:
                if number % 2:
                    ledger.cancel(session, job.id, actor="key:test")
                else:
                    ledger.move(session, job.id, JobState.RUNNING, JobState.EXPIRING, actor="dispatcher")
        except (Conflict, ClaimLost):
            return

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(stop, range(6)))

    assert [seq for seq, _ in told(db, job.id)] == [1, 2, 3]
    assert sample_jobs.job(db, job.id).event_seq == 3


def test_events_are_read_after_a_number_and_in_order(db: Database) -> None:
    job = finishing(db)

    with db.read() as session:
        all_of_them = [event.seq for event in events.after(session, job.id, 0, 10)]
        some = [event.type for event in events.after(session, job.id, 1, 1)]
        none = events.after(session, job.id, 3, 10)

    assert all_of_them == [1, 2, 3]
    assert some == ["job.running"]
    assert none == []


def test_each_event_has_unique_id(db: Database) -> None:
    submitted(db)
    submitted(db)

    with db.read() as session:
        ids = session.scalars(select(Event.id)).all()
    assert len(set(ids)) == 2
    assert all(event_id.startswith("evt_") for event_id in ids)


def test_intermediate_events_create_no_deliveries(db: Database) -> None:
    finishing(db, webhook_url="https://mine")

    with db.read() as session:
        assert session.scalars(select(Delivery)).all() == []


def test_an_event_of_something_else_than_a_job_is_enqueued_for_endpoints_alone(db: Database) -> None:
    with db.write() as session:
        event = events.record(
            session, subject_id="we_1", seq=1, project_id="proj_1", type="webhook_endpoint.disabled", data={}
        )
        events.fan_out(session, event)

    with db.read() as session:
        assert session.scalars(select(Delivery)).all() == []
