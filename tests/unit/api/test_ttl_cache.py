"""Answers of SQL are cached for two seconds and refreshed beside requests; refusals are never cached."""

import asyncio
from types import SimpleNamespace

import pytest

from api.ttl_cache import Trusted
from jobs.errors import Unauthenticated

SECONDS = 2.0


class Sql:
    """Says how often it was asked, or refuses; and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.refuses, self.at = 0, False, 100.0
        monkeypatch.setattr("api.ttl_cache.time", SimpleNamespace(monotonic=lambda: self.at))

    def look(self) -> int:
        self.asked += 1
        if self.refuses:
            raise Unauthenticated
        return self.asked


@pytest.fixture
def sql(monkeypatch: pytest.MonkeyPatch) -> Sql:
    return Sql(monkeypatch)


async def beside() -> None:
    """Until what is asked beside has been answered."""
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})


async def test_fresh_answer_is_queried_once_per_key(sql: Sql) -> None:
    trusted = Trusted[int](SECONDS)

    assert [await trusted.get(key, sql.look) for key in (b"a", b"a", b"b", b"a")] == [1, 1, 2, 1]


async def test_aging_answer_is_refreshed_in_background(sql: Sql) -> None:
    trusted = Trusted[int](SECONDS)
    got = []
    for _ in range(4):
        got += [await trusted.get(b"a", sql.look), await trusted.get(b"a", sql.look)]
        await beside()
        sql.at += SECONDS * 0.6

    assert (got, sql.asked) == ([1, 1, 1, 1, 2, 2, 3, 3], 4)


async def test_expired_answer_is_queried_before_return(sql: Sql) -> None:
    trusted = Trusted[int](SECONDS)
    await trusted.get(b"a", sql.look)
    sql.at += SECONDS

    assert await trusted.get(b"a", sql.look) == 2


@pytest.mark.parametrize("later", [SECONDS * 0.6, SECONDS], ids=["found beside", "asked for first"])
async def test_revoked_answer_is_refused_and_refusals_are_not_cached(sql: Sql, later: float) -> None:
    trusted = Trusted[int](SECONDS)
    await trusted.get(b"a", sql.look)
    sql.refuses, sql.at = True, sql.at + later
    if later < SECONDS:
        assert await trusted.get(b"a", sql.look) == 1
        await beside()

    for _ in range(2):
        with pytest.raises(Unauthenticated):
            await trusted.get(b"a", sql.look)
    assert sql.asked == 3 + (later < SECONDS)


async def test_of_many_keys_the_oldest_are_forgotten(sql: Sql, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.ttl_cache._MAX_KEYS", 2)
    trusted = Trusted[int](SECONDS)

    assert [await trusted.get(key, sql.look) for key in (b"a", b"b", b"c", b"c", b"a")] == [1, 2, 3, 3, 4]
