"""The cache as a worker uses it: before the engine, afterwards, and never waited for."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import DatabaseBusy
from jobs.inference import cache
from jobs.inference.cache import NewEntry
from jobs.inference.tables import CacheEntry, CacheUse
from tests.unit.workers.middleware.caching.conftest import PATIENT
from workers.middleware import response_cache as module
from workers.middleware.response_cache import ResponseCache


@pytest.fixture
def make_response_cache(db: Database) -> Iterator[Callable[..., ResponseCache]]:
    with ExitStack() as stack:

        def make(max_bytes: int = 1 << 20, **timings: float) -> ResponseCache:
            response_cache = ResponseCache(db, max_bytes, replace(PATIENT, **timings))
            stack.callback(response_cache.close)
            return response_cache

        yield make


@pytest.fixture
def response_cache(make_response_cache: Callable[..., ResponseCache]) -> ResponseCache:
    return make_response_cache()


def key(n: int) -> bytes:
    return b"%032d" % n


def store(response_cache: ResponseCache, *numbers: int, size: int = 8, expires_at: float = 4e9) -> None:
    entries = [NewEntry(key(n), "p", 0, b"v" * size, 1, now(), expires_at) for n in numbers]
    response_cache.store(size * len(entries), lambda: entries)


async def there(response_cache: ResponseCache, *numbers: int) -> list[int]:
    found = await response_cache.find("p", [key(n) for n in numbers])
    assert found is not None
    return [n for n in numbers if key(n) in found.entries]


async def test_stored_entry_is_found_after_flush(response_cache: ResponseCache) -> None:
    store(response_cache, 1, 2)
    assert await there(response_cache, 1) == []

    response_cache.flush()

    assert await there(response_cache, 1, 2, 3) == [1, 2]


async def test_stored_entry_is_written_in_background(make_response_cache: Callable[..., ResponseCache]) -> None:
    response_cache = make_response_cache(cache_gather=0.01)
    store(response_cache, 1)

    until = time.monotonic() + 60
    while not await there(response_cache, 1):
        assert time.monotonic() < until
        await asyncio.sleep(0.01)


async def test_concurrent_lookups_share_database_reads(
    db: Database, response_cache: ResponseCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(response_cache, *range(100))
    response_cache.flush()
    reads = 0
    read = db.read

    def counted() -> AbstractContextManager[Session]:
        nonlocal reads
        reads += 1
        return read()

    monkeypatch.setattr(db, "read", counted)

    found = await asyncio.gather(*(there(response_cache, n) for n in range(200)))

    assert found == [[n] for n in range(100)] + [[]] * 100
    assert reads <= 2


async def test_a_crowd_is_served_in_parts_and_patience_is_for_each(
    make_response_cache: Callable[..., ResponseCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    response_cache = make_response_cache(cache_patience=0.8)
    store(response_cache, *range(600))
    response_cache.flush()
    find: Callable[..., Any] = cache.find
    parts: list[int] = []

    def slow(session: Session, keys: list[bytes], at: float) -> Any:
        parts.append(len(keys))
        threading.Event().wait(len(keys) / 500)
        return find(session, keys, at)

    monkeypatch.setattr(cache, "find", slow)
    monkeypatch.setattr(module, "MAX_KEYS", 100)

    found = await asyncio.gather(*(there(response_cache, *range(n, n + 50)) for n in range(0, 600, 50)))

    assert found == [list(range(n, n + 50)) for n in range(0, 600, 50)]
    assert parts == [100] * 6


async def test_request_may_have_more_keys_than_lookup_batch(
    response_cache: ResponseCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_KEYS", 3)
    store(response_cache, 1, 9)
    response_cache.flush()

    assert await asyncio.gather(there(response_cache, *range(8)), there(response_cache, 9)) == [[1], [9]]


async def test_unexpected_lookup_error_is_cache_miss(
    db: Database, response_cache: ResponseCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Any:
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(db, "read", broken)

    async with asyncio.timeout(5):
        assert await asyncio.gather(*(response_cache.find("p", [key(n)]) for n in range(3))) == [None] * 3


async def test_cancelled_lookup_does_not_affect_other_lookups(response_cache: ResponseCache) -> None:
    store(response_cache, 1)
    response_cache.flush()
    gone = asyncio.create_task(there(response_cache, 1))
    stays = asyncio.create_task(there(response_cache, 1))
    await asyncio.sleep(0)
    gone.cancel()

    assert await stays == [1]


async def test_the_epoch_is_the_project_s(db: Database, response_cache: ResponseCache) -> None:
    with db.write() as session:
        cache.clear(session, "q")

    ours, theirs = await asyncio.gather(response_cache.find("p", [key(1)]), response_cache.find("q", [key(1)]))

    assert ours
    assert theirs
    assert (ours.epoch, theirs.epoch) == (0, 1)


async def test_unavailable_database_is_cache_miss_and_pauses_lookups(
    db: Database, response_cache: ResponseCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def away() -> Any:
        nonlocal asked
        asked += 1
        raise DatabaseBusy

    with monkeypatch.context() as patch:
        patch.setattr(db, "read", away)
        assert await asyncio.gather(*(response_cache.find("p", [key(n)]) for n in range(3))) == [None] * 3
        assert await response_cache.find("p", [key(1)]) is None
    assert asked == 1

    monkeypatch.setattr(module.time, "monotonic", lambda: time.perf_counter() + 1e6)
    assert await there(response_cache, 1) == []


async def test_a_database_that_is_slow_is_not_waited_for(
    db: Database, make_response_cache: Callable[..., ResponseCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    response_cache = make_response_cache(cache_patience=0.05)
    release = threading.Event()
    read = db.read

    @contextmanager
    def slow() -> Iterator[Session]:
        release.wait(200)
        with read() as session:
            yield session

    monkeypatch.setattr(db, "read", slow)

    assert await response_cache.find("p", [key(1)]) is None

    release.set()


async def test_unwritable_entries_are_dropped(
    db: Database, response_cache: ResponseCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def busy() -> Any:
        raise DatabaseBusy

    store(response_cache, 1)
    with monkeypatch.context() as patch:
        patch.setattr(db, "write", busy)
        response_cache.flush()
    response_cache.flush()
    store(response_cache, 2)
    response_cache.flush()

    assert await there(response_cache, 1, 2) == [2]
    assert "cache_failed" in caplog.messages


async def test_writer_survives_unexpected_error(
    make_response_cache: Callable[..., ResponseCache], caplog: pytest.LogCaptureFixture
) -> None:
    response_cache = make_response_cache(cache_gather=0.01)
    response_cache.store(8, lambda: [NewEntry(key(1), "p", 0, b"v", 1 << 63, now(), 4e9)])
    until = time.monotonic() + 60
    while "cache_failed" not in caplog.messages:
        assert time.monotonic() < until
        await asyncio.sleep(0.01)

    store(response_cache, 2)

    while not await there(response_cache, 2):
        assert time.monotonic() < until
        await asyncio.sleep(0.01)


async def test_more_than_a_writer_can_hold_is_dropped(
    response_cache: ResponseCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PENDING_BYTES", 20)
    for n in range(4):
        store(response_cache, n)
    response_cache.flush()

    assert await there(response_cache, 0, 1, 2, 3) == [0, 1]


@pytest.mark.parametrize(("count", "size", "most"), [(250, 8, 100), (5, 3 << 20, 1)])
def test_transaction_is_limited_in_rows_and_bytes(
    make_response_cache: Callable[..., ResponseCache], monkeypatch: pytest.MonkeyPatch, count: int, size: int, most: int
) -> None:
    put: Callable[..., None] = cache.put
    parts: list[int] = []

    def counted(session: Session, entries: list[NewEntry]) -> None:
        parts.append(len(entries))
        put(session, entries)

    monkeypatch.setattr(cache, "put", counted)
    response_cache = make_response_cache(1 << 30)
    store(response_cache, *range(count), size=size)

    response_cache.flush()

    assert sum(parts) == count
    assert max(parts) == most


async def test_full_cache_stays_within_size_limit(
    db: Database, make_response_cache: Callable[..., ResponseCache]
) -> None:
    response_cache = make_response_cache(1000)
    for start in range(0, 1000, 50):
        store(response_cache, *range(start, start + 50), size=10, expires_at=4e9 + start)
        response_cache.flush()

    with db.read() as session:
        assert cache.size(session) <= 1000
        assert session.scalar(select(func.count()).select_from(CacheEntry))
    assert await there(response_cache, 0, 999) == [999]


def test_entries_are_written_before_eviction(
    make_response_cache: Callable[..., ResponseCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`put` may wait for others, who must not wait for what `evict` has locked."""
    order: list[str] = []
    for name in ("put", "evict"):
        work: Callable[..., Any] = getattr(cache, name)
        monkeypatch.setattr(cache, name, lambda *args, name=name, work=work: (order.append(name), work(*args))[1])
    response_cache = make_response_cache(10)

    for n in (1, 2):
        store(response_cache, n)
        response_cache.flush()

    assert order == ["put", "put", "evict"]


def test_used_entries_expire_later_and_uses_are_counted(db: Database, response_cache: ResponseCache) -> None:
    store(response_cache, 1, 2)
    response_cache.flush()
    response_cache.prolong([key(1)], 5e9)
    response_cache.prolong([key(2)], 4.5e9)
    response_cache.count("embeddings", 1, 2)
    response_cache.count("embeddings", 1, 0)

    response_cache.flush()

    with db.read() as session:
        assert session.scalars(select(CacheEntry.expires_at)).all() == [5e9, 5e9]
        assert session.execute(select(CacheUse.kind, CacheUse.hits, CacheUse.misses)).all() == [("embeddings", 2, 2)]


async def test_pending_entries_are_written_on_close(
    response_cache: ResponseCache, make_response_cache: Callable[..., ResponseCache]
) -> None:
    store(response_cache, 1)

    response_cache.close()

    assert await there(make_response_cache(), 1) == [1]
