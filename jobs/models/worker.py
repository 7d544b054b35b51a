"""Who works here, which models they serve, and facts about the deployment."""

from typing import Any

from sqlalchemy import String, Text
from sqlalchemy.orm import Mapped, mapped_column

from jobs.models.base import Base


class Worker(Base):
    """A live worker process. The leading dispatcher removes the row when `beat` stands still."""

    __tablename__ = "worker"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    pool: Mapped[str] = mapped_column(String(32))
    host: Mapped[str]
    pid: Mapped[int]
    started: Mapped[int]  # the process's start in clock ticks since boot: with pid, a process for certain
    queues: Mapped[list[Any]]
    models: Mapped[list[Any]]
    slots: Mapped[int]
    beat: Mapped[int] = mapped_column(default=0)
    state: Mapped[str] = mapped_column(String(16), default="starting")  # starting | ready | stopping
    created_at: Mapped[float]
    seen_at: Mapped[float]
    restarts: Mapped[int] = mapped_column(default=0)  # of its engine
    #: What it is at besides its claims: [queue, model, project_id, how many], as of its last beat. None: it never said.
    unclaimed: Mapped[list[Any] | None]


class Model(Base):
    """A model that an endpoint said it serves, so that a batch for it is valid while the endpoint is away."""

    __tablename__ = "model"

    id: Mapped[str] = mapped_column(String(255), primary_key=True)
    queue: Mapped[str] = mapped_column(String(64))
    owned_by: Mapped[str] = mapped_column(String(64), default="endpoint")
    external: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[float]
    seen_at: Mapped[float]


class Pause(Base):
    """What the operator has paused, or a worker itself for a reason. See `jobs.pauses`."""

    __tablename__ = "pause"

    scope: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    reason: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[float]


class Meta(Base):
    """A fact about this deployment, by name."""

    __tablename__ = "meta"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(Text)
