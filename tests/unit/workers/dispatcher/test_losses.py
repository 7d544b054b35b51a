"""Work of dead workers is taken back, and others go on with it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.errors import DatabaseBusy
from jobs.fleet import quarantine
from jobs.fleet.leadership import ELECTED_AT
from jobs.fleet.tables import Meta, Worker
from jobs.ledger import ledger, measures, shards
from jobs.ledger.states import JobState, ShardState
from jobs.ledger.tables import Outbox
from jobs.platform import processes
from jobs.queues import Queue
from tests.support import sample_jobs
from tests.support.dispatcher import DispatcherHarness, project_of
from workers.dispatcher import loop as dispatcher
from workers.dispatcher.loop import Dispatcher


def silent_worker(harness: DispatcherHarness) -> str:
    """Have a worker of another host claim a shard and be silent for nearly a lease; return the job's id."""
    job = sample_jobs.running(harness.db, [4], project_id=project_of(harness.db, "one"))
    harness.worker("far", host="elsewhere")
    sample_jobs.claim_shard(harness.db, job.id, worker="far")
    harness.tick()
    harness.tick(29)
    return job.id


def assert_lost_within_two_seconds(harness: DispatcherHarness, job_id: str) -> None:
    before = sample_jobs.shard(harness.db, job_id).state
    harness.tick(2)

    assert before == ShardState.RUNNING
    assert sample_jobs.shard(harness.db, job_id).state == ShardState.PENDING


def test_claims_of_ended_worker_process_are_revoked_immediately(harness: DispatcherHarness) -> None:
    job = sample_jobs.running(harness.db, [4], project_id=project_of(harness.db, "one"))
    host, pid, started = processes.me()
    harness.worker("dead", host=host, pid=pid, started=started + 1)
    sample_jobs.claim_shard(harness.db, job.id, worker="dead")

    harness.tick()

    shard = sample_jobs.shard(harness.db, job.id)
    assert (shard.state, shard.stalls) == (ShardState.PENDING, 1)
    with harness.db.read() as session:
        assert session.get(Worker, "dead") is None


def test_engines_that_take_their_workers_along_too_often_are_quarantined(harness: DispatcherHarness) -> None:
    host, pid, started = processes.me()
    held = {"tiny": {"entry": "e", "up": True}, "large": {"entry": "f", "up": True}}
    for n in range(harness.config.engine_deaths):
        job = sample_jobs.running(harness.db, project_id=project_of(harness.db, "one"))
        harness.worker(f"dead{n}", host=host, pid=pid, started=started + 1, host_devices="there", engines=held)
        sample_jobs.claim_shard(harness.db, job.id, worker=f"dead{n}")
        harness.tick(after=2)

    with harness.db.read() as session:
        (row,) = quarantine.all_quarantines(session)
    assert (row.host_devices, row.model, row.deaths) == ("there", "tiny", harness.config.engine_deaths)
    assert len(row.suspects) == harness.config.engine_deaths, "a shard of each job"


def test_worker_of_another_host_is_removed_after_a_lease_without_a_heartbeat(harness: DispatcherHarness) -> None:
    job_id = silent_worker(harness)
    assert_lost_within_two_seconds(harness, job_id)


def test_a_worker_that_sends_a_heartbeat_before_it_is_removed_lives(
    harness: DispatcherHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent_worker(harness)
    breathed, asked = harness.dispatcher._maintenance._write, []

    def sends_first(work: Callable[[Session], object]) -> object:
        asked.append(work)
        harness.heartbeat("far")
        return breathed(work)

    monkeypatch.setattr(harness.dispatcher._maintenance, "_write", sends_first)
    harness.tick(2)

    assert asked
    with harness.db.read() as session:
        assert session.get(Worker, "far") is not None


def test_time_of_database_outage_does_not_count_towards_lease(
    harness: DispatcherHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = silent_worker(harness)

    def busy() -> object:
        raise DatabaseBusy

    with monkeypatch.context() as patch:
        patch.setattr(harness.db, "write", busy)
        with pytest.raises(DatabaseBusy):
            harness.tick(2)
    harness.tick(1)
    harness.tick(29)
    assert_lost_within_two_seconds(harness, job_id)


def test_lease_survives_dispatcher_wait_for_writer_lock(
    harness: DispatcherHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that stands still with the writer lock keeps all heartbeats from being written."""
    job_id = silent_worker(harness)
    write = harness.db.write

    @contextmanager
    def waits() -> Iterator[Session]:
        harness.clock.at += 2
        with write() as session:
            yield session

    with monkeypatch.context() as patch:
        patch.setattr(harness.db, "write", waits)
        with pytest.raises(DatabaseBusy):
            harness.tick(2)
    harness.tick(1)
    harness.tick(29)
    assert_lost_within_two_seconds(harness, job_id)


def test_failing_maintenance_does_not_prevent_removal_of_dead_worker(
    harness: DispatcherHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.worker("far", host="elsewhere")
    harness.worker("near", host="elsewhere")

    def busy() -> None:
        raise DatabaseBusy

    monkeypatch.setattr(harness.dispatcher._maintenance, "_fire_schedules", busy)
    for _ in range(8):
        harness.heartbeat("near")
        with pytest.raises(DatabaseBusy):
            harness.tick(5)

    with harness.db.read() as session:
        assert session.get(Worker, "far") is None
        assert session.get(Worker, "near") is not None


def test_wall_clock_that_jumps_expires_no_lease(harness: DispatcherHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    job = sample_jobs.running(harness.db, [4], project_id=project_of(harness.db, "one"))
    harness.worker()
    sample_jobs.claim_shard(harness.db, job.id, worker="w")
    harness.tick()

    for module in ("jobs.clock", "workers.dispatcher.maintenance", "jobs.ledger.ledger", "jobs.ledger.shards"):
        monkeypatch.setattr(f"{module}.now", lambda: 1_900_000_000.0, raising=False)
    harness.tick(1)

    assert sample_jobs.shard(harness.db, job.id).state == ShardState.RUNNING


def test_claim_with_stale_heartbeat_is_revoked_from_live_worker(
    harness: DispatcherHarness,
) -> None:
    job = sample_jobs.running(harness.db, [4], project_id=project_of(harness.db, "one"))
    harness.worker()
    claim = sample_jobs.claim_shard(harness.db, job.id, worker="w")
    sample_jobs.answer(harness.db, claim, [0])
    for _ in range(4):
        harness.heartbeat()
        harness.tick(10.5)

    shard = sample_jobs.shard(harness.db, job.id)
    assert (shard.state, shard.stalls) == (ShardState.PENDING, 0), "it had made progress: no stall"


def test_lost_planner_is_followed_by_another(harness: DispatcherHarness) -> None:
    claim = sample_jobs.planning(harness.db, project_id=project_of(harness.db, "one"))
    harness.worker(queue=Queue.PLAN)
    published = []
    for _ in range(5):
        harness.heartbeat()
        published += harness.tick(10)

    job = sample_jobs.job(harness.db, claim.job.id)
    assert (job.worker_id, job.lost_leases, job.state) == (None, 1, JobState.QUEUED)
    assert ("plan", (job.id,)) in published


def test_overdue_job_expires(harness: DispatcherHarness) -> None:
    job = sample_jobs.running(harness.db, [4], project_id=project_of(harness.db, "one"), deadline=now() - 1)

    harness.tick()

    assert sample_jobs.state(harness.db, job.id) == JobState.EXPIRING
    assert sample_jobs.outbox_messages(harness.db, job.id) == [("finish", -1)]


def test_stopping_job_does_not_wait_for_a_worker_that_is_frozen(harness: DispatcherHarness) -> None:
    job = sample_jobs.running(harness.db, [4], project_id=project_of(harness.db, "one"))
    harness.worker()
    frozen = sample_jobs.claim_shard(harness.db, job.id, worker="w")
    with harness.db.write() as session:
        ledger.cancel(session, job.id, actor="key:test")
    harness.tick()
    before = sample_jobs.outbox_messages(harness.db, job.id)
    harness.tick(3.5)

    assert before == []
    assert sample_jobs.outbox_messages(harness.db, job.id) == [("finish", -1)]
    with pytest.raises(Exception, match="newer claim"):
        sample_jobs.answer(harness.db, frozen, [0])


def test_stopping_jobs_of_which_nothing_runs_are_left_alone(
    harness: DispatcherHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until somebody finishes them, which may be long, they would be a transaction each, every second."""
    fenced: list[str] = []
    fence = shards.revoke_running

    def noted(session: Session, job_id: str) -> None:
        fenced.append(job_id)
        fence(session, job_id)

    monkeypatch.setattr(shards, "revoke_running", noted)
    idle, busy = (sample_jobs.running(harness.db, [4], project_id=project_of(harness.db, "one")).id for _ in range(2))
    harness.worker()
    sample_jobs.claim_shard(harness.db, busy, worker="w")
    with harness.db.write() as session:
        for job_id in (idle, busy):
            ledger.cancel(session, job_id, actor="key:test")

    for _ in range(4):
        harness.tick(3.5)

    assert fenced == [busy]
    for job_id in (idle, busy):
        assert sample_jobs.outbox_messages(harness.db, job_id) == [("finish", -1)]


def test_sweep_restores_missing_messages(harness: DispatcherHarness) -> None:
    waiting = sample_jobs.running(harness.db, [4], project_id=project_of(harness.db, "one"))
    stuck = sample_jobs.finishing(harness.db, [2], project_id=project_of(harness.db, "one"))
    with harness.db.write() as session:
        session.query(Outbox).delete()

    harness.tick(6)

    assert sample_jobs.outbox_messages(harness.db, waiting.id) == [("run", 0)]
    assert sample_jobs.outbox_messages(harness.db, stuck.id) == [("finish", -1)]


class Chair:
    """A leadership that is lost after so many looks."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def holds(self) -> bool:
        self.looks -= 1
        return self.looks >= 0

    def wait(self, *_: object) -> None:
        """No time passes."""


def test_the_leader_goes_on_after_its_database_was_busy(
    harness: DispatcherHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = sample_jobs.submitted(harness.db, project_id=project_of(harness.db, "one"))
    harness.worker(queue=Queue.PLAN)
    ticks = []

    def tick(self: Dispatcher) -> bool:
        ticks.append(len(ticks))
        if len(ticks) == 1:
            raise DatabaseBusy
        return tick_of(self)

    tick_of = Dispatcher.tick
    monkeypatch.setattr(Dispatcher, "tick", tick)
    monkeypatch.setattr(dispatcher, "CeleryPublisher", lambda _config: harness.broker)
    dispatcher._lead(harness.config, harness.db, Chair(3), threading.Event())  # type: ignore[arg-type]

    assert "database_busy" in caplog.messages
    assert ticks == [0, 1, 2]
    assert harness.broker.published == [("plan", (job.id,))]


def test_a_new_leader_notes_its_election(harness: DispatcherHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "CeleryPublisher", lambda _config: harness.broker)
    began = now()
    for _ in range(2):
        dispatcher._lead(harness.config, harness.db, Chair(0), threading.Event())  # type: ignore[arg-type]

    with harness.db.read() as session:
        assert float(session.get_one(Meta, ELECTED_AT).value) >= began
        assert [row.count for row in measures.rows(session) if row.name == measures.ELECTIONS] == [2]
