"""The table of moves: what stands in it happens and is recorded, what does not is refused and leaves no trace."""

import itertools

import pytest
from sqlalchemy import update

from jobs.batches import batches
from jobs.db.engine import Database
from jobs.errors import ClaimLost
from jobs.ledger import ledger, states
from jobs.ledger.states import CLOSING, LIVE, MOVES, TERMINAL, JobState, ShardState
from jobs.ledger.tables import Job
from tests.support import sample_jobs

PAIRS = list(itertools.product(JobState, JobState))
ALLOWED = [(source, target) for source, target in PAIRS if target in MOVES[source]]
REFUSED = [(source, target) for source, target in PAIRS if target not in MOVES[source]]


def job_in(db: Database, state: JobState) -> Job:
    job = sample_jobs.submitted(db)
    with db.write() as session:
        session.execute(update(Job).where(Job.id == job.id).values(state=state))
    return job


def test_the_table_speaks_of_every_state() -> None:
    assert set(MOVES) == set(JobState)
    assert set(LIVE) | set(TERMINAL) == set(JobState)


def test_the_drawing_names_every_state() -> None:
    drawing = states.__doc__ or ""

    assert [state for state in JobState if state not in drawing] == []
    assert [state for state in ShardState if state not in (ShardState.__doc__ or "")] == []


def test_every_live_state_can_reach_an_end() -> None:
    reached = set(TERMINAL)
    for _ in JobState:
        reached |= {state for state, targets in MOVES.items() if targets & reached}

    assert reached == set(JobState)


def test_a_closing_move_is_a_move() -> None:
    assert [source for source, target in CLOSING.items() if target not in MOVES[source]] == []


@pytest.mark.parametrize(("source", "target"), ALLOWED)
def test_allowed_transition_is_stamped_audited_and_published_once(
    sqlite: Database, source: JobState, target: JobState
) -> None:
    job = job_in(sqlite, source)

    with sqlite.write() as session:
        ledger.move(session, job.id, source, target, actor="someone", reason="a test")

    after = sample_jobs.job(sqlite, job.id)
    kind = batches.EVENTS[target] if target in TERMINAL else f"job.{target}"
    assert (after.state, after.epoch, after.event_seq) == (target, job.epoch + 1, 2)
    assert getattr(after, ledger.STAMPS[target]) > 1
    assert sample_jobs.history(sqlite, job.id) == [(None, "queued"), (source, target)]
    assert sample_jobs.told(sqlite, job.id) == [(1, "job.created"), (2, kind)]


@pytest.mark.parametrize(("source", "target"), REFUSED)
def test_a_move_off_the_table_raises_and_records_nothing(sqlite: Database, source: JobState, target: JobState) -> None:
    job = job_in(sqlite, source)
    with sqlite.read() as session:
        before = sample_jobs.everything(session)

    with pytest.raises(ValueError, match="no move"), sqlite.write() as session:
        ledger.move(session, job.id, source, target, actor="someone")

    with sqlite.read() as session:
        assert sample_jobs.everything(session) == before


@pytest.mark.parametrize(("source", "target"), ALLOWED)
def test_a_move_from_where_the_job_is_not_is_fenced_and_records_nothing(
    sqlite: Database, source: JobState, target: JobState
) -> None:
    jobs = [job_in(sqlite, state) for state in JobState if state != source]
    with sqlite.read() as session:
        before = sample_jobs.everything(session)

    for job in jobs:
        with pytest.raises(ClaimLost), sqlite.write() as session:
            ledger.move(session, job.id, source, target, actor="someone")

    with sqlite.read() as session:
        assert sample_jobs.everything(session) == before
