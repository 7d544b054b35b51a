"""Reports read what is added up and what is not yet, from one range of one index."""

from collections.abc import Iterable
from typing import Any

import pytest
from sqlalchemy import insert, text

from jobs.db.engine import Database
from jobs.errors import Unavailable
from jobs.security.tables import ApiKey
from jobs.usage import minutes, reports
from jobs.usage.minutes import Amounts, UsageKey
from jobs.usage.reports import USER, UsageQuery
from jobs.usage.tables import StoredBytesDay, UsageMinute
from tests.support.query_plans import explained

DAY = 86_400
START = 20_000 * DAY
CHAT = "/v1/chat/completions"


def record(db: Database, *works: tuple[UsageKey, int, int]) -> None:
    with db.write() as session:
        for key, at, tokens in works:
            minutes.record(session, key, Amounts(1, tokens), at)


def fold(db: Database) -> None:
    with db.write() as session:
        minutes.fold(session, lambda _: None)


def report(db: Database, query: UsageQuery) -> dict[tuple[Any, ...], int]:
    with db.snapshot() as session:
        cells = reports.report(session, query, lambda _: None).cells
    return {(cell.bucket, *cell.values): total.amounts.input_tokens for cell, total in cells.items()}


def make_keys(db: Database, **owners: str) -> None:
    with db.write() as session:
        for key, owner in owners.items():
            session.add(ApiKey(id=key, project_id="p", digest="", owner_id=owner, created_at=1.0))


@pytest.mark.parametrize("is_folded", [False, True])
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {(START,): 7, (START + DAY,): 8}),
        ({"step": 0}, {(START,): 15}),
        ({"step": 3600}, {(START,): 3, (START + 3600,): 4, (START + DAY,): 8}),
        ({"group_by": ("key_id",)}, {(START, "a"): 3, (START, "b"): 4, (START + DAY, None): 8}),
        ({"group_by": (USER,)}, {(START, "ann"): 7, (START + DAY, None): 8}),
        ({"filters": {USER: ["ann"]}}, {(START,): 7}),
        ({"filters": {USER: ["nobody"]}}, {}),
        ({"filters": {"key_id": ["a"]}}, {(START,): 3}),
        ({"filters": {"project_id": ["p", "q"], "batch": [True]}}, {(START,): 4}),
        ({"endpoints": ("/v1/embeddings",)}, {(START + DAY,): 8}),
        ({"end": START + DAY}, {(START,): 7}),
        ({"start": START + DAY}, {(START + DAY,): 8}),
    ],
)
def test_report_sums_the_usage_that_a_query_selects(
    db: Database, is_folded: bool, changes: dict[str, Any], expected: dict[tuple[Any, ...], int]
) -> None:
    make_keys(db, a="ann", b="ann", c="carl")
    record(
        db,
        (UsageKey("p", "a", "", CHAT), START + 60, 3),
        (UsageKey("p", "b", "", CHAT, batch=True), START + 3600, 4),
        (UsageKey("q", "", "", "/v1/embeddings"), START + DAY, 8),
    )
    if is_folded:
        fold(db)

    query = {"start": START, "end": START + 2 * DAY, "step": DAY} | changes

    assert {key: tokens for key, tokens in report(db, UsageQuery(**query)).items() if tokens} == expected


@pytest.mark.dialects
@pytest.mark.parametrize("changes", [{"group_by": (USER,)}, {"filters": {USER: ["ann"]}}])
def test_user_may_have_more_keys_than_a_statement_takes_parameters(db: Database, changes: dict[str, Any]) -> None:
    with db.write() as session:
        numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 70000)"
        columns = "id, project_id, digest, owner_id, created_at"
        session.execute(text(f"INSERT INTO api_key ({columns}) {numbers} SELECT 'k' || i, 'p', '', 'ann', 1.0 FROM n"))
    record(db, (UsageKey("p", "k1", "", CHAT), START, 1), (UsageKey("p", "k70000", "", CHAT), START, 2))
    fold(db)
    record(db, (UsageKey("p", "k1", "", CHAT), START, 4), (UsageKey("p", "k70000", "", CHAT), START, 8))

    assert list(report(db, UsageQuery(START, START + DAY, DAY, **changes)).values()) == [15]


def test_report_with_too_many_results_ends_before_the_bucket_that_is_cut(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "MAX_RESULTS", 3)
    record(db, *((UsageKey("p", f"k{n}", "", CHAT), START + n // 2 * DAY, 1) for n in range(6)))
    fold(db)

    with db.snapshot() as session:
        found = reports.report(session, UsageQuery(START, START + 9 * DAY, DAY, group_by=("key_id",)), lambda _: None)

    assert (found.end, {cell.bucket for cell in found.cells}) == (START + DAY, {START})


def test_report_is_refused_while_more_changes_wait_than_it_reads(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "MAX_CHANGES", 2)
    for _ in range(2):
        record(db, (UsageKey("p", "", "", CHAT), START, 1))
    query = UsageQuery(START, START + DAY, DAY)
    assert report(db, query) == {(START,): 2}
    record(db, (UsageKey("p", "", "", CHAT), START, 1))

    with pytest.raises(Unavailable):
        report(db, query)
    fold(db)

    assert report(db, query) == {(START,): 3}


def test_bytes_with_too_many_results_end_before_the_day_that_is_cut(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "MAX_RESULTS", 3)
    with db.write() as session:
        session.add_all(StoredBytesDay(day=START + n // 2 * DAY, project_id=f"p{n}", bytes=n) for n in range(6))

    with db.snapshot() as session:
        cells, end = reports.bytes_in_stores(session, UsageQuery(START, START + 9 * DAY, DAY, group_by=("project_id",)))

    assert (end, cells) == (START + DAY, {(START, ("p0",)): 0, (START, ("p1",)): 1})


def fill(db: Database, count: int) -> int:
    """Add rows of 50 projects, 10 keys and 2 models; return the minute behind the last."""
    per_minute = 100

    def rows(first: int) -> Iterable[dict[str, Any]]:
        for n in range(first, min(first + 10_000, count)):
            key = {"project_id": f"p{n % 50}", "key_id": f"k{n % 10}", "model": f"m{n % per_minute // 50}"}
            sums = {"requests": 1, "input_tokens": 3, "cached_tokens": 0, "output_tokens": 1, "reasoning_tokens": 0}
            yield {
                "minute": START + n // per_minute * 60, **key, "endpoint": CHAT, "batch": False, "tier": "default",
                "subject": "", **sums, "device_seconds": 0.0, "cost": 1,
            }  # fmt: skip

    for first in range(0, count, 10_000):
        with db.write() as session:
            session.execute(insert(UsageMinute), list(rows(first)))
    with db.write() as session:
        session.execute(text("ANALYZE"))
    return START + count // per_minute * 60


QUERIES = {
    "minutes": {"step": 60, "group_by": ("project_id", USER, "key_id", "model", "batch", "tier")},
    "hours": {"step": 3600, "group_by": ("model",)},
    "one project": {"step": 3600, "filters": {"project_id": ["p7"]}},
    "one key": {"step": 60, "filters": {"key_id": ["k3"]}},
    "users": {"step": 3600, "filters": {USER: ["ann"]}},
    "costs": {"step": DAY, "group_by": ("project_id", "model")},
}


def check_plans(db: Database, count: int) -> None:
    """Check that each query reads a range of an index of which it takes a twentieth."""
    make_keys(db, k3="ann")
    end = fill(db, count)
    length = max(60, (end - START) // 20 // 60 * 60)
    for name, changes in QUERIES.items():
        query = UsageQuery(**{"start": end - length, "end": end, "step": 60, "endpoints": (CHAT,), **changes})
        steps = _plan(db, query)
        reads = [step for step in steps if "usage_minute" in step]
        assert len(reads) == 1, (name, steps)
        assert any(word in reads[0] for word in ("minute>?", "Index Cond")), (name, steps)
        assert report(db, query), name


def _plan(db: Database, query: UsageQuery) -> list[str]:
    if db.sqlite:
        with explained(db) as steps:
            report(db, query)
        return steps
    with db.read() as session:
        statement = reports.statement_of(query)
        compiled = statement.compile(session.get_bind(), compile_kwargs={"literal_binds": True})
        plan = [row[0] for row in session.connection().exec_driver_sql(f"EXPLAIN {compiled}")]
    return ["\n".join(plan)] if "Seq Scan on usage_minute" not in "\n".join(plan) else []


def test_each_query_reads_a_single_range_of_an_index(db: Database) -> None:
    check_plans(db, 20_000)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_each_query_of_a_million_rows_reads_a_single_range(db: Database) -> None:
    check_plans(db, 1_000_000)
