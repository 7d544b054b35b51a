"""When a source is synced, who is told, and what goes with it."""

import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, select, update

from jobs.clock import now
from jobs.db.engine import Database
from jobs.ledger.states import LIVE
from jobs.ledger.tables import Job
from jobs.retrieval import indexes, sources
from jobs.retrieval.tables import Source, SourceItem, VectorStore
from jobs.security import keys
from jobs.webhooks.tables import Delivery, Event
from tests.support.ingestion import Works
from tests.support.source_sync import Sync, alive, of_folder, write
from tests.support.web_site import Site
from workers.dispatcher.maintenance import Maintenance
from workers.retrieval.sources import folder


def test_source_has_single_live_sync_job(inline: Works, library: Path) -> None:
    source = Sync(inline, inline.store(), type="folder", path=str(library), cron="* * * * *")
    first = source.now()["file_batch_id"]

    inline.ok(f"{source.path}/{source.id}/sync")
    with inline.db.write() as session:
        session.execute(update(Source).values(next_at=0))
    maintenance(inline).run()

    with inline.db.read() as session:
        assert session.scalars(select(Job.id).where(Job.state.in_(LIVE))).all() == [first]
    assert source.now()["next_run_at"] > now()


def test_a_schedule_syncs_once_each_time_unless_it_is_paused(inline: Works, library: Path) -> None:
    source = of_folder(inline, library, cron="* * * * *", timezone="Europe/Zurich")
    first = source.now()["file_batch_id"]
    inline.ok(f"{source.path}/{source.id}/pause")
    keep_at(inline, 0)
    assert source.now()["file_batch_id"] == first
    assert inline.ok(f"{source.path}/{source.id}/resume")["next_run_at"] > now()

    keep_at(inline, 0)
    second = source.now()["file_batch_id"]
    keep_at(inline, None)
    inline.drive()

    assert second != first
    assert source.now()["file_batch_id"] == second
    assert source.counts() == [3, 0, 0, 0, 3, 0]


def test_source_of_a_revoked_key_waits_for_another_key_to_sync_it(each: Works, library: Path) -> None:
    source = of_folder(each, library, cron="* * * * *")
    end_key(each)
    before = source.now()
    keep_at(each, 0)
    missed = source.now()
    write(library / "a.txt", "apricot " * 30)

    synced = source.again()
    keep_at(each, 0)
    each.drive()

    assert (before["status"], missed["status"], missed["last_error"]["code"]) == ("completed", "failed", "key_revoked")
    assert (missed["file_batch_id"], missed["counts"]) == (before["file_batch_id"], before["counts"])
    assert (synced["status"], synced["last_error"], source.names("apricot")) == ("completed", None, {"a.txt"})
    assert (source.now()["status"], source.counts()) == ("completed", [3, 0, 0, 0, 3, 0])
    assert source.now()["file_batch_id"] not in (before["file_batch_id"], synced["file_batch_id"])


def test_running_sync_by_schedule_ends_with_its_key(inline: Works, library: Path) -> None:
    source = of_folder(inline, library, cron="* * * * *")
    write(library / "a.txt", "apricot " * 30)
    keep_at(inline, 0)
    end_key(inline)

    keep_at(inline, None)
    inline.drive()

    assert (source.now()["status"], source.now()["last_error"]["code"]) == ("failed", "key_revoked")
    assert (source.names("apple"), source.names("apricot")) == ({"a.txt"}, set())


def end_key(inline: Works) -> None:
    """Revoke the key of the client, and give the client another one."""
    authorization = inline.api.headers["Authorization"]
    with inline.db.write() as session:
        keys.revoke_key(session, keys.id_of(authorization.removeprefix("Bearer ")))
        inline.api.headers["Authorization"] = f"Bearer {keys.create_key(session, 'default')}"


@pytest.mark.postgres
def test_a_source_that_is_due_while_it_syncs_does_not_wait_for_its_store(postgres: Database) -> None:
    """Its sync has the store, and is about to count on the source's row."""
    with postgres.write() as session:
        facts = {"chunking": {}, "created_at": 1.0, "project_id": "p"}
        session.add(VectorStore(id="vs", name="", model="m", active_at=1.0, **facts))
        when = {"cron": "* * * * *", "timezone": "UTC", "next_at": 0.0}
        session.add(Source(id="vss", store_id="vs", type="url", spec={}, status="in_progress", **when, **facts))

    def fire() -> Job | None:
        with postgres.write() as session:
            return sources.fire(session, "vss")

    with ThreadPoolExecutor() as pool, postgres.write() as session:
        indexes.lock(session, "vs")
        assert pool.submit(fire).result(timeout=30) is None
        assert session.get_one(Source, "vss").next_at > now()


def test_unknown_time_zone_pauses_only_its_source(each: Works, library: Path) -> None:
    source = of_folder(each, library, cron="* * * * *")
    other = Sync(each, source.store, type="folder", path=str(library), cron="* * * * *")
    each.drive()
    with each.db.write() as session:
        session.execute(update(Source).where(Source.id == source.id).values(timezone="Mars/Olympus"))
    before = source.now()["file_batch_id"]

    keep_at(each, 0)

    assert (source.now()["paused"], source.now()["last_error"]["code"]) == (True, "invalid_value")
    assert source.now()["file_batch_id"] == before
    assert other.now()["status"] == "in_progress"
    assert each.api.post(f"/v1{source.path}/{source.id}/resume").status_code == 400


def test_source_is_not_synced_if_its_store_vanishes_concurrently(
    inline: Works, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let a store be there for a read and gone for a lock."""
    source = of_folder(inline, library, cron="* * * * *")
    monkeypatch.setattr(indexes, "lock", lambda *_: None)
    with inline.db.write() as session:
        session.execute(update(Source).values(next_at=0))
    with inline.db.write() as session:
        assert sources.fire(session, source.id) is None


def maintenance(inline: Works) -> Maintenance:
    return Maintenance(inline.context.config, inline.db, inline.storage, now, lambda: None)


def keep_at(inline: Works, due: float | None) -> None:
    if due is not None:
        with inline.db.write() as session:
            session.execute(update(Source).values(next_at=due))
    maintenance(inline).run()


def test_a_deleted_source_takes_its_files_along_and_no_others(each: Works, library: Path) -> None:
    source = of_folder(each, library)
    other = each.upload("apple of somebody", "mine.txt")
    each.attach(source.store, other)
    each.drive()

    each.delete(f"{source.path}/{source.id}")

    assert source.names("apple") == {"mine.txt"}
    assert alive(each) == {other}
    assert not source.items()
    assert each.api.get(f"/v1{source.path}/{source.id}").status_code == 404


@contextmanager
def locking() -> Iterator[list[list[str]]]:
    """Record the tables of which rows are locked in the block, transaction by transaction."""
    held: list[list[str]] = []
    running: dict[int, list[str]] = {}

    def begin(connection: Connection) -> None:
        held.append([])
        running[id(connection.connection.driver_connection)] = held[-1]

    def note(connection: Connection, _: object, statement: str, *__: object) -> None:
        table = re.search(r"FROM (\w+).* FOR (UPDATE|SHARE)", statement, re.DOTALL)
        if table:
            running[id(connection.connection.driver_connection)].append(table[1])

    event.listen(Engine, "begin", begin)
    event.listen(Engine, "before_cursor_execute", note)
    yield held
    event.remove(Engine, "begin", begin)
    event.remove(Engine, "before_cursor_execute", note)


def test_locks_of_items_and_files_follow_a_lock_of_their_store(each: Works, library: Path, site: Site) -> None:
    """Or two of them would wait for each other. SQLite has one writer."""
    source = of_folder(each, library)
    site.put("/a.txt", "apple")
    page = Sync(each, source.store, type="url", url=site.url("/a.txt"))
    each.drive()
    with locking() as held:
        write(library / "a.txt", "apricot")
        (library / "b/plum.md").unlink()
        source.again()
        site.put("/a.txt", "", status=404)
        page.again()
        each.delete(f"{source.path}/{source.id}")

    both = [tables for tables in held if {"source_item", "file"} <= set(tables)]
    assert each.db.url.startswith("sqlite") or len(both) > 3
    for tables in both:
        assert "vector_store" in tables[: tables.index("source_item")]


def test_a_source_that_is_deleted_while_it_syncs_leaves_nothing(inline: Works, library: Path) -> None:
    for step in ("parse", "index", "finish"):
        source = Sync(inline, inline.store(), type="folder", path=str(library))
        inline.drive(until=step)

        inline.delete(f"{source.path}/{source.id}")
        inline.drive()

        assert inline.rows(source.store) == []
        assert alive(inline) == set()


@pytest.mark.parametrize("end", ["deleted", "expired"])
def test_the_end_of_a_store_is_that_of_its_sources_and_their_files(each: Works, library: Path, end: str) -> None:
    source = of_folder(each, library, cron="* * * * *")
    if end == "deleted":
        each.delete(f"/vector_stores/{source.store}")
    else:
        with each.db.write() as session:
            session.execute(update(VectorStore).values(expires_at=1))
    leader = maintenance(each)
    leader._swept = float("-inf")

    leader.run()

    with each.db.read() as session:
        assert session.scalars(select(Source)).all() == []
        assert session.scalars(select(SourceItem)).all() == []
    assert alive(each) == set()


def test_events_tell_of_each_sync(each: Works, library: Path) -> None:
    types = ["vector_store.source.synced", "vector_store.source.failed"]
    each.ok("/webhook_endpoints", json={"name": "n", "url": "https://192.0.43.8/h", "event_types": types})
    source = of_folder(each, library)
    shutil.rmtree(library)
    source.again()

    with each.db.read() as session:
        told = session.scalars(select(Event).where(Event.type.in_(types)).order_by(Event.created_at)).all()
        deliveries = session.scalars(select(Delivery.event_id)).all()
    assert [event.type for event in told] == types
    assert {event.id for event in told} == set(deliveries)
    assert told[0].data == {"id": source.id, "vector_store_id": source.store}
    assert each.told(str(source.now()["file_batch_id"]))[-1][0] == "vector_store.file_batch.failed"


@pytest.mark.parametrize("goes", ["before", "while it fetches"])
def test_a_source_that_goes_while_its_sync_is_planned_brings_in_nothing(
    inline: Works, library: Path, monkeypatch: pytest.MonkeyPatch, goes: str
) -> None:
    """Whoever deletes it ends its job a moment later."""
    source = Sync(inline, inline.store(), type="folder", path=str(library))
    if goes == "before":
        with inline.db.write() as session:
            session.execute(update(Source).values(deleted_at=now()))
        monkeypatch.setattr(folder.FolderReader, "fetch", None)
    else:
        whole = folder.FolderReader.fetch

        def fetch(*given: Any) -> Any:
            monkeypatch.setattr(indexes, "lock", lambda *_: None)  # of its store
            return whole(*given)

        monkeypatch.setattr(folder.FolderReader, "fetch", fetch)

    inline.handle(inline.messages()[0])

    assert (inline.rows(source.store), source.items(), alive(inline)) == ([], {}, set())


def test_only_file_with_invalid_name_fails(inline: Works, library: Path) -> None:
    (library / os.fsdecode(b"odd\xff.txt")).write_text("odd")

    source = of_folder(inline, library)

    assert source.counts() == [4, 3, 0, 0, 0, 1]
    assert source.items()["odd\\udcff.txt"].error == {"code": "bad_name", "message": "Its name is not UTF-8."}
