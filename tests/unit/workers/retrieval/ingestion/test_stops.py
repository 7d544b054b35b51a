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
from tests.support.ingestion import Killed, Works, step_of
from workers.kinds import HANDLERS

PROSE = "The kiwi is a bird that cannot fly. " * 40
OTHER = "A volcano is a mountain that opens to molten rock. " * 40
LATE = "The file was not processed within its time."
STAGES = ["plan", "parse", "while parsing", "index", "before writing", "after writing", "finish", "done"]


def at_stage(inline: Works, stage: str, act: Callable[[], object]) -> None:
    """Drive to a stage, act, and drive on."""

    def once(*_: object) -> None:
        inline.storage.before_put, inline.vectors.before_write, inline.vectors.after_write = str, bool, bool
        acted.append(act())

    acted: list[object] = []
    if stage == "while parsing":
        inline.storage.before_put = once
    elif stage == "before writing":
        inline.vectors.before_write = once
    elif stage == "after writing":
        inline.vectors.after_write = once
    else:
        inline.drive(until=stage)
        once()
    inline.drive()
    assert len(acted) == 1


def end_of(inline: Works, batch: str) -> tuple[str, int, int, int]:
    """How a batch ended: its status, completed, failed, cancelled; they add up."""
    shown = inline.get(f"/vector_stores/{inline.job(batch).payload['store_id']}/file_batches/{batch}")
    counts = shown["file_counts"]
    assert counts["in_progress"] == 0
    assert counts["completed"] + counts["failed"] + counts["cancelled"] == counts["total"]
    return shown["status"], counts["completed"], counts["failed"], counts["cancelled"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("everywhere", [False, True], ids=["removed from the store", "deleted"])
@pytest.mark.first(4)
def test_removed_or_deleted_file_is_not_found(inline: Works, stage: str, everywhere: bool) -> None:
    store, goes, stays = inline.store(), inline.upload(PROSE), inline.upload(OTHER)
    batch = inline.batch(store, goes, stays)

    at_stage(
        inline, stage, lambda: inline.delete(f"/files/{goes}" if everywhere else f"/vector_stores/{store}/files/{goes}")
    )

    assert inline.statuses(store) == {stays: ("completed", None)}
    assert {one.file_id for one in inline.search(store, "kiwi bird volcano", limit=50)} == {stays}
    lazy_vectors = stage in ("finish", "done")
    assert end_of(inline, batch) == ("completed", 2 if lazy_vectors else 1, 0 if lazy_vectors else 1, 0)
    inline.purge()
    inline.assert_tidy(store)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("purged", [False, True], ids=["purged later", "purged at once"])
@pytest.mark.first(4)
def test_deleted_store_leaves_nothing(inline: Works, stage: str, purged: bool) -> None:
    store = inline.store()
    batch = inline.batch(store, inline.upload(PROSE), inline.upload(OTHER))

    def delete() -> None:
        inline.delete(f"/vector_stores/{store}")
        if purged:
            inline.purge()

    at_stage(inline, stage, delete)

    ends = {"finish": {JobState.SUCCEEDED}, "done": {JobState.SUCCEEDED}}
    assert inline.job(batch).state in ends.get(stage, {JobState.CANCELLED})
    assert inline.api.get(f"/v1/vector_stores/{store}").status_code == 404
    inline.purge()
    assert (list(inline.rows(store)), inline.storage.list(f"documents/{store}")) == ([], [])
    assert inline.vectors.stores() == []
    assert inline.messages() == []


@pytest.mark.parametrize("stage", ["plan", "parse", "while parsing", "index", "before writing", "after writing"])
def test_ingested_files_of_a_cancelled_batch_stay(inline: Works, stage: str) -> None:
    store = inline.store()
    files = [inline.upload(f"{PROSE} {n}") for n in range(7)]
    batch = inline.batch(store, *files)

    at_stage(inline, stage, lambda: inline.ok(f"/vector_stores/{store}/file_batches/{batch}/cancel"))

    status, completed, failed, cancelled = end_of(inline, batch)
    assert (status, failed) == ("cancelled", 0)
    statuses = [status for status, _ in inline.statuses(store).values()]
    assert (statuses.count("completed"), statuses.count("cancelled")) == (completed, cancelled)
    assert completed == (3 if "writing" in stage else 0)  # a shard's, which was about to be committed
    assert len({one.file_id for one in inline.search(store, "kiwi", limit=50)}) == completed
    assert inline.told(batch)[-1] == ("vector_store.file_batch.cancelled", batch)
    inline.purge()
    inline.assert_tidy(store)


def test_a_stopping_batch_does_not_wait_for_a_worker_that_hangs(inline: Works) -> None:
    store = inline.store()
    batch = inline.batch(store, inline.upload(PROSE))

    def cancelled_and_fenced() -> None:
        inline.ok(f"/vector_stores/{store}/file_batches/{batch}/cancel")
        with inline.db.write() as session:
            shards.revoke_running(session, batch)
        inline.drive()
        inline.purge()

    at_stage(inline, "before writing", cancelled_and_fenced)

    assert end_of(inline, batch) == ("cancelled", 0, 0, 1)
    assert inline.search(store, "kiwi") == []
    inline.purge()
    inline.assert_tidy(store)


def test_a_batch_that_is_over_cannot_be_cancelled(inline: Works) -> None:
    store = inline.store()
    batch = inline.batch(store, inline.upload(PROSE))
    inline.drive()

    answer = inline.api.post(f"/v1/vector_stores/{store}/file_batches/{batch}/cancel")

    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "invalid_state")
    assert "'completed'" in answer.json()["error"]["message"]


@pytest.mark.parametrize("stage", ["plan", "parse", "while parsing", "index", "before writing"])
def test_files_that_were_not_brought_in_in_time_failed(inline: Works, stage: str) -> None:
    store = inline.store()
    batch = inline.batch(store, inline.upload(PROSE), inline.upload(OTHER))

    def time_is_over() -> None:
        with inline.db.write() as session:
            session.execute(update(Job).where(Job.id == batch).values(deadline=now() - 1))
        with inline.db.write() as session:
            assert ledger.expire(session, batch, actor="dispatcher") is not None

    at_stage(inline, stage, time_is_over)

    status, completed, failed, cancelled = end_of(inline, batch)
    assert (status, completed + failed, cancelled) == ("failed", 2, 0)
    assert completed == (2 if stage == "before writing" else 0)
    assert inline.job(batch).state == JobState.EXPIRED
    for row in inline.rows(store):
        words = (row.error_code, row.error_message)
        assert words == ((None, None) if row.status == "completed" else ("server_error", LATE))
    told = inline.told(batch)
    assert told[-1] == ("vector_store.file_batch.failed", batch)
    assert Counter(kind for kind, _ in told if ".file." in kind) == Counter(
        f"vector_store.file.{row.status}" for row in inline.rows(store)
    )
    inline.purge()
    inline.assert_tidy(store)


def forget_the_model(inline: Works, store: str) -> None:
    with inline.db.write() as session:
        session.get_one(VectorStore, store).model = "nobody-serves-it"


def test_each_file_of_an_unserved_model_gets_an_event(inline: Works) -> None:
    store, hook = inline.store(), {"url": "https://192.0.43.8/hook"}
    one, other, third = (inline.upload(f"{PROSE} {n}") for n in range(3))
    forget_the_model(inline, store)

    single, batch = inline.attach(store, one, webhook=hook), inline.batch(store, other, third, webhook=hook)
    inline.drive()

    assert set(inline.statuses(store).values()) == {("failed", "server_error")}
    failed = "vector_store.file.failed"
    assert inline.told(single) == [(failed, one), ("job.failed", single)]
    told = inline.told(batch)
    assert (sorted(told[:2]), told[2:]) == (
        sorted([(failed, other), (failed, third)]),
        [("vector_store.file_batch.failed", batch)],
    )
    with inline.db.read() as session:
        messages = select(Delivery.job_id, Event.type).join(Event, Delivery.event_id == Event.id)
        counts = Counter(tuple(row) for row in session.execute(messages))
    assert counts == {(single, failed): 1, (batch, failed): 2, (batch, "vector_store.file_batch.failed"): 1}


def test_failed_planning_sends_failed_events_for_file_and_job(inline: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    store, file = inline.store(), inline.upload(PROSE)
    job = inline.attach(store, file)

    def broken(*_: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setitem(HANDLERS, ingestions.NAME, replace(HANDLERS[ingestions.NAME], plan=broken))
    inline.drive()

    assert inline.statuses(store) == {file: ("failed", "server_error")}
    assert inline.told(job) == [("vector_store.file.failed", file), ("job.failed", job)]


@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.verify
def test_worker_death_duplicates_no_event_of_stopped_files(
    inline: Works, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    monkeypatch.setattr(attachments, "STOPPED_AT_ONCE", 2)
    files = [inline.upload(f"{PROSE} {n}") for n in range(5)]
    died = 0
    for at in range(1, 40):
        store = inline.store()
        forget_the_model(inline, store)
        batch = inline.batch(store, *files)
        if cancelled:
            inline.ok(f"/vector_stores/{store}/file_batches/{batch}/cancel")
        inline.reaper.arm(at)
        try:
            inline.drive()
        except Killed:
            died += 1
            inline.handle_worker_death()
            inline.drive()
        else:
            inline.reaper.armed = False
            break

        status, _, failed, stopped = end_of(inline, batch)
        told = Counter(inline.told(batch))
        assert (status, failed, stopped) == (("cancelled", 0, 5) if cancelled else ("failed", 5, 0))
        assert [told["vector_store.file.failed", file] for file in files] == [0 if cancelled else 1] * 5
        assert told[f"vector_store.file_batch.{status}", batch] == 1
    assert died >= 8


def test_expired_store_refuses_requests_and_is_emptied(inline: Works) -> None:
    store = inline.store(expires_after={"anchor": "last_active_at", "days": 1})
    file = inline.upload(PROSE)
    inline.attach(store, file)
    inline.drive()

    over(inline, store)
    shown = inline.get(f"/vector_stores/{store}")
    attach = inline.api.post(f"/v1/vector_stores/{store}/files", json={"file_id": file})
    search = inline.api.post(f"/v1/vector_stores/{store}/search", json={"query": "kiwi"})
    with inline.db.write() as session:
        assert attachments.expire(session, now(), 10) == 1
    with inline.db.write() as session:
        assert attachments.expire(session, now(), 10) == 0
    inline.purge()

    assert shown["status"] == "expired"
    for refused in (attach, search):
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "expired")
    assert (inline.written(store), list(inline.rows(store))) == ({}, [])
    assert inline.get(f"/vector_stores/{store}")["file_counts"]["total"] == 0


@pytest.mark.parametrize("stage", ["parse", "while parsing", "index", "before writing", "after writing"])
def test_store_expiring_during_ingestion_retains_no_file(inline: Works, stage: str) -> None:
    store = inline.store(expires_after={"anchor": "last_active_at", "days": 1})
    batch = inline.batch(store, inline.upload(PROSE))

    def expire() -> None:
        over(inline, store)
        with inline.db.write() as session:
            attachments.expire(session, now(), 10)
        inline.purge()

    at_stage(inline, stage, expire)

    assert inline.job(batch).state in TERMINAL
    inline.purge()
    assert (inline.written(store), list(inline.rows(store))) == ({}, [])
    assert inline.storage.list(f"documents/{store}") == []


def over(inline: Works, store: str) -> None:
    with inline.db.write() as session:
        session.execute(update(VectorStore).where(VectorStore.id == store).values(expires_at=now() - 1))


def test_to_use_a_store_puts_its_end_off(inline: Works) -> None:
    store = inline.store(expires_after={"anchor": "last_active_at", "days": 2})
    with inline.db.write() as session:
        session.execute(update(VectorStore).values(active_at=1.0, expires_at=now() + 5))

    inline.attach(store, inline.upload(PROSE))

    shown = inline.get(f"/vector_stores/{store}")
    assert shown["expires_at"] == shown["last_active_at"] + 2 * 86_400


def test_reattachment_during_ingestion_supersedes_first_attempt(inline: Works) -> None:
    store, file = inline.store(), inline.upload(PROSE)
    first = inline.batch(store, file)

    at_stage(inline, "after writing", lambda: inline.attach(store, file, attributes={"n": 2}))

    assert end_of(inline, first) == ("completed", 0, 1, 0)
    assert inline.statuses(store) == {file: ("completed", None)}
    assert inline.row(store, file).attributes == {"n": 2}
    inline.purge()
    inline.assert_tidy(store)


def test_stopped_worker_releases_shard_and_stores_parsed_files(inline: Works) -> None:
    """Leave in storage what was parsed, so that the next worker parses only the rest."""
    store = inline.store()
    batch = inline.batch(store, *[inline.upload(f"{PROSE} {n}") for n in range(3)])
    inline.drive(until="parse")

    inline.storage.before_put = lambda _: inline.context.heartbeat.stop_all()
    inline.handle(inline.messages()[0])
    inline.storage.before_put = str
    (shard,) = inline.shards(batch)
    parsed = len(inline.storage.list(f"documents/{store}"))

    assert (shard.state, shard.stalls, parsed) == ("pending", 0, 1)


def test_stopped_worker_abandons_engine_request_and_releases_shard(inline: Works) -> None:
    store = inline.store()
    batch = inline.batch(store, inline.upload(PROSE))
    inline.drive(until="index")

    inline.engine.fault = lambda _: inline.context.heartbeat.stop_all()
    inline.handle(inline.messages()[0])

    (shard,) = inline.shards(batch)
    assert (shard.state, shard.stalls, shard.done) == ("pending", 0, 0)
    assert [step_of(message) for message in inline.messages()] == ["index"]
