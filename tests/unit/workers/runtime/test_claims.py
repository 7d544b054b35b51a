"""Claims whose answer got lost are held by who made them, and by nobody else."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from jobs.ledger import ledger
from jobs.queues import Task
from jobs.security import ended_keys, keys
from jobs.security.tables import ApiKey
from jobs.usage.budgets import LimitedProjects
from tests.support import sample_jobs
from tests.support.sample_jobs import LosesAnswers
from workers.runtime.attempts import claim_job, claim_shard


@pytest.fixture
def losing(database_url: str) -> Iterator[LosesAnswers]:
    db = LosesAnswers(database_url)
    yield db
    db.close()


def _context(db: LosesAnswers) -> Any:
    return cast(
        Any, SimpleNamespace(db=db, stop=threading.Event(), worker_id="worker", limited_projects=LimitedProjects())
    )


def test_shard_claim_with_lost_answer_is_valid(losing: LosesAnswers) -> None:
    job = sample_jobs.running(losing)

    losing.lose_next = True
    claim = claim_shard(_context(losing), job.id, 0)

    assert claim is not None
    sample_jobs.answer(losing, claim, range(4), last=True)
    assert sample_jobs.shard(losing, job.id).stalls == 0


def test_job_claim_with_lost_answer_is_valid(losing: LosesAnswers) -> None:
    job = sample_jobs.submitted(losing)

    losing.lose_next = True
    claim = claim_job(_context(losing), job.id, Task.PLAN)

    assert claim is not None
    with losing.write() as session:
        ledger.assert_claim(session, claim)


@pytest.mark.parametrize("of_shard", [True, False], ids=["shard", "job"])
def test_claim_of_a_faster_worker_stays(losing: LosesAnswers, monkeypatch: pytest.MonkeyPatch, of_shard: bool) -> None:
    """The first claim was not committed: another has the same epoch by the second."""
    job = sample_jobs.running(losing) if of_shard else sample_jobs.submitted(losing)
    retrying = losing.retrying

    def late(work: Any, stop: Any = None) -> Any:
        with sample_jobs.rolled_back(losing) as session:
            assert work(session) is not None
        if of_shard:
            sample_jobs.claim_shard(losing, job.id, worker="faster")
        else:
            sample_jobs.claim_job(losing, job.id, Task.PLAN, "faster")
        return retrying(work, stop)

    monkeypatch.setattr(losing, "retrying", late)

    if of_shard:
        assert claim_shard(_context(losing), job.id, 0) is None
        assert sample_jobs.shard(losing, job.id).worker_id == "faster"
    else:
        assert claim_job(_context(losing), job.id, Task.PLAN) is None
        assert sample_jobs.job(losing, job.id).worker_id == "faster"


def test_job_of_an_ended_key_is_neither_planned_nor_run_but_finished(losing: LosesAnswers) -> None:
    with losing.write() as session:
        key = keys.id_of(keys.create_key(session, "reports"))
        owner = {"key_id": key, "project_id": session.get_one(ApiKey, key).project_id}
    queued, running = sample_jobs.submitted(losing, **owner), sample_jobs.running(losing, **owner)
    with losing.write() as session:
        keys.revoke_key(session, key)
    context = _context(losing)

    claims = claim_job(context, queued.id, Task.PLAN), claim_shard(context, running.id, 0)
    with losing.write() as session:
        ended_keys.end_job(session, running.id, actor="dispatcher")
    finish = claim_job(context, running.id, Task.FINISH)

    assert claims == (None, None)
    assert finish is not None
    assert sample_jobs.shard(losing, running.id).epoch == 0
