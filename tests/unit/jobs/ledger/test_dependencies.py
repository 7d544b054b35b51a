"""Jobs that wait for other jobs: released, failed, cancelled, expired; never planned before the others completed."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Select, func, select, text, update

from jobs.db.engine import Database
from jobs.errors import DatabaseBusy, InvalidRequest
from jobs.ledger import dependencies, ledger, outbox
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job, JobDependency, Outbox
from jobs.queues import Task
from jobs.webhooks.tables import Delivery, WebhookEndpoint
from tests.support.invariants import violations
from tests.support.sample_jobs import (
    LosesAnswers,
    claim_job,
    close,
    finishing,
    history,
    job,
    outbox_messages,
    planning,
    rolled_back,
    state,
    submitted,
    told,
)

pytestmark = pytest.mark.dialects


def completed(db: Database, **changes: str) -> str:
    """Return the id of a job that has run to its end."""
    job_id = finishing(db, [1], **changes).id
    close(db, job_id)
    return job_id


def cancelled(db: Database, job_id: str) -> None:
    with db.write() as session:
        ledger.cancel(session, job_id, actor="key:test")
    close(db, job_id)


def refused(db: Database, *after: str) -> InvalidRequest:
    """Return how a job that names these is refused; nothing of it is left."""
    with db.read() as session:
        before = session.scalar(select(func.count()).select_from(Job))
    with pytest.raises(InvalidRequest) as refusal:
        submitted(db, after=after)
    with db.read() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == before
        assert session.scalar(select(func.count()).select_from(JobDependency)) == 0
    return refusal.value


def sound(db: Database) -> bool:
    with db.read() as session:
        return violations(session) == [] and ledger.jobs_lacking_next_step(session) == []


# ── waiting ──


def test_a_job_waits_until_every_predecessor_has_completed(db: Database) -> None:
    first, second = finishing(db, [1]).id, finishing(db, [1]).id
    waiting = submitted(db, after=[first, second, first]).id

    assert (outbox_messages(db, waiting), job(db, waiting).waiting_for) == ([], "job")
    close(db, first)
    assert (outbox_messages(db, waiting), job(db, waiting).waiting_for) == ([], "job")
    close(db, second)

    assert (outbox_messages(db, waiting), job(db, waiting).waiting_for) == ([("plan", -1)], None)
    assert sound(db)


def test_job_with_completed_dependencies_is_enqueued_at_once(db: Database) -> None:
    waiting = submitted(db, after=[completed(db), completed(db)]).id

    assert (outbox_messages(db, waiting), job(db, waiting).waiting_for) == ([("plan", -1)], None)


def test_completed_job_with_failed_lines_satisfies_dependency(db: Database) -> None:
    first = finishing(db, [2]).id
    waiting = submitted(db, after=[first]).id

    close(db, first, completed=0, failed=2)

    assert outbox_messages(db, waiting) == [("plan", -1)]


def test_waiting_job_cannot_be_claimed_or_released(db: Database) -> None:
    waiting = submitted(db, after=[submitted(db).id]).id

    with db.write() as session:
        assert ledger.claim(session, waiting, Task.PLAN, "worker") is None
        ledger.advance_job(session, waiting, actor="anyone")
        assert not ledger.release_dependent(session, waiting)

    assert (outbox_messages(db, waiting), job(db, waiting).waiting_for) == ([], "job")
    assert sound(db)


def test_the_outbox_is_read_without_a_look_at_dependencies(db: Database) -> None:
    first = submitted(db).id
    for _ in range(3):
        submitted(db, after=[first])

    with db.read() as session:
        assert "job_dependency" not in str(outbox._DUE)
        assert session.scalars(select(Outbox.job_id)).all() == [first]


# ── what may be waited for ──


@pytest.mark.parametrize(("after", "param"), [(["none"], "after[0]"), (["known", "other"], "after[1]")])
def test_a_job_waits_for_no_job_that_is_unknown_or_of_another_project(
    db: Database, after: list[str], param: str
) -> None:
    submitted(db, id="known")
    submitted(db, id="other", project_id="proj_2")

    refusal = refused(db, *after)

    assert (refusal.param, refusal.code) == (param, "job_not_found")


@pytest.mark.parametrize("where", [JobState.FAILED, JobState.EXPIRED, JobState.CANCELLED, JobState.CANCELLING])
def test_a_job_waits_for_no_job_that_cannot_complete_any_more(sqlite: Database, where: JobState) -> None:
    first = submitted(sqlite).id
    with sqlite.write() as session:
        session.execute(update(Job).where(Job.id == first).values(state=where))

    refusal = refused(sqlite, first)

    assert (refusal.param, refusal.code) == ("after[0]", "dependency_failed")
    assert first in refusal.message


# ── the end of a predecessor ──


def test_two_predecessors_that_end_at_once_release_their_dependent_or_leave_it_to_the_sweep(db: Database) -> None:
    first, second = finishing(db, [1]).id, finishing(db, [1]).id
    waiting = submitted(db, after=[first, second]).id
    claims = [claim_job(db, job_id, Task.FINISH, "finisher") for job_id in (first, second)]
    both = threading.Barrier(1 if db.sqlite else 2)  # SQLite has one writer at a time

    def end(n: int) -> None:
        with db.write() as session:
            ledger.close(session, claims[n], {}, [])
            both.wait(30)  # neither has committed

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(end, range(2)))
    with db.read() as session:
        left = dependencies.releasable(session, 10)
    for job_id in left:
        with db.write() as session:
            ledger.release_dependent(session, job_id)

    assert left == ([] if db.sqlite else [waiting])
    assert (outbox_messages(db, waiting), job(db, waiting).waiting_for) == ([("plan", -1)], None)
    assert sound(db)


def test_ends_and_cancels_that_meet_neither_lock_each_other_out_nor_lose_a_dependent(db: Database) -> None:
    firsts = [finishing(db, [1]).id for _ in range(4)]
    waiting = [submitted(db, after=firsts[n % 3 : n % 3 + 2]).id for n in range(8)]
    chained = [submitted(db, after=waiting[n : n + 3]).id for n in range(4)]
    claims = [claim_job(db, job_id, Task.FINISH, "finisher") for job_id in firsts]
    start = threading.Barrier(len(firsts) + 2)

    def end(n: int) -> None:
        start.wait()
        with db.write() as session:
            ledger.close(session, claims[n], {}, [])

    def stop(*job_ids: str) -> None:
        start.wait()
        with db.write() as session:
            for job_id in job_ids:
                ledger.cancel(session, job_id, actor="key:test")

    with ThreadPoolExecutor(len(firsts) + 2) as pool:
        done = [pool.submit(end, n) for n in range(len(firsts))]
        done += [pool.submit(stop, *waiting[:2]), pool.submit(stop, chained[0])]
        for future in done:
            future.result()
    with db.read() as session:
        left = dependencies.releasable(session, 100)
    for job_id in left:
        with db.write() as session:
            assert ledger.release_dependent(session, job_id)

    assert [outbox_messages(db, job_id) for job_id in waiting[2:]] == [[("plan", -1)]] * 6
    assert {job(db, job_id).waiting_for for job_id in chained[1:]} == {"job"}
    assert sound(db)


@pytest.mark.postgres
def test_the_end_of_a_predecessor_waits_for_no_lock_on_a_dependent(postgres: Database) -> None:
    first = finishing(postgres, [1]).id
    waiting = submitted(postgres, after=[first]).id

    with postgres.write() as session:
        ledger.lock(session, waiting)
        close(postgres, first)  # in another transaction

    with postgres.read() as session:
        assert dependencies.releasable(session, 10) == [waiting]


def test_an_end_that_is_rolled_back_releases_nothing(db: Database) -> None:
    first = finishing(db, [1]).id
    waiting = submitted(db, after=[first]).id
    claim = claim_job(db, first, Task.FINISH, "finisher")

    with rolled_back(db) as session:
        ledger.close(session, claim, {}, [])

    assert (outbox_messages(db, waiting), job(db, waiting).waiting_for) == ([], "job")


def test_lost_commit_answer_releases_dependent_job_once(sqlite_url: str) -> None:
    db = LosesAnswers(sqlite_url)
    first = finishing(db, [1]).id
    waiting = submitted(db, after=[first]).id
    claim = claim_job(db, first, Task.FINISH, "finisher")

    db.lose_next = True
    with pytest.raises(DatabaseBusy), db.write() as session:
        ledger.close(session, claim, {}, [])
    claim_job(db, waiting, Task.PLAN)
    with db.write() as session:
        assert not ledger.release_dependent(session, waiting)

    assert outbox_messages(db, waiting) == []
    assert sound(db)
    db.close()


def test_dependents_beyond_transaction_limit_are_left_to_sweep(
    sqlite: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dependencies, "_DEPENDENTS", dependencies._DEPENDENTS.limit(2))
    first = finishing(sqlite, [1]).id
    waiting = {submitted(sqlite, after=[first]).id for _ in range(5)}

    close(sqlite, first)

    with sqlite.read() as session:
        left = dependencies.releasable(session, 10)
        assert len(left) == 3
        assert set(session.scalars(select(Outbox.job_id))) == waiting - set(left)


@pytest.mark.parametrize("how", ["failed", "expired", "cancelled"])
def test_job_fails_if_its_dependency_does_not_complete(db: Database, how: str) -> None:
    with db.write() as session:
        session.add(
            WebhookEndpoint(
                id="we_1", project_id="proj_1", name="n", url="https://192.0.43.8/", event_types=["batch.failed"],
                secret="s", created_at=1.0,
            )
        )  # fmt: skip
    first, second = submitted(db).id, submitted(db).id
    waiting = submitted(db, after=[first, second]).id
    end(db, first, how)

    with db.read() as session:
        assert list(dependencies.failing(session, 10)) == [waiting]
    assert fail(db, waiting)

    ended = job(db, waiting)
    assert ended.state == JobState.FAILED
    assert ended.errors == [
        {
            "code": "dependency_failed",
            "message": f"The job waited for '{first}', which ended in state '{how}'.",
            "line": None,
            "param": "after",
        }
    ]
    assert told(db, waiting) == [(1, "job.created"), (2, "batch.failed")]
    assert history(db, waiting) == [(None, "queued"), ("queued", "failed")]
    with db.read() as session:
        assert session.scalar(select(func.count()).select_from(Delivery).where(Delivery.endpoint_id == "we_1")) >= 1
    assert not fail(db, waiting)
    assert sound(db)


def end(db: Database, job_id: str, how: str) -> None:
    if how == "failed":
        claim = claim_job(db, job_id, Task.PLAN)
        with db.write() as session:
            ledger.reject(session, claim, [{"code": "empty_file"}])
    elif how == "expired":
        with db.write() as session:
            session.execute(update(Job).where(Job.id == job_id).values(deadline=1.0))
            ledger.expire(session, job_id, actor="dispatcher")
        close(db, job_id)
    else:
        cancelled(db, job_id)


def fail(db: Database, job_id: str) -> bool:
    with db.write() as session:
        locked = ledger.lock(session, job_id)
        assert locked is not None
        error = ledger.dependency_error(session, locked)
        if error is not None:
            ledger.fail_dependent(session, locked, error, actor="dispatcher")
        return error is not None


# ── a dependent that waits ──


@pytest.mark.parametrize("how", ["expired", "cancelled"])
def test_a_job_that_waits_ends_as_any_other(db: Database, how: str) -> None:
    first = finishing(db, [1]).id
    waiting = submitted(db, after=[first]).id

    end(db, waiting, how)
    close(db, first)

    assert (state(db, waiting), outbox_messages(db, waiting)) == (how, [])
    assert sound(db)


def test_a_job_waits_in_line_from_the_moment_it_is_released(db: Database) -> None:
    first = completed(db)
    waiting = submitted(db, after=[first]).id

    with db.read() as session:
        assert dependencies.last_completion(session, waiting) == job(db, first).completed_at
        assert dependencies.last_completion(session, first) == 0.0


# ── children ──


def test_the_live_children_of_a_cancelled_job_are_found(db: Database) -> None:
    parent = submitted(db).id
    child, ended = submitted(db, parent_id=parent).id, submitted(db, parent_id=parent).id
    submitted(db, parent_id=submitted(db).id)
    cancelled(db, ended)

    with db.read() as session:
        assert dependencies.orphans(session, 10) == []
    with db.write() as session:
        ledger.cancel(session, parent, actor="key:test")
    with db.read() as session:
        assert dependencies.orphans(session, 10) == [child]


def test_live_children_of_a_failed_job_are_found(db: Database) -> None:
    claim = planning(db)
    child = submitted(db, parent_id=claim.job.id).id

    with db.write() as session:
        ledger.reject(session, claim, [{"code": "c", "message": "m", "line": None, "param": None}])
    with db.read() as session:
        assert dependencies.orphans(session, 10) == [child]


# ── what the sweep asks is cheap ──


@pytest.mark.parametrize("query", [dependencies._RELEASABLE, dependencies._FAILING])
def test_the_sweep_looks_only_at_jobs_that_wait(sqlite: Database, query: Select[str]) -> None:
    asked = query.compile(sqlite.engine, compile_kwargs={"literal_binds": True})
    with sqlite.read() as session:
        steps = [row[3] for row in session.execute(text(f"EXPLAIN QUERY PLAN {asked}"))]

    scans = [step for step in steps if step.startswith("SCAN")]
    assert len(scans) == 1
    assert "ix_job_waiting_for_job" in scans[0]
