"""Files, stores and batches that are deleted, cancelled or expire during their ingestion leave nothing behind."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy import select, update

from jobs.clock import now
from jobs.ledger import ledger, shards
from jobs.ledger.states import TERMINAL, JobState
from jobs.ledger.tables import Job
from jobs.retrieval import attachments, ingestions
from jobs.retrieval.tables import VectorStore
from jobs.webhooks.tables import Delivery, Event
from tests.support.ingesting import Killed, Works, step_of
from workers.kinds import HANDLERS

PROSE = "The kiwi is a bird that cannot fly. " * 40
OTHER = "A volcano is a mountain that opens to molten rock. " * 40
LATE = "The file was not processed within its time."
STAGES = ["plan", "parse", "while parsing", "index", "before writing", "after writing", "finish", "done"]


def at_stage(mill: Works, stage: str, act: Callable[[], object]) -> None:
    """Drive to a stage, act, and drive on."""

    def once(*_: object) -> None:
        mill.storage.before_put, mill.vectors.before_write, mill.vectors.after_write = str, bool, bool
        acted.append(act())

    acted: list[object] = []
    if stage == "while parsing":
        mill.storage.before_put = once
    elif stage == "before writing":
        mill.vectors.before_write = once
    elif stage == "after writing":
        mill.vectors.after_write = once
    else:
        mill.drive(until=stage)
        once()
    mill.drive()
    assert len(acted) == 1


def end_of(mill: Works, batch: str) -> tuple[str, int, int, int]:
    """How a batch ended: its status, completed, failed, cancelled; they add up."""
    shown = mill.get(f"/vector_stores/{mill.job(batch).payload['store_id']}/file_batches/{batch}")
    counts = shown["file_counts"]
    assert counts["in_progress"] == 0
    assert counts["completed"] + counts["failed"] + counts["cancelled"] == counts["total"]
    return shown["status"], counts["completed"], counts["failed"], counts["cancelled"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("everywhere", [False, True], ids=["removed from the store", "deleted"])
@pytest.mark.first(4)
def test_a_file_that_is_taken_away_is_found_no_more(mill: Works, stage: str, everywhere: bool) -> None:
    store, goes, stays = mill.store(), mill.upload(PROSE), mill.upload(OTHER)
    batch = mill.batch(store, goes, stays)

    at_stage(
        mill, stage, lambda: mill.delete(f"/files/{goes}" if everywhere else f"/vector_stores/{store}/files/{goes}")
    )

    assert mill.statuses(store) == {stays: ("completed", None)}
    assert {one.file_id for one in mill.search(store, "kiwi bird volcano", limit=50)} == {stays}
    lazy_vectors = stage in ("finish", "done")
    assert end_of(mill, batch) == ("completed", 2 if lazy_vectors else 1, 0 if lazy_vectors else 1, 0)
    mill.purge()
    mill.assert_tidy(store)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("purged", [False, True], ids=["purged later", "purged at once"])
@pytest.mark.first(4)
def test_deleted_store_leaves_nothing(mill: Works, stage: str, purged: bool) -> None:
    store = mill.store()
    batch = mill.batch(store, mill.upload(PROSE), mill.upload(OTHER))

    def delete() -> None:
        mill.delete(f"/vector_stores/{store}")
        if purged:
            mill.purge()

    at_stage(mill, stage, delete)

    ends = {"finish": {JobState.SUCCEEDED}, "done": {JobState.SUCCEEDED}}
    assert mill.job(batch).state in ends.get(stage, {JobState.CANCELLED})
    assert mill.api.get(f"/v1/vector_stores/{store}").status_code == 404
    mill.purge()
    assert (list(mill.rows(store)), mill.storage.list(f"documents/{store}")) == ([], [])
    assert mill.vectors.stores() == []
    assert mill.messages() == []


@pytest.mark.parametrize("stage", ["plan", "parse", "while parsing", "index", "before writing", "after writing"])
def test_ingested_files_of_a_cancelled_batch_stay(mill: Works, stage: str) -> None:
    store = mill.store()
    files = [mill.upload(f"{PROSE} {n}") for n in range(7)]
    batch = mill.batch(store, *files)

    at_stage(mill, stage, lambda: mill.ok(f"/vector_stores/{store}/file_batches/{batch}/cancel"))

    status, completed, failed, cancelled = end_of(mill, batch)
    assert (status, failed) == ("cancelled", 0)
    statuses = [status for status, _ in mill.statuses(store).values()]
    assert (statuses.count("completed"), statuses.count("cancelled")) == (completed, cancelled)
    assert completed == (3 if "writing" in stage else 0)  # a shard's, which was about to be committed
    assert len({one.file_id for one in mill.search(store, "kiwi", limit=50)}) == completed
    assert mill.told(batch)[-1] == ("vector_store.file_batch.cancelled", batch)
    mill.purge()
    mill.assert_tidy(store)


def test_a_stopping_batch_does_not_wait_for_a_worker_that_hangs(mill: Works) -> None:
    store = mill.store()
    batch = mill.batch(store, mill.upload(PROSE))

    def cancelled_and_fenced() -> None:
        mill.ok(f"/vector_stores/{store}/file_batches/{batch}/cancel")
        with mill.db.write() as session:
            shards.revoke_running(session, batch)
        mill.drive()
        mill.purge()

    at_stage(mill, "before writing", cancelled_and_fenced)

    assert end_of(mill, batch) == ("cancelled", 0, 0, 1)
    assert mill.search(store, "kiwi") == []
    mill.purge()
    mill.assert_tidy(store)


def test_a_batch_that_is_over_cannot_be_cancelled(mill: Works) -> None:
    store = mill.store()
    batch = mill.batch(store, mill.upload(PROSE))
    mill.drive()

    answer = mill.api.post(f"/v1/vector_stores/{store}/file_batches/{batch}/cancel")

    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "invalid_state")
    assert "'completed'" in answer.json()["error"]["message"]


@pytest.mark.parametrize("stage", ["plan", "parse", "while parsing", "index", "before writing"])
def test_files_that_were_not_brought_in_in_time_failed(mill: Works, stage: str) -> None:
    store = mill.store()
    batch = mill.batch(store, mill.upload(PROSE), mill.upload(OTHER))

    def time_is_over() -> None:
        with mill.db.write() as session:
            session.execute(update(Job).where(Job.id == batch).values(deadline=now() - 1))
        with mill.db.write() as session:
            assert ledger.expire(session, batch, actor="dispatcher") is not None

    at_stage(mill, stage, time_is_over)

    status, completed, failed, cancelled = end_of(mill, batch)
    assert (status, completed + failed, cancelled) == ("failed", 2, 0)
    assert completed == (2 if stage == "before writing" else 0)
    assert mill.job(batch).state == JobState.EXPIRED
    for row in mill.rows(store):
        words = (row.error_code, row.error_message)
        assert words == ((None, None) if row.status == "completed" else ("server_error", LATE))
    told = mill.told(batch)
    assert told[-1] == ("vector_store.file_batch.failed", batch)
    assert Counter(kind for kind, _ in told if ".file." in kind) == Counter(
        f"vector_store.file.{row.status}" for row in mill.rows(store)
    )
    mill.purge()
    mill.assert_tidy(store)


def forget_the_model(mill: Works, store: str) -> None:
    with mill.db.write() as session:
        session.get_one(VectorStore, store).model = "nobody-serves-it"


def test_each_file_of_an_unserved_model_gets_an_event(mill: Works) -> None:
    store, hook = mill.store(), {"url": "https://192.0.43.8/hook"}
    one, other, third = (mill.upload(f"{PROSE} {n}") for n in range(3))
    forget_the_model(mill, store)

    single, batch = mill.attach(store, one, webhook=hook), mill.batch(store, other, third, webhook=hook)
    mill.drive()

    assert set(mill.statuses(store).values()) == {("failed", "server_error")}
    failed = "vector_store.file.failed"
    assert mill.told(single) == [(failed, one), ("job.failed", single)]
    told = mill.told(batch)
    assert (sorted(told[:2]), told[2:]) == (
        sorted([(failed, other), (failed, third)]),
        [("vector_store.file_batch.failed", batch)],
    )
    with mill.db.read() as session:
        messages = select(Delivery.job_id, Event.type).join(Event, Delivery.event_id == Event.id)
        counts = Counter(tuple(row) for row in session.execute(messages))
    assert counts == {(single, failed): 1, (batch, failed): 2, (batch, "vector_store.file_batch.failed"): 1}


def test_files_that_a_job_fails_with_at_last_are_told_too(mill: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    store, file = mill.store(), mill.upload(PROSE)
    job = mill.attach(store, file)

    def broken(*_: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setitem(HANDLERS, ingestions.NAME, replace(HANDLERS[ingestions.NAME], plan=broken))
    mill.drive()

    assert mill.statuses(store) == {file: ("failed", "server_error")}
    assert mill.told(job) == [("vector_store.file.failed", file), ("job.failed", job)]


@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.verify
def test_each_stopped_file_gets_one_event_wherever_a_worker_dies(
    mill: Works, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    monkeypatch.setattr(attachments, "STOPPED_AT_ONCE", 2)
    files = [mill.upload(f"{PROSE} {n}") for n in range(5)]
    died = 0
    for at in range(1, 40):
        store = mill.store()
        forget_the_model(mill, store)
        batch = mill.batch(store, *files)
        if cancelled:
            mill.ok(f"/vector_stores/{store}/file_batches/{batch}/cancel")
        mill.reaper.arm(at)
        try:
            mill.drive()
        except Killed:
            died += 1
            mill.handle_worker_death()
            mill.drive()
        else:
            mill.reaper.armed = False
            break

        status, _, failed, stopped = end_of(mill, batch)
        told = Counter(mill.told(batch))
        assert (status, failed, stopped) == (("cancelled", 0, 5) if cancelled else ("failed", 5, 0))
        assert [told["vector_store.file.failed", file] for file in files] == [0 if cancelled else 1] * 5
        assert told[f"vector_store.file_batch.{status}", batch] == 1
    assert died >= 8


def test_a_store_whose_time_is_over_is_refused_and_emptied(mill: Works) -> None:
    store = mill.store(expires_after={"anchor": "last_active_at", "days": 1})
    file = mill.upload(PROSE)
    mill.attach(store, file)
    mill.drive()

    over(mill, store)
    shown = mill.get(f"/vector_stores/{store}")
    attach = mill.api.post(f"/v1/vector_stores/{store}/files", json={"file_id": file})
    search = mill.api.post(f"/v1/vector_stores/{store}/search", json={"query": "kiwi"})
    with mill.db.write() as session:
        assert attachments.expire(session, now(), 10) == 1
    with mill.db.write() as session:
        assert attachments.expire(session, now(), 10) == 0
    mill.purge()

    assert shown["status"] == "expired"
    for refused in (attach, search):
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "expired")
    assert (mill.written(store), list(mill.rows(store))) == ({}, [])
    assert mill.get(f"/vector_stores/{store}")["file_counts"]["total"] == 0


@pytest.mark.parametrize("stage", ["parse", "while parsing", "index", "before writing", "after writing"])
def test_a_store_that_expires_while_files_come_in_keeps_none_of_them(mill: Works, stage: str) -> None:
    store = mill.store(expires_after={"anchor": "last_active_at", "days": 1})
    batch = mill.batch(store, mill.upload(PROSE))

    def expire() -> None:
        over(mill, store)
        with mill.db.write() as session:
            attachments.expire(session, now(), 10)
        mill.purge()

    at_stage(mill, stage, expire)

    assert mill.job(batch).state in TERMINAL
    mill.purge()
    assert (mill.written(store), list(mill.rows(store))) == ({}, [])
    assert mill.storage.list(f"documents/{store}") == []


def over(mill: Works, store: str) -> None:
    with mill.db.write() as session:
        session.execute(update(VectorStore).where(VectorStore.id == store).values(expires_at=now() - 1))


def test_to_use_a_store_puts_its_end_off(mill: Works) -> None:
    store = mill.store(expires_after={"anchor": "last_active_at", "days": 2})
    with mill.db.write() as session:
        session.execute(update(VectorStore).values(active_at=1.0, expires_at=now() + 5))

    mill.attach(store, mill.upload(PROSE))

    shown = mill.get(f"/vector_stores/{store}")
    assert shown["expires_at"] == shown["last_active_at"] + 2 * 86_400


def test_attached_anew_while_it_comes_in_the_last_attempt_counts(mill: Works) -> None:
    store, file = mill.store(), mill.upload(PROSE)
    first = mill.batch(store, file)

    at_stage(mill, "after writing", lambda: mill.attach(store, file, attributes={"n": 2}))

    assert end_of(mill, first) == ("completed", 0, 1, 0)
    assert mill.statuses(store) == {file: ("completed", None)}
    assert mill.row(store, file).attributes == {"n": 2}
    mill.purge()
    mill.assert_tidy(store)


def test_a_worker_that_is_told_to_go_gives_its_shard_back(mill: Works) -> None:
    """Leave in storage what was parsed, so that the next worker parses only the rest."""
    store = mill.store()
    batch = mill.batch(store, *[mill.upload(f"{PROSE} {n}") for n in range(3)])
    mill.drive(until="parse")

    mill.storage.before_put = lambda _: mill.context.heartbeat.stop_all()
    mill.handle(mill.messages()[0])
    mill.storage.before_put = str
    (shard,) = mill.shards(batch)
    parsed = len(mill.storage.list(f"documents/{store}"))

    assert (shard.state, shard.stalls, parsed) == ("pending", 0, 1)


def test_a_worker_that_is_told_to_go_leaves_what_the_engine_is_asked(mill: Works) -> None:
    store = mill.store()
    batch = mill.batch(store, mill.upload(PROSE))
    mill.drive(until="index")

    mill.engine.fault = lambda _: mill.context.heartbeat.stop_all()
    mill.handle(mill.messages()[0])

    (shard,) = mill.shards(batch)
    assert (shard.state, shard.stalls, shard.done) == ("pending", 0, 0)
    assert [step_of(message) for message in mill.messages()] == ["index"]
