"""Schedules: the times of a cron expression, fired once each, whatever happens on the way."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from jobs.batches.batches import BatchRequest
from jobs.clock import now
from jobs.db.engine import Database
from jobs.files.tables import File
from jobs.fleet.models_file import Registry
from jobs.ledger.states import JobState
from jobs.ledger.tables import Audit, Job
from jobs.schedules import schedules
from jobs.schedules.tables import Schedule
from jobs.security import keys
from jobs.security.tables import ApiKey
from jobs.settings import settings
from tests.support.inline_deployment import chat_line, jsonl, running
from workers.dispatcher.retention import Retention

CHAT = "/v1/chat/completions"


def scheduled(db: Database, path: str | None = "files/in", **changes: Any) -> str:
    facts = {"endpoint": CHAT, "input_file_id": "file-1", "completion_window": "90m", "window_seconds": 5400}
    wanted = BatchRequest(**facts, metadata={"run": "nightly"}, priority=3)
    with db.write() as session:
        owner = keys.ensure_project(session, "default").id
        if path is not None:
            row = {"purpose": "batch", "filename": "in.jsonl", "bytes": 1, "created_at": 1.0, "expires_at": 2.0}
            session.add(File(id="file-1", project_id=owner, path=path, **row))
        values: dict[str, Any] = {"cron": "* * * * *", "timezone": "UTC", "next_at": now() - 1, "created_at": now()}
        values["request"] = wanted.model_dump(mode="json")
        session.add(Schedule(id="s", project_id=owner, input_file_id="file-1", **values | changes))
    return "s"


def fire(db: Database) -> str | None:
    """Do what the dispatcher does to a schedule; return the job."""
    try:
        with db.write() as session:
            job = schedules.fire(session, "s", settings(), Registry.load(settings()))
            return job.id if job else None
    except schedules.Refused as refusal:
        with db.write() as session:
            schedules.miss(session, "s", refusal.message)
        return None


def schedule(db: Database) -> Schedule:
    with db.read() as session:
        return session.get_one(Schedule, "s")


def test_a_schedule_that_is_due_submits_its_batch_once(db: Database) -> None:
    scheduled(db)

    with ThreadPoolExecutor(4) as pool:
        fired = [job for job in pool.map(lambda _: fire(db), range(4)) if job]

    with db.read() as session:
        [job] = session.scalars(select(Job)).all()
    assert fired == [job.id] == [schedule(db).last_job_id]
    assert (job.schedule_id, job.input_path, job.priority, job.metadata_) == ("s", "files/in", 3, {"run": "nightly"})
    assert job.deadline == pytest.approx(job.created_at + 5400)
    assert schedule(db).next_at > now()


def test_unknown_time_zone_pauses_schedule(db: Database) -> None:
    scheduled(db, timezone="Mars/Olympus")

    assert fire(db) is None

    assert schedule(db).paused_at is not None
    assert "Mars/Olympus" in str(schedule(db).last_error)
    with db.read() as session:
        assert schedules.due(session) == []


@pytest.mark.parametrize("other", [{"of_tomorrow": True}, {"endpoint": "/v1/of/tomorrow"}])
def test_request_of_other_version_is_missed_without_blocking_schedules(db: Database, other: dict[str, Any]) -> None:
    facts = {"endpoint": CHAT, "input_file_id": "file-1", "completion_window": "90m", "window_seconds": 5400}
    scheduled(db, request=facts | other)

    assert fire(db) is None

    assert schedule(db).paused_at is None
    assert schedule(db).last_error == "This version does not take its request."
    with db.read() as session:
        assert schedules.due(session) == []
        assert session.scalars(select(Audit.action).where(Audit.target == "s")).all() == ["schedule.miss"]


def test_missed_times_are_made_up_once(db: Database) -> None:
    scheduled(db, next_at=now() - 86_400)

    assert fire(db) is not None
    assert fire(db) is None


def test_early_or_paused_schedule_submits_nothing(db: Database) -> None:
    scheduled(db, next_at=now() + 60)
    assert fire(db) is None

    with db.write() as session:
        session.execute(update(Schedule).values(next_at=1.0, paused_at=1.0))
        assert schedules.due(session) == []
    assert fire(db) is None


@pytest.mark.parametrize(
    ("end", "error"),
    [
        ({"revoked_at": 1.0}, "The API key was revoked."),
        ({"scopes": ["api.batch.write"]}, "The API key, or its owner, may not do this work any more."),
    ],
)
def test_schedule_of_an_ended_key_submits_nothing_and_says_why(db: Database, end: dict[str, Any], error: str) -> None:
    with db.write() as session:
        key_id = keys.id_of(keys.create_key(session, "default"))
        session.flush()
        session.execute(update(ApiKey).where(ApiKey.id == key_id).values(end))
    scheduled(db, key_id=key_id)

    assert fire(db) is None
    assert schedule(db).last_error == error
    assert schedule(db).next_at > now()


def test_schedule_with_deleted_input_reports_error_and_continues(db: Database) -> None:
    scheduled(db, path=None)

    assert fire(db) is None
    assert schedule(db).last_error == "No file found with id 'file-1'."
    assert schedule(db).next_at > now()


def test_the_dispatcher_fires_and_the_batch_runs(db: Database, tmp_path: Path) -> None:
    with running(db, tmp_path) as inline:
        inline.storage.put("files/in", jsonl([chat_line(f"r{n}", f"hello {n}") for n in range(10)]))
        scheduled(db)
        inline.until(lambda: schedule(db).last_job_id is not None)
        (job,) = inline.drain(schedule(db).last_job_id or "")

    assert (job.state, job.completed) == (JobState.SUCCEEDED, 10)


def test_a_schedules_file_does_not_expire(db: Database, tmp_path: Path) -> None:
    with running(db, tmp_path) as inline:
        scheduled(db)
        retention = Retention(inline.config, db, inline.storage)
        retention.run()
        with db.read() as session:
            kept = session.get(File, "file-1")
        with db.write() as session:
            session.delete(session.get_one(Schedule, "s"))
        retention.run()
        with db.read() as session:
            gone = session.get(File, "file-1")

    assert kept is not None
    assert kept.deleted_at is None
    assert gone is None


def test_a_batch_that_may_not_begin_yet_is_checked_and_waits(db: Database, tmp_path: Path) -> None:
    with running(db, tmp_path) as inline:
        job_id = inline.submit(jsonl([chat_line("a", "hello")]), not_before=now() + 3600, deadline=now() + 7200)
        inline.until(lambda: inline.job(job_id).waiting_for == "time")
        early = inline.job(job_id)
        with db.write() as session:
            session.execute(update(Job).values(not_before=now() - 1))
        (job,) = inline.drain(job_id)

    assert (early.state, early.completed) == (JobState.RUNNING, 0)
    assert (job.state, job.completed) == (JobState.SUCCEEDED, 1)
