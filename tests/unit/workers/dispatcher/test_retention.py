"""Expired files are removed, also when storage fails meanwhile, and rarely due checks are rarely made."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select, update

from jobs.batches import batches
from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import DatabaseBusy, NotFound, StorageFull, StorageUnavailable
from jobs.files.tables import File
from jobs.inference import cache
from jobs.inference.cache import NewEntry
from jobs.inference.tables import CacheEntry, Conversation, StoredCompletion, StoredResponse
from jobs.ledger import audit, shards, totals
from jobs.ledger.tables import Audit, Job, Segment, Shard
from jobs.logs import Seldom
from jobs.platform.storage import DiskStorage
from jobs.security import keys
from jobs.security.audit_key import audit_key, create_audit_key
from jobs.security.tables import Account, ApiKey, Idempotency
from jobs.settings import Settings
from jobs.timings import Timings
from jobs.webhooks.deliveries import PARKED_UNTIL
from jobs.webhooks.tables import Attempt, Delivery, Event
from tests.support.orphan_files import look_twice
from tests.support.sample_jobs import close, finishing, new_job
from workers.dispatcher import orphans, retention
from workers.dispatcher.retention import Retention

LONG = replace(Timings(), retention_pass=60.0, orphans_look=60.0)
SHORT = replace(Timings(), retention_pass=0.0, retention_more=0.0, orphans_look=0.0)


@pytest.fixture
def keeping(db: Database, tmp_path: Path, storage: DiskStorage) -> Retention:
    return Retention(Settings(data_dir=tmp_path, database_url=db.url), db, storage, LONG)


@pytest.fixture
def hurried(db: Database, tmp_path: Path, storage: DiskStorage) -> Retention:
    return Retention(Settings(data_dir=tmp_path, database_url=db.url), db, storage, SHORT)


def _expired_file(db: Database, storage: DiskStorage) -> None:
    storage.put("files/file-late", b"x")
    facts = {"purpose": "batch", "filename": "f", "bytes": 1, "path": "files/file-late", "created_at": 1.0}
    with db.write() as session:
        session.add(File(id="file-late", project_id="p", expires_at=1.0, **facts))


def _not_reachable(*_: object) -> None:
    raise StorageUnavailable


def test_files_without_a_row_are_looked_for_once_in_many_passes(
    keeping: Retention, storage: DiskStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_ORPHAN_PASSES", 2)
    storage.put("files/file-lost", b"x")

    left = []
    for _ in range(4):
        keeping.run()
        left.append(storage.list("files"))

    assert left == [["files/file-lost"]] * 3 + [[]]


def test_a_look_goes_on_a_moment_at_a_time_and_the_next_waits_until_it_is_over(
    hurried: Retention, storage: DiskStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_ORPHAN_PASSES", 1)
    monkeypatch.setattr(orphans, "_PAGE", 1)
    for n in range(3):
        storage.put(f"files/{n}", b"x")
    sweep, began = storage.sweep, 0

    def begin(folder: str, before: float) -> Iterator[bool]:
        nonlocal began
        began += folder == "files"
        return sweep(folder, before)

    monkeypatch.setattr(storage, "sweep", begin)

    looks = []
    for step in (hurried.run, hurried.resume, hurried.run, *[hurried.resume] * 4, hurried.run):
        step()
        looks.append(began)

    assert looks == [*[1] * 7, 2]  # seven steps: a page each of what is swept and of files, and the end


def test_a_storage_that_cannot_be_listed_keeps_nothing_else_from_going(
    keeping: Retention,
    db: Database,
    storage: DiskStorage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(retention, "_ORPHAN_PASSES", 1)
    monkeypatch.setattr(storage, "walk", _not_reachable)
    _expired_file(db, storage)

    keeping.run()

    assert not (storage.root / "files/file-late").exists()
    assert "orphans_not_looked_for" in caplog.messages


@pytest.mark.parametrize("error", [StorageUnavailable, StorageFull, NotFound])
@pytest.mark.parametrize("what", ["walk", "delete"])
def test_storage_error_does_not_block_other_retention(
    keeping: Retention,
    db: Database,
    storage: DiskStorage,
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
    what: str,
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(retention, "_ORPHAN_PASSES", 1)
    monkeypatch.setattr(storage, what, refuse)
    _expired_file(db, storage)
    with db.write() as session:
        session.add(Idempotency(project_id="p", route="r", key="k", heartbeat_at=1.0, created_at=1.0))

    keeping.run()

    with db.read() as session:
        assert session.get(File, "file-late") is None
        assert session.scalars(select(Idempotency)).all() == []


def test_objects_of_an_old_job_that_could_not_be_removed_go_the_next_time(
    keeping: Retention, db: Database, storage: DiskStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile no retry goes by what is left."""
    job_id = _old_job(db, storage, [2, 2])
    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete", _not_reachable)
        keeping.run()
    with db.read() as session:
        assert not batches.results_known(session, session.get_one(Job, job_id), batches.FAILED)
    assert len(storage.list("jobs")) == 2

    keeping.run()

    assert storage.list("jobs") == []
    with db.read() as session:
        assert session.scalars(select(Shard)).all() == session.scalars(select(Segment)).all() == []


def test_removal_of_old_job_restarts_after_busy_database(
    keeping: Retention, db: Database, storage: DiskStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    _old_job(db, storage, [1])

    def busy(*_: object) -> None:
        raise DatabaseBusy

    with monkeypatch.context() as patch:
        patch.setattr(keeping, "_remove_results", busy)
        with pytest.raises(DatabaseBusy):
            keeping.run()

    keeping.run()

    assert storage.list("jobs") == []


def test_many_old_jobs_go_at_once_and_no_longer_than_a_moment_each_time(
    keeping: Retention, hurried: Retention, db: Database, storage: DiskStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(12):
        _old_job(db, storage, [1])
    keeping.run()
    at_once = len(storage.list("jobs"))

    monkeypatch.setattr(retention, "_JOBS_AT_ONCE", 2)
    for _ in range(5):
        _old_job(db, storage, [1])
    left = []
    for step in (hurried.run, *[hurried.resume] * 4):
        step()
        left.append(len(storage.list("jobs")))
    _old_job(db, storage, [1])
    hurried.resume()

    assert (at_once, left, len(storage.list("jobs"))) == (0, [3, 1, 0, 0, 0], 1)


def test_old_rows_go_some_at_a_time_and_are_looked_for_while_others_write(
    keeping: Retention, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_AT_ONCE", 2)
    with db.write() as session:
        for n in range(5):
            old = {"project_id": "p", "created_at": 1.0}
            session.add(Idempotency(route="r", key=f"{n}", heartbeat_at=1.0, **old))
            session.add(Attempt(delivery_id="wh", n=n, at=1.0, seconds=0.1))
        session.add(Idempotency(project_id="p", route="r", key="new", heartbeat_at=1.0, created_at=now()))
    deleted: list[int] = []

    def note(connection: object, cursor: Any, statement: str, *_: object) -> None:
        if statement.startswith(("DELETE FROM attempt", "DELETE FROM idempotency")):
            deleted.append(cursor.rowcount)

    event.listen(db.engine, "after_cursor_execute", note)
    try:
        keeping.run()
    finally:
        event.remove(db.engine, "after_cursor_execute", note)
    monkeypatch.setattr(db, "write", _not_reachable)

    assert not keeping._remove_rows()
    assert deleted == [2, 2, 1] * 2
    with db.read() as session:
        assert session.scalars(select(Idempotency.key)).all() == ["new"]


def test_expired_keys_of_logins_without_work_are_removed(keeping: Retention, db: Database) -> None:
    with db.write() as session:
        session.add(Account(id="user_1", email="ann@example.com", created_at=1.0))
        project = keys.ensure_project(session, "research").id
        made = {
            name: keys.id_of(keys.add_key(session, project, owner_id=owner, expires_at=end))
            for name, owner, end in (
                ("unused", "user_1", 1.0),
                ("used", "user_1", 1.0),
                ("acted", "user_1", 1.0),
                ("live", "user_1", now() + 60),
                ("of a service account", None, 1.0),
            )
        }
        session.get_one(ApiKey, made["used"]).last_used_at = 1.0
        audit.record(session, actor=audit.actor_of(made["acted"]), action="schedule.create", target="s")

    keeping.run()

    with db.read() as session:
        assert set(session.scalars(select(ApiKey.id))) == set(made.values()) - {made["unused"]}


def _old_job(db: Database, storage: DiskStorage, lines: list[int]) -> str:
    """Store a job that ended long ago, and the objects of its shards."""
    job_id = finishing(db, lines).id
    close(db, job_id)
    for n in range(len(lines)):
        storage.put(shards.segment_path(job_id, n, 1, 0), b"x")
    with db.write() as session:
        session.execute(update(Job).where(Job.id == job_id).values(completed_at=1.0))
    return job_id


def test_bytes_that_could_not_be_removed_go_with_the_orphans(
    keeping: Retention,
    db: Database,
    storage: DiskStorage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    _expired_file(db, storage)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete", _not_reachable)
        keeping.run()
    with db.read() as session:
        assert session.get(File, "file-late") is None
    assert storage.list("files") == ["files/file-late"]
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == ["purge_failed"]

    look_twice(keeping._config, db, storage)

    assert storage.list("files") == []


def test_old_deliveries_are_removed_with_events_unless_pending(keeping: Retention, db: Database) -> None:
    with db.write() as session:
        for n, (state, created) in enumerate([("delivered", 1.0), ("pending", 1.0), ("delivered", now())]):
            row = {"project_id": "p", "created_at": created}
            event = {"subject_id": "job", "seq": n, "type": "batch.completed", "data": {}, "position": n + 1}
            session.add(Event(id=f"evt_{n}", **event, **row))
            session.add(Delivery(id=f"wh_{n}", endpoint_id="we", event_id=f"evt_{n}", due_at=1.0, state=state, **row))
            session.add(Attempt(delivery_id=f"wh_{n}", n=1, at=created, seconds=0.1, status_code=500))

    keeping.run()

    with db.read() as session:
        assert sorted(session.scalars(select(Delivery.id))) == ["wh_1", "wh_2"]
        assert sorted(session.scalars(select(Event.id))) == ["evt_1", "evt_2"]
        assert sorted(session.scalars(select(Attempt.delivery_id))) == ["wh_2"]


def test_parked_delivery_of_deleted_endpoint_is_removed_with_its_event(keeping: Retention, db: Database) -> None:
    with db.write() as session:
        row = {"project_id": "p", "created_at": 1.0}
        event = {"subject_id": "job", "seq": 1, "type": "batch.completed", "data": {}, "position": 1}
        session.add(Event(id="evt_1", **event, **row))
        session.add(
            Delivery(id="wh_1", endpoint_id="we", event_id="evt_1", due_at=PARKED_UNTIL, state="pending", **row)
        )

    keeping.run()

    with db.read() as session:
        assert session.scalars(select(Delivery.id)).all() == session.scalars(select(Event.id)).all() == []


def test_the_webhook_of_an_old_job_is_forgotten_once_it_has_no_delivery(keeping: Retention, db: Database) -> None:
    hook = {"webhook_url": "https://192.0.43.8/", "webhook_secret": "whsec_x"}
    ended, states = now(), {"old": "succeeded", "young": "failed", "pending": "succeeded", "live": "running"}
    with db.write() as session:
        for name, state in states.items():
            session.add(new_job(id=name, state=state, created_at=ended if name == "young" else 1.0, **hook))
        row = {"project_id": "p", "created_at": ended}
        for name in ("old", "pending"):
            event = {"subject_id": name, "seq": 1, "type": "batch.completed", "data": {}, "position": None}
            session.add(Event(id=f"evt_{name}", **event, **row))
        row |= {"due_at": 1.0}
        session.add(Delivery(id="wh_1", job_id="pending", event_id="evt_pending", state="failed", **row))
        session.add(Delivery(id="wh_2", endpoint_id="we", event_id="evt_1", state="failed", **row))

    keeping.run()

    with db.read() as session:
        kept = {job.id: (job.webhook_url, job.webhook_secret) for job in session.scalars(select(Job))}
    assert kept.pop("old") == (None, None)
    assert set(kept.values()) == {tuple(hook.values())}


def test_webhooks_are_forgotten_once_in_many_passes(
    keeping: Retention, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_WALK_PASSES", 2)
    monkeypatch.setattr(retention, "_WALKED_AT_ONCE", 2)
    left = []
    for _ in range(3):
        with db.write() as session:
            for project in ("one", "two", "two", "two"):
                hook = {"webhook_url": "https://192.0.43.8/", "webhook_secret": "whsec_x"}
                session.add(new_job(state="succeeded", project_id=project, **hook))
        keeping.run()
        with db.read() as session:
            left.append(len(session.scalars(select(Job.id).where(Job.webhook_secret.is_not(None))).all()))

    assert left == [0, 4, 0]


def test_tables_without_an_index_by_time_are_read_once_in_many_passes(
    keeping: Retention, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_WALK_PASSES", 2)
    left = []
    for n in range(3):
        with db.write() as session:
            session.add(Idempotency(project_id="p", route="r", key=f"{n}", heartbeat_at=1.0, created_at=1.0))
        keeping.run()
        with db.read() as session:
            left.append(session.scalars(select(Idempotency.key)).all())

    assert left == [[], ["1"], []]


def test_retention_shrinks_oversized_cache_and_removes_expired_entries(
    db: Database, tmp_path: Path, storage: DiskStorage
) -> None:
    entries = [NewEntry(b"%032d" % n, "p", 0, bytes(4096), 1, now(), now() + n * 60 - 600) for n in range(500)]
    with db.write() as session:
        cache.put(session, entries)
    keeping = Retention(Settings(data_dir=tmp_path, database_url=db.url, cache_max_bytes=1 << 20), db, storage)

    keeping.run()

    with db.read() as session:
        assert 0 < cache.size(session) <= 1 << 20
        assert session.get(CacheEntry, b"%032d" % 499)
        assert session.get(CacheEntry, b"%032d" % 0) is None


def test_a_cache_that_is_busy_keeps_nothing_else_from_going(
    keeping: Retention,
    db: Database,
    storage: DiskStorage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def busy(*_: object) -> int:
        raise DatabaseBusy

    monkeypatch.setattr(cache, "remove_expired", busy)
    _expired_file(db, storage)

    keeping.run()

    assert storage.list("files") == []
    assert "cache_not_cleared_up" in caplog.messages


def test_deleted_file_row_stays_until_its_cache_entries_are_removed(
    db: Database, keeping: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_PAGES", 1)
    facts = {"purpose": "batch", "filename": "f", "bytes": 1, "path": "files/file-x", "created_at": 1.0}
    with db.write() as session:
        session.add(File(id="file-x", project_id="p", deleted_at=1.0, **facts))
        session.add(new_job(id="batch_x", state="succeeded", input_file_id="file-x"))
        entries = [NewEntry(b"%032d" % n, "p", 0, b"v", 1, now(), now() + 600, "batch_x") for n in range(250)]
        cache.put(session, entries)

    left = []
    for _ in range(3):
        keeping.run()
        with db.read() as session:
            left.append((cache.size(session), session.get(File, "file-x") is not None))

    assert left == [(50, True), (0, False), (0, False)]


def test_a_pass_takes_a_bounded_amount_and_the_next_goes_on(
    db: Database, storage: DiskStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two transactions of two: there are five files and answers, and what is cached is too much by five, too."""
    monkeypatch.setattr(retention, "_AT_ONCE", 2)
    monkeypatch.setattr(retention, "_PAGES", 2)
    facts = {"purpose": "batch", "filename": "f", "bytes": 1, "created_at": 1.0, "expires_at": 1.0}
    entries = [NewEntry(b"%032d" % n, "p", 0, bytes(300_000), 1, now(), now() + 600 + n) for n in range(8)]
    with db.write() as session:
        cache.put(session, entries)
        for n in range(5):
            session.add(File(id=f"file-{n}", project_id="p", path=f"files/file-{n}", **facts))
            session.add(StoredResponse(id=f"resp_{n}", project_id="p", created_at=1.0, expires_at=1.0))
            storage.put(f"responses/resp_{n}", b"x")
    keeping = Retention(Settings(data_dir=tmp_path, database_url=db.url, cache_max_bytes=1 << 20), db, storage, LONG)

    left = []
    for _ in range(2):
        keeping.run()
        with db.read() as session:
            files = session.scalars(select(File.id).where(File.deleted_at.is_(None))).all()
            answers = session.scalars(select(StoredResponse.id)).all()
            kept = session.scalars(select(CacheEntry.key).order_by(CacheEntry.key)).all()
        left.append((len(files), len(answers), len(storage.list("responses")), kept))

    assert left == [(1, 1, 1, [one.key for one in entries[4:]]), (0, 0, 0, [one.key for one in entries[6:]])]


def test_missing_sizes_are_read_from_storage(
    keeping: Retention, db: Database, storage: DiskStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.put("responses/r", b"12345")
    storage.put("conversations/v-1", b"123")
    lasting = {"project_id": "p", "created_at": 1.0, "expires_at": now() + 3600}
    with db.write() as session:
        session.add_all([StoredResponse(id="r", **lasting), StoredResponse(id="gone", **lasting)])
        session.add(StoredCompletion(id="c", bytes=7, requested_model="m", model="m", **lasting))
        session.add(
            Conversation(id="v", project_id="p", version=1, path="conversations/v-1", metadata_={}, created_at=1.0)
        )

    def sizes() -> dict[str, int | None]:
        with db.read() as session:
            tables = (StoredResponse, StoredCompletion, Conversation)
            return {row_id: size for one in tables for row_id, size in session.execute(select(one.id, one.bytes))}

    with monkeypatch.context() as patch:
        patch.setattr(storage, "size", _not_reachable)
        keeping.run()
    assert sizes() == {"r": None, "gone": None, "c": 7, "v": None}

    keeping.run()
    assert sizes() == {"r": 5, "gone": 0, "c": 7, "v": 3}


def test_a_page_of_sizes_begins_behind_the_page_before(
    keeping: Retention, db: Database, storage: DiskStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("workers.dispatcher.retention._AT_ONCE", 2)
    monkeypatch.setattr(storage, "size", asked.append)  # no size is found, so every row still matches
    lasting = {"project_id": "p", "created_at": 1.0, "expires_at": now() + 3600}
    with db.write() as session:
        session.add_all([StoredResponse(id=f"r{n}", **lasting) for n in range(5)])
        session.add(StoredCompletion(id="c", requested_model="m", model="m", **lasting))

    keeping.run()

    assert asked == [*(f"responses/r{n}" for n in range(5)), StoredCompletion(id="c").path]


# ── rows that go where settings say so ──


def _with_limits(db: Database, folder: Path, storage: DiskStorage) -> Retention:
    limits: dict[str, Any] = {"retention_seconds": 1, "job_retention_seconds": 60, "audit_retention_seconds": 60}
    config = Settings(data_dir=folder, database_url=db.url, **limits)
    create_audit_key(db, config)
    return Retention(config, db, storage, LONG)


def _seal(db: Database, folder: Path) -> None:
    with db.write() as session:
        audit.seal(session)
        totals.count(session)
    with db.write() as session:
        audit.extend_signature(session, audit_key(Settings(data_dir=folder)))


def _aged(db: Database, storage: DiskStorage) -> str:
    """Store a job whose rows are all long past their retention."""
    job_id = _old_job(db, storage, [2])
    with db.write() as session:
        session.execute(update(Event).values(created_at=1.0, position=Event.seq))
    return job_id


def test_old_jobs_and_audit_rows_go_where_settings_say_so(
    db: Database, tmp_path: Path, storage: DiskStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_WALK_PASSES", 1)
    keeping = _with_limits(db, tmp_path, storage)
    job_id = _aged(db, storage)
    with db.write() as session:
        session.execute(update(Audit).values(at=1))
    young = finishing(db).id
    close(db, young)
    _seal(db, tmp_path)

    for _ in range(2):  # the events go in the first pass
        keeping.run()

    with db.read() as session:
        assert session.scalars(select(Job.id)).all() == [young]
        assert set(session.scalars(select(Audit.target))) == {young}
        found = audit.verify(session, key=audit_key(keeping._config))
        assert totals.sums_of(session, totals.JOBS) == {("generation", "succeeded"): 2}
    assert (found.faults, found.rows, found.removed) == ((), 4, 4)
    assert job_id not in str(storage.list("jobs"))


def test_jobs_and_audit_rows_stay_where_no_setting_says_otherwise(
    keeping: Retention, db: Database, tmp_path: Path, storage: DiskStorage
) -> None:
    job_id = _aged(db, storage)
    with db.write() as session:
        session.execute(update(Audit).values(at=1))
    _seal(db, tmp_path)

    for _ in range(2):
        keeping.run()

    with db.read() as session:
        assert session.get(Job, job_id) is not None
        assert set(session.scalars(select(Audit.target))) == {job_id}


def test_audit_rows_are_removed_in_pages_and_only_after_signature(
    db: Database, tmp_path: Path, storage: DiskStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_AT_ONCE", 2)
    monkeypatch.setattr(retention, "_PAGES", 2)
    keeping = _with_limits(db, tmp_path, storage)
    with db.write() as session:
        for n in range(8):
            audit.record(session, actor="key:a", action="x", target=f"{n}")
        session.execute(update(Audit).values(at=1))
        audit.seal(session)
        totals.count(session)

    left = []
    for step in (keeping.run, partial(_seal, db, tmp_path), keeping.run, keeping.resume, keeping.resume):
        step()
        with db.read() as session:
            left.append(len(session.scalars(select(Audit.id)).all()))

    assert left == [8, 8, 4, 1, 1], "the last signed row stays"


def test_an_audit_log_that_was_changed_keeps_nothing_else_from_going(
    db: Database,
    tmp_path: Path,
    storage: DiskStorage,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(audit, "_not_removed", Seldom(audit.log, "audit_rows_not_removed"))
    keeping = _with_limits(db, tmp_path, storage)
    _aged(db, storage)
    _seal(db, tmp_path)
    with db.write() as session:
        session.execute(update(Audit).values(at=1))
    _expired_file(db, storage)

    keeping.run()

    assert "audit_rows_not_removed" in caplog.messages
    with db.read() as session:
        assert session.get(File, "file-late") is None
        assert len(session.scalars(select(Audit.id).where(Audit.action.like("job.%"))).all()) == 4
