"""Small inputs that one message names are planned in one transaction; what is out of the ordinary, alone."""

import threading
from pathlib import Path
from typing import Any

import pytest

from jobs.batches.lines import Bad
from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import DatabaseBusy
from jobs.fleet import routing, workers
from jobs.fleet.models_file import Models
from jobs.fleet.tables import Worker
from jobs.ledger import ledger, shards
from jobs.ledger.states import JobState
from jobs.platform.storage import DiskStorage
from jobs.queues import Queue, Task
from jobs.registry import aliases
from jobs.registry.aliases import AliasRouting, WeightedModel
from jobs.registry.tables import Alias
from jobs.security import keys
from jobs.settings import Settings
from tests.support import sample_jobs
from tests.support.inline_deployment import MODEL, chat_line, jsonl
from workers import lifecycle
from workers.batches import planning
from workers.lifecycle import plan_all
from workers.runtime.context import Context, WorkerStatus
from workers.runtime.heartbeat import Heartbeat

GOOD = jsonl([chat_line(f"r{n}", "hello") for n in range(3)])


class Harness:
    """A planner's process, without the process."""

    def __init__(self, db: Database, folder: Path, **settings: Any) -> None:
        config = Settings(data_dir=folder, database_url=db.url, **{"min_free_bytes": 0, **settings})
        self.db, self.storage = db, DiskStorage(folder / "files")
        heartbeat = Heartbeat(db, lambda: Worker(id="planner"), heartbeat_seconds=60, stop=threading.Event())
        stop, standing, models = threading.Event(), WorkerStatus(), Models(config)
        self.context = Context(config, db, self.storage, "planner", stop, standing, heartbeat, models)
        with db.write() as session:
            self.project = keys.ensure_project(session, "p").id
            workers.store_models(session, {MODEL: False}, Queue.GENERATE)

    def submit(self, content: bytes | None = GOOD, **fields: Any) -> str:
        facts = {"project_id": self.project, "created_at": now(), "deadline": now() + 60, **fields}
        job = sample_jobs.new_job(**facts)
        if content is not None:
            job.input_path = f"files/{job.id}"
            self.storage.put(job.input_path, content)
        with self.db.write() as session:
            return ledger.submit(session, job, actor="test").id

    def states(self, *job_ids: str) -> list[JobState]:
        return [sample_jobs.state(self.db, job_id) for job_id in job_ids]


@pytest.fixture
def harness(db: Database, tmp_path: Path) -> Harness:
    return Harness(db, tmp_path)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the jobs that are planned alone from now on."""
    found: list[str] = []
    plan = lifecycle.plan

    def planning_alone(context: Context, job_id: str) -> None:
        found.append(job_id)
        plan(context, job_id)

    monkeypatch.setattr(lifecycle, "plan", planning_alone)
    return found


def test_grouped_jobs_draw_their_own_models_of_an_alias(harness: Harness) -> None:
    with harness.db.write() as session:
        workers.store_models(session, {"new-model": False}, Queue.GENERATE)
        alias = Alias(project_id=harness.project, name="support-bot", created_at=now(), created_by="test")
        split = AliasRouting((WeightedModel(MODEL, 50), WeightedModel("new-model", 50)))
        aliases.move(session, alias, split, "create", actor="test")
    content = jsonl([chat_line("r", "hello", model="support-bot")])
    ids = [harness.submit(content, id=f"batch_{n:02}") for n in range(24)]

    plan_all(harness.context, ids)

    drawn = {job_id: sample_jobs.job(harness.db, job_id).model for job_id in ids}
    assert drawn == {i: split.model_at(aliases.point_of(harness.project, "support-bot", i)) for i in ids}
    assert set(drawn.values()) == {MODEL, "new-model"}


def test_grouped_jobs_are_planned_in_single_transaction(
    harness: Harness, alone: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad, gone = harness.submit(), harness.submit(b"no request\n"), harness.submit()
    harness.storage.delete(f"files/{gone}")
    work = []
    monkeypatch.setattr(harness.db, "retrying", lambda *of: work.append(Database.retrying(harness.db, *of)))

    plan_all(harness.context, [good, bad])

    assert len(work) == 1
    assert harness.states(good, bad) == [JobState.RUNNING, JobState.FAILED]
    assert sample_jobs.outbox_messages(harness.db, good) == [(Task.RUN, 0)]
    assert sample_jobs.outbox_messages(harness.db, bad) == []
    assert [(shard.lines, shard.first_line) for shard in [sample_jobs.shard(harness.db, good)]] == [(3, 0)]
    assert [error["line"] for error in sample_jobs.job(harness.db, bad).errors or []] == [1]
    assert [move for move in sample_jobs.history(harness.db, good) if move[0]] == [(JobState.QUEUED, JobState.RUNNING)]
    assert alone == []


def test_missing_input_fails_only_its_own_job(harness: Harness, alone: list[str]) -> None:
    good, gone, nameless = harness.submit(), harness.submit(), harness.submit(None)
    harness.storage.delete(f"files/{gone}")

    plan_all(harness.context, [gone, good, nameless])

    assert harness.states(good, gone, nameless) == [JobState.RUNNING, JobState.FAILED, JobState.FAILED]
    assert alone == [gone, nameless]


def test_a_large_input_is_planned_under_a_claim(
    harness: Harness, alone: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "SMALL_BYTES", len(GOOD))
    large, small = harness.submit(GOOD + jsonl([chat_line("more", "hello")])), harness.submit()

    plan_all(harness.context, [large, small])

    assert harness.states(large, small) == [JobState.RUNNING, JobState.RUNNING]
    assert alone == [large]


def test_jobs_claimed_or_cancelled_during_planning_are_skipped(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, cancelled, again, free = (harness.submit() for _ in range(4))
    asked = routing.route

    def slowly(*of: Any, **named: Any) -> routing.Route:
        if sample_jobs.state(harness.db, cancelled) == JobState.QUEUED:
            sample_jobs.claim_job(harness.db, taken, Task.PLAN, "another")
            dead = sample_jobs.claim_job(harness.db, again, Task.PLAN, "dead")
            with harness.db.write() as session:
                ledger.cancel(session, cancelled, actor="key:test")
                shards.cut(session, dead, Queue.GENERATE, sample_jobs.cuts(again, [1, 1]))
                ledger.release(session, again, dead.epoch)
        return asked(*of, **named)

    monkeypatch.setattr(routing, "route", slowly)
    plan_all(harness.context, [taken, cancelled, again, free])

    assert harness.states(taken, cancelled, again, free) == [
        JobState.QUEUED,
        JobState.CANCELLING,
        JobState.QUEUED,
        JobState.RUNNING,
    ]
    assert sample_jobs.job(harness.db, taken).worker_id == "another"
    assert (Task.PLAN, -1) in sample_jobs.outbox_messages(harness.db, again)

    plan_all(harness.context, [again])  # what the dead one has cut is removed

    assert (harness.states(again), sample_jobs.shard(harness.db, again).lines) == ([JobState.RUNNING], 3)


def test_planned_twice_where_the_commit_was_not_heard_of_it_is_planned_once(database_url: str, tmp_path: Path) -> None:
    harness = Harness(sample_jobs.LosesAnswers(database_url), tmp_path)
    first, second = harness.submit(), harness.submit()
    harness.db.lose_next = True  # type: ignore[attr-defined]

    plan_all(harness.context, [first, second])

    assert harness.states(first, second) == [JobState.RUNNING, JobState.RUNNING]
    assert [sample_jobs.job(harness.db, job_id).epoch for job_id in (first, second)] == [2, 2]
    assert sample_jobs.outbox_messages(harness.db, first) == [(Task.RUN, 0)]
    harness.db.close()


def test_routing_error_in_group_falls_back_to_planning_each_job_alone(
    harness: Harness, alone: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = harness.submit(), harness.submit()

    def broken(*_: Any, **__: Any) -> routing.Route:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(routing, "route", broken)
        plan_all(harness.context, [first, second])

    assert alone == [first, second]
    assert [sample_jobs.job(harness.db, job_id).failed_attempts for job_id in (first, second)] == [1, 1]


def test_token_limit_fails_only_exceeding_job_of_group(db: Database, tmp_path: Path) -> None:
    harness = Harness(db, tmp_path, project_max_queued_tokens=len(GOOD) // 4 - 1)
    first, second = harness.submit(), harness.submit(jsonl([chat_line("r", "x")]))

    plan_all(harness.context, [first, second])

    assert harness.states(first, second) == [JobState.FAILED, JobState.RUNNING]
    assert [error["code"] for error in sample_jobs.job(db, first).errors or []] == ["token_limit_exceeded"]


def test_a_nearly_full_disk_takes_none(db: Database, tmp_path: Path, alone: list[str]) -> None:
    harness = Harness(db, tmp_path, min_free_bytes=1 << 60)
    job_id = harness.submit()

    plan_all(harness.context, [job_id])

    assert (harness.states(job_id), sample_jobs.job(db, job_id).waiting_for) == ([JobState.QUEUED], "disk")


def test_failed_write_of_single_job_does_not_block_its_group(
    harness: Harness, alone: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    odd, good = harness.submit(), harness.submit()
    conclude = planning.Planner.conclude

    def concluded(self: planning.Planner, session: Any, claim: ledger.JobClaim) -> None:
        if claim.job.id == odd:
            raise ValueError("out of the ordinary")
        conclude(self, session, claim)

    monkeypatch.setattr(planning.Planner, "conclude", concluded)

    plan_all(harness.context, [odd, good])

    assert sorted(alone) == sorted([odd, good])
    assert harness.states(odd, good) == [JobState.RUNNING, JobState.RUNNING]


def test_token_limit_is_rechecked_on_transaction_retry(
    harness: Harness, alone: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = harness.submit()
    full, lost = [True, False], [True, False]
    concluded = planning.Planner.conclude

    def conclude(self: planning.Planner, session: Any, claim: ledger.JobClaim) -> None:
        concluded(self, session, claim)
        if lost.pop(0):
            raise DatabaseBusy

    refusals = [Bad("token_limit_exceeded", "")]
    monkeypatch.setattr(planning.Planner, "_check_quota", lambda *_: refusals if full.pop(0) else [])
    monkeypatch.setattr(planning.Planner, "conclude", conclude)

    plan_all(harness.context, [job_id])

    assert (harness.states(job_id), alone) == ([JobState.RUNNING], [])
