"""Constraints of the tables are the last guard, where two transactions have both looked and found nothing."""

from typing import Any

import pytest
from sqlalchemy import func, insert, select
from sqlalchemy.exc import IntegrityError

from jobs.clock import now
from jobs.db.base import Base, table_of
from jobs.db.engine import Database
from jobs.files.tables import File
from jobs.fleet.tables import Measure
from jobs.ledger import audit, feed, ledger, measures, shards, totals
from jobs.ledger.tables import Audit, Job, JobDependency, Outbox, Outcome, Segment, Shard, Total
from jobs.queues import Queue, Task
from jobs.security import keys
from jobs.security.tables import Idempotency, Project
from jobs.webhooks.tables import Event
from tests.support import sample_jobs
from tests.support.sample_jobs import claim_job, claim_shard, cuts, planning, running


def happened(db: Database) -> None:
    """Write a row of each kind."""
    sample_jobs.submitted(db, after=[running(db).id])
    claim = claim_job(db, sample_jobs.finishing(db).id, Task.FINISH)
    file = File(
        id="file-1", project_id="proj_1", purpose="batch_output", filename="o", bytes=1, path="files/1", created_at=1.0
    )
    with db.write() as session:
        ledger.close(session, claim, {}, [file], {"stop": 4})
        keys.ensure_project(session, "one")
        measures.observe(session, measures.ENGINE, "tiny", 1.0)
        session.add(Idempotency(project_id="proj_1", route="POST /", key="k", heartbeat_at=now(), created_at=now()))
    with db.write() as session:
        audit.seal(session)
        totals.count(session)
        measures.add_up(session)
        feed.number(session)


@pytest.mark.parametrize(
    ("model", "otherwise"),
    [
        pytest.param(Job, {"kind": "embedding"}, id="pk_job"),
        pytest.param(Shard, {"lines": 7}, id="pk_shard"),
        pytest.param(Segment, {"path": "elsewhere"}, id="pk_segment"),
        pytest.param(Outbox, {"id": 1_000_000}, id="uq_outbox"),
        pytest.param(Event, {"id": "evt_other", "position": None}, id="pk_event"),
        pytest.param(Event, {"seq": 1_000_000, "position": None}, id="uq_event_id"),
        pytest.param(Event, {"seq": 1_000_000, "id": "evt_other"}, id="ix_event_position"),
        pytest.param(Audit, {"id": 1_000_000}, id="uq_audit_seal"),
        pytest.param(Outcome, {"count": 9}, id="pk_outcome"),
        pytest.param(File, {"path": "files/2"}, id="pk_file"),
        pytest.param(Idempotency, {"body": "{}"}, id="pk_idempotency"),
        pytest.param(Project, {"id": "proj_other"}, id="uq_project_live_name"),
        pytest.param(Measure, {"count": 9}, id="pk_measure"),
        pytest.param(Total, {"count": 9}, id="pk_total"),
        pytest.param(JobDependency, {}, id="pk_job_dependency"),
    ],
)
def test_duplicate_row_violates_unique_constraint(db: Database, model: type[Base], otherwise: dict[str, Any]) -> None:
    happened(db)
    table = table_of(model)
    with db.read() as session:
        row = dict(session.execute(select(table)).mappings().first() or {})
        before = session.scalar(select(func.count()).select_from(table))

    with pytest.raises(IntegrityError), db.write() as session:
        session.connection().execute(insert(table), {**row, **otherwise})

    with db.read() as session:
        assert session.scalar(select(func.count()).select_from(table)) == before


def test_a_segment_that_does_not_see_its_first_commit_counts_nothing(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = running(db)
    claim = claim_shard(db, job.id)
    sample_jobs.answer(db, claim, [0, 1])
    monkeypatch.setattr(shards, "_exists", lambda *_, **__: None)

    with pytest.raises(IntegrityError):
        sample_jobs.answer(db, claim, [0, 1])

    assert sample_jobs.shard(db, job.id).done == 2
    assert len(sample_jobs.segments(db, job.id)) == 1


def test_a_cut_that_does_not_see_the_first_adds_nothing(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = planning(db)
    monkeypatch.setattr(shards, "_exists", lambda *_, **__: None)
    with db.write() as session:
        shards.cut(session, claim, Queue.GENERATE, cuts(claim.job.id, [4]))

    with pytest.raises(IntegrityError), db.write() as session:
        shards.cut(session, claim, Queue.GENERATE, cuts(claim.job.id, [4, 4]))

    with db.read() as session:
        assert list(session.scalars(select(Shard.n).where(Shard.job_id == claim.job.id))) == [0]


def test_a_job_is_submitted_once(db: Database) -> None:
    job = sample_jobs.submitted(db)

    with pytest.raises(IntegrityError), db.write() as session:
        ledger.submit(session, sample_jobs.new_job(id=job.id), actor="key:test")

    assert sample_jobs.told(db, job.id) == [(1, "job.created")]
    assert sample_jobs.outbox_messages(db, job.id) == [("plan", -1)]
