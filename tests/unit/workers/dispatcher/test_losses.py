"""What is taken back from whom, and who goes on."""

import threading
from collections.abc import Callable

import pytest
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.errors import DatabaseBusy
from jobs.fleet import quarantine
from jobs.fleet.tables import Worker
from jobs.ledger import ledger, shards
from jobs.ledger.states import JobState, ShardState
from jobs.ledger.tables import Outbox
from jobs.platform import processes
from jobs.queues import Queue
from tests.support import ledgers
from tests.support.house import House, project_of
from workers.dispatcher import loop as dispatcher
from workers.dispatcher.loop import Dispatcher


def test_worker_whose_process_is_gone_loses_its_claims_at_once(house: House) -> None:
    job = ledgers.running(house.db, [4], project_id=project_of(house.db, "one"))
    host, pid, started = processes.me()
    house.worker("dead", host=host, pid=pid, started=started + 1)
    ledgers.claim_shard(house.db, job.id, worker="dead")

    house.tick()

    shard = ledgers.shard(house.db, job.id)
    assert (shard.state, shard.stalls) == (ShardState.PENDING, 1)
    with house.db.read() as session:
        assert session.get(Worker, "dead") is None


def test_engines_that_take_their_workers_along_too_often_are_quarantined(house: House) -> None:
    host, pid, started = processes.me()
    held = {"tiny": {"entry": "e", "up": True}, "large": {"entry": "f", "up": True}}
    for n in range(house.config.engine_deaths):
        job = ledgers.running(house.db, project_id=project_of(house.db, "one"))
        house.worker(f"dead{n}", host=host, pid=pid, started=started + 1, place="there", holds=held)
        ledgers.claim_shard(house.db, job.id, worker=f"dead{n}")
        house.tick(after=2)

    with house.db.read() as session:
        (row,) = quarantine.listed(session)
    assert (row.place, row.model, row.deaths) == ("there", "tiny", house.config.engine_deaths)
    assert len(row.suspects) == house.config.engine_deaths, "a shard of each job"


def test_worker_of_another_host_is_buried_after_a_lease_without_a_beat(house: House) -> None:
    job = ledgers.running(house.db, [4], project_id=project_of(house.db, "one"))
    house.worker("far", host="elsewhere")
    ledgers.claim_shard(house.db, job.id, worker="far")

    house.tick()
    house.tick(29)
    held = ledgers.shard(house.db, job.id).state
    house.tick(2)

    assert held == ShardState.RUNNING
    assert ledgers.shard(house.db, job.id).state == ShardState.PENDING


def test_a_worker_that_beats_before_it_is_buried_lives(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    job = ledgers.running(house.db, [4], project_id=project_of(house.db, "one"))
    house.worker("far", host="elsewhere")
    ledgers.claim_shard(house.db, job.id, worker="far")
    house.tick()
    house.tick(29)
    breathed, asked = house.dispatcher._house._write, []

    def beats_first(work: Callable[[Session], object]) -> object:
        asked.append(work)
        house.beat("far")
        return breathed(work)

    monkeypatch.setattr(house.dispatcher._house, "_write", beats_first)
    house.tick(2)

    assert asked
    with house.db.read() as session:
        assert session.get(Worker, "far") is not None


def test_nobody_dies_of_a_time_in_which_nothing_could_be_written(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    job = ledgers.running(house.db, [4], project_id=project_of(house.db, "one"))
    house.worker("far", host="elsewhere")
    ledgers.claim_shard(house.db, job.id, worker="far")
    house.tick()
    house.tick(29)

    def busy() -> object:
        raise DatabaseBusy

    with monkeypatch.context() as patch:
        patch.setattr(house.db, "write", busy)
        with pytest.raises(DatabaseBusy):
            house.tick(2)
    house.tick(1)
    house.tick(29)
    held = ledgers.shard(house.db, job.id).state
    house.tick(2)

    assert held == ShardState.RUNNING
    assert ledgers.shard(house.db, job.id).state == ShardState.PENDING


def test_a_duty_that_fails_time_and_again_keeps_nobody_alive(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.worker("far", host="elsewhere")
    house.worker("near", host="elsewhere")

    def busy() -> None:
        raise DatabaseBusy

    monkeypatch.setattr(house.dispatcher._house, "_fire", busy)
    for _ in range(8):
        house.beat("near")
        with pytest.raises(DatabaseBusy):
            house.tick(5)

    with house.db.read() as session:
        assert session.get(Worker, "far") is None
        assert session.get(Worker, "near") is not None


def test_wall_clock_that_jumps_expires_no_lease(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    job = ledgers.running(house.db, [4], project_id=project_of(house.db, "one"))
    house.worker()
    ledgers.claim_shard(house.db, job.id, worker="w")
    house.tick()

    for module in ("jobs.clock", "workers.dispatcher.maintenance", "jobs.ledger.ledger", "jobs.ledger.shards"):
        monkeypatch.setattr(f"{module}.now", lambda: 1_900_000_000.0, raising=False)
    house.tick(1)

    assert ledgers.shard(house.db, job.id).state == ShardState.RUNNING


def test_claim_whose_own_beat_stands_still_is_taken_back_though_its_worker_lives(house: House) -> None:
    job = ledgers.running(house.db, [4], project_id=project_of(house.db, "one"))
    house.worker()
    claim = ledgers.claim_shard(house.db, job.id, worker="w")
    ledgers.answer(house.db, claim, [0])
    for _ in range(4):
        house.beat()
        house.tick(10.5)

    shard = ledgers.shard(house.db, job.id)
    assert (shard.state, shard.stalls) == (ShardState.PENDING, 0), "it had made progress: no stall"


def test_lost_planner_is_followed_by_another(house: House) -> None:
    claim = ledgers.planning(house.db, project_id=project_of(house.db, "one"))
    house.worker(queue=Queue.PLAN)
    rung = []
    for _ in range(5):
        house.beat()
        rung += house.tick(10)

    job = ledgers.job(house.db, claim.job.id)
    assert (job.worker_id, job.losses, job.state) == (None, 1, JobState.QUEUED)
    assert ("plan", (job.id,)) in rung


def test_overdue_job_expires(house: House) -> None:
    job = ledgers.running(house.db, [4], project_id=project_of(house.db, "one"), deadline=now() - 1)

    house.tick()

    assert ledgers.state(house.db, job.id) == JobState.EXPIRING
    assert ledgers.doorbells(house.db, job.id) == [("finish", -1)]


def test_stopping_job_does_not_wait_for_a_worker_that_is_frozen(house: House) -> None:
    job = ledgers.running(house.db, [4], project_id=project_of(house.db, "one"))
    house.worker()
    frozen = ledgers.claim_shard(house.db, job.id, worker="w")
    with house.db.write() as session:
        ledger.cancel(session, job.id, actor="key:test")
    house.tick()
    before = ledgers.doorbells(house.db, job.id)
    house.tick(3.5)

    assert before == []
    assert ledgers.doorbells(house.db, job.id) == [("finish", -1)]
    with pytest.raises(Exception, match="newer claim"):
        ledgers.answer(house.db, frozen, [0])


def test_stopping_jobs_of_which_nothing_runs_are_left_alone(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until somebody finishes them, which may be long, they would be a transaction each, every second."""
    fenced: list[str] = []
    fence = shards.fence

    def noted(session: Session, job_id: str) -> None:
        fenced.append(job_id)
        fence(session, job_id)

    monkeypatch.setattr(shards, "fence", noted)
    idle, busy = (ledgers.running(house.db, [4], project_id=project_of(house.db, "one")).id for _ in range(2))
    house.worker()
    ledgers.claim_shard(house.db, busy, worker="w")
    with house.db.write() as session:
        for job_id in (idle, busy):
            ledger.cancel(session, job_id, actor="key:test")

    for _ in range(4):
        house.tick(3.5)

    assert fenced == [busy]
    for job_id in (idle, busy):
        assert ledgers.doorbells(house.db, job_id) == [("finish", -1)]


def test_sweep_mends_what_lost_its_doorbell(house: House) -> None:
    waiting = ledgers.running(house.db, [4], project_id=project_of(house.db, "one"))
    stuck = ledgers.finishing(house.db, [2], project_id=project_of(house.db, "one"))
    with house.db.write() as session:
        session.query(Outbox).delete()

    house.tick(6)

    assert ledgers.doorbells(house.db, waiting.id) == [("run", 0)]
    assert ledgers.doorbells(house.db, stuck.id) == [("finish", -1)]


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
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = ledgers.submitted(house.db, project_id=project_of(house.db, "one"))
    house.worker(queue=Queue.PLAN)
    ticks = []

    def tick(self: Dispatcher) -> bool:
        ticks.append(len(ticks))
        if len(ticks) == 1:
            raise DatabaseBusy
        return tick_of(self)

    tick_of = Dispatcher.tick
    monkeypatch.setattr(Dispatcher, "tick", tick)
    monkeypatch.setattr(dispatcher, "CeleryRinger", lambda _config: house.bells)
    dispatcher._lead(house.config, house.db, Chair(3), threading.Event())  # type: ignore[arg-type]

    assert "database_busy" in caplog.messages
    assert ticks == [0, 1, 2]
    assert house.bells.rung == [("plan", (job.id,))]
