"""Usage of interactive requests is written in sums, kept while it cannot be, and bounded in memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.db.engine import Database
from jobs.errors import DatabaseBusy
from jobs.security.tables import Idempotency
from jobs.usage.minutes import OTHER, UsageKey
from jobs.usage.tables import UsageChange
from workers.engines.port import Answer, Usage, refusal
from workers.runtime import usage_counter
from workers.runtime.usage_counter import UsageCounter

KEY = UsageKey("p", "k", "m", "/v1/chat/completions")


def changes_in(db: Database) -> list[list[object]]:
    with db.read() as session:
        return [row[1:] for change in session.scalars(select(UsageChange.rows)) for row in change]


@pytest.fixture
def counter(sqlite: Database, monkeypatch: pytest.MonkeyPatch) -> UsageCounter:
    monkeypatch.setattr(usage_counter, "FLUSH_SECONDS", 3600.0)
    return UsageCounter(sqlite)


def test_answers_are_added_up_and_written_at_the_end(sqlite: Database, counter: UsageCounter) -> None:
    counter.add_answer(KEY, Answer(200, b"", Usage(10, 4, 3, 1)))
    counter.add_answer(KEY, Answer(200, b"", Usage(1, 0, 1)))
    counter.add_answer(KEY, Answer(200, b"", Usage(7, 7, 2), is_cached=True))
    counter.add_answer(KEY, refusal(400, "no"))
    counter.add_answer(KEY, Answer(502, b"", Usage(5)))
    assert changes_in(sqlite) == []

    counter.close()

    assert sorted(changes_in(sqlite), key=str) == sorted(
        [
            ["p", "k", "m", KEY.endpoint, False, "default", "", 3, 16, 4, 4, 1, 0.0],
            ["p", "k", "m", KEY.endpoint, False, "default", "cache", 1, 7, 7, 2, 0, 0.0],
        ],
        key=str,
    )


def test_sums_that_cannot_be_written_are_written_later(
    sqlite: Database, counter: UsageCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter.add(KEY, Usage(10))
    with monkeypatch.context() as patched:
        patched.setattr(Database, "write", _unavailable)
        counter.flush()
    counter.add(KEY, Usage(1))
    counter.close()

    assert [row[8] for row in changes_in(sqlite)] == [10, 1]


def _unavailable(_: Database) -> None:
    raise DatabaseBusy


def test_write_with_a_lost_answer_counts_a_single_time(
    sqlite: Database, counter: UsageCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Database.write

    @contextmanager
    def write_and_lose(db: Database) -> Iterator[Session]:
        with write(db) as session:
            yield session
        raise DatabaseBusy

    for tokens in (10, 20):
        counter.add(KEY, Usage(tokens))
        with monkeypatch.context() as patched:
            patched.setattr(Database, "write", write_and_lose)
            counter.flush()
    counter.add(KEY, Usage(1))
    counter.close()

    assert [row[8] for row in changes_in(sqlite)] == [10, 21]
    with sqlite.read() as session:
        assert len(session.scalars(select(Idempotency)).all()) == 1


def test_models_beyond_a_bound_are_counted_together(
    sqlite: Database, counter: UsageCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_counter, "MAX_KEYS", 2)
    for n in range(5):
        counter.add(KEY._replace(model=f"m{n}"), Usage(1))
    counter.close()

    assert {row[2]: row[7] for row in changes_in(sqlite)} == {"m0": 1, "m1": 1, OTHER: 3}
