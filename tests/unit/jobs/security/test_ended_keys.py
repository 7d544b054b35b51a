"""Jobs of keys and projects that have ended are cancelled with what they have."""

import pytest
from sqlalchemy import select

from jobs.clock import now
from jobs.db.engine import Database
from jobs.ledger import ledger
from jobs.ledger.states import JobState
from jobs.ledger.tables import Audit, Job
from jobs.queues import Task
from jobs.security import ended_keys, keys
from jobs.security.tables import Account, ApiKey, Project
from tests.support import sample_jobs
from tests.support.query_plans import explained


def key_of(db: Database, project: str = "reports") -> tuple[str, str]:
    """Return the ids of a new key and of its project."""
    with db.write() as session:
        key_id = keys.id_of(keys.create_key(session, project))
        return key_id, session.get_one(ApiKey, key_id).project_id


def bring_about(db: Database, end: str, key_id: str, project_id: str) -> None:
    with db.write() as session:
        if end == "key_revoked":
            keys.revoke_key(session, key_id)
        elif end == "key_expired":
            session.get_one(ApiKey, key_id).expires_at = now() - 1
        else:
            session.get_one(Project, project_id).archived_at = now()


def sweep(db: Database) -> list[str]:
    with db.read() as session:
        found = ended_keys.jobs_to_end(session, 100)
    for job_id in found:
        with db.write() as session:
            ended_keys.end_job(session, job_id, actor="dispatcher")
    return found


@pytest.mark.parametrize("end", keys.ENDS)
def test_jobs_end_with_the_code_of_why_and_others_go_on(db: Database, end: str) -> None:
    (key, project), (other, other_project) = key_of(db), key_of(db, "other")
    ended = [
        sample_jobs.submitted(db, key_id=key, project_id=project),
        sample_jobs.running(db, key_id=key, project_id=project),
    ]
    going_on = sample_jobs.running(db, key_id=other, project_id=other_project)
    before = sweep(db)

    bring_about(db, end, key, project)
    found = sweep(db)

    assert (before, set(found), sweep(db)) == ([], {job.id for job in ended}, [])
    for job in ended:
        row = sample_jobs.job(db, job.id)
        assert row.state == JobState.CANCELLING
        assert row.errors == [{"code": end, "message": keys.ENDS[end], "line": None, "param": None}]
        with db.read() as session:
            moved = select(Audit.details).where(Audit.target == job.id, Audit.destination == JobState.CANCELLING)
            assert session.scalar(moved) == {"reason": end}
    assert sample_jobs.job(db, going_on.id).state == JobState.RUNNING
    with db.read() as session:
        assert ended_keys.find_ends(session, [job.id for job in (*ended, going_on)]) == {job.id: end for job in ended}


@pytest.mark.parametrize("end", ["key_revoked", "project_archived", "account deleted"])
def test_jobs_of_a_person_outlive_the_login_and_end_with_the_key_or_the_account(db: Database, end: str) -> None:
    key, project = key_of(db)
    with db.write() as session:
        session.add(Account(id="user_1", email="ann@example.com", created_at=now()))
        session.get_one(ApiKey, key).owner_id = "user_1"
    job = sample_jobs.running(db, key_id=key, project_id=project)
    bring_about(db, "key_expired", key, project)
    after_logout = sweep(db)
    with db.read() as session:
        assert (ended_keys.find_refusal(session, key, None), ended_keys.find_ends(session, [job.id])) == (None, {})

    if end == "account deleted":
        with db.write() as session:
            session.get_one(Account, "user_1").deleted_at = now()
    else:
        bring_about(db, end, key, project)

    assert (after_logout, sweep(db)) == ([], [job.id])


def test_archived_project_ends_jobs_without_a_key(db: Database) -> None:
    key, project = key_of(db)
    job = sample_jobs.running(db, project_id=project)
    with db.write() as session:
        session.get_one(Job, job.id).key_id = None

    bring_about(db, "project_archived", key, project)

    assert sweep(db) == [job.id]


def test_job_that_was_cancelled_meanwhile_is_left_alone(db: Database) -> None:
    key, project = key_of(db)
    job = sample_jobs.running(db, key_id=key, project_id=project)
    bring_about(db, "key_revoked", key, project)
    with db.write() as session:
        ledger.cancel(session, job.id, actor="client")

    with db.write() as session:
        ends = ended_keys.end_job(session, job.id, actor="dispatcher")

    assert (ends, sample_jobs.job(db, job.id).errors) == (False, None)


def test_ended_job_closes_as_cancelled_with_its_error(db: Database) -> None:
    key, project = key_of(db)
    job = sample_jobs.running(db, key_id=key, project_id=project)
    bring_about(db, "key_revoked", key, project)
    sweep(db)

    claim = sample_jobs.claim_job(db, job.id, Task.FINISH)
    with db.write() as session:
        ledger.close(session, claim, {"completed": 0, "failed": 0}, [])

    row = sample_jobs.job(db, job.id)
    assert (row.state, (row.errors or [{}])[0]["code"]) == (JobState.CANCELLED, "key_revoked")


def test_round_looks_into_indexes_of_jobs_alone(sqlite: Database) -> None:
    key, project = key_of(sqlite)
    sample_jobs.running(sqlite, key_id=key, project_id=project)
    bring_about(sqlite, "key_revoked", key, project)

    with explained(sqlite) as steps, sqlite.read() as session:
        assert len(ended_keys.jobs_to_end(session, 100)) == 1

    of_jobs = [step for step in steps if " job " in f"{step} "]
    assert not [step for step in of_jobs if step.startswith("SCAN")]
    assert len([step for step in of_jobs if "ix_job_key (key_id=? AND state=?)" in step]) == 2
