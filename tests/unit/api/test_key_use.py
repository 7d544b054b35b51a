"""The last use of keys is written beside the requests, at most once a minute and key."""

import asyncio

import pytest

from api.key_use import KeyUse
from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import DatabaseBusy
from jobs.security import keys
from jobs.security.tables import ApiKey


def last_use(db: Database, key_id: str) -> float | None:
    with db.read() as session:
        return session.get_one(ApiKey, key_id).last_used_at


@pytest.fixture
def key_id(db: Database) -> str:
    with db.write() as session:
        return keys.id_of(keys.create_key(session, "reports"))


async def test_use_is_written_once_a_minute_by_all_processes(db: Database, key_id: str) -> None:
    first, second = KeyUse(db), KeyUse(db)
    first.note(key_id)
    await first.close()
    written = last_use(db, key_id)
    for use in (first, second):
        use.note(key_id)
        await use.close()

    assert written == pytest.approx(now(), abs=30)
    assert last_use(db, key_id) == written


async def test_use_after_a_minute_is_written(db: Database, key_id: str) -> None:
    with db.write() as session:
        session.get_one(ApiKey, key_id).last_used_at = now() - 61
    use = KeyUse(db)
    use.note(key_id)
    await use.close()

    assert last_use(db, key_id) == pytest.approx(now(), abs=30)


async def test_busy_database_fails_no_request(sqlite: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise DatabaseBusy

    monkeypatch.setattr(sqlite, "write", refuse)
    use = KeyUse(sqlite)
    use.note("nothing0")
    await use.close()

    assert use._writing is not None
    assert use._writing.exception() is None


def test_write_that_ended_with_its_event_loop_delays_no_shutdown(sqlite: Database) -> None:
    use = KeyUse(sqlite)

    async def note() -> None:
        use.note("nothing0")

    asyncio.run(note())

    asyncio.run(use.close())
    assert use._writing is not None
    assert use._writing.cancelled()
