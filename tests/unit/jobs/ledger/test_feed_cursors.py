"""Cursors of sinks: one worker sends a project's events, and each event comes at least once."""

from jobs.clock import now
from jobs.db.engine import Database
from jobs.ledger import feed_cursors
from jobs.ledger.feed_cursors import CursorClaim
from tests.support.sample_jobs import close, finishing
from tests.support.tuned_versions import number_events


def found(db: Database, sink: str = "openlineage") -> CursorClaim | None:
    with db.read() as session:
        return feed_cursors.due(session, sink)


def claimed(db: Database, seconds: float = 60.0) -> CursorClaim:
    due = found(db)
    assert due is not None
    with db.write() as session:
        claim = feed_cursors.claim(session, due, seconds)
    assert claim is not None
    return claim


def ended_job(db: Database, project: str = "proj_1") -> None:
    close(db, finishing(db, project_id=project).id)
    number_events(db)


def test_project_is_claimed_by_a_single_worker_until_that_is_killed(db: Database) -> None:
    ended_job(db)
    due = found(db)
    assert due is not None

    with db.write() as session:
        claims = [feed_cursors.claim(session, due, seconds) for seconds in (60.0, 60.0)]

    assert [claim is not None for claim in claims] == [True, False]
    assert found(db) is None
    assert claims[0] is not None
    with db.write() as session:
        feed_cursors.advance(session, claims[0], 1, -1.0)  # killed: nobody claims on
    again = found(db)
    assert again is not None
    assert (again.position, again.end) == (1, 4)


def test_a_claim_that_is_over_moves_no_cursor(db: Database) -> None:
    ended_job(db)
    old = claimed(db, seconds=-1.0)
    new = claimed(db)

    with db.write() as session:
        lost = feed_cursors.advance(session, old, 4, 60.0)
        feed_cursors.record_failure(session, old, 3)
        kept = feed_cursors.advance(session, new, 2, 60.0)

    assert lost is None
    assert kept is not None
    assert kept.position == 2


def test_each_sink_and_each_project_has_a_cursor_of_its_own(db: Database) -> None:
    ended_job(db, "proj_1")
    ended_job(db, "proj_2")

    first, second = claimed(db), claimed(db)
    with db.write() as session:
        feed_cursors.release(session, first, 4)
        feed_cursors.release(session, second, 4)

    assert (first.project_id, second.project_id) == ("proj_1", "proj_2")
    assert found(db) is None
    other = found(db, "mlflow")
    assert other is not None
    assert (other.project_id, other.position) == ("proj_1", 0)


def test_failures_lengthen_the_wait_up_to_a_limit(db: Database) -> None:
    ended_job(db)
    claim = claimed(db)

    waits = []
    for failures in (0, 1, 40):
        with db.write() as session:
            failed = CursorClaim(claim.sink, claim.project_id, 0, 4, failures, claim.due_at)
            feed_cursors.record_failure(session, failed, 0)
            row = session.get_one(feed_cursors.FeedCursor, (claim.sink, claim.project_id))
            session.refresh(row)
            waits.append(row.due_at - now())
            row.due_at = claim.due_at

    assert [round(wait / 5) for wait in waits] == [1, 2, 60]
