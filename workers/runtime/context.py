"""The collaborators of a worker process, built once and handed to the handlers."""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jobs.clock import now
from jobs.db.engine import Database
from jobs.db.hosts import claim_host
from jobs.errors import StorageFull
from jobs.fleet.models_file import ModelConfig, Models
from jobs.fleet.tables import Worker
from jobs.ids import new_id
from jobs.platform import processes
from jobs.platform.storage import Storage, open_storage
from jobs.settings import Settings
from jobs.timings import Timings
from jobs.usage.budgets import LimitedProjects
from workers.runtime.heartbeat import Heartbeat
from workers.runtime.usage_counter import UsageCounter
from workers.vectors.base import Vectors
from workers.vectors.open_vectors import claim_vectors, deployment_name, open_vectors

log = logging.getLogger(__name__)
#: Connections to PostgreSQL. Each is a process there, which competes with those of the API for the CPU.
_CONNECTIONS = 4
_WRITES_BEFORE_TENDING = 64  # entries written since the last tending are searched without an index, slowly


@dataclass(slots=True)
class WorkerStatus:
    """The worker's description of itself, written by each heartbeat."""

    state: str = "ready"
    models: tuple[str, ...] = ()
    restarts: int = 0
    host_devices: str | None = None
    sandbox_lacks: list[str] | None = None  # see `jobs.fleet.tables.Worker`
    engines: dict[str, Any] = field(default_factory=dict)  # see `workers.runtime.quarantine`
    training: dict[str, Any] | None = None  # see `jobs.fleet.tables.Worker`
    phase_of: Callable[[str], str] = lambda _model: ""  # the step at which the engine of a model starts

    def describe_engines(self) -> dict[str, Any]:
        """Return `engines` with the phase of each engine that starts."""
        return {name: how if how["up"] else {**how, "phase": self.phase_of(name)} for name, how in self.engines.items()}


class LazyVectors:
    """The vector database, opened at the first use: most processes never need it."""

    def __init__(self, db: Database | None = None) -> None:
        self._db = db
        self._lock = threading.Lock()
        self._opened: Vectors | None = None
        self._writes = Counter[str]()

    def count_write(self, store_id: str) -> bool:
        """Count a write to a store; return whether the store should be tended now."""
        with self._lock:
            self._writes[store_id] += 1
            if self._writes[store_id] < _WRITES_BEFORE_TENDING:
                return False
            del self._writes[store_id]
            return True

    def get(self, config: Settings) -> Vectors:
        """Return the vector database; open it at the first call.

        Raises:
            VectorsUnavailable: The configured database is not the deployment's.
        """
        with self._lock:
            if self._opened is None:
                folder = config.data_dir.absolute() / "vectors"
                owner = ""
                if self._db is not None:
                    claim_vectors(self._db, config.vectors_url, folder)
                    owner = deployment_name(self._db)
                self._opened = open_vectors(config.vectors_url, folder, config.vectors_api_key, owner)
            return self._opened


@dataclass(frozen=True, slots=True)
class Context:
    """Everything that a handler may use."""

    config: Settings
    db: Database
    storage: Storage
    worker_id: str
    stop: threading.Event
    standing: WorkerStatus
    heartbeat: Heartbeat
    models: Models
    lazy_vectors: LazyVectors = field(default_factory=LazyVectors)
    timings: Timings = Timings()
    limited_projects: LimitedProjects = field(default_factory=LimitedProjects)
    usage: UsageCounter = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "usage", UsageCounter(self.db))

    @property
    def vectors(self) -> Vectors:
        return self.lazy_vectors.get(self.config)

    def price_source(self, name: str) -> ModelConfig | None:
        """Return the model whose prices hold for a name, if the models file has it. Raises ModelsFileError."""
        return self.models.now().price_source(name)

    def low_on_disk(self) -> bool:
        """Return whether the disk has too little space for results: work then waits, and does not fail."""
        try:
            free = self.storage.free()
        except StorageFull:
            return True
        return free is not None and free < self.config.min_free_bytes


@dataclass(frozen=True, slots=True)
class Pool:
    """One line of the Procfile: a pool's queues, and the number of tasks that it runs at once."""

    name: str
    queues: tuple[str, ...]
    slots: int
    state: str = "ready"
    models: tuple[str, ...] = field(default=())


def build(config: Settings, pool: Pool, timings: Timings = Timings()) -> Context:
    """Build the context of this process: write its worker row and start its heartbeats."""
    db = Database(config.database, patience=10, max_connections=_CONNECTIONS)
    claim_host(db)
    stop = threading.Event()
    standing = WorkerStatus(state=pool.state, models=pool.models, host_devices=processes.host_devices())
    worker_id = new_id(f"{pool.name}-")
    describe = _describe(worker_id, pool, standing)
    heartbeat = Heartbeat(db, describe, heartbeat_seconds=config.heartbeat_seconds, stop=stop, timings=timings)
    heartbeat.start()
    log.info("worker_started", extra={"pool": pool.name, "worker": worker_id, "queues": list(pool.queues)})
    storage, models = open_storage(config.storage), Models(config)
    return Context(config, db, storage, worker_id, stop, standing, heartbeat, models, LazyVectors(db), timings)


def _describe(worker_id: str, pool: Pool, standing: WorkerStatus) -> Callable[[], Worker]:
    host, pid, start = processes.me()

    def describe() -> Worker:
        return Worker(
            id=worker_id,
            pool=pool.name,
            host=host,
            pid=pid,
            started=start,
            queues=list(pool.queues),
            models=list(standing.models),
            slots=pool.slots,
            state=standing.state,
            restarts=standing.restarts,
            host_devices=standing.host_devices,
            engines=standing.describe_engines(),
            training=standing.training,
            sandbox_lacks=standing.sandbox_lacks,
            created_at=now(),
            seen_at=now(),
        )

    return describe
