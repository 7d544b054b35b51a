"""Endpoints, events and deliveries to test with, and what is done with them."""

from dataclasses import replace

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import Database
from jobs.ledger import events
from jobs.ledger.tables import Job
from jobs.settings import Settings
from jobs.webhooks import outcomes
from jobs.webhooks.claims import DeliveryClaim, claim_due
from jobs.webhooks.deliveries import PARKED_UNTIL
from jobs.webhooks.sending import AttemptOutcome, new_secret
from jobs.webhooks.tables import Delivery, WebhookEndpoint

CONFIG = Settings(webhook_retry_seconds=(0, 10, 100))

OK = AttemptOutcome(200, None, None, 0.01)

BROKEN = AttemptOutcome(500, "status 500", None, 0.01)

GONE = AttemptOutcome(410, "status 410", None, 0.01)


def middle() -> float:
    return 0.5


def endpoint(db: Database, name: str = "we_1", **fields: object) -> WebhookEndpoint:
    made = WebhookEndpoint(
        id=name,
        project_id="proj_1",
        name=name,
        url=f"https://{name.replace('_', '-')}.example.com/",
        event_types=["batch.completed", "webhook_endpoint.disabled"],
        secret=new_secret(),
        created_at=now(),
        **fields,
    )
    with db.write() as session:
        session.add(made)
    return made


def job(db: Database, name: str = "batch_1", url: str | None = None) -> Job:
    made = Job(
        id=name,
        project_id="proj_1",
        kind="generation",
        payload={},
        deadline=now() + 60,
        created_at=now(),
        webhook_url=url,
        webhook_secret=new_secret() if url else None,
    )
    with db.write() as session:
        session.add(made)
    return made


def happen(db: Database, subject: str, count: int = 1, of: Job | None = None) -> None:
    """`batch.completed`, `count` times, as the ledger writes it."""
    with db.write() as session:
        for n in range(count):
            event = events.record(
                session,
                subject_id=f"{subject}-{n}",
                seq=1,
                project_id="proj_1",
                type="batch.completed",
                data={"id": subject},
            )
            session.flush()
            events.fan_out(session, event, of)


def claim(db: Database, worker: str = "io-1", **limits: object) -> list[DeliveryClaim]:
    with db.write() as session:
        return claim_due(session, worker, **limits)  # type: ignore[arg-type]


def record(db: Database, claim: DeliveryClaim, outcome: AttemptOutcome, at: float | None = None) -> int:
    """Record an attempt that began at `at`, or now."""
    with db.write() as session:
        return outcomes.record(session, [(claim, replace(outcome, at=at or now()))], CONFIG, middle)


def only(db: Database) -> Delivery:
    with db.read() as session:
        return session.scalars(select(Delivery)).one()


def hurry(session: Session) -> None:
    """Make everything that waits due now."""
    session.execute(update(Delivery).where(Delivery.due_at < PARKED_UNTIL).values(due_at=now()))


def fail_now(db: Database, outcome: AttemptOutcome = BROKEN, at: float | None = None) -> None:
    """Fail one attempt of the one delivery there is."""
    with db.write() as session:
        hurry(session)
    (held,) = claim(db)
    assert record(db, held, outcome, at) == 1
