"""What rings when."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select, update

from jobs import ids
from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import DatabaseBusy
from jobs.fleet.leadership import Leadership
from jobs.fleet.tables import Measure, Worker
from jobs.ledger import ledger, measures, outbox, pauses, shards
from jobs.ledger.outbox import SMALL_BYTES
from jobs.ledger.pauses import Scope
from jobs.ledger.tables import Outbox, Shard
from jobs.queues import Queue, Task
from jobs.retrieval import attachments
from jobs.retrieval.tables import VectorRemoval
from jobs.timings import Timings
from jobs.webhooks.tables import Delivery
from tests.support import ledgers
from tests.support.house import House, new_file, project_of
from workers.dispatcher import loop as dispatcher

pytestmark = pytest.mark.dialects


def test_rings_are_bounded_by_twice_the_live_slots(house: House) -> None:
    job = ledgers.running(house.db, [1] * 10, project_id=project_of(house.db, "one"))
    house.worker(slots=2)

    first, second = house.tick(), house.tick(0.1)

    assert first == [("run", (job.id, n)) for n in range(4)]
    assert second == []


def test_what_is_due_is_rung_although_the_house_can_not_be_kept(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    job = ledgers.running(house.db, [1], project_id=project_of(house.db, "one"))
    house.worker()

    def fails() -> None:
        house.clock.at += 30  # as long as a statement may take
        raise DatabaseBusy

    monkeypatch.setattr(house.dispatcher._house, "keep", fails)
    with pytest.raises(DatabaseBusy):
        house.tick()

    assert house.bells.rung == [(Task.RUN, (job.id, 0))]


def test_what_was_rung_and_cannot_be_written_down_is_not_rung_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ledgers.running(house.db, [1], project_id=project_of(house.db, "one"))
    house.worker()

    def busy() -> object:
        raise DatabaseBusy

    rung = []
    with monkeypatch.context() as patch:
        patch.setattr(house.db, "write", busy)
        for _ in range(3):
            with pytest.raises(DatabaseBusy):
                house.tick(0.1)
            rung += house.bells.rung
    rung += house.tick(0.1)

    assert rung == [(Task.RUN, (job.id, 0))]
    with house.db.read() as session:
        assert session.scalars(select(Outbox.rings)).all() == [1]


def test_no_worker_no_ring(house: House) -> None:
    ledgers.running(house.db, [1], project_id=project_of(house.db, "one"))
    house.worker(state="starting")

    assert house.tick() == []


def test_claimed_shard_makes_no_room_and_a_finished_one_does(house: House) -> None:
    job = ledgers.running(house.db, [1] * 5, project_id=project_of(house.db, "one"))
    house.worker(slots=1)
    house.tick()
    claim = ledgers.claim_shard(house.db, job.id, 0)

    while_running = house.tick(0.1)
    ledgers.answer(house.db, claim, [0], last=True)
    after = house.tick(0.1)

    assert while_running == []
    assert after == [("run", (job.id, 2))]


def test_two_projects_share_the_rings_whatever_they_owe(house: House) -> None:
    large = ledgers.running(house.db, [1] * 50, project_id=project_of(house.db, "one"))
    small = ledgers.running(house.db, [1] * 2, project_id=project_of(house.db, "two"))
    house.worker(slots=2)

    rung = [arguments[0] for _, arguments in house.tick()]

    assert sorted(rung) == sorted([large.id, small.id] * 2)


def test_priority_then_deadline_order_a_projects_own_work(house: House) -> None:
    project = project_of(house.db, "one")
    plain = ledgers.running(house.db, [1], project_id=project)
    urgent = ledgers.running(house.db, [1], project_id=project, priority=10)
    soon = ledgers.running(house.db, [1], project_id=project, deadline=now() + 1000)
    house.worker(slots=2)

    assert [arguments[0] for _, arguments in house.tick()] == [urgent.id, soon.id, plain.id]


def test_unheard_doorbell_is_rung_again_on_the_monotonic_clock(house: House) -> None:
    job = ledgers.submitted(house.db, project_id=project_of(house.db, "one"))
    house.worker(queue=Queue.PLAN)

    bell = ("plan", (job.id,))
    rounds = []
    for seconds in (0, 5, 6, 5, 16, 5):
        house.beat()
        rounds.append(house.tick(seconds))

    assert [bell in rung for rung in rounds] == [True, False, True, False, True, False]


def test_doorbells_that_nobody_can_hear_hide_none_that_somebody_should_have(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "UNHEARD", 2)
    project = project_of(house.db, "one")
    gone = ledgers.running(house.db, [1, 1, 1], project_id=project)
    house.worker("gone", slots=3)
    assert {job_id for _, (job_id, *_) in house.tick()} == {gone.id}
    with house.db.write() as session:
        session.execute(delete(Worker))
    job = ledgers.submitted(house.db, project_id=project)
    house.worker("here", queue=Queue.PLAN)
    bell = ("plan", (job.id,))
    assert bell in house.tick()

    house.beat("here")
    house.tick(5)
    house.beat("here")

    assert house.tick(6) == [bell]


def test_delayed_doorbell_waits_until_it_is_due(house: House) -> None:
    job = ledgers.running(house.db, [1], project_id=project_of(house.db, "one"))
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
    job = ledgers.running(house.db, [1], project_id=project_of(house.db, "one"))
    house.worker()
    house.bells.away = True
    house.tick()
    house.bells.away = False

    assert house.tick(0.1) == [], "the broker is left alone for a moment"
    assert house.tick(5) == [("run", (job.id, 0))]
    assert _refusals(house.db) == 1


def test_tasks_of_the_queue_are_the_ones_that_are_rung(house: House) -> None:
    job = ledgers.finishing(house.db, [1], project_id=project_of(house.db, "one"))
    house.worker(queue=Queue.PLAN)

    assert house.tick() == [(Task.FINISH, (job.id,))]


def _batches(house: House, sizes: Sequence[int], **facts: Any) -> list[str]:
    """Submitted batches over inputs of so many bytes."""
    made = []
    for size in sizes:
        job = ledgers.new_job(project_id=project_of(house.db, "one"), input_file_id=ids.new_id("file-"), **facts)
        with house.db.write() as session:
            file = new_file(str(job.input_file_id))
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
    ledgers.submitted(sqlite, project_id=project_of(sqlite, "one"))
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
    leadership = Leadership(house.config, sqlite)
    assert leadership.take()
    with ThreadPoolExecutor(1) as threads:
        leading = threads.submit(
            dispatcher._lead, house.config, sqlite, leadership, stop, replace(Timings(), dispatch_idle=60.0)
        )
        woken = sent.wait(5)
        stop.set()
        leading.result(30)
    leadership.drop()

    assert woken


def _small(db: Database) -> list[str]:
    return [ledgers.running(db, [1], project_id=project_of(db, "one")).id for _ in range(50)]


@pytest.fixture
def wide(house: House, tmp_path: Path) -> House:
    """A whole shard has eight lines."""
    return House(house.db, tmp_path, shard_lines=8)


def test_small_shards_are_rung_until_their_lines_fill_the_slots(wide: House) -> None:
    small = _small(wide.db)
    large = ledgers.running(wide.db, [8] * 3, project_id=project_of(wide.db, "one"))
    wide.worker(slots=2)

    first = wide.tick()
    for job_id in small[:20]:
        ledgers.answer(wide.db, ledgers.claim_shard(wide.db, job_id), [0], last=True)
    second = wide.tick(0.1)

    assert first == [("run", (job_id, 0)) for job_id in small[:32]]  # twice two slots of eight lines each
    assert second == [("run", (job_id, 0)) for job_id in small[32:]] + [("run", (large.id, 0))]


def test_what_is_run_line_by_line_takes_a_slot(wide: House) -> None:
    small = _small(wide.db)
    with wide.db.write() as session:
        session.execute(update(Shard).where(Shard.job_id.in_(small)).values(stalls=2))
    wide.worker(slots=2)

    assert len(wide.tick()) == 4


def test_who_asks_with_whole_shards_is_not_kept_back_by_who_asks_with_small_ones(wide: House) -> None:
    small = _small(wide.db)
    large = ledgers.running(wide.db, [8] * 3, project_id=project_of(wide.db, "two"))
    wide.worker(slots=2)

    rung = wide.tick()

    assert [job_id for _, (job_id, _) in rung].count(large.id) == 2
    assert len([job_id for _, (job_id, _) in rung if job_id in small]) == 16
