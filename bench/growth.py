"""Measure what a database with many ended jobs costs: bytes of a job, pages of lists, a scrape of the metrics.

    python -m bench growth [--jobs 10000] [--database postgresql]

A batch of one line goes through the ledger, without an engine. Then its rows are copied until there are `--jobs` such
jobs; rows of the audit log are sealed but not chained. Ten million jobs take 100 GB and hours. The API answers in this
process: a time is that of the request without a network, the median of five.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI
from fastapi.testclient import TestClient
from rich.console import Console
from sqlalchemy import func, select, text, update

from api.health.metrics import Exposition
from bench.load import columns_of, insert_many
from jobs.bootstrap import migrate
from jobs.db.engine import Database
from jobs.ids import new_id
from jobs.ledger import audit, feed, totals
from jobs.ledger.tables import Audit, AuditHead, Job, Outcome, Segment, Shard
from jobs.webhooks.tables import Event
from tests.support import worker_steps
from tests.support.services import chosen_database
from tests.support.web import make_key, running_app
from workers.dispatcher.retention import Retention

_TIMES: Final = 5
_UPDATED: Final = 200  # jobs whose updates are looked at
_STATISTICS_SECONDS: Final = 2  # PostgreSQL adds up what a session did when it is idle, at most once a second
_MODELS: Final = 5
_FAILED: Final = 50  # one of so many jobs
_OF_FILE: Final = 100  # one of so many jobs has the file of the first one, as batches of a schedule have
#: The tables of a job, with the column that names it.
_TABLES: Final = (
    (Job, "id"),
    (Outcome, "job_id"),
    (Audit, "target"),
    (Event, "subject_id"),
    (Shard, "job_id"),
    (Segment, "job_id"),
)
_COUNTED_AT_ONCE: Final = 5_000


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of one job in each table, indexes included."""

    bytes: dict[str, float]

    def shown(self) -> str:
        each = ", ".join(f"{name} {size:,.0f}" for name, size in self.bytes.items())
        return f"{sum(self.bytes.values()):,.0f}: {each}"


def main() -> None:
    options = _options()
    console = Console(width=140, highlight=False)
    with tempfile.TemporaryDirectory() as name, chosen_database(options.database, durable=True) as given:
        folder = Path(name)
        url = given or f"sqlite:///{folder / 'growth.db'}"
        migrate(url)
        with running_app(folder, url) as app:
            client = TestClient(app, headers={"Authorization": f"Bearer {make_key(app)}"}, client=("127.0.0.1", 1))
            db = app.state.services.db
            job_id = run_one(app, client)
            if not db.sqlite:
                for _ in range(_UPDATED):
                    run_one(app, client)
                console.print(f"HOT      {hot_updates(db)} of the updates of rows")
            sizes = copy_job(db, job_id, options.jobs)
            console.print(f"bytes    {sizes.shown()} of a job, of {options.jobs:,}")
            began, rows = time.monotonic(), count_all(db)
            console.print(
                f"totals   {rows / (time.monotonic() - began):,.0f} rows of the audit log are counted a second"
            )
            for what, ask in requests(app, client, job_id).items():
                console.print(f"{what:<32} {_median(ask) * 1000:8.1f} ms")


def run_one(app: FastAPI, client: TestClient) -> str:
    """Run a batch of one line, and return its id."""
    services = app.state.services
    line = b'{"custom_id": "c0", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": "x"}}\n'
    file = client.post("/v1/files", files={"file": ("f.jsonl", line)}, data={"purpose": "batch"}).json()
    batch = {"input_file_id": file["id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
    job_id: str = client.post("/v1/batches", json={**batch, "metadata": {"customer": "c-1"}}).json()["id"]
    worker_steps.run(services.db, services.storage, job_id, 1)
    with services.db.write() as session:
        audit.seal(session)
        feed.number(session)
    return job_id


def hot_updates(db: Database) -> str:
    """Return each table's share of heap-only updates, which change no index, as PostgreSQL has counted them."""
    counts = text("SELECT relname, n_tup_hot_upd, n_tup_upd FROM pg_stat_user_tables WHERE n_tup_upd > 100 ORDER BY 1")
    with db.read() as session:
        session.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": _STATISTICS_SECONDS})
        return ", ".join(f"{name} {hot / updates:.0%}" for name, hot, updates in session.execute(counts))


def copy_job(db: Database, job_id: str, count: int) -> Sizes:
    """Copy all rows of a job until there are `count` such jobs, the first ones the oldest; return what each takes."""
    with db.read() as session:
        templates = {
            table: [columns_of(row) for row in session.scalars(select(table).where(getattr(table, name) == job_id))]
            for table, name in _TABLES
        }
        seal = session.scalar(select(func.max(Audit.seal))) or 0
        position = session.scalar(select(func.max(Event.position))) or 0
    sizes = {}
    for table, name in _TABLES:
        before = _bytes(db)
        insert_many(db, table, _copies(table, templates[table], name, count - 1, seal, position))
        sizes[str(table.__tablename__)] = (_bytes(db) - before) / max(1, count - 1)
    with db.write() as session:
        last = session.scalar(select(func.max(Audit.seal)))
        session.execute(update(AuditHead).where(AuditHead.id == audit.HEAD).values(seal=last))
    return Sizes(sizes)


def _copies(
    table: Any, templates: list[dict[str, Any]], name: str, count: int, seal: int, position: int
) -> Iterator[dict[str, Any]]:
    for n in range(count):
        job_id = (
            f"batch_{blake2b(b'%d' % n, digest_size=12).hexdigest()}"  # as random as others, and the same each time
        )
        for row in templates:
            columns = {**row, name: job_id}
            if table is Job:
                state = {"state": "failed", "failed_at": row["completed_at"]} if n % _FAILED == 0 else {}
                columns |= {**state, "model": f"model-{n % _MODELS}", "created_at": row["created_at"] - count + n}
                if n % _OF_FILE:
                    columns["input_file_id"] = f"file-{n}"
            elif table is Audit:
                seal += 1
                del columns["id"]
                columns["seal"] = seal
            elif table is Event:
                position += 1
                columns |= {"id": new_id("evt_"), "position": position}
            yield columns


def count_all(db: Database) -> int:
    """Add all jobs to the totals, as the leading dispatcher does; return the number of rows of the audit log."""
    rows = 0
    while True:
        with db.write() as session:
            counted = totals.count(session, _COUNTED_AT_ONCE)
        if not counted:
            return rows
        rows += counted


def requests(app: FastAPI, client: TestClient, job_id: str) -> dict[str, Callable[[], object]]:
    """Return what is measured, each by its name."""
    services = app.state.services
    with services.db.read() as session:
        middle = session.scalars(select(Job.id).order_by(Job.created_at).offset(_jobs(services.db) // 2).limit(1)).one()
        file_id = session.get_one(Job, job_id).input_file_id
    pages = {
        "jobs": "/v1/jobs?limit=100",
        "jobs, in the middle": f"/v1/jobs?limit=100&after={middle}",
        "jobs, failed": "/v1/jobs?limit=100&state=failed",
        "jobs of a model": "/v1/jobs?limit=100&model=model-1",
        "jobs of a kind": "/v1/jobs?limit=100&kind=embedding",
        "jobs of a file": f"/v1/jobs?limit=100&file_id={file_id}",
        "jobs of a key": "/v1/jobs?limit=100&idempotency_key=none",
        "jobs of a schedule": "/v1/jobs?limit=100&schedule_id=none",
        "batches": "/v1/batches?limit=100",
        "audit log": "/v1/audit_logs?limit=100",
        "audit log of a job": f"/v1/audit_logs?limit=100&target={job_id}",
        "events": "/v1/events?limit=100",
        "files": "/v1/files?limit=100",
        "one job": f"/v1/jobs/{job_id}",
    }
    measured: dict[str, Callable[[], object]] = {what: partial(_get, client, path) for what, path in pages.items()}
    exposition = Exposition(services.config, services.db, services.models, lambda: False, 0.0)
    measured["a scrape"] = exposition.text
    retention = Retention(services.config, services.db, services.storage)
    measured["a pass of retention"] = retention.run
    return measured


def _get(client: TestClient, path: str) -> None:
    client.get(path).raise_for_status()


def _jobs(db: Database) -> int:
    with db.read() as session:
        return session.scalar(select(func.count()).select_from(Job)) or 0


def _median(ask: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_TIMES):
        began = time.monotonic()
        ask()
        seconds.append(time.monotonic() - began)
    return statistics.median(seconds)


def _bytes(db: Database) -> int:
    size = "SELECT pg_database_size(current_database())"
    if db.sqlite:
        size = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
    with db.read() as session:
        return int(session.scalar(text(size)) or 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench growth", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--jobs", type=int, default=10_000, help="ended jobs in the database")
    parser.add_argument("--database", default="", help="`postgresql` for a new server, or the URL of an empty database")
    return parser.parse_args()


if __name__ == "__main__":
    main()
