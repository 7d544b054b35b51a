"""Tables of workers, of the models that they serve, and of facts about the deployment."""

from typing import Any

from sqlalchemy import Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from jobs.db.base import Base, Serial


class Worker(Base):
    """A live worker process. The leading dispatcher removes the row when its heartbeats stop."""

    __tablename__ = "worker"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    pool: Mapped[str] = mapped_column(String(32))
    host: Mapped[str]
    pid: Mapped[int]
    started: Mapped[int]  # the process's start in clock ticks since boot: with `pid` it identifies the process
    queues: Mapped[list[Any]]
    models: Mapped[list[Any]]
    slots: Mapped[int]
    heartbeat: Mapped[int] = mapped_column(default=0)
    state: Mapped[str] = mapped_column(String(16), default="starting")  # starting | ready | stopping
    created_at: Mapped[float]
    seen_at: Mapped[float]
    restarts: Mapped[int] = mapped_column(default=0)  # of its engine
    host_devices: Mapped[str | None]  # its host, and the devices that it may use
    #: The engines in its process: model → {entry, up, since}, and `phase` while not up. See `jobs.fleet.quarantine`.
    engines: Mapped[dict[str, Any] | None]
    #: What it can train, as `workers.engines.training.capabilities` found: device, free_bytes, qlora, fault. None: not
    #: known, or it trains nothing.
    training: Mapped[dict[str, Any] | None]
    #: What it is at besides its claims: [queue, model, project_id, how many], as of its last heartbeat. None: it never
    #: said.
    other_work: Mapped[list[Any] | None]
    #: The parts that the sandbox of python graders lacks in its process. None: it runs none, or has not looked yet.
    sandbox_lacks: Mapped[list[Any] | None]


class EngineDeath(Base):
    """An engine that died or did not come up, by itself or with its worker. See `jobs.fleet.quarantine`."""

    __tablename__ = "engine_death"
    __table_args__ = (Index("ix_engine_death_host_devices", "host_devices", "model"),)

    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    host_devices: Mapped[str]
    model: Mapped[str]
    entry: Mapped[str] = mapped_column(String(64))
    worker_id: Mapped[str] = mapped_column(String(64))
    starting: Mapped[bool]  # it had not come up yet
    error: Mapped[str] = mapped_column(Text)
    suspects: Mapped[list[Any]]
    lines: Mapped[list[Any]]  # the end of the log
    created_at: Mapped[float]


class Quarantine(Base):
    """An engine that is quarantined on some devices, or is on trial there."""

    __tablename__ = "quarantine"

    host_devices: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    entry: Mapped[str] = mapped_column(String(64))
    deaths: Mapped[int]
    error: Mapped[str] = mapped_column(Text)
    suspects: Mapped[list[Any]]
    lines: Mapped[list[Any]]
    trial: Mapped[str | None] = mapped_column(String(64))  # the worker whose trial it is
    tries: Mapped[int]
    created_at: Mapped[float]
    until: Mapped[float]  # when the next trial may begin


class Model(Base):
    """A model that an endpoint serves; batches for it stay valid while the endpoint is unavailable."""

    __tablename__ = "model"

    id: Mapped[str] = mapped_column(String(255), primary_key=True)
    queue: Mapped[str] = mapped_column(String(64))
    owned_by: Mapped[str] = mapped_column(String(64), default="endpoint")
    external: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[float]
    seen_at: Mapped[float]


class Pause(Base):
    """A pause by the operator, or by a worker of itself. See `jobs.ledger.pauses`."""

    __tablename__ = "pause"

    scope: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    reason: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[float]


class Measure(Base):
    """A bucket of a histogram: the durations above the bucket before and up to `le` seconds.

    See `jobs.ledger.measures`.
    """

    __tablename__ = "measure"

    name: Mapped[str] = mapped_column(String(16), primary_key=True)
    label: Mapped[str] = mapped_column(primary_key=True)
    le: Mapped[str] = mapped_column(String(16), primary_key=True)
    count: Mapped[int]
    seconds: Mapped[float]  # the sum of all durations


class MeasureChange(Base):
    """Hold what one transaction has counted: [name, label, le, count, seconds] of several measures."""

    __tablename__ = "measure_change"

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    changes: Mapped[list[Any]]


class Meta(Base):
    """A fact about this deployment, by name."""

    __tablename__ = "meta"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(Text)
