"""Tables of events, of webhook endpoints and of deliveries."""

from typing import Any

from sqlalchemy import Index, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from jobs.db.base import Base, Serial


class Event(Base):
    """An event of a job or an endpoint; `seq` is taken under that row's lock, without gaps.

    The same row feeds polling, SSE and webhooks. `position` is its number in the feed of its project, which the leading
    dispatcher assigns after the commit: see `jobs.ledger.feed`.
    """

    __tablename__ = "event"

    subject_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    project_id: Mapped[str] = mapped_column(String(64))
    type: Mapped[str] = mapped_column(String(64))
    data: Mapped[dict[str, Any]]
    created_at: Mapped[float]
    position: Mapped[int | None]

    __table_args__ = (
        Index("ix_event_project_created", "project_id", "created_at"),
        Index(
            "ix_event_position",
            "project_id",
            "position",
            unique=True,
            sqlite_where=text("position IS NOT NULL"),
            postgresql_where=text("position IS NOT NULL"),
        ),
        Index(
            "ix_event_unnumbered",
            "subject_id",
            "seq",
            sqlite_where=text("position IS NULL"),
            postgresql_where=text("position IS NULL"),
        ),
    )


class EventHead(Base):
    """The end of a project's feed: the last `position` assigned, and the last one `removed`."""

    __tablename__ = "event_head"

    project_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    position: Mapped[int] = mapped_column(default=0)
    removed: Mapped[int] = mapped_column(default=0)


class FeedCursor(Base):
    """The last `position` of a project's feed that a sink, a system of the operator, has received.

    `due_at` is when the sink may be sent more, or when the claim of the worker that sends ends. `failures` counts those
    since the last success.
    """

    __tablename__ = "feed_cursor"

    sink: Mapped[str] = mapped_column(String(16), primary_key=True)  # mlflow | openlineage
    project_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    position: Mapped[int]
    failures: Mapped[int]
    due_at: Mapped[float]


class WebhookEndpoint(Base):
    """The URL that a project wants its events at. Its secrets are stored readable, because signing needs them.

    `older_secrets` are those before `old_secret` that still sign, newest first: [secret, until].
    """

    __tablename__ = "webhook_endpoint"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    name: Mapped[str]
    url: Mapped[str] = mapped_column(Text)
    event_types: Mapped[list[Any]]
    secret: Mapped[str]
    old_secret: Mapped[str | None]
    old_secret_until: Mapped[float | None]
    older_secrets: Mapped[list[Any] | None]
    created_at: Mapped[float]
    updated_at: Mapped[float | None]
    disabled_at: Mapped[float | None]
    disabled_reason: Mapped[str | None]
    failing_since: Mapped[float | None]
    event_seq: Mapped[int] = mapped_column(default=0)

    __table_args__ = (Index("ix_webhook_endpoint_project", "project_id", "created_at", "id"),)


class Delivery(Base):
    """An event to be sent to one receiver: pending → delivered | failed. Its id is the stable `webhook-id`.

    With `endpoint_id` the endpoint's URL and secrets apply, otherwise those of the job's own webhook. A claim is
    `worker_id` and `epoch`; it is revoked when the worker's heartbeats stop.
    """

    __tablename__ = "delivery"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    event_id: Mapped[str] = mapped_column(String(64))
    endpoint_id: Mapped[str | None] = mapped_column(String(64))
    job_id: Mapped[str | None] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16), default="pending")
    attempts: Mapped[int] = mapped_column(default=0)
    due_at: Mapped[float]
    worker_id: Mapped[str | None] = mapped_column(String(64))
    epoch: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[float]
    delivered_at: Mapped[float | None]
    status_code: Mapped[int | None]
    error: Mapped[str | None]

    __table_args__ = (
        Index(
            "ix_delivery_due",
            "due_at",
            sqlite_where=text("state = 'pending' AND worker_id IS NULL"),
            postgresql_where=text("state = 'pending' AND worker_id IS NULL"),
        ),
        Index(
            "ix_delivery_claimed",
            "worker_id",
            sqlite_where=text("worker_id IS NOT NULL"),
            postgresql_where=text("worker_id IS NOT NULL"),
        ),
        Index(
            "ix_delivery_failed",
            "created_at",
            sqlite_where=text("state = 'failed'"),
            postgresql_where=text("state = 'failed'"),
        ),
        Index("ix_delivery_endpoint", "endpoint_id", "created_at", "id"),
        Index("ix_delivery_event", "event_id"),
    )


class Attempt(Base):
    """An attempt of a delivery."""

    __tablename__ = "attempt"

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    delivery_id: Mapped[str] = mapped_column(String(64), index=True)
    n: Mapped[int]
    at: Mapped[float] = mapped_column(index=True)
    seconds: Mapped[float]
    status_code: Mapped[int | None]
    error: Mapped[str | None]
