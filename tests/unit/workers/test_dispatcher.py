"""The dispatcher, driven by hand: what rings when, and what is taken back from whom."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from jobs import attachments, audit, fleet, ids, keys, ledger, measures, outbox, pauses, quarantine, retries, shards
from jobs.clock import now
from jobs.db import WRITE_ROWS, Database
from jobs.due import HELD
from jobs.errors import DatabaseBusy
from jobs.models import (
    Delivery,
    File,
    Idempotency,
    Job,
    Measure,
    Outbox,
    Segment,
    Shard,
    Upload,
    UploadPart,
    VectorRemoval,
    WebhookEndpoint,
    Worker,
)
from jobs.outbox import SMALL_BYTES
from jobs.pauses import Scope
from jobs.payloads import BATCH_OUTPUT
from jobs.queues import Queue, Task
from jobs.settings import Settings
from jobs.states import JobState, ShardState
from jobs.storage import DiskStorage
from tests.support import ledgers
from workers import dispatcher, housekeeping, process, retention
from workers.away import BrokerAway
from workers.dispatcher import Dispatcher
from workers.leadership import Leadership
from workers.retention import Retention


class Clock:
    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


class Bells:
    """The broker: notes what was rung, or is away."""

    def __init__(self) -> None:
        self.rung: list[tuple[str, tuple[object, ...]]] = []
        self.away = False

    def ring(self, task: str, queue: str, arguments: Sequence[object]) -> None:
        if self.away:
            raise BrokerAway
        self.rung.append((task, tuple(arguments)))


class House:
    """A dispatcher with a clock and a broker of the test's own."""

    def __init__(self, db: Database, folder: Path, **settings: Any) -> None:
        facts = {"lease_seconds": 30, "rering_seconds": 10, "cancel_grace_seconds": 3, **settings}
        self.config = Settings(data_dir=folder, database_url=db.url, **facts)
        self.db, self.clock, self.bells = db, Clock(), Bells()
        self.storage = DiskStorage(folder / "files")
        self.dispatcher = Dispatcher(self.config, db, self.storage, self.bells, self.clock)

    def tick(self, after: float = 0.0) -> list[tuple[str, tuple[object, ...]]]:
        """Let time pass, tick, and return what was rung."""
        self.clock.at += after
        self.bells.rung.clear()
        self.dispatcher.tick()
        return list(self.bells.rung)

    def worker(self, name: str = "w", queue: str = Queue.GENERATE, slots: int = 1, **facts: Any) -> str:
        host, pid, started = process.me()
        row = {"host": host, "pid": pid, "started": started, "models": ["*"], "state": "ready", **facts}
        with self.db.write() as session:
            fleet.register(
                session,
                Worker(id=name, pool="p", queues=[queue], slots=slots, created_at=now(), seen_at=now(), **row),
            )
        return name

    def beat(self, name: str = "w") -> None:
        with self.db.write() as session:
            assert fleet.beat(session, name)


@pytest.fixture
def house(db: Database, tmp_path: Path) -> House:
    with db.write() as session:
        for name in ("one", "two"):
            keys.ensure_project(session, name)
    return House(db, tmp_path)


def _project(db: Database, name: str) -> str:
    with db.write() as session:
        return keys.ensure_project(session, name).id


def test_rings_are_bounded_by_twice_the_live_slots(house: House) -> None:
    job = ledgers.running(house.db, [1] * 10, project_id=_project(house.db, "one"))
    house.worker(slots=2)

    first, second = house.tick(), house.tick(0.1)

    assert first == [("run", (job.id, n)) for n in range(4)]
    assert second == []


def test_what_is_due_is_rung_although_the_house_can_not_be_kept(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    job = ledgers.running(house.db, [1], project_id=_project(house.db, "one"))
    house.worker()

    def fails() -> None:
        house.clock.at += 30  # as long as a statement may take
        raise DatabaseBusy

    monkeypatch.setattr(house.dispatcher._house, "keep", fails)
    with pytest.raises(DatabaseBusy):
        house.tick()

    assert house.bells.rung == [(Task.RUN, (job.id, 0))]


def test_no_worker_no_ring(house: House) -> None:
    ledgers.running(house.db, [1], project_id=_project(house.db, "one"))
    house.worker(state="starting")

    assert house.tick() == []


def test_claimed_shard_makes_no_room_and_a_finished_one_does(house: House) -> None:
    job = ledgers.running(house.db, [1] * 5, project_id=_project(house.db, "one"))
    house.worker(slots=1)
    house.tick()
    claim = ledgers.claim_shard(house.db, job.id, 0)

    while_running = house.tick(0.1)
    ledgers.answer(house.db, claim, [0], last=True)
    after = house.tick(0.1)

    assert while_running == []
    assert after == [("run", (job.id, 2))]


def test_two_projects_share_the_rings_whatever_they_owe(house: House) -> None:
    large = ledgers.running(house.db, [1] * 50, project_id=_project(house.db, "one"))
    small = ledgers.running(house.db, [1] * 2, project_id=_project(house.db, "two"))
    house.worker(slots=2)

    rung = [arguments[0] for _, arguments in house.tick()]

    assert sorted(rung) == sorted([large.id, small.id] * 2)


def test_priority_then_deadline_order_a_projects_own_work(house: House) -> None:
    project = _project(house.db, "one")
    plain = ledgers.running(house.db, [1], project_id=project)
    urgent = ledgers.running(house.db, [1], project_id=project, priority=10)
    soon = ledgers.running(house.db, [1], project_id=project, deadline=now() + 1000)
    house.worker(slots=2)

    assert [arguments[0] for _, arguments in house.tick()] == [urgent.id, soon.id, plain.id]


def test_unheard_doorbell_is_rung_again_on_the_monotonic_clock(house: House) -> None:
    job = ledgers.submitted(house.db, project_id=_project(house.db, "one"))
    house.worker(queue=Queue.PLAN)

    bell = ("plan", (job.id,))
    rounds = []
    for seconds in (0, 5, 6, 5, 16, 5):
        house.beat()
        rounds.append(house.tick(seconds))

    assert [bell in rung for rung in rounds] == [True, False, True, False, True, False]


def test_delayed_doorbell_waits_until_it_is_due(house: House) -> None:
    job = ledgers.running(house.db, [1], project_id=_project(house.db, "one"))
    house.worker()
    claim = ledgers.claim_shard(house.db, job.id)
    with house.db.write() as session:
        shards.give_back(session, claim, delay=60, waiting_for="model")

    assert house.tick() == []
    assert ledgers.job(house.db, job.id).waiting_for == "model"


def _refusals(db: Database) -> int:
    with db.read() as session:
        return sum(session.scalars(select(Measure.count).where(Measure.name == measures.REFUSALS)))


def test_broker_that_is_away_loses_nothing(house: House) -> None:
    job = ledgers.running(house.db, [1], project_id=_project(house.db, "one"))
    house.worker()
    house.bells.away = True
    house.tick()
    house.bells.away = False

    assert house.tick(0.1) == [], "the broker is left alone for a moment"
    assert house.tick(5) == [("run", (job.id, 0))]
    assert _refusals(house.db) == 1


def test_worker_whose_process_is_gone_loses_its_claims_at_once(house: House) -> None:
    job = ledgers.running(house.db, [4], project_id=_project(house.db, "one"))
    host, pid, started = process.me()
    house.worker("dead", host=host, pid=pid, started=started + 1)
    ledgers.claim_shard(house.db, job.id, worker="dead")

    house.tick()

    shard = ledgers.shard(house.db, job.id)
    assert (shard.state, shard.stalls) == (ShardState.PENDING, 1)
    with house.db.read() as session:
        assert session.get(Worker, "dead") is None


def test_engines_that_take_their_workers_along_too_often_are_quarantined(house: House) -> None:
    host, pid, started = process.me()
    held = {"tiny": {"entry": "e", "up": True}, "large": {"entry": "f", "up": True}}
    for n in range(house.config.engine_deaths):
        job = ledgers.running(house.db, project_id=_project(house.db, "one"))
        house.worker(f"dead{n}", host=host, pid=pid, started=started + 1, place="there", holds=held)
        ledgers.claim_shard(house.db, job.id, worker=f"dead{n}")
        house.tick(after=2)

    with house.db.read() as session:
        (row,) = quarantine.listed(session)
    assert (row.place, row.model, row.deaths) == ("there", "tiny", house.config.engine_deaths)
    assert len(row.suspects) == house.config.engine_deaths, "a shard of each job"


def test_worker_of_another_host_is_buried_after_a_lease_without_a_beat(house: House) -> None:
    job = ledgers.running(house.db, [4], project_id=_project(house.db, "one"))
    house.worker("far", host="elsewhere")
    ledgers.claim_shard(house.db, job.id, worker="far")

    house.tick()
    house.tick(29)
    held = ledgers.shard(house.db, job.id).state
    house.tick(2)

    assert held == ShardState.RUNNING
    assert ledgers.shard(house.db, job.id).state == ShardState.PENDING


def test_wall_clock_that_jumps_expires_no_lease(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    job = ledgers.running(house.db, [4], project_id=_project(house.db, "one"))
    house.worker()
    ledgers.claim_shard(house.db, job.id, worker="w")
    house.tick()

    for module in ("jobs.clock", "workers.housekeeping", "jobs.ledger", "jobs.shards"):
        monkeypatch.setattr(f"{module}.now", lambda: 1_900_000_000.0, raising=False)
    house.tick(1)

    assert ledgers.shard(house.db, job.id).state == ShardState.RUNNING


def test_claim_whose_own_beat_stands_still_is_taken_back_though_its_worker_lives(house: House) -> None:
    job = ledgers.running(house.db, [4], project_id=_project(house.db, "one"))
    house.worker()
    claim = ledgers.claim_shard(house.db, job.id, worker="w")
    ledgers.answer(house.db, claim, [0])
    for _ in range(4):
        house.beat()
        house.tick(10.5)

    shard = ledgers.shard(house.db, job.id)
    assert (shard.state, shard.stalls) == (ShardState.PENDING, 0), "it had made progress: no stall"


def test_lost_planner_is_followed_by_another(house: House) -> None:
    claim = ledgers.planning(house.db, project_id=_project(house.db, "one"))
    house.worker(queue=Queue.PLAN)
    rung = []
    for _ in range(5):
        house.beat()
        rung += house.tick(10)

    job = ledgers.job(house.db, claim.job.id)
    assert (job.worker_id, job.losses, job.state) == (None, 1, JobState.QUEUED)
    assert ("plan", (job.id,)) in rung


def test_overdue_job_expires(house: House) -> None:
    job = ledgers.running(house.db, [4], project_id=_project(house.db, "one"), deadline=now() - 1)

    house.tick()

    assert ledgers.state(house.db, job.id) == JobState.EXPIRING
    assert ledgers.doorbells(house.db, job.id) == [("finish", -1)]


def test_stopping_job_does_not_wait_for_a_worker_that_is_frozen(house: House) -> None:
    job = ledgers.running(house.db, [4], project_id=_project(house.db, "one"))
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
    idle, busy = (ledgers.running(house.db, [4], project_id=_project(house.db, "one")).id for _ in range(2))
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


class Diary:
    """Of whoever keeps house: its transactions, and when it lets others write."""

    def __init__(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        self.house, self.monkeypatch, self.done = house, monkeypatch, list[str]()

    def keep(self, after: float) -> None:
        self.house.clock.at += after
        self.house.beat("w")
        with self.monkeypatch.context() as patch:
            for name in ("write", "breathe"):
                patch.setattr(self.house.db, name, partial(self._note, name, getattr(self.house.db, name)))
            self.house.dispatcher._house.keep()

    def _note(self, name: str, do: Callable[[], Any]) -> Any:
        self.done.append(name)
        return do()


def test_whoever_keeps_house_lets_others_write_after_each_transaction(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary, project = Diary(house, monkeypatch), _project(house.db, "one")
    host, pid, started = process.me()
    house.worker()
    for n in range(3):
        house.worker(f"dead{n}", host=host, pid=pid, started=started + 1)
    diary.keep(0)  # buries
    for n in range(6):
        job = ledgers.running(house.db, project_id=project)
        ledgers.claim_shard(house.db, job.id, worker="w")
        if n % 2:
            with house.db.write() as session:
                ledger.cancel(session, job.id, actor="key:test")
    diary.keep(1)
    diary.keep(3.5)  # fences
    for _ in range(3):
        ledgers.planning(house.db, project_id=project)
        ledgers.finishing(house.db, project_id=project)
        ledgers.running(house.db, project_id=project, model="gone")
    with house.db.write() as session:
        session.query(Outbox).delete()
    diary.keep(1)
    diary.keep(31)  # takes back, settles, says what is waited for

    assert diary.done == ["write", "breathe"] * (len(diary.done) // 2)
    assert diary.done.count("write") > 3 * 6


def test_sweep_mends_what_lost_its_doorbell(house: House) -> None:
    waiting = ledgers.running(house.db, [4], project_id=_project(house.db, "one"))
    stuck = ledgers.finishing(house.db, [2], project_id=_project(house.db, "one"))
    with house.db.write() as session:
        session.query(Outbox).delete()

    house.tick(6)

    assert ledgers.doorbells(house.db, waiting.id) == [("run", 0)]
    assert ledgers.doorbells(house.db, stuck.id) == [("finish", -1)]


def test_job_without_a_live_worker_for_its_model_says_so(house: House) -> None:
    job = ledgers.running(house.db, [4], project_id=_project(house.db, "one"))
    house.worker(models=["another"])

    house.tick(6)
    waiting = ledgers.job(house.db, job.id).waiting_for
    claim = ledgers.claim_shard(house.db, job.id)
    claimed = ledgers.job(house.db, job.id).waiting_for
    ledgers.answer(house.db, claim, [0])

    assert (waiting, claimed) == ("model", "model"), "whether the model answers is to be seen"
    assert ledgers.job(house.db, job.id).waiting_for is None


def test_jobs_that_only_wait_for_a_slot_hide_none_that_waits_for_something(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are: here, more than are looked at together."""
    monkeypatch.setattr(ledger, "idle", partial(ledger.idle, limit=2))
    project, held = (_project(house.db, name) for name in ("one", "two"))
    slots = [ledgers.running(house.db, project_id=project).id for _ in range(5)]
    waiting = {
        ledgers.running(house.db, project_id=project, model="gone").id: "model",
        ledgers.running(house.db, project_id=held).id: "pause",
        ledgers.running(house.db, project_id=project, not_before=now() + 600).id: "time",
    }
    house.worker(models=["tiny"])
    with house.db.write() as session:
        pauses.pause(session, Scope.PROJECT, held, actor="operator")

    for _ in range(2):
        house.tick(6)

    assert {job_id: ledgers.job(house.db, job_id).waiting_for for job_id in waiting} == waiting
    assert {ledgers.job(house.db, job_id).waiting_for for job_id in slots} == {None}


def test_jobs_that_are_held_back_still_hide_none_that_is_not(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "said", partial(ledger.said, limit=2))
    one, two = (_project(house.db, name) for name in ("one", "two"))
    held = [ledgers.running(house.db, project_id=one).id for _ in range(5)]
    early = [ledgers.running(house.db, project_id=two, not_before=now() + 600).id for _ in range(3)]
    goes_on = [ledgers.running(house.db, project_id=two, not_before=at).id for at in (None, now() - 1)]
    house.worker(models=["tiny"])
    with house.db.write() as session:
        pauses.pause(session, Scope.PROJECT, one, actor="operator")
        for job_id in (*held, *goes_on[:1]):
            ledger.wait_for(session, job_id, "pause")
        for job_id in (*early, *goes_on[1:]):
            ledger.wait_for(session, job_id, "time")

    house.tick(6)

    assert {ledgers.job(house.db, job_id).waiting_for for job_id in goes_on} == {None}
    assert {ledgers.job(house.db, job_id).waiting_for for job_id in held} == {"pause"}
    assert {ledgers.job(house.db, job_id).waiting_for for job_id in early} == {"time"}


def test_what_nobody_could_answer_takes_no_place_of_what_somebody_can(house: House) -> None:
    project = _project(house.db, "one")
    gone = ledgers.running(house.db, [1] * 5, project_id=project, model="gone", priority=10, deadline=now() + 100)
    job = ledgers.running(house.db, [1] * 3, project_id=project)
    house.worker(models=["tiny"])

    before = house.tick()
    with house.db.write() as session:
        fleet.beat(session, "w", models=["tiny", "gone"], slots=2)
    after = house.tick(0.1)

    assert before == [("run", (job.id, n)) for n in range(2)]
    assert after == [("run", (gone.id, n)) for n in range(2)], "it goes on as soon as somebody has the model"


def test_a_project_of_which_nothing_can_be_answered_is_looked_through_once_a_second(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (_project(house.db, name) for name in ("one", "two"))
    ledgers.running(house.db, [1] * 5, project_id=one, model="gone")
    house.worker(models=["tiny"])
    looks: list[str] = []
    due = outbox.due

    def looked(session: Session, queue: str, project: str, *rest: Any, **named: Any) -> Sequence[outbox.Ring]:
        looks.append(project)
        return due(session, queue, project, *rest, **named)

    monkeypatch.setattr(outbox, "due", looked)

    assert [house.tick(after) for after in (0, 0.1, 0.1)] == [[], [], []]
    at_first = looks.count(one)
    job = ledgers.running(house.db, [1], project_id=one)
    other = ledgers.running(house.db, [1], project_id=two)

    assert house.tick(0.1) == [("run", (other.id, 0))], "others are served meanwhile"
    assert (at_first, looks.count(one)) == (2, 2), "once what can be answered, once whether there is more"
    assert house.tick(1) == [("run", (job.id, 0))]


@pytest.mark.parametrize("end", [ledger.cancel, ledger.expire], ids=["cancelled", "expired"])
def test_what_nobody_could_answer_ends_all_the_same(house: House, end: Callable[..., object]) -> None:
    gone = ledgers.running(house.db, [1] * 5, project_id=_project(house.db, "one"), model="gone", deadline=now() - 1)
    house.worker(models=["tiny"])
    house.worker("planner", queue=Queue.PLAN, models=[])
    with house.db.write() as session:
        end(session, gone.id, actor="test")

    assert ("finish", (gone.id,)) in house.tick(6)


def test_other_names_of_a_model_are_its_own(db: Database, tmp_path: Path) -> None:
    _models(tmp_path, "aliases: [small]")
    house = House(db, tmp_path)
    job = ledgers.running(db, [1], project_id=_project(db, "one"), model="small")
    ledgers.running(db, [1], project_id=_project(db, "one"), model="large")
    house.worker(models=["tiny"])

    assert house.tick() == [("run", (job.id, 0))]


def test_an_endpoint_that_takes_any_name_is_not_meant_by_those_of_the_file(db: Database, tmp_path: Path) -> None:
    _models(tmp_path, "aliases: [small]")
    house = House(db, tmp_path)
    for name in ("tiny", "small"):
        ledgers.running(db, [1], project_id=_project(db, "one"), model=name)
    job = ledgers.running(db, [1], project_id=_project(db, "one"), model="anything")
    house.worker(slots=2)

    assert house.tick() == [("run", (job.id, 0))]


def test_while_nobody_knows_the_models_nothing_is_held_back(db: Database, tmp_path: Path) -> None:
    file = _models(tmp_path, "engine: warp")
    house = House(db, tmp_path)
    job = ledgers.running(db, [1], project_id=_project(db, "one"), model="small")
    house.worker(models=["tiny"])

    assert house.tick(6) == [("run", (job.id, 0))]
    assert file.exists()


def test_models_that_were_known_stay_so_while_their_file_is_wrong(db: Database, tmp_path: Path) -> None:
    file = _models(tmp_path, "aliases: [small]")
    house = House(db, tmp_path)
    job = ledgers.running(db, [1], project_id=_project(db, "one"), model="small")
    gone = ledgers.running(db, [1], project_id=_project(db, "one"), model="large")
    house.worker(models=[])
    house.tick()
    file.write_text("models: {x: {engine: warp}}")
    with db.write() as session:
        fleet.beat(session, "w", models=["tiny"])

    assert house.tick(6) == [("run", (job.id, 0))]
    assert ledgers.job(db, gone.id).waiting_for == "model"


def _models(folder: Path, line: str) -> Path:
    """A models file with one model, `tiny`, and this line about it."""
    file = folder / "models.yaml"
    file.write_text(f"models:\n  tiny:\n    source: {{urls: [http://localhost:1]}}\n    engine: http\n    {line}\n")
    return file


def test_retention_takes_the_bytes_of_a_deleted_file_when_no_live_job_reads_it(house: House) -> None:
    live = ledgers.running(house.db, [1], input_file_id="file-read")
    with house.db.write() as session:
        for name, life in (("file-read", {"deleted_at": 1.0}), ("file-late", {"expires_at": 1.0}), ("file-kept", {})):
            house.storage.put(f"files/{name}", b"x")
            session.add(_file(name, **life))
    keeping = Retention(house.config, house.db, house.storage)

    keeping.run()
    kept = house.storage.list("files")
    with house.db.write() as session:
        ledger.cancel(session, live.id, actor="key:test")
    ledgers.close(house.db, live.id)
    keeping.run()

    assert kept == ["files/file-kept", "files/file-read"]
    assert house.storage.list("files") == ["files/file-kept"]


def test_retention_ends_uploads_whose_hour_is_over_and_forgets_old_keys(house: House) -> None:
    house.storage.put("uploads/u/p", b"x")
    facts = {"filename": "f", "purpose": "batch", "mime_type": "m", "bytes": 1, "created_at": 1.0}
    with house.db.write() as session:
        session.add(Upload(id="u", project_id="p", expires_at=2.0, **facts))
        session.add(UploadPart(id="p", upload_id="u", bytes=1, path="uploads/u/p", created_at=1.0))
        session.add(Idempotency(project_id="p", route="r", key="k", beat_at=1.0, created_at=1.0))

    Retention(house.config, house.db, house.storage).run()

    with house.db.read() as session:
        assert session.get_one(Upload, "u").status == "expired"
        assert session.get(Idempotency, ("p", "r", "k")) is None
    assert house.storage.list("uploads") == []


def test_retention_empties_jobs_that_ended_long_ago_and_keeps_their_row(house: House) -> None:
    """Not one that came as long ago and has just ended."""
    old, late = (ledgers.finishing(house.db, [2, 2]) for _ in range(2))
    for job in (old, late):
        ledgers.close(house.db, job.id)
        house.storage.put(f"jobs/{job.id}/000000-1-0.jsonl", b"x")
    with house.db.write() as session:
        session.execute(update(Job).where(Job.id == old.id).values(completed_at=1.0))

    Retention(house.config, house.db, house.storage).run()

    with house.db.read() as session:
        assert set(session.scalars(select(Shard.job_id))) == {late.id}
        assert set(session.scalars(select(Segment.job_id))) == {late.id}
    assert house.storage.list("jobs") == [f"jobs/{late.id}/000000-1-0.jsonl"]
    assert ledgers.state(house.db, old.id) == JobState.SUCCEEDED


def test_what_is_still_held_for_an_endpoint_that_is_enabled_goes_out(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pages of two each time."""
    for name in ("WRITE_ROWS", "_RELEASED_AT_ONCE"):
        monkeypatch.setattr(housekeeping, name, 2)
    facts = {"name": "n", "url": "u", "event_types": [], "secret": "s", "created_at": 1.0, "project_id": "p"}
    with house.db.write() as session:
        session.add(WebhookEndpoint(id="we_on", **facts))
        session.add(WebhookEndpoint(id="we_off", disabled_at=1.0, **facts))
        for n, endpoint in enumerate(["we_on"] * 5 + ["we_off"]):
            owed = {"endpoint_id": endpoint, "due_at": HELD, "project_id": "p", "created_at": 1.0}
            session.add(Delivery(id=f"wh_{n}", event_id="evt", **owed))

    held = []
    for _ in range(3):
        house.tick(6)
        with house.db.read() as session:
            held.append(sorted(session.scalars(select(Delivery.endpoint_id).where(Delivery.due_at >= HELD))))

    assert held == [["we_off", "we_on"], ["we_off"], ["we_off"]]


def test_who_looks_for_lost_doorbells_keeps_nobody_from_writing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a long search: only what it has found is mended in a transaction."""
    mended: list[int] = []
    unowed = shards.unowed
    monkeypatch.setattr(shards, "unowed", lambda *given: mended.append(unowed(*given)))
    job = ledgers.running(house.db, [1])

    house.tick(6)
    at_first = list(mended)
    with house.db.write() as session:
        session.execute(delete(Outbox).where(Outbox.job_id == job.id))
    house.tick(6)

    assert (at_first, mended) == ([], [1])


def test_retention_goes_on_each_second_with_what_was_too_much(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_JOBS_AT_ONCE", 1), ("_PASS_SECONDS", 0.0), ("_MORE_SECONDS", 0.0)):
        monkeypatch.setattr(retention, name, value)
    with house.db.write() as session:
        for n in range(3):
            session.add(ledgers.new_job(id=f"batch_old_{n}", state="succeeded", completed_at=1.0))
            session.add_all(ledgers.cuts(f"batch_old_{n}", [1]))

    left = []
    for seconds in (59, 2, 1, 1):
        house.tick(seconds)
        with house.db.read() as session:
            left.append(len(session.scalars(select(Shard)).all()))

    assert left == [3, 2, 1, 0]


@pytest.mark.parametrize("end", ["failed_at", "expired_at", "cancelled_at"])
def test_retention_counts_from_the_end_whatever_it_was(house: House, end: str) -> None:
    jobs = [ledgers.running(house.db, [1]).id for _ in range(2)]
    with house.db.write() as session:
        for job_id, at in zip(jobs, (1.0, now()), strict=True):
            ended = {"state": end.removesuffix("_at"), end: at}
            session.execute(update(Job).where(Job.id == job_id).values(ended))

    Retention(house.config, house.db, house.storage).run()

    with house.db.read() as session:
        assert set(session.scalars(select(Shard.job_id))) == {jobs[1]}


@pytest.mark.parametrize("transactions", [1, 2, 3])
def test_of_a_job_that_is_emptied_in_part_nothing_is_known_and_the_next_pass_empties_it(
    house: House, monkeypatch: pytest.MonkeyPatch, transactions: int
) -> None:
    """Of three shards, and four transactions for them and their segments."""
    monkeypatch.setattr("workers.retention._AT_ONCE", 2)
    job = ledgers.finishing(house.db, [1] * 3)
    ledgers.close(house.db, job.id)
    keeping = Retention(house.config, house.db, house.storage)
    breaths = iter(range(transactions - 1))

    def dies() -> None:
        next(breaths)

    with monkeypatch.context() as patch:
        patch.setattr(house.db, "breathe", dies)
        with pytest.raises(StopIteration):
            keeping._empty([job.id])
    with house.db.write() as session:
        known = retries.known(session, job)
        session.execute(update(Job).where(Job.id == job.id).values(completed_at=1.0))
    keeping.run()

    assert not known
    with house.db.read() as session:
        assert session.scalars(select(Shard)).all() == []
        assert session.scalars(select(Segment)).all() == []


def test_what_a_job_holds_of_deleted_results_goes_with_them_and_a_retry_still_knows_what_is_done(house: House) -> None:
    """Not while one of its two files is there. Its rows stay, the bytes of its segments do not."""
    done = ledgers.finishing(house.db, [2, 2], created_at=now())
    ledgers.close(house.db, done.id, output_file_id="file-out", error_file_id="file-err")
    live = ledgers.finishing(house.db, [1])
    paths = [row.path for job in (done, live) for row in ledgers.segments(house.db, job.id)]
    for path in paths:
        house.storage.put(path, b"x")
    with house.db.write() as session:
        session.add(_file("file-out", filename=f"{done.id}_output.jsonl", purpose=BATCH_OUTPUT, deleted_at=1.0))
        session.add(_file("file-err", filename=f"{done.id}_error.jsonl", purpose=BATCH_OUTPUT))
        session.add(_file("file-x", filename=f"{live.id}_output.jsonl", deleted_at=1.0))  # as a client calls it
    keeping = Retention(house.config, house.db, house.storage)

    keeping.run()
    kept = house.storage.list("jobs")
    with house.db.write() as session:
        session.execute(update(File).where(File.id == "file-err").values(deleted_at=1.0))
    keeping.run()

    assert kept == sorted(paths)
    assert house.storage.list("jobs") == [row.path for row in ledgers.segments(house.db, live.id)]
    assert len(ledgers.segments(house.db, done.id)) == 2
    with house.db.read() as session:
        assert session.get(File, "file-out") is session.get(File, "file-err") is None


def test_a_retrys_copy_of_a_deleted_input_goes_with_it_when_nobody_reads_it(house: House) -> None:
    facts = {"input_file_id": "file-in", "created_at": now()}
    first = ledgers.finishing(house.db, [2], input_path="files/file-in", **facts)
    ledgers.close(house.db, first.id)
    again = ledgers.finishing(house.db, [1], input_path="jobs/again/input-1.jsonl", retry_of=first.id, **facts)
    for path in ("files/file-in", "jobs/again/input-1.jsonl"):
        house.storage.put(path, b"x")
    with house.db.write() as session:
        session.add(_file("file-in", deleted_at=1.0))
    keeping = Retention(house.config, house.db, house.storage)

    keeping.run()
    kept = house.storage.list("jobs")
    ledgers.close(house.db, again.id)
    keeping.run()

    assert kept == ["jobs/again/input-1.jsonl"]
    assert house.storage.list("jobs") == house.storage.list("files") == []


def _file(name: str, **facts: Any) -> File:
    given = {"purpose": "batch", "filename": "f", "bytes": 1, "path": f"files/{name}", "created_at": 1.0, **facts}
    return File(id=name, project_id="p", **given)


def test_tasks_of_the_queue_are_the_ones_that_are_rung(house: House) -> None:
    job = ledgers.finishing(house.db, [1], project_id=_project(house.db, "one"))
    house.worker(queue=Queue.PLAN)

    assert house.tick() == [(Task.FINISH, (job.id,))]


def _batches(house: House, sizes: Sequence[int], **facts: Any) -> list[str]:
    """Submitted batches over inputs of so many bytes."""
    made = []
    for size in sizes:
        job = ledgers.new_job(project_id=_project(house.db, "one"), input_file_id=ids.new_id("file-"), **facts)
        with house.db.write() as session:
            file = _file(str(job.input_file_id))
            file.bytes = size
            session.add(file)
            made.append(ledger.submit(session, job, actor="key:test").id)
    return made


def test_small_inputs_share_a_doorbell_and_every_slot_has_its_share(house: House) -> None:
    small = _batches(house, [10, SMALL_BYTES, 10, 10, 10])
    house.worker("a", queue=Queue.PLAN)
    house.worker("b", queue=Queue.PLAN)

    assert house.tick() == [(Task.PLAN, tuple(small[:3])), (Task.PLAN, tuple(small[3:]))]
    assert house.tick(0.1) == []


def test_large_inputs_have_a_doorbell_each_and_no_more_room_than_before(house: House) -> None:
    jobs = _batches(house, [SMALL_BYTES + 1, 10, SMALL_BYTES + 1, SMALL_BYTES + 1, 10])
    house.worker(queue=Queue.PLAN)

    assert house.tick() == [(Task.PLAN, (job_id,)) for job_id in jobs[:3]]
    assert house.tick(0.1) == []


def test_no_more_small_inputs_are_out_than_eight_for_a_doorbell(house: House) -> None:
    jobs = _batches(house, [10] * 20)
    house.worker(queue=Queue.PLAN)

    assert house.tick() == [(Task.PLAN, tuple(jobs[:8])), (Task.PLAN, tuple(jobs[8:16]))]
    assert house.tick(0.1) == []
    for job_id in jobs[:3]:
        claim = ledgers.claim_job(house.db, job_id, Task.PLAN)
        with house.db.write() as session:
            ledger.reject(session, claim, [])

    assert house.tick(0.1) == [(Task.PLAN, tuple(jobs[16:19]))]


def test_small_inputs_that_nobody_heard_of_are_rung_again_one_by_one(house: House) -> None:
    jobs = _batches(house, [10, 10])
    house.worker(queue=Queue.PLAN)
    assert house.tick() == [(Task.PLAN, tuple(jobs))]

    assert house.tick(11) == [(Task.PLAN, (job_id,)) for job_id in jobs]


def test_due_webhook_wakes_a_living_sender_at_once_and_then_every_rering(house: House) -> None:
    facts = {"project_id": "p", "event_id": "e", "due_at": 1.0, "created_at": 1.0}
    with house.db.write() as session:
        session.add(Delivery(id="wh_1", endpoint_id="we_1", **facts))

    nobody = house.tick()
    house.worker(queue=Queue.WEBHOOKS)
    rounds = [house.tick(seconds) for seconds in (0.1, 0.1, 5, 6)]

    assert nobody == []
    assert rounds == [[("deliver", ())], [], [], [("deliver", ())]]


def test_webhook_whose_wake_up_finds_no_broker_wakes_a_sender_later(house: House) -> None:
    facts = {"project_id": "p", "event_id": "e", "due_at": 1.0, "created_at": 1.0}
    with house.db.write() as session:
        session.add(Delivery(id="wh_1", endpoint_id="we_1", **facts))
    house.worker(queue=Queue.WEBHOOKS)
    house.bells.away = True
    house.tick()
    house.bells.away = False

    assert [house.tick(seconds) for seconds in (0.1, 10)] == [[], [("deliver", ())]]
    assert _refusals(house.db) == 1


def test_audit_rows_of_a_busy_second_are_sealed_over_several(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "_SEALS_AT_ONCE", 2)
    with house.db.write() as session:
        for n in range(2 * WRITE_ROWS + 1):
            audit.record(session, actor="key:test", action="file.create", target=f"file-{n}", project_id="p")

    open_ends = []
    for _ in range(2):
        house.tick(1)
        with house.db.read() as session:
            open_ends.append(audit.unsealed(session))

    assert open_ends == [True, False]
    with house.db.read() as session:
        assert audit.verify(session).faults == ()


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
    job = ledgers.submitted(house.db, project_id=_project(house.db, "one"))
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


@pytest.mark.parametrize(
    ("queue", "task"), [(Queue.WEBHOOKS, Task.DELIVER), (Queue.INGEST, Task.PURGE)], ids=["webhooks", "removals"]
)
@pytest.mark.parametrize("scope", [Scope.QUEUE, Scope.WORKER])
def test_work_without_a_job_is_not_rung_where_it_is_paused_and_at_once_when_it_goes_on(
    house: House, queue: Queue, task: Task, scope: Scope
) -> None:
    facts: dict[str, Any] = {"project_id": "p", "due_at": 1.0, "created_at": 1.0}
    removal = {"store_id": "vs_1", "model": "m", "what": attachments.STORE, "dimensions": 4}
    with house.db.write() as session:
        session.add(Delivery(id="wh_1", endpoint_id="we_1", event_id="e", **facts))
        session.add(VectorRemoval(**removal, **facts))
    name = {Scope.QUEUE: queue.value, Scope.WORKER: house.worker(queue=queue)}[scope]

    before = house.tick()
    with house.db.write() as session:
        pauses.pause(session, scope, name, actor="operator")
    held = house.tick(20.0)
    with house.db.write() as session:
        pauses.resume(session, scope, name, actor="operator")

    assert (before, held, house.tick(0.5)) == ([(task, ())], [], [(task, ())])


def test_a_webhook_that_is_due_between_two_looks_at_webhooks_is_not_slept_over(
    sqlite: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house, stop, sent = House(sqlite, tmp_path, tick_seconds=0.5), threading.Event(), threading.Event()
    ledgers.submitted(sqlite, project_id=_project(sqlite, "one"))
    house.worker("planner", queue=Queue.PLAN)
    house.worker("sender", queue=Queue.WEBHOOKS)

    def ring(task: str, _queue: str, _arguments: Sequence[object]) -> None:
        if task == Task.DELIVER:
            sent.set()
            return
        facts = {"project_id": "p", "event_id": "e", "due_at": 1.0, "created_at": 1.0}
        with sqlite.write() as session:  # webhooks have been looked at, and the next tick comes early
            session.add(Delivery(id="wh_1", endpoint_id="we_1", **facts))

    monkeypatch.setattr(house.bells, "ring", ring)
    monkeypatch.setattr(dispatcher, "CeleryRinger", lambda _config: house.bells)
    monkeypatch.setattr(dispatcher, "_IDLE_LOOK", 60.0)
    leadership = Leadership(house.config, sqlite)
    assert leadership.take()
    with ThreadPoolExecutor(1) as threads:
        leading = threads.submit(dispatcher._lead, house.config, sqlite, leadership, stop)
        woken = sent.wait(5)
        stop.set()
        leading.result(5)
    leadership.drop()

    assert woken


def test_bytes_that_no_row_points_to_go_at_the_second_look(house: House) -> None:
    with house.db.write() as session:
        session.add(_file("file-kept"))
    for name in ("file-kept", "file-lost"):
        house.storage.put(f"files/{name}", b"x")
    keeping = Retention(house.config, house.db, house.storage)
    unfinished = house.storage.root / "files" / ".partial-0123"
    unfinished.write_bytes(b"ha")
    os.utime(unfinished, (0, 0))

    keeping.orphans()
    first = house.storage.list("files")
    house.storage.put("files/file-new", b"x")  # its row is on its way
    keeping.orphans()

    assert not unfinished.exists()
    assert first == ["files/file-kept", "files/file-lost"]
    assert house.storage.list("files") == ["files/file-kept", "files/file-new"]
