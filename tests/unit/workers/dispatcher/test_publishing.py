"""Messages of the outbox are published when they are due."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
from jobs.fleet.tables import Worker
from jobs.ledger import ledger, measures, outbox, pauses, shards
from jobs.ledger.outbox import SMALL_BYTES
from jobs.ledger.pauses import Scope
from jobs.ledger.tables import Outbox, Shard
from jobs.queues import Queue, Task
from jobs.retrieval import attachments
from jobs.retrieval.tables import VectorRemoval
from jobs.timings import Timings
from jobs.webhooks.tables import Delivery
from tests.support import sample_jobs
from tests.support.dispatcher import DispatcherHarness, new_file, project_of
from workers.dispatcher import loop as dispatcher

pytestmark = pytest.mark.dialects


def test_messages_are_bounded_by_twice_the_live_slots(harness: DispatcherHarness) -> None:
    job = sample_jobs.running(harness.db, [1] * 10, project_id=project_of(harness.db, "one"))
    harness.worker(slots=2)

    first, second = harness.tick(), harness.tick(0.1)

    assert first == [("run", (job.id, n)) for n in range(4)]
    assert second == []


def test_due_message_is_published_despite_maintenance_failure(
    harness: DispatcherHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = sample_jobs.running(harness.db, [1], project_id=project_of(harness.db, "one"))
    harness.worker()

    def fails() -> None:
        harness.clock.at += 30  # as long as a statement may take
        raise DatabaseBusy

    monkeypatch.setattr(harness.dispatcher._maintenance, "run", fails)
    with pytest.raises(DatabaseBusy):
        harness.tick()

    assert harness.broker.published == [(Task.RUN, (job.id, 0))]


def test_published_message_is_not_republished_after_failed_mark(
    harness: DispatcherHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = sample_jobs.running(harness.db, [1], project_id=project_of(harness.db, "one"))
    harness.worker()

    def busy() -> object:
        raise DatabaseBusy

    published = []
    with monkeypatch.context() as patch:
        patch.setattr(harness.db, "write", busy)
        for _ in range(3):
            with pytest.raises(DatabaseBusy):
                harness.tick(0.1)
            published += harness.broker.published
    published += harness.tick(0.1)

    assert published == [(Task.RUN, (job.id, 0))]
    with harness.db.read() as session:
        assert session.scalars(select(Outbox.publish_count)).all() == [1]


def test_without_a_worker_nothing_is_published(harness: DispatcherHarness) -> None:
    sample_jobs.running(harness.db, [1], project_id=project_of(harness.db, "one"))
    harness.worker(state="starting")

    assert harness.tick() == []


def test_finished_shard_frees_room_and_claimed_shard_does_not(harness: DispatcherHarness) -> None:
    job = sample_jobs.running(harness.db, [1] * 5, project_id=project_of(harness.db, "one"))
    harness.worker(slots=1)
    harness.tick()
    claim = sample_jobs.claim_shard(harness.db, job.id, 0)

    while_running = harness.tick(0.1)
    sample_jobs.answer(harness.db, claim, [0], last=True)
    after = harness.tick(0.1)

    assert while_running == []
    assert after == [("run", (job.id, 2))]


def test_two_projects_share_the_messages_however_many_are_pending(harness: DispatcherHarness) -> None:
    large = sample_jobs.running(harness.db, [1] * 50, project_id=project_of(harness.db, "one"))
    small = sample_jobs.running(harness.db, [1] * 2, project_id=project_of(harness.db, "two"))
    harness.worker(slots=2)

    published = [arguments[0] for _, arguments in harness.tick()]

    assert sorted(published) == sorted([large.id, small.id] * 2)


def test_priority_then_deadline_order_a_projects_own_work(harness: DispatcherHarness) -> None:
    project = project_of(harness.db, "one")
    plain = sample_jobs.running(harness.db, [1], project_id=project)
    urgent = sample_jobs.running(harness.db, [1], project_id=project, priority=10)
    soon = sample_jobs.running(harness.db, [1], project_id=project, deadline=now() + 1000)
    harness.worker(slots=2)

    assert [arguments[0] for _, arguments in harness.tick()] == [urgent.id, soon.id, plain.id]


def test_unclaimed_message_is_republished_by_monotonic_clock(harness: DispatcherHarness) -> None:
    job = sample_jobs.submitted(harness.db, project_id=project_of(harness.db, "one"))
    harness.worker(queue=Queue.PLAN)

    message = ("plan", (job.id,))
    rounds = []
    for seconds in (0, 5, 6, 5, 16, 5):
        harness.heartbeat()
        rounds.append(harness.tick(seconds))

    assert [message in published for published in rounds] == [True, False, True, False, True, False]


@pytest.mark.parametrize("seconds", [90, 86_400, -86_400])
def test_a_job_goes_on_while_the_clock_of_all_but_the_dispatcher_has_jumped(
    harness: DispatcherHarness, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    """A process that starts after a jump believes the new time at once, one that runs does so after two minutes."""
    project = project_of(harness.db, "one")
    harness.worker(queue=Queue.PLAN)
    harness.worker("generating")

    @contextmanager
    def jumped() -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr("jobs.clock._steady", lambda: time.time() + seconds)
            yield

    with jumped():
        job = sample_jobs.submitted(harness.db, project_id=project)
    published = harness.tick(0.1)
    with jumped():
        claim = sample_jobs.claim_job(harness.db, job.id, Task.PLAN)
        with harness.db.write() as session:
            shards.cut(session, claim, Queue.GENERATE, sample_jobs.cuts(job.id, [1]))
        with harness.db.write() as session:
            ledger.begin_running(session, claim, total=1, model="tiny", queue=Queue.GENERATE)
    published += harness.tick(0.1)
    with jumped():
        sample_jobs.answer(harness.db, sample_jobs.claim_shard(harness.db, job.id), [0], last=True)
    published += harness.tick(0.1)

    assert published == [("plan", (job.id,)), ("run", (job.id, 0)), ("finish", (job.id,))]


def test_unclaimable_messages_do_not_hide_claimable_messages(
    harness: DispatcherHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "UNCLAIMED", 2)
    project = project_of(harness.db, "one")
    gone = sample_jobs.running(harness.db, [1, 1, 1], project_id=project)
    harness.worker("gone", slots=3)
    assert {job_id for _, (job_id, *_) in harness.tick()} == {gone.id}
    with harness.db.write() as session:
        session.execute(delete(Worker))
    job = sample_jobs.submitted(harness.db, project_id=project)
    harness.worker("here", queue=Queue.PLAN)
    message = ("plan", (job.id,))
    assert message in harness.tick()

    harness.heartbeat("here")
    harness.tick(5)
    harness.heartbeat("here")

    assert harness.tick(6) == [message]


def test_delayed_message_waits_until_it_is_due(harness: DispatcherHarness) -> None:
    job = sample_jobs.running(harness.db, [1], project_id=project_of(harness.db, "one"))
    harness.worker()
    claim = sample_jobs.claim_shard(harness.db, job.id)
    with harness.db.write() as session:
        shards.release(session, claim, delay=60, waiting_for="model")

    assert harness.tick() == []
    assert sample_jobs.job(harness.db, job.id).waiting_for == "model"


def _refusals(db: Database) -> int:
    with db.read() as session:
        return sum(row.count for row in measures.rows(session) if row.name == measures.REFUSALS)


def test_unavailable_broker_loses_no_message(harness: DispatcherHarness) -> None:
    job = sample_jobs.running(harness.db, [1], project_id=project_of(harness.db, "one"))
    harness.worker()
    harness.broker.away = True
    harness.tick()
    harness.broker.away = False

    assert harness.tick(0.1) == [], "the broker is left alone for a moment"
    assert harness.tick(5) == [("run", (job.id, 0))]
    assert _refusals(harness.db) == 1


def test_tasks_of_the_queue_are_the_ones_that_are_published(harness: DispatcherHarness) -> None:
    job = sample_jobs.finishing(harness.db, [1], project_id=project_of(harness.db, "one"))
    harness.worker(queue=Queue.PLAN)

    assert harness.tick() == [(Task.FINISH, (job.id,))]


def _batches(harness: DispatcherHarness, sizes: Sequence[int], **facts: Any) -> list[str]:
    """Submit batches over inputs of so many bytes."""
    made = []
    for size in sizes:
        job = sample_jobs.new_job(project_id=project_of(harness.db, "one"), input_file_id=ids.new_id("file-"), **facts)
        with harness.db.write() as session:
            file = new_file(str(job.input_file_id))
            file.bytes = size
            session.add(file)
            made.append(ledger.submit(session, job, actor="key:test").id)
    return made


def test_small_inputs_share_a_message_and_every_slot_has_its_share(harness: DispatcherHarness) -> None:
    small = _batches(harness, [10, SMALL_BYTES, 10, 10, 10])
    harness.worker("a", queue=Queue.PLAN)
    harness.worker("b", queue=Queue.PLAN)

    assert harness.tick() == [(Task.PLAN, tuple(small[:3])), (Task.PLAN, tuple(small[3:]))]
    assert harness.tick(0.1) == []


def test_large_inputs_have_a_message_each_and_no_more_room_than_before(harness: DispatcherHarness) -> None:
    jobs = _batches(harness, [SMALL_BYTES + 1, 10, SMALL_BYTES + 1, SMALL_BYTES + 1, 10])
    harness.worker(queue=Queue.PLAN)

    assert harness.tick() == [(Task.PLAN, (job_id,)) for job_id in jobs[:2]]  # a large one takes the project's slot
    assert harness.tick(0.1) == []


def test_no_more_small_inputs_are_out_than_eight_for_a_message(harness: DispatcherHarness) -> None:
    jobs = _batches(harness, [10] * 20)
    harness.worker(queue=Queue.PLAN)

    assert harness.tick() == [(Task.PLAN, tuple(jobs[:8])), (Task.PLAN, tuple(jobs[8:16]))]
    assert harness.tick(0.1) == []
    for job_id in jobs[:3]:
        claim = sample_jobs.claim_job(harness.db, job_id, Task.PLAN)
        with harness.db.write() as session:
            ledger.reject(session, claim, [])

    assert harness.tick(0.1) == [(Task.PLAN, tuple(jobs[16:19]))]


def test_unclaimed_small_inputs_are_republished_individually(harness: DispatcherHarness) -> None:
    jobs = _batches(harness, [10, 10])
    harness.worker(queue=Queue.PLAN)
    assert harness.tick() == [(Task.PLAN, tuple(jobs))]

    assert harness.tick(11) == [(Task.PLAN, (job_id,)) for job_id in jobs]


def test_due_webhook_wakes_a_living_sender_at_once_and_then_every_redelivery(harness: DispatcherHarness) -> None:
    facts = {"project_id": "p", "event_id": "e", "due_at": 1.0, "created_at": 1.0}
    with harness.db.write() as session:
        session.add(Delivery(id="wh_1", endpoint_id="we_1", **facts))

    nobody = harness.tick()
    harness.worker(queue=Queue.WEBHOOKS)
    rounds = [harness.tick(seconds) for seconds in (0.1, 0.1, 5, 6)]

    assert nobody == []
    assert rounds == [[("deliver", ())], [], [], [("deliver", ())]]


def test_webhook_wake_up_is_repeated_after_broker_outage(harness: DispatcherHarness) -> None:
    facts = {"project_id": "p", "event_id": "e", "due_at": 1.0, "created_at": 1.0}
    with harness.db.write() as session:
        session.add(Delivery(id="wh_1", endpoint_id="we_1", **facts))
    harness.worker(queue=Queue.WEBHOOKS)
    harness.broker.away = True
    harness.tick()
    harness.broker.away = False

    assert [harness.tick(seconds) for seconds in (0.1, 10)] == [[], [("deliver", ())]]
    assert _refusals(harness.db) == 1


@pytest.mark.parametrize(
    ("queue", "task"), [(Queue.WEBHOOKS, Task.DELIVER), (Queue.INGEST, Task.PURGE)], ids=["webhooks", "removals"]
)
@pytest.mark.parametrize("scope", [Scope.QUEUE, Scope.WORKER])
def test_work_without_job_is_published_only_while_not_paused(
    harness: DispatcherHarness, queue: Queue, task: Task, scope: Scope
) -> None:
    facts: dict[str, Any] = {"project_id": "p", "due_at": 1.0, "created_at": 1.0}
    removal = {"store_id": "vs_1", "model": "m", "what": attachments.STORE, "dimensions": 4}
    with harness.db.write() as session:
        session.add(Delivery(id="wh_1", endpoint_id="we_1", event_id="e", **facts))
        session.add(VectorRemoval(**removal, **facts))
    name = {Scope.QUEUE: queue.value, Scope.WORKER: harness.worker(queue=queue)}[scope]

    before = harness.tick()
    with harness.db.write() as session:
        pauses.pause(session, scope, name, actor="operator")
    held = harness.tick(20.0)
    with harness.db.write() as session:
        pauses.resume(session, scope, name, actor="operator")

    assert (before, held, harness.tick(0.5)) == ([(task, ())], [], [(task, ())])


def test_a_webhook_that_is_due_between_two_looks_at_webhooks_is_not_slept_over(
    sqlite: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness, stop, sent = DispatcherHarness(sqlite, tmp_path), threading.Event(), threading.Event()
    sample_jobs.submitted(sqlite, project_id=project_of(sqlite, "one"))
    harness.worker("planner", queue=Queue.PLAN)
    harness.worker("sender", queue=Queue.WEBHOOKS)

    def publish(task: str, _queue: str, _arguments: Sequence[object]) -> None:
        if task == Task.DELIVER:
            sent.set()
            return
        facts = {"project_id": "p", "event_id": "e", "due_at": 1.0, "created_at": 1.0}
        with sqlite.write() as session:  # webhooks have been looked at, and the next tick comes early
            session.add(Delivery(id="wh_1", endpoint_id="we_1", **facts))

    monkeypatch.setattr(harness.broker, "publish", publish)
    monkeypatch.setattr(dispatcher, "CeleryPublisher", lambda _config: harness.broker)
    leadership = Leadership(harness.config, sqlite)
    assert leadership.take()
    with ThreadPoolExecutor(1) as threads:
        timings = replace(Timings(), dispatch_tick=0.5, dispatch_idle=60.0)
        leading = threads.submit(dispatcher._lead, harness.config, sqlite, leadership, stop, timings)
        woken = sent.wait(5)
        stop.set()
        leading.result(30)
    leadership.drop()

    assert woken


def _small(db: Database) -> list[str]:
    return [sample_jobs.running(db, [1], project_id=project_of(db, "one")).id for _ in range(50)]


@pytest.fixture
def wide(harness: DispatcherHarness, tmp_path: Path) -> DispatcherHarness:
    """Make whole shards have eight lines."""
    return DispatcherHarness(harness.db, tmp_path, shard_lines=8)


def test_small_shards_are_published_until_their_lines_fill_the_slots(wide: DispatcherHarness) -> None:
    small = _small(wide.db)
    large = sample_jobs.running(wide.db, [8] * 3, project_id=project_of(wide.db, "one"))
    wide.worker(slots=2)

    first = wide.tick()
    for job_id in small[:20]:
        sample_jobs.answer(wide.db, sample_jobs.claim_shard(wide.db, job_id), [0], last=True)
    second = wide.tick(0.1)

    assert first == [("run", (job_id, 0)) for job_id in small[:32]]  # twice two slots of eight lines each
    assert second == [("run", (job_id, 0)) for job_id in small[32:]] + [("run", (large.id, 0))]


def test_shard_in_isolation_mode_takes_whole_slot(wide: DispatcherHarness) -> None:
    small = _small(wide.db)
    with wide.db.write() as session:
        session.execute(update(Shard).where(Shard.job_id.in_(small)).values(stalls=2))
    wide.worker(slots=2)

    assert len(wide.tick()) == 4


def test_whole_shards_are_not_delayed_by_small_shards_of_other_project(wide: DispatcherHarness) -> None:
    small = _small(wide.db)
    large = sample_jobs.running(wide.db, [8] * 3, project_id=project_of(wide.db, "two"))
    wide.worker(slots=2)

    published = wide.tick()

    assert [job_id for _, (job_id, _) in published].count(large.id) == 2
    assert len([job_id for _, (job_id, _) in published if job_id in small]) == 16
