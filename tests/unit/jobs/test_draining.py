"""Work besides claims is counted, and a pause knows when every worker that it concerns has reported it."""

from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import Database
from jobs.fleet import workers
from jobs.fleet.workers import HEARTBEATS_TO_ACKNOWLEDGE, Acknowledgement
from jobs.ledger import events, pauses
from jobs.ledger.pauses import Scope
from jobs.queues import Queue
from jobs.webhooks.claims import DeliveryClaim, claim_due, release_claims
from jobs.webhooks.tables import Delivery, WebhookEndpoint
from tests.support.worker_rows import worker_row


def pending(db: Database, count: int = 1, project: str = "proj_1") -> None:
    """So many deliveries to one endpoint, due now."""
    with db.write() as session:
        session.add(
            WebhookEndpoint(
                id="we_1",
                project_id=project,
                name="one",
                url="https://example.com/",
                event_types=["batch.completed"],
                secret="whsec_x",
                created_at=now(),
            )
        )
        session.flush()
        for n in range(count):
            facts: Any = {"project_id": project, "type": "batch.completed", "data": {"id": f"b{n}"}}
            event = events.record(session, subject_id=f"b{n}", seq=1, **facts)
            session.flush()
            events.fan_out(session, event)


def pause(db: Database, scope: Scope, name: str, *, on: bool = True) -> None:
    with db.write() as session:
        assert (pauses.pause if on else pauses.resume)(session, scope, name, actor="operator")


def claim(db: Database, worker: str = "io-1") -> list[DeliveryClaim]:
    with db.write() as session:
        return claim_due(session, worker)


def register(db: Database, name: str, queue: str, *other_work: list[Any]) -> None:
    row = worker_row(name, queue, slots=1, created_at=now(), seen_at=now(), other_work=list(other_work))
    with db.write() as session:
        workers.register(session, row)


def heartbeat(db: Database, *names: str, **changes: Any) -> None:
    with db.write() as session:
        for name in names:
            assert workers.heartbeat(session, name, **changes)


def other_work(db: Database, scope: Scope, name: str) -> int:
    with db.read() as session:
        return workers.other_work_at(session, scope, name)


@pytest.mark.parametrize(("scope", "name"), [(Scope.QUEUE, Queue.WEBHOOKS.value), (Scope.WORKER, "io-1")])
def test_pause_of_sending_leaves_pending_deliveries_and_attempts_unchanged(
    db: Database, scope: Scope, name: str
) -> None:
    pending(db, 3)
    pause(db, scope, name)

    refused = claim(db)
    with db.read() as session:
        rows = session.execute(select(Delivery.state, Delivery.attempts, Delivery.worker_id)).all()
    pause(db, scope, name, on=False)

    assert refused == []
    assert [tuple(row) for row in rows] == [("pending", 0, None)] * 3
    assert [one.attempt for one in claim(db)] == [1, 1]


def test_pause_of_worker_does_not_stop_sending_by_other_workers(db: Database) -> None:
    pending(db)
    pause(db, Scope.WORKER, "io-1")

    assert (len(claim(db, "io-1")), len(claim(db, "io-2"))) == (0, 1)


def test_paused_project_still_receives_webhooks(db: Database) -> None:
    pending(db, project="proj_1")
    pause(db, Scope.PROJECT, "proj_1")

    assert len(claim(db)) == 1


def test_deliveries_in_flight_are_counted_at_their_worker_and_their_queue(db: Database) -> None:
    pending(db, 2)
    claims = claim(db, "io-1")

    counts = [
        other_work(db, Scope.WORKER, "io-1"),
        other_work(db, Scope.WORKER, "io-2"),
        other_work(db, Scope.QUEUE, Queue.WEBHOOKS),
        other_work(db, Scope.QUEUE, Queue.GENERATE),
        other_work(db, Scope.PROJECT, "proj_1"),
    ]
    with db.write() as session:
        release_claims(session, claims)

    assert counts == [2, 0, 2, 0, 0]
    assert other_work(db, Scope.WORKER, "io-1") == 0


def test_work_reported_by_workers_is_counted_in_each_scope(db: Database) -> None:
    register(db, "gpu-1", Queue.GENERATE, [Queue.GENERATE, "m", "blue", 3], [Queue.GENERATE, "n", "red", 1])
    register(db, "gpu-2", Queue.GENERATE, [Queue.GENERATE, "m", "red", 5])
    register(db, "cpu-1", Queue.INGEST, [Queue.INGEST, "", "", 1])

    asked = [
        (Scope.WORKER, "gpu-1"),
        (Scope.WORKER, "gpu-3"),
        (Scope.QUEUE, Queue.GENERATE.value),
        (Scope.QUEUE, Queue.INGEST.value),
        (Scope.MODEL, "m"),
        (Scope.PROJECT, "red"),
    ]
    assert [other_work(db, scope, name) for scope, name in asked] == [4, 0, 9, 1, 8, 6]


@pytest.mark.parametrize(
    ("scope", "name", "concerned"),
    [
        (Scope.WORKER, "gpu-1", ["gpu-1"]),
        (Scope.QUEUE, Queue.GENERATE.value, ["gpu-1", "gpu-2"]),
        (Scope.MODEL, "m", ["cpu-1", "gpu-1", "gpu-2"]),
        (Scope.PROJECT, "blue", ["cpu-1", "gpu-1", "gpu-2"]),
    ],
)
def test_a_worker_has_heard_of_a_pause_after_three_heartbeat(
    db: Database, scope: Scope, name: str, concerned: list[str]
) -> None:
    for worker, queue in (("gpu-1", Queue.GENERATE), ("gpu-2", Queue.GENERATE), ("cpu-1", Queue.INGEST)):
        register(db, worker, queue)
        heartbeat(db, worker)
    acknowledgement = Acknowledgement()

    waits = []
    for _ in range(HEARTBEATS_TO_ACKNOWLEDGE + 1):
        with db.read() as session:
            waits.append(sorted(acknowledgement.pending_workers(workers.heartbeats(session, scope, {name}))))
        heartbeat(db, "gpu-1", "gpu-2", "cpu-1")

    assert waits == [concerned] * HEARTBEATS_TO_ACKNOWLEDGE + [[]]


def _of_worker(session: Session) -> dict[str, int]:
    return workers.heartbeats(session, Scope.WORKER, {"gpu-1"})


def test_news_between_two_heartbeat_count_for_none(db: Database) -> None:
    register(db, "gpu-1", Queue.GENERATE)
    acknowledgement = Acknowledgement()

    for _ in range(HEARTBEATS_TO_ACKNOWLEDGE + 1):
        with db.read() as session:
            assert acknowledgement.pending_workers(_of_worker(session)) == ["gpu-1"]
        heartbeat(db, "gpu-1", heartbeats=0)


def test_acknowledgement_requires_reregistered_worker_and_ignores_departed(db: Database) -> None:
    register(db, "gpu-1", Queue.GENERATE)
    for _ in range(5):
        heartbeat(db, "gpu-1")
    acknowledgement = Acknowledgement()
    with db.read() as session:
        acknowledgement.pending_workers(_of_worker(session))
    with db.write() as session:
        workers.leave(session, "gpu-1")
    with db.read() as session:
        gone = acknowledgement.pending_workers(_of_worker(session))
    register(db, "gpu-1", Queue.GENERATE)
    with db.read() as session:
        back = acknowledgement.pending_workers(_of_worker(session))

    for _ in range(HEARTBEATS_TO_ACKNOWLEDGE):
        heartbeat(db, "gpu-1")
    with db.read() as session:
        assert (gone, back, acknowledgement.pending_workers(_of_worker(session))) == ([], ["gpu-1"], [])
