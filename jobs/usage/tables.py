"""Tables of what is used, what it costs, and how much of it a project may have. Empty ids stand for the organization.

transaction of the work ──insert──▶ usage_change ──the leading dispatcher──▶ usage_minute, spend
"""

from typing import Any

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from jobs.db.base import Base, Serial


class UsageMinute(Base):
    """The work of one minute, by what it belongs to. `minute` is its beginning, in unix seconds.

    `key_id` is empty where no key made the work; `model` is a name of the registry, or `other`. `tier` is the service
    tier that ran it. `subject` is the vector store of a search, `cache` for answers from the cache, else empty. `cost`
    is in millionths of a US dollar; null where a price was missing. `device_seconds` are those of training.
    """

    __tablename__ = "usage_minute"

    minute: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    project_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    key_id: Mapped[str] = mapped_column(String(16), primary_key=True, default="")
    model: Mapped[str] = mapped_column(primary_key=True, default="")
    endpoint: Mapped[str] = mapped_column(String(64), primary_key=True)
    batch: Mapped[bool] = mapped_column(primary_key=True, default=False)
    tier: Mapped[str] = mapped_column(String(16), primary_key=True, default="default")
    subject: Mapped[str] = mapped_column(String(64), primary_key=True, default="")
    requests: Mapped[int] = mapped_column(default=0)
    input_tokens: Mapped[int] = mapped_column(default=0)
    cached_tokens: Mapped[int] = mapped_column(default=0)
    output_tokens: Mapped[int] = mapped_column(default=0)
    reasoning_tokens: Mapped[int] = mapped_column(default=0)
    device_seconds: Mapped[float] = mapped_column(default=0.0)
    cost: Mapped[int | None]

    __table_args__ = (Index("ix_usage_minute_project", "project_id", "minute"),)


class UsageChange(Base):
    """Usage that a transaction recorded and that is not added to its minutes yet. `rows` are lists of values."""

    __tablename__ = "usage_change"

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    rows: Mapped[list[Any]]

    __table_args__ = ({"sqlite_autoincrement": True},)


class StoredBytesDay(Base):
    """The bytes of a project's vector stores on one day, sampled once. `day` is its beginning, in unix seconds."""

    __tablename__ = "stored_bytes_day"

    day: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    project_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    bytes: Mapped[int]


class Price(Base):
    """The price of a million tokens of a model since a time, in US dollars. `kind` is a word of `jobs.usage.prices`."""

    __tablename__ = "price"

    model: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    since: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    usd_per_million: Mapped[float]
    created_at: Mapped[float]


class Spend(Base):
    """The cost of a calendar month in UTC, in millionths of a US dollar: the sum of its `usage_minute.cost`.

    `month` is its beginning, in unix seconds.
    """

    __tablename__ = "spend"

    project_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    month: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    amount: Mapped[int] = mapped_column(default=0)


class Reservation(Base):
    """The most that a request may cost, in millionths of a US dollar, until its usage is recorded.

    `id` is that of a request. One that nobody removes ends at `expires_at`.
    """

    __tablename__ = "reservation"

    id: Mapped[str] = mapped_column(String(96), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64), index=True)
    amount: Mapped[int]
    expires_at: Mapped[float] = mapped_column(index=True)


class SpendLimit(Base):
    """The most that a project, or the organization, may spend in a calendar month, in US cents."""

    __tablename__ = "spend_limit"

    project_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    cents: Mapped[int]
    updated_at: Mapped[float]


class SpendAlert(Base):
    """Whom to tell when a month's cost reaches `cents`. `fired_month` is the last month in which it did."""

    __tablename__ = "spend_alert"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    cents: Mapped[int]
    recipients: Mapped[list[Any]]
    subject_prefix: Mapped[str | None]
    created_at: Mapped[float]
    fired_month: Mapped[int | None]

    __table_args__ = (Index("ix_spend_alert_project", "project_id", "created_at", "id"),)


class RateLimit(Base):
    """The rate limits of a project for a model: null is no limit. `model` is a name of the registry."""

    __tablename__ = "rate_limit"

    project_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    requests_per_minute: Mapped[int | None]
    tokens_per_minute: Mapped[int | None]
    requests_per_day: Mapped[int | None]
    enqueued_tokens: Mapped[int | None]  # of batches that have not ended
    updated_at: Mapped[float]
