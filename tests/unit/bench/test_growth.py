"""The data of the benchmark of growth: as many whole jobs as are asked for, which every list shows."""

from pathlib import Path

from fastapi.testclient import TestClient
from sqlalchemy import func, select

from bench import growth
from jobs.ledger import totals
from jobs.ledger.tables import Audit, AuditHead, Job, Shard
from jobs.webhooks.tables import Event
from tests.support.web import make_key, running_app


def test_each_job_has_all_its_rows_is_listed_and_counts(tmp_path: Path, sqlite_url: str) -> None:
    with running_app(tmp_path, sqlite_url) as app:
        db = app.state.services.db
        client = TestClient(app, headers={"Authorization": f"Bearer {make_key(app)}"}, client=("127.0.0.1", 1))
        job_id = growth.run_one(app, client)
        sizes = growth.copy_job(db, job_id, 30)
        growth.count_all(db)
        for measure in growth.requests(app, client, job_id).values():
            measure()
        listed = client.get("/v1/jobs?limit=100").json()["data"]
        with db.read() as session:
            rows = {table: session.scalar(select(func.count()).select_from(table)) for table in (Job, Event, Shard)}
            ended = totals.sums_of(session, totals.JOBS)
            counted = session.scalar(select(AuditHead.counted))
            assert counted == session.scalar(select(func.max(Audit.seal)))

    assert set(sizes.bytes) == {"job", "outcome", "audit", "event", "shard", "segment"}
    assert rows == {Job: 30, Event: 30 * 4, Shard: 30}
    assert len(listed) == ended.total() == 30
