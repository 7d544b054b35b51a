"""Lines and tokens over time: buckets in order, also empty ones, of one project."""

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import event, update

from jobs.clock import now
from jobs.db.engine import Database
from jobs.ledger import throughput
from jobs.ledger.tables import Segment
from tests.support import worker_steps
from tests.support.web import make_key
from tests.unit.api.batches.test_batches import create
from tests.unit.api.conftest import client_of


def get(client: TestClient, **query: Any) -> Any:
    return client.get("/v1/throughput", params=query)


def answered(app: FastAPI, client: TestClient, age: float, lines: int, model: str = "m") -> None:
    """Have a batch of which so many lines were answered `age` seconds ago."""
    db, storage = app.state.services.db, app.state.services.storage
    job_id = create(client)["id"]
    worker_steps.plan(db, job_id, lines, model)
    worker_steps.answer(db, storage, worker_steps.take(db, job_id), range(lines), last=True)
    with db.write() as session:
        session.execute(update(Segment).where(Segment.job_id == job_id).values(created_at=now() - age))


def test_lines_and_tokens_are_summed_in_the_buckets_of_their_times(either: FastAPI) -> None:
    client, stranger = client_of(either, make_key(either)), client_of(either, make_key(either, "another"))
    answered(either, client, 0, 2)
    answered(either, client, 0, 3)
    answered(either, client, 7200, 4, model="other")
    answered(either, client, 200_000, 5)
    answered(either, stranger, 0, 6)

    series = get(client, step=3600).json()
    of_model = get(client, step=3600, model="other").json()

    buckets = series["data"]
    assert (series["object"], series["step"], len(buckets)) == ("throughput", 3600, 24)
    assert sum(bucket["lines"] for bucket in buckets) == 9
    assert [bucket["lines"] for bucket in buckets if bucket["lines"]] in ([4, 5], [4, 2, 3])
    assert sum(bucket["input_tokens"] for bucket in buckets) == 27
    assert sum(bucket["output_tokens"] for bucket in buckets) == 18
    assert [bucket["start_time"] for bucket in buckets[1:]] == [bucket["end_time"] for bucket in buckets[:-1]]
    assert buckets[-1]["start_time"] <= now() < buckets[-1]["end_time"] + 3600
    assert sum(bucket["lines"] for bucket in of_model["data"]) == 4


def test_a_segment_counts_in_the_bucket_that_its_time_is_in(either: FastAPI) -> None:
    client = client_of(either, make_key(either))
    answered(either, client, 0, 2)
    edges = [bucket["start_time"] for bucket in get(client, step=3600).json()["data"]]
    for offset, bucket in ((0.0, 3), (3599.9, 3), (3600.0, 4)):
        with either.state.services.db.write() as session:
            session.execute(update(Segment).values(created_at=edges[3] + offset))

        lines = [bucket["lines"] for bucket in get(client, step=3600).json()["data"]]

        assert lines.index(2) in (bucket, bucket - 1), "an hour may begin meanwhile"


def test_a_week_is_shown_in_buckets_of_hours(app: FastAPI, client: TestClient) -> None:
    answered(app, client, 6 * 86_400, 4)
    answered(app, client, 8 * 86_400, 5)

    buckets = get(client, seconds=604_800, step=10_800).json()["data"]

    assert len(buckets) == 56
    assert sum(bucket["lines"] for bucket in buckets) == 4


def test_failed_lines_are_counted_apart(app: FastAPI, client: TestClient) -> None:
    answered(app, client, 0, 3)
    with app.state.services.db.write() as session:
        session.execute(update(Segment).values(failed=1))

    buckets = get(client, seconds=3600, step=60).json()["data"]

    assert len(buckets) == 60
    assert (sum(bucket["lines"] for bucket in buckets), sum(bucket["failed"] for bucket in buckets)) == (3, 1)


@pytest.mark.parametrize("model", [None, "m"])
def test_only_the_segments_of_the_window_are_read(sqlite: Database, model: str | None) -> None:
    queries: list[tuple[str, Any]] = []

    def note(*execution: Any) -> None:
        queries.append((execution[2], execution[3]))

    with sqlite.read() as session:
        event.listen(sqlite.engine, "before_cursor_execute", note)
        throughput.throughput(session, "p", throughput.ThroughputWindow(0, 300, 288), sqlite=True, model=model)
        [(query, values)] = [query for query in queries if "FROM segment" in query[0]]
        plan = [row[3] for row in session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {query}", values)]

    assert plan[0] == "SEARCH segment USING INDEX ix_segment_created (created_at>? AND created_at<?)"
    assert plan[1] == "SEARCH job USING INDEX sqlite_autoindex_job_1 (id=?)"


@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ({"seconds": "299"}, "seconds", "integer_below_min_value"),
        ({"seconds": "604801"}, "seconds", "integer_above_max_value"),
        ({"step": "59"}, "step", "integer_below_min_value"),
        ({"step": "10801"}, "step", "integer_above_max_value"),
        ({"step": "60"}, "step", "invalid_value"),
        ({"step": "x"}, "step", "invalid_type"),
        ({"model": "x" * 256}, "model", "string_above_max_length"),
    ],
)
def test_bad_queries_are_refused(client: TestClient, query: dict[str, str], param: str, code: str) -> None:
    refused = get(client, **query)

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert refused.json()["error"]["code"] == code
