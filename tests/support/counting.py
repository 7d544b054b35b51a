"""The workers' half of the kind `counting`, and a deployment that knows it: what its shared places show of a job.

The row must be registered before this module is imported: `jobs.known_kinds` reads the table once.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

from fastapi.testclient import TestClient
from sqlalchemy.orm import Session

from api.openapi import document
from jobs.db.engine import Database
from jobs.ledger import ledger, shards
from jobs.ledger.ledger import JobClaim
from jobs.ledger.shards import ShardClaim, Tally
from jobs.ledger.tables import Shard
from jobs.queues import Queue
from jobs.security import keys
from jobs.usage import stored_bytes
from tests.support import counting_kind
from tests.support.counting_kind import NAME, Counting
from tests.support.inline_deployment import running
from tests.support.web import make_key, running_app
from workers.kinds import HANDLERS, Handler
from workers.runtime.attempts import ShardRun
from workers.runtime.context import Context
from workers.runtime.engine_host import EngineHost
from workers.runtime.heartbeat import ClaimHandle


def _plan(context: Context, claim: JobClaim, _handle: ClaimHandle) -> None:
    lines = Counting.model_validate(claim.job.payload).to
    shard = Shard(job_id=claim.job.id, n=0, first_line=0, lines=lines, offset=0, length=0)

    def write(session: Session) -> None:
        shards.cut(session, claim, Queue.GENERATE, [shard])
        ledger.begin_running(session, claim, total=lines, model=None, queue=Queue.GENERATE)

    context.db.retrying(write)


class Run(ShardRun):
    """Counts in one segment."""

    def __init__(self, context: Context, host: EngineHost, claim: ShardClaim, handle: ClaimHandle) -> None:
        super().__init__(context, claim, handle)

    def run_lines(self) -> None:
        tally = Tally(covered=(1 << self.claim.lines) - 1, good=(1 << self.claim.lines) - 1)

        def write(session: Session) -> None:
            job = shards.commit(session, self.claim, 0, "", 0, tally, last=True)
            ledger.advance_job(session, self.claim.job.id, actor="counter", locked=job)

        self.context.db.retrying(write)
        self.closed = True


def _finish(context: Context, claim: JobClaim, _handle: ClaimHandle) -> None:
    def write(session: Session) -> None:
        ledger.close(session, claim, ledger.sums(session, claim.job.id), [])

    context.db.retrying(write)


HANDLER: Final = Handler(_plan, {Queue.GENERATE: Run}, _finish)


def show(folder: Path, url: str) -> dict[str, Any]:
    """Run a job of the kind, retry it through the API, and return what the shared places show."""
    HANDLERS[NAME] = HANDLER
    with running(Database(url), folder) as inline, running_app(folder, url) as app:
        client = TestClient(app, headers={"Authorization": f"Bearer {make_key(app)}"})
        hook = {"name": "n", "url": "https://192.0.43.8/hook", "event_types": ["counting.counted"]}
        endpoint = client.post("/v1/webhook_endpoints", json=hook).json()
        with inline.db.write() as session:
            owner = keys.ensure_project(session, "default")
            job = counting_kind.submit(session, owner.id, actor="test")
        inline.drain(job.id)
        retry = client.post(f"/v1/jobs/{job.id}/retry", json={"which": "all"}).json()
        inline.drain(retry["id"])
        with inline.db.read() as session:
            stored = stored_bytes.bytes_by_project(session)[owner.id]
        return {
            "listed": client.get("/v1/jobs", params={"kind": NAME}).json()["data"],
            "events": client.get(f"/v1/jobs/{job.id}/events").json()["data"],
            "deliveries": client.get(f"/v1/webhook_endpoints/{endpoint['id']}/deliveries").json()["data"],
            "event_types": client.get("/v1/webhook_event_types").json()["data"],
            "stored": stored,
            "console": document()["x-kinds"],
        }


def main(folder: str, url: str) -> None:
    json.dump(show(Path(folder), url), sys.stdout)
